//! What runc makes of a profile: libseccomp fed as runc feeds it, and runc's stub in front.
//!
//! One thing is not as runc has it: its stub does not count what has a multiplexer, so that a profile
//! which names `socket` and little else allows no socket to a program of x86. It must never use
//! anything of the compiler that it judges.

use std::io::{Read, Seek};
use std::os::fd::AsFd;

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Op,
    LinuxSyscall,
};

use crate::machine::{Call, run};

const ENOSYS: u32 = 0x5_0000 | 38;
const X32_BIT: u32 = 1 << 30;

/// See the module text.
pub struct Oracle {
    pub program: Vec<u64>,
    /// (`seccomp_data.arch`, x32, the highest number that the profile names).
    highest: Vec<(u32, bool, u32)>,
}

/// `seccomp_data.arch` of each architecture that is compared.
pub fn audit(arch: ScmpArch) -> u32 {
    match arch {
        ScmpArch::X86 => 0x4000_0003,
        ScmpArch::X8664 | ScmpArch::X32 => 0xc000_003e,
        ScmpArch::Arm => 0x4000_0028,
        ScmpArch::Aarch64 => 0xc000_00b7,
        ScmpArch::Riscv64 => 0xc000_00f3,
        ScmpArch::Ppc64Le => 0xc000_0015,
        other => panic!("{other:?}"),
    }
}

fn action(action: Action, errno: Option<u32>) -> ScmpAction {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    match action {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(errno as i32),
        Action::ScmpActNotify => ScmpAction::Notify,
        Action::ScmpActTrace => ScmpAction::Trace(errno as u16),
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
    }
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (index, value) = (arg.index() as u32, arg.value());
    let plain = |op| ScmpArgCompare::new(index, op, value);
    match arg.op() {
        Op::ScmpCmpNe => plain(ScmpCompareOp::NotEqual),
        Op::ScmpCmpLt => plain(ScmpCompareOp::Less),
        Op::ScmpCmpLe => plain(ScmpCompareOp::LessOrEqual),
        Op::ScmpCmpEq => plain(ScmpCompareOp::Equal),
        Op::ScmpCmpGe => plain(ScmpCompareOp::GreaterEqual),
        Op::ScmpCmpGt => plain(ScmpCompareOp::Greater),
        // runc: value is the mask and valueTwo the datum.
        Op::ScmpCmpMaskedEq => {
            let datum = arg.value_two().unwrap_or(0);
            ScmpArgCompare::new(index, ScmpCompareOp::MaskedEqual(value), datum)
        }
    }
}

/// As runc's `matchCall`; `Err`: libseccomp refuses the rule, and so runc the container.
fn add(
    filter: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
) -> Result<(), String> {
    let action = action(rule.action(), rule.errno_ret());
    if action == default {
        return Ok(());
    }
    let args = rule.args().as_deref().unwrap_or_default();
    let repeated =
        args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| a.index() == b.index()));
    for name in rule.names() {
        let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
        let comparisons: Vec<ScmpArgCompare> = args.iter().map(comparison).collect();
        let lists: Vec<&[ScmpArgCompare]> =
            if repeated { comparisons.chunks(1).collect() } else { vec![&comparisons] };
        for list in lists {
            let added = match list {
                [] => filter.add_rule(action, syscall),
                list => filter.add_rule_conditional(action, syscall, list),
            };
            added.map_err(|error| format!("{name}: {error}"))?;
        }
    }
    Ok(())
}

impl Oracle {
    /// `archs`: what the profile lists, as libseccomp calls them; the native one is always there.
    pub fn new(
        profile: &LinuxSeccomp,
        archs: &[ScmpArch],
        optimize: u32,
    ) -> Result<Oracle, String> {
        let default = action(profile.default_action(), profile.default_errno_ret());
        let mut filter = ScmpFilterContext::new(default).unwrap();
        for arch in archs {
            filter.add_arch(*arch).unwrap();
        }
        filter.set_ctl_optimize(optimize).unwrap();
        let rules = profile.syscalls().as_deref().unwrap_or_default();
        for rule in rules {
            add(&mut filter, rule, default)?;
        }
        let mut file = std::fs::File::from(
            nix::sys::memfd::memfd_create(c"bpf", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap(),
        );
        filter.export_bpf(file.as_fd()).map_err(|error| error.to_string())?;
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let word = |chunk: &[u8]| u64::from_ne_bytes(chunk.try_into().unwrap());
        let program = bytes.chunks_exact(8).map(word).collect();

        let allowing =
            matches!(default, ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_));
        let mut all = archs.to_vec();
        all.extend((!archs.contains(&ScmpArch::native())).then(ScmpArch::native));
        let highest = all.iter().filter_map(|arch| {
            let names = rules.iter().flat_map(|rule| rule.names());
            let highest = names.flat_map(|name| numbers(name, *arch)).max().filter(|n| *n >= 0)?;
            Some((audit(*arch), *arch == ScmpArch::X32, highest as u32))
        });
        let highest = if allowing { vec![] } else { highest.collect() };
        Ok(Oracle { program, highest })
    }

    /// The answer, runc's stub first.
    pub fn answer(&self, call: &Call) -> u32 {
        for (arch, x32, highest) in &self.highest {
            let x86_64 = *arch == audit(ScmpArch::X8664);
            if *arch != call.arch || (x86_64 && *x32 != (call.nr & X32_BIT != 0)) {
                continue;
            }
            if call.nr > *highest {
                return ENOSYS;
            }
        }
        run(&self.program, call).answer
    }
}

/// Whether the installed libseccomp knows a name at all: an older one does not know the newest.
/// Debian's 2.5.4 knows one of those that were added to it on some architectures only.
pub fn knows(name: &str) -> bool {
    ScmpSyscall::from_name(name).is_ok() && name != "map_shadow_stack"
}

/// The numbers by which a call is made: one that has a multiplexer may have one of its own as well,
/// which libseccomp tells only in the other direction.
fn numbers(name: &str, arch: ScmpArch) -> Vec<i32> {
    let rewritten = ScmpSyscall::from_name_by_arch_rewrite(name, arch);
    let mut all: Vec<i32> = rewritten.iter().map(|number| number.as_raw_syscall()).collect();
    if ScmpSyscall::from_name_by_arch(name, arch).is_ok_and(|number| number.as_raw_syscall() < 0) {
        let named = |nr: &i32| {
            let nr = ScmpSyscall::from_raw_syscall(*nr);
            nr.get_name_by_arch(arch).is_ok_and(|other| other == name)
        };
        all.extend((0..500).find(named));
    }
    all
}
