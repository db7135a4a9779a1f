//! `linux.seccomp.syscalls`, as what each number of an architecture is answered with.
//!
//! Rules mean what they mean to runc and libseccomp, their oddities included: a profile is written
//! against those. It must never drop a rule that makes a filter narrower.

use std::cmp::Ordering;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator as Operator, LinuxSyscall};

use super::arch::Arch;
use super::syscalls::{self, Names, Part};
use crate::error::{Error, Result};

/// A test of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub arg: usize,
    pub op: Operator,
    /// Bits that count, for `SCMP_CMP_MASKED_EQ`.
    pub mask: u64,
    pub value: u64,
}

/// What a system call with these arguments is answered with; all conditions have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub nr: u32,
    pub conditions: Vec<Condition>,
    pub answer: u32,
}

/// One architecture's part of a profile.
#[derive(Debug)]
pub struct Table {
    pub arch: Arch,
    /// Sorted by number; of one number in the order in which they are to be tried.
    pub rules: Vec<Rule>,
    /// The highest number that the profile names, even with the default action.
    pub highest: Option<u32>,
}

/// One entry of the profile, its action already in the kernel's words.
#[derive(Debug)]
pub struct Entry<'a> {
    pub field: String,
    pub syscall: &'a LinuxSyscall,
    pub answer: u32,
    /// Its action is the default: nothing to add, as runc sees it, not even as an exception from
    /// another rule of the same system call.
    pub redundant: bool,
}

/// The tables of `archs`. Names that no architecture has are left out and put into `unknown`.
pub fn tables(
    entries: &[Entry<'_>],
    archs: &[Arch],
    unknown: &mut Vec<String>,
) -> Result<Vec<Table>> {
    let table = |arch: &Arch| Table { arch: *arch, rules: Vec::new(), highest: None };
    let mut tables: Vec<Table> = archs.iter().map(table).collect();
    let names = Names::new();
    for entry in entries {
        let alternatives = alternatives(entry)?;
        for name in entry.syscall.names() {
            if name.is_empty() {
                return Err(Error::invalid(format!("{}: an empty name", entry.field)));
            }
            let Some(syscall) = names.find(name) else {
                unknown.push(name.clone());
                continue;
            };
            for table in &mut tables {
                table.add(name, syscall, entry, &alternatives);
            }
        }
    }
    for table in &mut tables {
        table.settle()?;
    }
    Ok(tables)
}

/// The conditions of an entry, one list for each rule that it stands for. Two conditions on one
/// argument are two rules, either of which is enough: what runc has always made of them.
fn alternatives(entry: &Entry<'_>) -> Result<Vec<Vec<Condition>>> {
    let args = entry.syscall.args().as_deref().unwrap_or_default();
    let mut seen = [0u32; 6];
    let mut conditions = Vec::with_capacity(args.len());
    for (i, arg) in args.iter().enumerate() {
        let Some(count) = seen.get_mut(arg.index()) else {
            let (field, index) = (&entry.field, arg.index());
            return Err(Error::invalid(format!("{field}.args[{i}]: index {index} is above 5")));
        };
        *count += 1;
        conditions.push(condition(arg));
    }
    if seen.iter().any(|count| *count > 1) {
        return Ok(conditions.into_iter().map(|condition| vec![condition]).collect());
    }
    conditions.sort_by_key(|condition| condition.arg);
    Ok(vec![conditions])
}

/// `SCMP_CMP_MASKED_EQ` has its mask in `value` and what to compare with in `valueTwo`.
fn condition(arg: &LinuxSeccompArg) -> Condition {
    let (mask, value) = match arg.op() {
        Operator::ScmpCmpMaskedEq => (arg.value(), arg.value_two().unwrap_or(0) & arg.value()),
        _ => (u64::MAX, arg.value()),
    };
    Condition { arg: arg.index(), op: arg.op(), mask, value }
}

impl Condition {
    /// As an architecture sees it: of a narrow one's arguments the upper half does not count.
    fn on(mut self, arch: Arch) -> Condition {
        if !arch.is_wide() {
            (self.mask, self.value) =
                (self.mask & u64::from(u32::MAX), self.value & u64::from(u32::MAX));
        }
        self
    }

    /// libseccomp's order: what is narrower comes before what is wider, and a higher argument before
    /// a lower one.
    fn precedence(&self, other: &Condition) -> Ordering {
        let class = |op: Operator| match op {
            Operator::ScmpCmpEq | Operator::ScmpCmpNe | Operator::ScmpCmpMaskedEq => 0,
            Operator::ScmpCmpLt | Operator::ScmpCmpLe => 1,
            Operator::ScmpCmpGt | Operator::ScmpCmpGe => 2,
        };
        let value = match class(self.op) {
            1 => self.value.cmp(&other.value),
            _ => other.value.cmp(&self.value),
        };
        let rest = (self.op as u32).cmp(&(other.op as u32)).then(other.mask.cmp(&self.mask));
        other.arg.cmp(&self.arg).then(class(self.op).cmp(&class(other.op))).then(value).then(rest)
    }
}

impl Rule {
    /// Which of two rules of one system call is tried first. An unconditional one makes all others
    /// pointless, so it comes before them: with libseccomp it does wherever it stands in the profile.
    fn precedence(&self, other: &Rule) -> Ordering {
        if self.conditions.is_empty() || other.conditions.is_empty() {
            return self.conditions.len().min(1).cmp(&other.conditions.len().min(1));
        }
        for (mine, theirs) in self.conditions.iter().zip(&other.conditions) {
            let order = mine.precedence(theirs);
            if order != Ordering::Equal {
                return order;
            }
        }
        other.conditions.len().cmp(&self.conditions.len())
    }
}

impl Table {
    fn add(
        &mut self,
        name: &str,
        syscall: syscalls::Syscall,
        entry: &Entry<'_>,
        alternatives: &[Vec<Condition>],
    ) {
        let (arch, answer) = (self.arch, entry.answer);
        let direct = syscall.number(arch);
        let through = arch.multiplexers().zip(syscalls::part(name));
        // runc leaves out calls that have a multiplexer, and answers ENOSYS to what a profile allows.
        self.highest = self.highest.max(direct);
        if let Some(((socketcall, ipc), part)) = through {
            let nr = if matches!(part, Part::Socketcall(_)) { socketcall } else { ipc };
            self.highest = self.highest.max(Some(nr));
        }
        if entry.redundant {
            return;
        }
        for conditions in alternatives {
            let seen = conditions.iter().map(|condition| condition.on(arch));
            let seen: Vec<Condition> = seen.filter(|condition| condition.mask != 0).collect();
            if let Some(((socketcall, ipc), part)) = through {
                let (nr, value) = match part {
                    Part::Socketcall(value) => (socketcall, value),
                    Part::Ipc(value) => (ipc, value),
                };
                // In the place of the first argument, whose condition is lost: the real ones are in
                // memory, where no filter sees them.
                let which = Condition {
                    arg: 0,
                    op: Operator::ScmpCmpEq,
                    mask: u64::MAX,
                    value: u64::from(value),
                };
                let others = seen.iter().filter(|condition| condition.arg != 0).copied();
                let conditions = std::iter::once(which.on(arch)).chain(others).collect();
                self.rules.push(Rule { nr, conditions, answer });
            }
            if let Some(nr) = direct {
                self.rules.push(Rule { nr, conditions: seen, answer });
            }
        }
    }

    /// Puts the rules in order, and takes out those that can never be reached.
    fn settle(&mut self) -> Result<()> {
        self.rules.sort_by(|a, b| a.nr.cmp(&b.nr).then_with(|| a.precedence(b)));
        let mut clash = None;
        self.rules.dedup_by(|later, earlier| {
            if later.nr != earlier.nr {
                return false;
            }
            let same = later.conditions == earlier.conditions;
            if same && !earlier.conditions.is_empty() && later.answer != earlier.answer {
                clash = Some(later.nr);
            }
            same || earlier.conditions.is_empty()
        });
        match clash {
            None => Ok(()),
            // libseccomp says EEXIST.
            Some(nr) => Err(Error::invalid(format!(
                "linux.seccomp.syscalls: two actions for the same arguments of system call {nr} of {:?}",
                self.arch
            ))),
        }
    }
}
