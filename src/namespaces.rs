//! The pod's network, IPC and UTS namespaces, which the serving process itself lives in while the
//! sandbox is ready, and the way back out.
//!
//! The saved descriptors are an escape to the host: close-on-exec, and never given to a child that
//! is not a hook on its way back to the host.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxNamespaceType;

use crate::error::{Doing, Error, Result};
use crate::sys::{self, raw};

/// A kind of namespace as `/proc/PID/ns` names it.
pub fn name(kind: LinuxNamespaceType) -> &'static str {
    known(kind).0
}

/// Its `CLONE_NEW*` flag.
pub fn flag(kind: LinuxNamespaceType) -> i32 {
    known(kind).1
}

fn known(kind: LinuxNamespaceType) -> (&'static str, i32) {
    match kind {
        LinuxNamespaceType::Mount => ("mnt", libc::CLONE_NEWNS),
        LinuxNamespaceType::Cgroup => ("cgroup", libc::CLONE_NEWCGROUP),
        LinuxNamespaceType::Uts => ("uts", libc::CLONE_NEWUTS),
        LinuxNamespaceType::Ipc => ("ipc", libc::CLONE_NEWIPC),
        LinuxNamespaceType::User => ("user", libc::CLONE_NEWUSER),
        LinuxNamespaceType::Pid => ("pid", libc::CLONE_NEWPID),
        LinuxNamespaceType::Network => ("net", libc::CLONE_NEWNET),
        LinuxNamespaceType::Time => ("time", 0x80),
    }
}

/// The namespaces that this process has entered, if it has, and where it came from.
#[derive(Debug, Default)]
pub struct Pod {
    entered: Mutex<Option<Entered>>,
}

#[derive(Debug, Default)]
struct Entered {
    host: Vec<(i32, File)>,
    /// The pod's network namespace, if it is not the host's.
    pod_net: Option<File>,
}

/// Which namespaces a pod has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The network namespace that CRI made; `None`: the host's.
    pub net: Option<&'a Path>,
    pub ipc: bool,
    pub uts: bool,
}

/// Opens a namespace's file. What is no namespace is refused, and a FIFO does not block.
pub fn open(path: &Path) -> Result<File> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.doing(|| format!("open {path:?}"))?;
    match raw::fs_magic(file.as_raw_fd()).doing(|| "fstatfs")? {
        NSFS_MAGIC => Ok(file),
        _ => Err(Error::invalid(format!("{path:?} is not a namespace"))),
    }
}

fn own(kind: &str) -> Result<File> {
    let path = format!("/proc/self/ns/{kind}");
    File::open(&path).doing(|| format!("open {path}"))
}

/// Whether `file` is the namespace of `kind` that this process is in.
pub fn is_ours(file: &File, kind: &str) -> Result<bool> {
    let path = format!("/proc/self/ns/{kind}");
    let ours = std::fs::metadata(&path).doing(|| format!("stat {path}"))?;
    let theirs = file.metadata().doing(|| "fstat(namespace)")?;
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}

/// Whether two files are one namespace.
pub fn same(a: &File, b: &File) -> Result<bool> {
    let (a, b) = (a.metadata().doing(|| "fstat")?, b.metadata().doing(|| "fstat")?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// The user namespace that a namespace belongs to; `None`: one outside of this process' own.
pub fn owner(ns: BorrowedFd<'_>) -> Result<Option<File>> {
    match sys::fd::user_namespace_of(ns) {
        Ok(owner) => Ok(Some(owner.into())),
        Err(nix::errno::Errno::EPERM) => Ok(None),
        Err(errno) => Err(Error::sys("ioctl(NS_GET_USERNS)", errno)),
    }
}

impl Pod {
    fn lock(&self) -> MutexGuard<'_, Option<Entered>> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a pod's namespaces. On an error this process is where it was.
    pub fn enter(&self, wanted: Wanted<'_>) -> Result<()> {
        let mut entered = Entered::default();
        match entered.step_in(wanted) {
            Ok(()) => {
                *self.lock() = Some(entered);
                Ok(())
            }
            // A process that is half in a pod must not serve; `leave` says so if it fails too.
            Err(error) => Err(Error::all(error, entered.leave().err())),
        }
    }

    /// Goes back to the host's namespaces, so that the pod's end with its processes.
    pub fn leave(&self) -> Result<()> {
        self.lock().take().map_or(Ok(()), |mut entered| entered.leave())
    }

    /// The host's namespaces that this process has left, for a child that goes back to them before
    /// it runs a program of the host.
    pub fn host(&self) -> Result<Vec<(i32, OwnedFd)>> {
        let entered = self.lock();
        let host = entered.iter().flat_map(|entered| &entered.host);
        host.map(|(flag, file)| Ok((*flag, file.try_clone().doing(|| "dup(namespace)")?.into())))
            .collect()
    }

    /// Runs `work` in the host's network namespace, wherever this process is.
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.lock().as_ref() {
            Some(entered) => entered.outside(work),
            None => work(),
        }
    }
}

impl Entered {
    fn step_in(&mut self, wanted: Wanted<'_>) -> Result<()> {
        if let Some(path) = wanted.net {
            let pod = open(path).doing(|| "network namespace")?;
            let host = own("net")?;
            raw::setns(pod.as_raw_fd(), libc::CLONE_NEWNET)
                .doing(|| format!("setns {path:?} net"))?;
            self.host.push((libc::CLONE_NEWNET, host));
            self.pod_net = Some(pod);
        }
        for (kind, flag, wanted) in
            [("ipc", libc::CLONE_NEWIPC, wanted.ipc), ("uts", libc::CLONE_NEWUTS, wanted.uts)]
        {
            if wanted {
                let host = own(kind)?;
                raw::unshare(flag).doing(|| format!("unshare {kind}"))?;
                self.host.push((flag, host));
            }
        }
        Ok(())
    }

    /// A socket that is created in the pod's network namespace keeps it alive from the other end,
    /// after the pod is gone. Aborts if the way back in fails.
    fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        let host = self.host.iter().find(|(flag, _)| *flag == libc::CLONE_NEWNET);
        let (Some((_, host)), Some(pod)) = (host, &self.pod_net) else { return work() };
        if raw::setns(host.as_raw_fd(), libc::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
        let result = work();
        if raw::setns(pod.as_raw_fd(), libc::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
        result
    }

    fn leave(&mut self) -> Result<()> {
        self.pod_net = None;
        let back = self.host.drain(..).filter_map(|(flag, host)| {
            raw::setns(host.as_raw_fd(), flag)
                .doing(|| format!("setns back to the host's {flag:#x}"))
                .err()
        });
        Error::join(back.collect())
    }
}
