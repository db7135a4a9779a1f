//! System calls by name, from the table that `hack/syscalls.sh` writes.
//!
//! A line is a name and its number on each architecture, `-` where there is none, sorted by name. It
//! must never be edited by hand: a wrong number is a hole in every filter.

use super::arch::{Arch, X32_BIT};

static TEXT: &str = include_str!("syscalls.txt");

/// A system call that exists somewhere.
#[derive(Clone, Copy, Debug)]
pub struct Syscall(&'static str);

/// Where each line is, for as long as one profile is compiled.
#[derive(Debug)]
pub struct Names(Vec<(&'static str, Syscall)>);

impl Names {
    /// All of them.
    pub fn new() -> Names {
        let line =
            |line: &'static str| line.split_once(' ').map(|(name, rest)| (name, Syscall(rest)));
        Names(TEXT.lines().filter_map(line).collect())
    }

    /// The system call of a name.
    pub fn find(&self, name: &str) -> Option<Syscall> {
        let at = self.0.binary_search_by_key(&name, |(name, _)| name).ok()?;
        self.0.get(at).map(|(_, syscall)| *syscall)
    }
}

impl Syscall {
    /// Its number on an architecture, as `seccomp_data.nr` has it.
    pub fn number(self, arch: Arch) -> Option<u32> {
        let number: u32 = self.0.split(' ').nth(arch.column() - 1)?.parse().ok()?;
        Some(if arch == Arch::X32 { number | X32_BIT } else { number })
    }
}

/// Which multiplexer carries a system call, and as what (linux/net.h, linux/ipc.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Socketcall(u32),
    Ipc(u32),
}

/// Where an architecture has multiplexers: how a call of this name goes through one of them.
pub fn part(name: &str) -> Option<Part> {
    const SOCKETCALL: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u32); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(at) = SOCKETCALL.iter().position(|call| *call == name) {
        return Some(Part::Socketcall(at as u32 + 1));
    }
    IPC.iter().find(|(call, _)| *call == name).map(|(_, number)| Part::Ipc(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_found_and_nothing_else() {
        let names = Names::new();
        assert!(names.0.is_sorted_by_key(|(name, _)| name) && names.0.len() > 480);
        for (name, _) in &names.0 {
            assert!(names.find(name).is_some(), "{name}");
        }
        for name in ["", " ", "a", "zzz", "read ", "rea", "readx", "0", "read 3", "\n", "é"] {
            assert!(names.find(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn numbers() {
        let number = |name, arch| Names::new().find(name).unwrap().number(arch);
        assert_eq!(
            number("read", Arch::X86_64),
            Some(libc::SYS_read as u32).filter(|_| cfg!(target_arch = "x86_64")).or(Some(0))
        );
        assert_eq!(number("execve", Arch::X32), Some(0x4000_0000 | 520));
        assert_eq!(
            (number("clone3", Arch::Arm), number("clone3", Arch::Aarch64)),
            (Some(435), Some(435))
        );
        assert_eq!((number("open", Arch::Aarch64), number("open", Arch::Ppc64le)), (None, Some(5)));
        assert_eq!(number("set_tls", Arch::Arm), Some(0xf0005));
    }

    #[test]
    fn multiplexed() {
        assert_eq!(part("accept4"), Some(Part::Socketcall(18)));
        assert_eq!((part("shmat"), part("read")), (Some(Part::Ipc(21)), None));
    }
}
