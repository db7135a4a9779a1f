//! Filters, number by number against libseccomp (Debian's libseccomp-dev, without which this does not
//! link), and against the kernel itself.

mod machine;
mod oracle;
mod placement;
mod profiles;
mod random;

use std::collections::BTreeSet;

use containerd_shim_rs::plan::seccomp::{self, Arch, Filter};
use libseccomp::ScmpArch;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;

use machine::{Call, run};
use oracle::Oracle;

/// A profile from its JSON.
pub fn profile(json: &Value) -> LinuxSeccomp {
    serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

/// The filter of a profile, on x86_64 unless another is named.
pub fn filter(profile: &LinuxSeccomp, native: Arch) -> Filter {
    seccomp::compile(profile, native).unwrap_or_else(|e| panic!("{e}")).0
}

/// Values at which a condition of the profile may change its mind.
fn values(profile: &LinuxSeccomp) -> Vec<u64> {
    let mut all = BTreeSet::from([0, 1, u64::MAX, 1 << 32, u64::from(u32::MAX)]);
    for arg in profile.syscalls().iter().flatten().flat_map(|s| s.args().iter().flatten()) {
        for value in [arg.value(), arg.value_two().unwrap_or(arg.value())] {
            for near in [value.wrapping_sub(1), value, value.wrapping_add(1)] {
                all.extend([near, near & u64::from(u32::MAX), near ^ (1 << 32), near ^ (1 << 63)]);
            }
        }
    }
    all.into_iter().collect()
}

/// Every number that could matter.
fn numbers() -> Vec<u32> {
    let mut all: Vec<u32> = (0..1100).chain(0x4000_0000..0x4000_044c).collect();
    all.extend(983_035..983_050);
    for edge in [1 << 30, 1 << 31, 3 << 30, 0u32] {
        all.extend((0..4).flat_map(|n: u32| [edge.wrapping_sub(n), edge.wrapping_add(n)]));
    }
    all
}

/// Compares the two for every number of every architecture; `archs`: those that libseccomp is given.
/// `Err`: libseccomp refuses the profile.
#[track_caller]
pub fn compare(profile: &LinuxSeccomp, native: Arch, archs: &[ScmpArch]) -> Result<(), String> {
    let oracle = Oracle::new(profile, archs, 1)?;
    let filter = filter(profile, native);
    let (numbers, values) = (numbers(), values(profile));
    let mut audits: BTreeSet<u32> = archs.iter().map(|arch| oracle::audit(*arch)).collect();
    audits.insert(native.audit());
    // Nobody's.
    audits.insert(0x1234);
    for arch in audits {
        let same = |call: &Call| {
            let (ours, theirs) = (run(&filter.program, call), oracle.answer(call));
            assert!(
                ours.answer == theirs,
                "{call:x?}: {:#x}, and with libseccomp {theirs:#x}\n{profile:?}",
                ours.answer
            );
            ours.looked || run(&oracle.program, call).looked
        };
        for nr in numbers.iter().copied() {
            let ones = same(&Call { nr, arch, args: [u64::MAX; 6] });
            if !same(&Call { nr, arch, args: [0; 6] }) && !ones {
                continue;
            }
            for (i, first) in values.iter().enumerate() {
                same(&Call { nr, arch, args: [*first; 6] });
                for (arg, shift) in (0..6).flat_map(|arg| (0..7).map(move |shift| (arg, shift))) {
                    let mut args = [*first; 6];
                    args[arg] = values[(i + shift * 3) % values.len()];
                    same(&Call { nr, arch, args });
                }
            }
        }
    }
    Ok(())
}
