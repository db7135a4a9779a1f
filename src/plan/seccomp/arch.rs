//! Architectures: what the kernel calls them, and which of them one machine can have.
//!
//! It must never say anything of an architecture whose numbers are not in `syscalls.txt`.

use oci_spec::runtime::Arch as Given;

/// Set in the number of every system call of x32, which shares its architecture with x86_64.
pub const X32_BIT: u32 = 0x4000_0000;

/// One whose system calls are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86,
    X86_64,
    X32,
    Arm,
    Aarch64,
    Riscv64,
    Loongarch64,
    Ppc64le,
}

/// `__AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE` of linux/audit.h, or-ed with the number in ELF files.
const WIDE: u32 = 0xc000_0000;
const NARROW: u32 = 0x4000_0000;

impl Arch {
    /// What this program was built for; `None`: no filter can be made there.
    pub fn native() -> Option<Arch> {
        if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
            Some(Arch::X86_64)
        } else if cfg!(target_arch = "aarch64") && cfg!(target_endian = "little") {
            Some(Arch::Aarch64)
        } else if cfg!(target_arch = "riscv64") {
            Some(Arch::Riscv64)
        } else if cfg!(target_arch = "loongarch64") {
            Some(Arch::Loongarch64)
        } else if cfg!(target_arch = "powerpc64") && cfg!(target_endian = "little") {
            Some(Arch::Ppc64le)
        } else if cfg!(target_arch = "x86") {
            Some(Arch::X86)
        } else if cfg!(target_arch = "arm") && cfg!(target_endian = "little") {
            Some(Arch::Arm)
        } else {
            None
        }
    }

    /// The one that a profile names; `None`: one that is never another's companion here.
    fn of(given: Given, native: Arch) -> Option<Arch> {
        match given {
            Given::ScmpArchNative => Some(native),
            Given::ScmpArchX86 => Some(Arch::X86),
            Given::ScmpArchX86_64 => Some(Arch::X86_64),
            Given::ScmpArchX32 => Some(Arch::X32),
            Given::ScmpArchArm => Some(Arch::Arm),
            Given::ScmpArchAarch64 => Some(Arch::Aarch64),
            Given::ScmpArchRiscv64 => Some(Arch::Riscv64),
            Given::ScmpArchLoongarch64 => Some(Arch::Loongarch64),
            Given::ScmpArchPpc64le => Some(Arch::Ppc64le),
            _ => None,
        }
    }

    /// Those of a profile that a kernel of `native` can report, `native` always and first. The others
    /// would be instructions that nothing ever reaches.
    pub fn listed(given: &[Given], native: Arch) -> Vec<Arch> {
        let companions: &[Arch] = match native {
            Arch::X86_64 => &[Arch::X86, Arch::X32],
            Arch::Aarch64 => &[Arch::Arm],
            _ => &[],
        };
        let asked = |arch: &&Arch| given.iter().any(|g| Arch::of(*g, native) == Some(**arch));
        std::iter::once(native).chain(companions.iter().filter(asked).copied()).collect()
    }

    /// `seccomp_data.arch`. x32 has that of x86_64.
    pub fn audit(self) -> u32 {
        match self {
            Arch::X86 => NARROW | 3,
            Arch::X86_64 | Arch::X32 => WIDE | 62,
            Arch::Arm => NARROW | 40,
            Arch::Aarch64 => WIDE | 183,
            Arch::Riscv64 => WIDE | 243,
            Arch::Loongarch64 => WIDE | 258,
            Arch::Ppc64le => WIDE | 21,
        }
    }

    /// Its column in `syscalls.txt`, after the name.
    pub(super) fn column(self) -> usize {
        match self {
            Arch::X86 => 1,
            Arch::X86_64 => 2,
            Arch::X32 => 3,
            Arch::Arm => 4,
            Arch::Aarch64 => 5,
            Arch::Riscv64 => 6,
            Arch::Loongarch64 => 7,
            Arch::Ppc64le => 8,
        }
    }

    /// Whether arguments have 64 bits; of the others only the low half counts, as with libseccomp.
    pub(super) fn is_wide(self) -> bool {
        !matches!(self, Arch::X86 | Arch::X32 | Arch::Arm)
    }

    /// The numbers of `socketcall` and `ipc`, where these carry what have become calls of their own.
    pub(super) fn multiplexers(self) -> Option<(u32, u32)> {
        matches!(self, Arch::X86 | Arch::Ppc64le).then_some((102, 117))
    }
}
