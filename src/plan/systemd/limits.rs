//! Resources as properties of a scope: what systemd must know, for it writes the files of its units
//! anew whenever it is reloaded. Pure.
//!
//! The files are written by us as well, and with the same values. What systemd has no property for
//! (`hugetlb.*`, `rdma.max`, `io.max`) it leaves alone.

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::Property;
use crate::error::{Error, Result};
use crate::plan::cgroup::{Live, bytes, io_weight, pids_max, spread, swap_max, weight};

/// `CPUWeight=idle`, by a weight of 0.
const IDLE_VERSION: u32 = 252;
/// `OOMPolicy` of a scope.
const OOM_POLICY_VERSION: u32 = 253;
/// systemd's "infinity".
const MAX: u64 = u64::MAX;
const SECOND: i64 = 1_000_000;
/// systemd counts quotas in percents of a CPU.
const PERCENT: i64 = SECOND / 100;
const PERIOD: u64 = 100_000;

/// Whether the version of systemd makes a difference.
pub fn asks_for_version(resources: &LinuxResources) -> bool {
    let unified = |key: &str| resources.unified().as_ref().is_some_and(|all| all.contains_key(key));
    let idle = resources.cpu().as_ref().is_some_and(|cpu| cpu.idle() == Some(1));
    idle || unified("cpu.idle") || unified("memory.oom.group")
}

/// The same resources with the quota that systemd will make of theirs: what is then written to the
/// files must not differ.
pub fn rounded(resources: &LinuxResources, live: Option<Live>) -> LinuxResources {
    let mut resources = resources.clone();
    if let Some(cpu) = resources.cpu_mut()
        && let Some((quota, period)) = quota(cpu, live)
        && quota > 0
    {
        // A division loses something: what is whole percents already stays as it is.
        let rounded = match exact(quota, period) % i128::from(PERCENT) {
            0 => i128::from(quota),
            _ => i128::from(per_second(quota, period)) * i128::from(period) / i128::from(SECOND),
        };
        cpu.set_quota(i64::try_from(rounded).ok());
    }
    resources
}

/// What is asked for. `live` is given for an update.
pub fn limits(
    resources: &LinuxResources,
    live: Option<Live>,
    version: u32,
) -> Result<Vec<Property>> {
    let mut all = Vec::new();
    if let Some(memory) = resources.memory() {
        let limit = bytes("limit", memory.limit())?;
        let swap = swap_max(limit, bytes("swap", memory.swap())?)?;
        let reservation = bytes("reservation", memory.reservation())?;
        let named = [("MemoryMax", limit), ("MemoryLow", reservation), ("MemorySwapMax", swap)];
        all.extend(named.into_iter().filter_map(|(name, value)| Some(amount(name, value?))));
    }
    if let Some(cpu) = resources.cpu() {
        cpu_time(cpu, live, version, &mut all);
        cpuset("AllowedCPUs", cpu.cpus().as_deref(), &mut all)?;
        cpuset("AllowedMemoryNodes", cpu.mems().as_deref(), &mut all)?;
    }
    if let Some(pids) = resources.pids() {
        all.push(Property::new("TasksMax", pids_max(pids.limit()).parse().unwrap_or(MAX)));
    }
    let weight = resources.block_io().as_ref().and_then(|io| io.weight());
    if let Some(weight) = io_weight(weight)? {
        all.push(Property::new("IOWeight", spread(weight)));
    }
    for (file, value) in sorted(resources) {
        all.extend(of_file(file, value.trim(), version)?);
    }
    // An idle scope has no weight, as its cgroup.
    let idle = Property::new("CPUWeight", 0u64);
    if all.contains(&idle) {
        all.retain(|property| property.name != "CPUWeight");
        all.push(idle);
    }
    Ok(all)
}

/// What takes properties back: those that stand for what the files had.
pub fn of_files<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Property> {
    let read = files.filter_map(|(file, value)| of_file(file, value.trim(), 0).ok());
    read.flatten().collect()
}

fn sorted(resources: &LinuxResources) -> Vec<(&String, &String)> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort();
    files
}

/// -1: no limit.
fn amount(name: &str, value: i64) -> Property {
    Property::new(name, u64::try_from(value).unwrap_or(MAX))
}

/// Quota and period, if either is given; 0: the quota is not.
fn quota(cpu: &LinuxCpu, live: Option<Live>) -> Option<(i64, u64)> {
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota == 0 && period == 0 {
        return None;
    }
    let quota = if quota == 0 { live.and_then(|live| live.quota).unwrap_or(0) } else { quota };
    let known = live.and_then(|live| live.period).unwrap_or(PERIOD);
    Some((quota, if period == 0 { known } else { period }))
}

/// A quota as a part of a second.
fn exact(quota: i64, period: u64) -> i128 {
    i128::from(quota) * i128::from(SECOND) / i128::from(period.max(1))
}

/// The same in whole percents, upwards.
fn per_second(quota: i64, period: u64) -> u64 {
    let percent = i128::from(PERCENT);
    u64::try_from((exact(quota, period) + percent - 1) / percent * percent).unwrap_or(MAX)
}

fn cpu_quota(quota: i64, period: u64, all: &mut Vec<Property>) {
    let share = if quota > 0 { per_second(quota, period) } else { MAX };
    all.push(Property::new("CPUQuotaPeriodUSec", period));
    all.push(Property::new("CPUQuotaPerSecUSec", share));
}

fn cpu_time(cpu: &LinuxCpu, live: Option<Live>, version: u32, all: &mut Vec<Property>) {
    if cpu.idle() == Some(1) && version >= IDLE_VERSION {
        all.push(Property::new("CPUWeight", 0u64));
    } else if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        all.push(Property::new("CPUWeight", weight(shares)));
    } else if cpu.idle() == Some(0) && live.is_some_and(|live| live.idle) {
        // The kernel's own of a cgroup that is idle no more. systemd would make it idle again.
        all.push(Property::new("CPUWeight", 100u64));
    }
    if let Some((quota, period)) = quota(cpu, live) {
        cpu_quota(quota, period, all);
    }
}

fn cpuset(name: &str, list: Option<&str>, all: &mut Vec<Property>) -> Result<()> {
    if let Some(list) = list.filter(|list| !list.is_empty()) {
        all.push(Property::new(name, bits(list)?));
    }
    Ok(())
}

/// `1,3-5` as a mask, the lowest CPU or node first.
fn bits(list: &str) -> Result<Vec<u8>> {
    let invalid = || Error::invalid(format!("cpuset {list:?}"));
    let mut mask = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| invalid());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(invalid());
        }
        for bit in first..=last {
            let at = usize::from(bit / 8);
            if mask.len() <= at {
                mask.resize(at + 1, 0u8);
            }
            mask[at] |= 1 << (bit % 8);
        }
    }
    Ok(mask)
}

/// What a file of the kernel's stands for; nothing, where systemd has no property.
fn of_file(file: &str, value: &str, version: u32) -> Result<Vec<Property>> {
    let invalid = || Error::invalid(format!("linux.resources.unified: {file:?}: {value:?}"));
    let number = |text: &str| match text {
        "max" => Ok(MAX),
        text => text.parse::<u64>().map_err(|_| invalid()),
    };
    let name = match file {
        "cpu.weight" => "CPUWeight",
        "io.weight" => "IOWeight",
        "cpuset.cpus" => "AllowedCPUs",
        "cpuset.mems" => "AllowedMemoryNodes",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.idle" if value == "1" && version >= IDLE_VERSION => {
            return Ok(vec![Property::new("CPUWeight", 0u64)]);
        }
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = number(words.next().ok_or_else(invalid)?)?;
            let period = words.next().map_or(Ok(PERIOD), number)?;
            let mut all = Vec::new();
            cpu_quota(i64::try_from(quota).unwrap_or(-1), period, &mut all);
            return Ok(all);
        }
        _ => return Ok(Vec::new()),
    };
    Ok(vec![match file {
        "cpuset.cpus" | "cpuset.mems" => Property::new(name, bits(value)?),
        // systemd has no 0 for it.
        "pids.max" => Property::new(name, number(value)?.max(1)),
        // `default 100`; of single devices systemd is told nothing.
        "io.weight" => match value.strip_prefix("default ").unwrap_or(value) {
            value if value.contains(':') => return Ok(Vec::new()),
            value => Property::new(name, number(value)?),
        },
        _ => Property::new(name, number(value)?),
    }])
}

/// Given when the scope starts; a running one keeps what it has.
pub(super) fn oom_policy(resources: &LinuxResources, version: u32) -> Result<Option<Property>> {
    let group = resources.unified().as_ref().and_then(|all| all.get("memory.oom.group"));
    Ok(match group.map(|value| value.trim()) {
        _ if version < OOM_POLICY_VERSION => None,
        Some("0") => Some(Property::new("OOMPolicy", "continue")),
        Some("1") => Some(Property::new("OOMPolicy", "kill")),
        _ => None,
    })
}
