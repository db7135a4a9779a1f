//! When, where and on which memory a process runs: `scheduler`, `ioPriority`, `execCPUAffinity`;
//! and what `linux` says of every process of a container: `personality`, `memoryPolicy`.
//!
//! All of it needs rights that are dropped later, and is after the cpuset that the process is put
//! in. It must never let pass what the kernel would take for something else.

use std::fmt;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag as Flag, LinuxSchedulerPolicy as Policy, MemoryPolicyFlagType,
    MemoryPolicyModeType as Mode, Process, Scheduler as Wanted,
};

use super::super::op::Scheduler;
use super::super::{Op, Plan};
use crate::error::{Error, Result};

/// No kernel has more.
const MOST_CPUS: usize = 8192;
const MOST_NODES: usize = 1024;

const SCHED_DEADLINE: u32 = 6;
const RESET_ON_FORK: u64 = 1;

/// CPUs or NUMA nodes, as the kernel's bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(pub Vec<u64>);

impl Set {
    /// A list as `0-3,7`.
    fn parse(field: &str, text: &str, most: usize) -> Result<Set> {
        let bad = |why: &str| Error::invalid(format!("{field}: {text:?} {why}"));
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let number = plain.then(|| text.parse::<usize>().unwrap_or(usize::MAX));
            match number {
                None => Err(bad("is not a list as 0-3,7")),
                Some(number) if number >= most => Err(bad(&format!("is beyond {}", most - 1))),
                Some(number) => Ok(number),
            }
        };
        let mut words = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return Err(bad("has a range that ends before it begins"));
            }
            words.resize(words.len().max(last / 64 + 1), 0u64);
            for n in first..=last {
                words[n / 64] |= 1 << (n % 64);
            }
        }
        Ok(Set(words))
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |n: usize| self.0.get(n / 64).is_some_and(|word| word >> (n % 64) & 1 != 0);
        let mut between = "";
        let mut n = 0;
        while n < self.0.len() * 64 {
            let first = n;
            while has(n) {
                n += 1;
            }
            match n - first {
                0 => n += 1,
                1 => write!(f, "{between}{first}")?,
                _ => write!(f, "{between}{first}-{}", n - 1)?,
            }
            if n > first && has(first) {
                between = ",";
            }
        }
        Ok(())
    }
}

/// What `linux` says of each process of a container, its execs too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    personality: Option<LinuxPersonality>,
    memory: Option<LinuxMemoryPolicy>,
}

impl Shared {
    /// Out of a container's spec.
    pub fn of(linux: &Linux) -> Shared {
        Shared { personality: linux.personality().clone(), memory: linux.memory_policy().clone() }
    }
}

/// Before an exec is put in its cpuset. Whether `execCPUAffinity.initial` is given: then the exec
/// must not be born in its cgroup.
pub fn initial_affinity(process: &Process) -> Result<Option<Set>> {
    let affinity = process.exec_cpu_affinity().as_ref();
    affinity_set("initial", affinity.and_then(|affinity| affinity.initial().as_deref()))
}

fn affinity_set(name: &str, list: Option<&str>) -> Result<Option<Set>> {
    let field = format!("process.execCPUAffinity.{name}");
    let list = list.filter(|list| !list.is_empty());
    list.map(|list| Set::parse(&field, list, MOST_CPUS)).transpose()
}

/// The CPUs of an exec, once it is in its cpuset.
pub(in crate::plan) fn exec_affinity(plan: &mut Plan, process: &Process) -> Result<()> {
    let affinity = process.exec_cpu_affinity().as_ref();
    let last = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref());
    match affinity_set("final", last)? {
        Some(cpus) => plan.ops.push(Op::Affinity { cpus }),
        None if initial_affinity(process)?.is_none() => plan.ops.push(Op::ResetAffinity),
        // The kernel's choice, says the specification.
        None => {}
    }
    Ok(())
}

/// All the others. `born`: the program's process is a child of the one that walks the plan.
pub(in crate::plan) fn apply(
    plan: &mut Plan,
    process: &Process,
    shared: &Shared,
    born: bool,
) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        let scheduler = of_spec(scheduler)?;
        // fork(2) of a deadline task is EAGAIN, and with the flag its child is as if none was set.
        if born && (scheduler.policy == SCHED_DEADLINE || scheduler.flags & RESET_ON_FORK != 0) {
            let text = "process.scheduler: SCHED_DEADLINE or SCHED_FLAG_RESET_ON_FORK for an exec";
            return Err(Error::unimplemented(text));
        }
        plan.ops.push(Op::Scheduler(scheduler));
    }
    if let Some(io) = process.io_priority() {
        let level = io.priority();
        if !(0..=7).contains(&level) {
            let text = format!("process.ioPriority.priority: {level} is not between 0 and 7");
            return Err(Error::invalid(text));
        }
        let class = match io.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        plan.ops.push(Op::IoPriority { class, level: level as u32 });
    }
    if let Some(personality) = &shared.personality {
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            return Err(Error::unimplemented("linux.personality.flags"));
        }
        let domain = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        };
        plan.ops.push(Op::Personality { domain });
    }
    if let Some(policy) = &shared.memory {
        let (mode, nodes) = memory(policy)?;
        plan.ops.push(Op::MemoryPolicy { mode, nodes });
    }
    Ok(())
}

/// As runc's validator, and no priority that the kernel would refuse without a word.
fn of_spec(scheduler: &Wanted) -> Result<Scheduler> {
    let policy = match scheduler.policy() {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIso => return Err(Error::unimplemented("process.scheduler: SCHED_ISO")),
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => SCHED_DEADLINE,
    };
    let named = scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        let text = format!("process.scheduler.nice: {nice} is not between -20 and 19");
        return Err(Error::invalid(text));
    }
    let (priority, real_time) = (scheduler.priority().unwrap_or(0), matches!(policy, 1 | 2));
    if real_time && !(1..=99).contains(&priority) {
        let text = format!("process.scheduler.priority: {priority} is not between 1 and 99");
        return Err(Error::invalid(text));
    }
    if !real_time && priority != 0 {
        let text = format!("process.scheduler.priority: {named} has none");
        return Err(Error::invalid(text));
    }
    let times = [
        ("runtime", scheduler.runtime().unwrap_or(0)),
        ("deadline", scheduler.deadline().unwrap_or(0)),
        ("period", scheduler.period().unwrap_or(0)),
    ];
    for (name, value) in times {
        if policy != SCHED_DEADLINE && value != 0 {
            return Err(Error::invalid(format!("process.scheduler.{name}: {named} has none")));
        }
    }
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                Flag::SchedResetOnFork => RESET_ON_FORK,
                Flag::SchedFlagReclaim => 0x02,
                Flag::SchedFlagDLOverrun => 0x04,
                Flag::SchedFlagKeepPolicy => 0x08,
                Flag::SchedFlagKeepParams => 0x10,
                Flag::SchedFlagUtilClampMin => 0x20,
                Flag::SchedFlagUtilClampMax => 0x40,
            }
    });
    let times = times.map(|(_, value)| value);
    Ok(Scheduler { policy, flags, nice, priority: priority as u32, times })
}

/// The mode with its flags, and the nodes.
fn memory(policy: &LinuxMemoryPolicy) -> Result<(u32, Set)> {
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let listed = policy.nodes().as_deref().filter(|nodes| !nodes.is_empty());
    let field = "linux.memoryPolicy.nodes";
    let nodes = listed.map(|nodes| Set::parse(field, nodes, MOST_NODES)).transpose()?;
    let named = policy.mode();
    match (policy.mode(), &nodes) {
        (Mode::MpolDefault | Mode::MpolLocal, Some(_)) => {
            return Err(Error::invalid(format!("{field}: {named} has none")));
        }
        (Mode::MpolDefault | Mode::MpolLocal | Mode::MpolPreferred, _) | (_, Some(_)) => {}
        (_, None) => return Err(Error::invalid(format!("{field}: {named} needs one"))),
    }
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    Ok((mode | flags, nodes.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, want) in [
            ("0", "0"),
            ("0-3,5", "0-3,5"),
            ("5,0-3,2", "0-3,5"),
            ("63,64,65", "63-65"),
            ("63-63,127-128", "63,127-128"),
            ("8191", "8191"),
        ] {
            assert_eq!(Set::parse("f", text, MOST_CPUS).unwrap().to_string(), want);
        }
        assert_eq!(Set::parse("f", "1,64", 65).unwrap(), Set(vec![2, 1]));
        for bad in ["", ",", "0,", "-1", "1-", "a", "0x1", "3-1", "8192", "+1", "1--2", "1-2-3"] {
            let error = Set::parse("f", bad, MOST_CPUS).unwrap_err();
            assert!(error.to_string().starts_with("f: "), "{error}");
        }
        let huge = "99999999999999999999999";
        assert_eq!(
            Set::parse("f", huge, 8).unwrap_err().to_string(),
            format!("f: {huge:?} is beyond 7")
        );
    }
}
