//! StartSandbox: into the pod's namespaces, and what its containers share. On an error nothing is left.
//!
//! It must never be called with the state locked: it takes its time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Holder, Ready, Shm};
use crate::api::{NamespaceMode, PodConfig};
use crate::bundle;
use crate::error::{Doing, Error, Result};
use crate::launch::{self, Child};
use crate::namespaces::{Pod, Wanted};
use crate::plan::{self, Facts, Input};
use crate::reaper::Reaper;
use crate::sys;

/// As CRI's own pause sandbox has it.
const SHM_SIZE: &std::ffi::CStr = c"67108864";

/// What [`start`] needs of a sandbox, so that nothing is locked while it works.
#[derive(Debug)]
pub struct StartRequest {
    pub id: String,
    pub(super) bundle: PathBuf,
    pub(super) netns: Option<PathBuf>,
    pub(super) config: PodConfig,
}

/// Enters the pod's namespaces and makes what its containers share. On an error nothing is left.
pub async fn start(reaper: &Arc<Reaper>, pod: &Pod, request: StartRequest) -> Result<Ready> {
    let host_network = request.netns.is_none();
    let wanted = Wanted {
        net: request.netns.as_deref(),
        ipc: request.config.ipc != NamespaceMode::Node,
        uts: !host_network,
    };
    pod.enter(wanted)?;
    let mut ready = Ready { holder: None, shm: None };
    match fill(reaper, &request, wanted, &mut ready).await {
        Ok(()) => Ok(ready),
        Err(error) => {
            let undone = ready.take_down(pod).await.err();
            bundle::forget_server(&request.bundle);
            Err(Error::all(error, undone))
        }
    }
}

async fn fill(
    reaper: &Arc<Reaper>,
    request: &StartRequest,
    wanted: Wanted<'_>,
    ready: &mut Ready,
) -> Result<()> {
    let config = &request.config;
    if wanted.uts && !config.hostname.is_empty() {
        let name = config.hostname.as_bytes();
        sys::raw::sethostname(name).doing(|| format!("sethostname {:?}", config.hostname))?;
    }
    for (name, value) in sysctls(config, wanted.net.is_some()) {
        write_sysctl(&name, &value, config)?;
    }
    if wanted.ipc {
        ready.shm = Some(make_shm(&request.bundle)?);
    }
    if config.pid == NamespaceMode::Pod {
        ready.holder = Some(start_holder(reaper, &request.bundle).await?);
    }
    let holder = ready.holder.as_ref().map(|holder| holder.pid);
    let record = bundle::ServerRecord {
        version: bundle::RECORD_VERSION,
        shim_pid: std::process::id(),
        shim_start_time: bundle::start_time(std::process::id())?,
        holder_pid: holder,
        holder_start_time: holder.map(bundle::start_time).transpose()?,
        shm_mount: ready.shm.as_ref().and_then(|shm| shm.attached.clone()),
    };
    record.write(&request.bundle)
}

/// The pod's sysctls and the two that CRI's pause sandbox sets by default.
fn sysctls(config: &PodConfig, own_network: bool) -> BTreeMap<String, String> {
    let mut all = config.sysctls.clone();
    if own_network {
        let mut default = |name: &str, value: &str| {
            all.entry(name.into()).or_insert_with(|| value.into());
        };
        default("net.ipv4.ip_unprivileged_port_start", "0");
        default("net.ipv4.ping_group_range", "0 2147483647");
    }
    all
}

/// The namespaces that a pod has of its own: this process writes its sysctls, and has the host's
/// rest before it.
pub(super) fn own_namespaces(config: &PodConfig) -> i32 {
    let own = |mode: NamespaceMode, flag: i32| if mode == NamespaceMode::Node { 0 } else { flag };
    let net = libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    own(config.network, net) | own(config.ipc, libc::CLONE_NEWIPC)
}

fn write_sysctl(name: &str, value: &str, config: &PodConfig) -> Result<()> {
    let path = plan::sysctl_file(name, own_namespaces(config))?;
    std::fs::write(&path, value).doing(|| format!("write {value:?} to {path:?}"))
}

fn make_shm(bundle: &Path) -> Result<Shm> {
    let params = [(c"source", Some(c"shm")), (c"mode", Some(c"1777")), (c"size", Some(SHM_SIZE))];
    let attr = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let mount =
        sys::mount::new_mount(c"tmpfs", &params, attr).doing(|| "mount tmpfs for /dev/shm")?;
    if sys::mount::clone_mount(mount.as_fd()).is_ok() {
        return Ok(Shm { mount, attached: None });
    }
    let path = bundle.join("shm");
    std::fs::create_dir_all(&path).doing(|| format!("mkdir {path:?}"))?;
    let c_path = plan::cpath("shm", &path)?;
    sys::mount::attach_at(mount.as_fd(), &c_path)
        .doing(|| format!("move_mount(/dev/shm, {path:?})"))?;
    Ok(Shm { mount, attached: Some(path) })
}

/// pid 1 of the pod. See `plan::holder` for how little it can do.
async fn start_holder(reaper: &Arc<Reaper>, bundle: &Path) -> Result<Holder> {
    let facts = Facts { bundle: bundle.to_owned(), ..Facts::default() };
    let plan = plan::holder(&["containerd-shim-rs-v2", "holder"], &facts)?;
    let exe = File::open("/proc/self/exe").doing(|| "open /proc/self/exe")?;
    let doing = |e: Error| e.doing("start the holder of the pod's PID namespace");
    // The start of a Rust program wants 0, 1 and 2 open: ends of a pipe show nobody anything.
    let (end, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "pipe2")?;
    let mut inputs = vec![(Input::Executable, exe.into())];
    for number in 0..=2 {
        inputs.push((Input::Stdio(number), end.try_clone().doing(|| "dup(pipe)")?));
    }
    let mut child: Child = launch::launch(reaper, plan, inputs, None).map_err(doing)?;
    child.go().await.map_err(doing)?;
    Ok(Holder { pid: child.pid, pidfd: Arc::clone(&child.pidfd), exit: child.exit.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let pod = own_namespaces(&PodConfig::default());
        let node = NamespaceMode::Node;
        let host = own_namespaces(&PodConfig { network: node, ipc: node, ..PodConfig::default() });
        for name in ["net.ipv4.ip_forward", "kernel.shmmax", "kernel.domainname"] {
            assert!(plan::sysctl_file(name, pod).is_ok(), "{name}");
            assert!(plan::sysctl_file(name, host).is_err(), "{name}");
        }
        assert!(plan::sysctl_file("kernel.panic", pod).is_err());
    }

    #[test]
    fn pod_defaults_give_way_to_the_pods_own() {
        let mut config = PodConfig::default();
        config.sysctls.insert("net.ipv4.ping_group_range".into(), "1 0".into());
        let all = sysctls(&config, true);
        assert_eq!(all["net.ipv4.ping_group_range"], "1 0");
        assert_eq!(all["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(sysctls(&config, false).len(), 1);
    }
}
