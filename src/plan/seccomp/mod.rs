//! `linux.seccomp`: from a profile to the program that the kernel runs at every system call.
//!
//! For each architecture the numbers fall into ranges with one answer; a balanced tree of comparisons
//! finds the range. Profiles mean what they mean to runc and libseccomp; `tests/seccomp/` compares
//! them number by number. It must never make a filter that is wider than its profile, and never
//! ignore what it cannot carry out.

mod arch;
mod code;
mod rules;
mod syscalls;

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator,
};

use crate::error::{Error, Result};
pub use arch::Arch;
use arch::X32_BIT;
use code::{Code, Test, To};
use rules::{Condition, Entry, Rule, Table};

/// `BPF_MAXINSNS`.
const MOST: usize = 4096;

// linux/seccomp.h: what a filter answers.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = ERRNO | 38;

// linux/seccomp.h: `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

// linux/seccomp.h: flags of `SECCOMP_SET_MODE_FILTER`.
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// A compiled profile. Equal profiles make equal filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `struct sock_filter`s, 8 bytes each.
    pub program: Box<[u64]>,
    /// Those of `seccomp(2)`.
    pub flags: u32,
    /// Who answers for the program, where a rule says `SCMP_ACT_NOTIFY`.
    pub listener: Option<Listener>,
}

/// Where the descriptor of a filter's notifications goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// A unix socket of the host.
    pub path: PathBuf,
    /// For whoever listens there.
    pub metadata: String,
}

/// Compiles a profile for machines of `native`. Also the names that no known architecture has, which
/// a profile may well list: it is written for kernels to come.
pub fn compile(profile: &LinuxSeccomp, native: Arch) -> Result<(Filter, Vec<String>)> {
    let errno = profile.default_errno_ret();
    let default = answer(profile.default_action(), errno)
        .map_err(|text| Error::invalid(format!("linux.seccomp.defaultErrnoRet: {text}")))?;
    let mut entries = Vec::new();
    for (i, syscall) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("linux.seccomp.syscalls[{i}]");
        let answer = answer(syscall.action(), syscall.errno_ret())
            .map_err(|text| Error::invalid(format!("{field}.errnoRet: {text}")))?;
        entries.push(Entry { field, syscall, answer, redundant: answer == default });
    }
    let listener = listener(profile, default, &entries)?;
    let archs = Arch::listed(profile.architectures().as_deref().unwrap_or_default(), native);
    let mut unknown = Vec::new();
    let tables = rules::tables(&entries, &archs, &mut unknown)?;
    let program = program(&tables, default);
    if program.len() > MOST {
        let len = program.len();
        let text = format!("linux.seccomp: {len} instructions, and the kernel takes {MOST}");
        return Err(Error::invalid(text));
    }
    let flags = flags(profile, listener.is_some());
    Ok((Filter { program, flags, listener }, unknown))
}

/// An action as the kernel has it, or what is wrong with its errno.
fn answer(action: Action, errno: Option<u32>) -> Result<u32, String> {
    let carries = matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    match errno {
        // The specification wants an error for it.
        Some(_) if !carries => return Err(format!("{action} has none")),
        Some(errno) if errno > u32::from(u16::MAX) => {
            return Err(format!("{errno} is above 65535"));
        }
        _ => {}
    }
    // EPERM, as the specification says.
    let errno = errno.unwrap_or(1);
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => KILL_THREAD,
        Action::ScmpActKillProcess => KILL_PROCESS,
        Action::ScmpActTrap => TRAP,
        Action::ScmpActErrno => ERRNO | errno,
        Action::ScmpActNotify => NOTIFY,
        Action::ScmpActTrace => TRACE | errno,
        Action::ScmpActLog => LOG,
        Action::ScmpActAllow => ALLOW,
    })
}

/// Who listens. A child tells the parent of its descriptor by write(2), which must not wait for who
/// has no descriptor yet.
fn listener(
    profile: &LinuxSeccomp,
    default: u32,
    entries: &[Entry<'_>],
) -> Result<Option<Listener>> {
    if default == NOTIFY {
        let text = "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default";
        return Err(Error::invalid(text));
    }
    let mut notifying = entries.iter().filter(|entry| entry.answer == NOTIFY).peekable();
    if notifying.peek().is_none() {
        return Ok(None);
    }
    for entry in notifying {
        if entry.syscall.names().iter().any(|name| name == "write") {
            let text = format!("{}: SCMP_ACT_NOTIFY cannot be used for write", entry.field);
            return Err(Error::invalid(text));
        }
    }
    match profile.listener_path().as_ref().filter(|path| path.is_absolute()) {
        Some(path) => Ok(Some(Listener {
            path: path.clone(),
            metadata: profile.listener_metadata().clone().unwrap_or_default(),
        })),
        None => Err(Error::invalid(
            "linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs one that is absolute",
        )),
    }
}

/// None given is `SPEC_ALLOW`, as with runc; every kernel that this program runs on has it (4.17).
fn flags(profile: &LinuxSeccomp, listens: bool) -> u32 {
    let given = match profile.flags() {
        None => FLAG_SPEC_ALLOW,
        Some(flags) => flags.iter().fold(0, |flags, flag| {
            flags
                | match flag {
                    Flag::SeccompFilterFlagLog => FLAG_LOG,
                    Flag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                    // The kernel refuses it without a listener, for which alone it means something.
                    Flag::SeccompFilterFlagWaitKillableRecv if listens => FLAG_WAIT_KILLABLE_RECV,
                    Flag::SeccompFilterFlagWaitKillableRecv => 0,
                    // A child has one thread, and the kernel refuses it together with a listener.
                    Flag::SeccompFilterFlagTsync => 0,
                }
        }),
    };
    given | if listens { FLAG_NEW_LISTENER } else { 0 }
}

/// The numbers from `start` up to the next range's.
#[derive(Debug)]
struct Range<'a> {
    start: u32,
    leaf: Leaf<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leaf<'a> {
    Answer(u32),
    /// Rules of one number of an architecture; the last resort is the default.
    Rules(Arch, &'a [Rule]),
}

fn program(tables: &[Table], default: u32) -> Box<[u64]> {
    let mut code = Code::default();
    // What comes from an architecture that is not listed.
    let mut start = To::Return(KILL_THREAD);
    let x32 = tables.iter().find(|table| table.arch == Arch::X32);
    let sections = tables.iter().filter(|table| table.arch != Arch::X32);
    // Back to front: the native one is looked at first.
    for table in sections.rev() {
        let ranges = match table.arch {
            Arch::X86_64 => x86_64(table, x32, default),
            _ => ranges(&[table], &below_and_above(table, default), default),
        };
        let tree = tree(&mut code, &ranges, default);
        let section = code.load(NR, tree);
        start = code.branch(Test::Equal, table.arch.audit(), section, start);
    }
    let start = code.load(ARCH, start);
    code.finish(start)
}

/// The first number that the profile knows nothing of.
fn above(table: &Table) -> u32 {
    table.highest.map_or(0, |highest| highest.saturating_add(1))
}

fn below_and_above(table: &Table, default: u32) -> [(u32, u32); 2] {
    [(0, default), (above(table), beyond(table, default))]
}

/// What a number above all that the profile names is answered with: ENOSYS, if it would not be allowed.
/// The profile cannot have meant a call that is newer than itself, and C libraries fall back on ENOSYS
/// only. The same as runc's stub.
fn beyond(table: &Table, default: u32) -> u32 {
    let permissive = [ALLOW, LOG].contains(&default) || default & 0xffff_0000 == TRACE;
    if permissive || table.highest.is_none() { default } else { ENOSYS }
}

/// x86_64's numbers and x32's, which share an architecture. Bit 30 says which ABI a number is of; as
/// runc's stub, bit 31 is looked at as part of the number.
fn x86_64<'a>(wide: &'a Table, x32: Option<&'a Table>, default: u32) -> Vec<Range<'a>> {
    const BIT_31: u32 = 1 << 31;
    let new = beyond(wide, default);
    let low = below_and_above(wide, default);
    let Some(x32) = x32 else {
        // Not listed, so of an architecture that is not. But -1 is how a tracer skips a call.
        let stray = if new == ENOSYS { ENOSYS } else { KILL_THREAD };
        let high = [
            (X32_BIT, KILL_THREAD),
            (BIT_31, stray),
            (BIT_31 | X32_BIT, KILL_THREAD),
            (u32::MAX, default),
        ];
        return ranges(&[wide], &[&low[..], &high].concat(), default);
    };
    let new32 = beyond(x32, default);
    let high = [
        (X32_BIT, default),
        (above(x32).max(X32_BIT), new32),
        (BIT_31, new),
        (BIT_31 | X32_BIT, new32),
    ];
    ranges(&[wide, x32], &[&low[..], &high].concat(), default)
}

/// Every number, sorted: the rules of `tables`, and between them what `between` says from each of its
/// numbers on.
fn ranges<'a>(tables: &[&'a Table], between: &[(u32, u32)], default: u32) -> Vec<Range<'a>> {
    let mut all: Vec<Range<'a>> = Vec::with_capacity(256);
    let mut between = between.iter().peekable();
    let mut now = default;
    let rules = tables.iter().flat_map(|table| {
        table.rules.chunk_by(|a, b| a.nr == b.nr).map(|rules| (table.arch, rules))
    });
    for (arch, rules) in rules {
        let nr = rules[0].nr;
        while let Some((start, answer)) = between.next_if(|(start, _)| *start <= nr) {
            now = *answer;
            put(&mut all, *start, Leaf::Answer(now));
        }
        let leaf = match rules {
            [rule] if rule.conditions.is_empty() => Leaf::Answer(rule.answer),
            rules => Leaf::Rules(arch, rules),
        };
        put(&mut all, nr, leaf);
        if let Some(next) = nr.checked_add(1) {
            put(&mut all, next, Leaf::Answer(now));
        }
    }
    for (start, answer) in between {
        put(&mut all, *start, Leaf::Answer(*answer));
    }
    all
}

/// Adds a range; what it begins in ends there, and one with the same answer goes on.
fn put<'a>(all: &mut Vec<Range<'a>>, start: u32, leaf: Leaf<'a>) {
    all.pop_if(|last| last.start == start);
    if all.last().is_none_or(|last| last.leaf != leaf) {
        all.push(Range { start, leaf });
    }
}

/// Comparisons that find a number's range in as few steps as there can be.
fn tree(code: &mut Code, ranges: &[Range<'_>], default: u32) -> To {
    match ranges {
        [] => To::Return(default),
        [range] => match range.leaf {
            Leaf::Answer(answer) => To::Return(answer),
            Leaf::Rules(arch, rules) => rules_of_one(code, rules, arch, default),
        },
        // One number apart from all around it.
        [before, one, after] if before.leaf == after.leaf && after.start - one.start == 1 => {
            let no = tree(code, std::slice::from_ref(before), default);
            let yes = tree(code, std::slice::from_ref(one), default);
            code.branch(Test::Equal, one.start, yes, no)
        }
        ranges => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let start = high[0].start;
            let yes = tree(code, high, default);
            let no = tree(code, low, default);
            code.branch(Test::AtLeast, start, yes, no)
        }
    }
}

/// The first rule whose conditions all hold.
fn rules_of_one(code: &mut Code, rules: &[Rule], arch: Arch, default: u32) -> To {
    let mut next = To::Return(default);
    for rule in rules.iter().rev() {
        let mut then = To::Return(rule.answer);
        for condition in rule.conditions.iter().rev() {
            then = test(code, condition, arch, then, next);
        }
        next = then;
    }
    next
}

/// One condition. An argument has 64 bits and the accumulator 32.
fn test(code: &mut Code, condition: &Condition, arch: Arch, yes: To, no: To) -> To {
    let Condition { arg, op, mask, value } = *condition;
    let low = ARGS + 8 * arg as u32;
    let high = arch.is_wide().then_some(low + 4);
    match op {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => {
            equal(code, (low, high), mask, value, yes, no)
        }
        Operator::ScmpCmpNe => equal(code, (low, high), mask, value, no, yes),
        Operator::ScmpCmpGt => above_value(code, (low, high), Test::Greater, value, yes, no),
        Operator::ScmpCmpGe => above_value(code, (low, high), Test::AtLeast, value, yes, no),
        Operator::ScmpCmpLe => above_value(code, (low, high), Test::Greater, value, no, yes),
        Operator::ScmpCmpLt => above_value(code, (low, high), Test::AtLeast, value, no, yes),
    }
}

fn equal(
    code: &mut Code,
    (low, high): (u32, Option<u32>),
    mask: u64,
    value: u64,
    yes: To,
    no: To,
) -> To {
    let mut word = |offset: u32, mask: u32, value: u32, yes: To| match mask {
        0 => yes,
        u32::MAX => {
            let branch = code.branch(Test::Equal, value, yes, no);
            code.load(offset, branch)
        }
        mask => {
            let branch = code.branch(Test::Equal, value, yes, no);
            let masked = code.and(mask, branch);
            code.load(offset, masked)
        }
    };
    let yes = word(low, mask as u32, value as u32, yes);
    high.map_or(yes, |high| word(high, (mask >> 32) as u32, (value >> 32) as u32, yes))
}

fn above_value(
    code: &mut Code,
    (low, high): (u32, Option<u32>),
    test: Test,
    value: u64,
    yes: To,
    no: To,
) -> To {
    let branch = code.branch(test, value as u32, yes, no);
    let low = code.load(low, branch);
    let Some(high) = high else { return low };
    let upper = (value >> 32) as u32;
    let same = code.branch(Test::Equal, upper, low, no);
    let branch = code.branch(Test::Greater, upper, yes, same);
    code.load(high, branch)
}
