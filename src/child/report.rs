//! What a child and its parent say to each other: messages of 8 bytes, both ends.
//!
//! The child's end must not allocate; what a message means in words is made by the parent.

use nix::errno::Errno;

use crate::sys::raw;

/// Child to parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Step `op` failed in `call`.
    Failed { op: u16, call: Call, errno: i32 },
    /// Everything before the program is done; the child waits.
    Ready { op: u16 },
    /// The pty's master comes with this message.
    Master { op: u16 },
    /// The plan goes on in another process.
    Born { op: u16, pid: i32 },
    /// The filter's notifications are at the child's descriptor `fd`; it waits until they are fetched.
    Listener { op: u16, fd: i32 },
}

/// Parent to child: go on.
pub const GO: [u8; 1] = [1];

macro_rules! calls {
    ($($name:ident $text:literal)*) => {
        /// The system call, or the check, that failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Call { $($name),* }

        impl Call {
            const ALL: &[Call] = &[$(Call::$name),*];

            /// Its name for people.
            pub fn name(self) -> &'static str {
                match self { $(Call::$name => $text),* }
            }
        }
    };
}

calls! {
    Write "write" Read "read" Open "open" Openat2 "openat2" Close "close" Fstat "fstat" Fstatfs "fstatfs"
    Mkdirat "mkdirat" Mknodat "mknodat" Symlinkat "symlinkat" Rmdir "rmdir" Fchownat "fchownat"
    Unshare "unshare" Setns "setns" Keyctl "keyctl" OpenTree "open_tree" MountSetattr "mount_setattr"
    Fsopen "fsopen" Fsconfig "fsconfig" Fscreate "fsconfig(create)" Fsmount "fsmount"
    MoveMount "move_mount" Mount "mount" Umount "umount2" PivotRoot "pivot_root" Chdir "chdir"
    Fchdir "fchdir" Getcwd "getcwd" Sethostname "sethostname" Setdomainname "setdomainname"
    Setsid "setsid" Dup3 "dup3" CloseRange "close_range" Setgroups "setgroups" Setgid "setresgid"
    Setuid "setresuid" Prctl "prctl" Capset "capset" Prlimit "prlimit" Ioctl "ioctl" Access "access"
    Execve "execve" Seccomp "seccomp" Clone "clone" Send "sendmsg" Sigaction "rt_sigaction" Sigprocmask "rt_sigprocmask"
    Socket "socket" FindDevice "ioctl(SIOCGIFINDEX)" GetAddresses "RTM_GETADDR" MoveDevice "RTM_NEWLINK(move)"
    AddAddress "RTM_NEWADDR" SetUp "RTM_NEWLINK(up)" Fsetxattr "fsetxattr" NotProc "not a procfs" SchedSetattr "sched_setattr" SchedSetaffinity "sched_setaffinity" IoprioSet "ioprio_set"
    Personality "personality" SetMempolicy "set_mempolicy" Getdents "getdents64" Readlinkat "readlinkat"
    Sendfile "sendfile" Fchmod "fchmod" TooDeep "too many directories in each other"
    Slot "no descriptor in the slot" NotDevpts "not a devpts" NotPtmx "not a ptmx"
    InsideProc "inside a procfs" OtherNode "another file is there" OutsideRoot "outside the root" RootItself "the root itself"
}

const FAILED: u8 = 1;
const READY: u8 = 2;
const MASTER: u8 = 3;
const BORN: u8 = 4;
const LISTENER: u8 = 5;

impl Report {
    /// As it travels.
    pub fn encode(self) -> [u8; 8] {
        let (kind, call, op, errno) = match self {
            Report::Failed { op, call, errno } => (FAILED, call as u8, op, errno),
            Report::Ready { op } => (READY, 0, op, 0),
            Report::Master { op } => (MASTER, 0, op, 0),
            Report::Born { op, pid } => (BORN, 0, op, pid),
            Report::Listener { op, fd } => (LISTENER, 0, op, fd),
        };
        let ([o0, o1], [e0, e1, e2, e3]) = (op.to_ne_bytes(), errno.to_ne_bytes());
        [kind, call, o0, o1, e0, e1, e2, e3]
    }

    /// `None`: not a message of ours, which is a bug.
    pub fn decode(bytes: [u8; 8]) -> Option<Report> {
        let [kind, call, o0, o1, e0, e1, e2, e3] = bytes;
        let op = u16::from_ne_bytes([o0, o1]);
        match kind {
            FAILED => {
                let call = *Call::ALL.get(usize::from(call))?;
                Some(Report::Failed { op, call, errno: i32::from_ne_bytes([e0, e1, e2, e3]) })
            }
            READY => Some(Report::Ready { op }),
            MASTER => Some(Report::Master { op }),
            BORN => Some(Report::Born { op, pid: i32::from_ne_bytes([e0, e1, e2, e3]) }),
            LISTENER => Some(Report::Listener { op, fd: i32::from_ne_bytes([e0, e1, e2, e3]) }),
            _ => None,
        }
    }

    /// Sends it, by a call that every seccomp filter allows.
    pub(super) fn send(self, socket: i32) -> Result<(), Errno> {
        raw::write(socket, &self.encode())
    }

    /// Sends it with a descriptor.
    pub(super) fn send_with(self, socket: i32, fd: i32) -> Result<(), Errno> {
        raw::send(socket, &self.encode(), Some(fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_survives_the_wire() {
        for call in Call::ALL {
            let report = Report::Failed { op: 513, call: *call, errno: libc::EPERM };
            assert_eq!(Report::decode(report.encode()), Some(report));
        }
        let (ready, master) = (Report::Ready { op: 7 }, Report::Master { op: 65535 });
        assert_eq!(Report::decode(ready.encode()), Some(ready));
        assert_eq!(Report::decode(master.encode()), Some(master));
        let born = Report::Born { op: 1, pid: 4_194_304 };
        assert_eq!(Report::decode(born.encode()), Some(born));
        let listener = Report::Listener { op: 2, fd: 1023 };
        assert_eq!(Report::decode(listener.encode()), Some(listener));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        assert_eq!(Report::decode([0; 8]), None);
        assert_eq!(Report::decode([FAILED, 255, 0, 0, 0, 0, 0, 0]), None);
    }
}
