//! StartSandbox: into the pod's namespaces, and what its containers share. On an error nothing is left.
//!
//! It must never be called with the state locked: it takes its time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Holder, Ready, Shm};
use crate::api::{NamespaceMode, PodConfig};
use crate::bundle;
use crate::error::{Doing, Error, Result};
use crate::launch::{self, Child};
use crate::namespaces::{self, Pod, Wanted};
use crate::plan::{self, Facts, IdMap, Input};
use crate::reaper::Reaper;
use crate::{sys, user};

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
    // What belongs to a user namespace is born in it, with the holder.
    let outside = request.config.user.is_none();
    let wanted = Wanted {
        net: request.netns.as_deref(),
        ipc: outside && request.config.ipc != NamespaceMode::Node,
        uts: outside && request.netns.is_some(),
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
    let (mine, holders): (Vec<_>, Vec<_>) = sysctls(config, wanted.net.is_some())
        .into_iter()
        .partition(|(name, _)| config.user.is_none() || of_network(name));
    for (name, value) in mine {
        write_sysctl(&name, &value, config)?;
    }
    if config.ipc != NamespaceMode::Node {
        let root = config.user.as_ref().and_then(|map| map.uid(0).zip(map.gid(0)));
        ready.shm = Some(make_shm(&request.bundle, root.unwrap_or((0, 0)))?);
    }
    if config.pid == NamespaceMode::Pod || config.user.is_some() {
        ready.holder = Some(start_holder(reaper, request, &holders).await?);
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

/// Whether a kernel parameter belongs to the network namespace.
fn of_network(name: &str) -> bool {
    plan::sysctl_file(name, libc::CLONE_NEWNET).is_ok()
}

/// The pod's sysctls and the two that CRI's pause sandbox sets by default.
fn sysctls(config: &PodConfig, own_network: bool) -> BTreeMap<String, String> {
    let mut all = config.sysctls.clone();
    if own_network {
        let mut default = |name: &str, value: &str| {
            all.entry(name.into()).or_insert_with(|| value.into());
        };
        default("net.ipv4.ip_unprivileged_port_start", "0");
        // Of groups that a user namespace does not have.
        if config.user.is_none() {
            default("net.ipv4.ping_group_range", "0 2147483647");
        }
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

fn make_shm(bundle: &Path, (uid, gid): (u32, u32)) -> Result<Shm> {
    let id = |id: u32| plan::cpath("an id", Path::new(&id.to_string()));
    let (uid, gid) = (id(uid)?, id(gid)?);
    let params = [
        (c"source", Some(c"shm")),
        (c"mode", Some(c"1777")),
        (c"size", Some(SHM_SIZE)),
        (c"uid", Some(uid.as_c_str())),
        (c"gid", Some(gid.as_c_str())),
    ];
    let attr = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let mount =
        sys::mount::new_mount(c"tmpfs", &params, attr).doing(|| "mount tmpfs for /dev/shm")?;
    match sys::mount::clone_mount(mount.as_fd()) {
        Ok(_) => return Ok(Shm { mount, attached: None }),
        Err(nix::errno::Errno::EINVAL) => {}
        Err(errno) => return Err(Error::sys("open_tree(/dev/shm, OPEN_TREE_CLONE)", errno)),
    }
    let path = bundle.join("shm");
    std::fs::create_dir_all(&path).doing(|| format!("mkdir {path:?}"))?;
    let c_path = plan::cpath("shm", &path)?;
    sys::mount::attach_at(mount.as_fd(), &c_path)
        .doing(|| format!("move_mount(/dev/shm, {path:?})"))?;
    Ok(Shm { mount, attached: Some(path) })
}

/// The process that a pod's own PID namespace, or all that belongs to its user namespace, is born
/// with. See `plan::holder` for how little it can do.
async fn start_holder(
    reaper: &Arc<Reaper>,
    request: &StartRequest,
    sysctls: &[(String, String)],
) -> Result<Holder> {
    let doing = |e: Error| e.doing("start the holder of the pod's namespaces");
    let (config, bundle) = (&request.config, &request.bundle);
    let mut inputs = Vec::new();
    let mut holds = plan::Holder { user: config.user.as_ref(), sysctls, ..Default::default() };
    if config.pid == NamespaceMode::Pod {
        holds.namespaces |= libc::CLONE_NEWPID;
    }
    if let Some(map) = &config.user {
        let inside = user_namespace(reaper, request.netns.as_deref(), map).await.map_err(doing)?;
        inputs.push((Input::Namespace(0), inside));
        holds.namespaces |= own_namespaces(config) & !libc::CLONE_NEWNET;
        let named = request.netns.is_some() && !config.hostname.is_empty();
        holds.hostname = named.then_some(config.hostname.as_str());
    }
    let facts = Facts { bundle: bundle.clone(), ..Facts::default() };
    let plan = plan::holder(&["containerd-shim-rs-v2", "holder"], holds, &facts)?;
    launch::log_plan(&request.id, &plan);
    let exe = File::open("/proc/self/exe").doing(|| "open /proc/self/exe")?;
    // The start of a Rust program wants 0, 1 and 2 open: ends of a pipe show nobody anything.
    let (end, _) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "pipe2")?;
    inputs.push((Input::Executable, exe.into()));
    for number in 0..=2 {
        inputs.push((Input::Stdio(number), end.try_clone().doing(|| "dup(pipe)")?));
    }
    let mut child: Child = launch::launch(reaper, plan, inputs, None).map_err(doing)?;
    child.go().await.map_err(doing)?;
    Ok(Holder { pid: child.pid, pidfd: Arc::clone(&child.pidfd), exit: child.exit.clone() })
}

/// The user namespace that CRI has made the pod's network in: in another one with the same mappings
/// the containers' root would have no right over their network. Without a network of its own, a new one.
async fn user_namespace(
    reaper: &Arc<Reaper>,
    netns: Option<&Path>,
    map: &IdMap,
) -> Result<OwnedFd> {
    if let Some(path) = netns {
        let network = namespaces::open(path).doing(|| "network namespace")?;
        if let Some(owner) = namespaces::owner(network.as_fd())?
            && !namespaces::is_ours(&owner, "user")?
        {
            let owner = OwnedFd::from(owner);
            let have = user::map_of(reaper, owner.try_clone().doing(|| "dup")?).await?;
            if have != *map {
                let text = format!("the owner of {path:?} has {have}, the pod {map}");
                return Err(Error::invalid(text));
            }
            return Ok(owner);
        }
    }
    user::make(reaper, map).await
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
