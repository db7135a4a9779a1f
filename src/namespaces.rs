//! The pod's network, IPC and UTS namespaces, which the serving process itself lives in while the
//! sandbox is ready, and the way back out.
//!
//! The saved descriptors are an escape to the host: close-on-exec, and never given to a child.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;

use crate::error::{Doing, Error, Result};
use crate::sys::raw;

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

/// What this process entered, and where it came from.
#[derive(Debug)]
pub struct Entered {
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

/// Enters a pod's namespaces. On an error this process is where it was.
pub fn enter(wanted: Wanted<'_>) -> Result<Entered> {
    let mut entered = Entered { host: Vec::new(), pod_net: None };
    match entered.step_in(wanted) {
        Ok(()) => Ok(entered),
        Err(error) => {
            // A process that is half in a pod must not serve; `leave` says so if it fails too.
            Err(Error::all(error, entered.leave().err()))
        }
    }
}

impl Entered {
    fn step_in(&mut self, wanted: Wanted<'_>) -> Result<()> {
        if let Some(path) = wanted.net {
            let pod = File::open(path).doing(|| format!("open network namespace {path:?}"))?;
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

    /// Runs `work` in the host's network namespace: a socket that is created in the pod's would
    /// keep it alive from the other end, after the pod is gone. Aborts if the way back in fails.
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
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

    /// Goes back to the host's namespaces, so that the pod's end with its processes.
    pub fn leave(&mut self) -> Result<()> {
        self.pod_net = None;
        let back = self.host.drain(..).filter_map(|(flag, host)| {
            raw::setns(host.as_raw_fd(), flag)
                .doing(|| format!("setns back to the host's {flag:#x}"))
                .err()
        });
        Error::join(back.collect())
    }
}
