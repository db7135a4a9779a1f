//! What `delete` does: ends and removes a pod or a container whose server is gone, from what is on
//! disk alone.
//!
//! It must never need the server, never wait for something that may not come (containerd kills it
//! after 5 s), and say the same when it is called twice.

use std::ffi::CStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use crate::bundle::{self, ContainerRecord, ServerRecord};
use crate::cgroup::Cgroup;
use crate::child::report::Call;
use crate::child::{self, Fail};
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Exit;
use crate::plan::{self, Op};
use crate::{sandbox, socket, sys, systemd};

/// 128 + SIGKILL: what containerd's own shim answers when nobody saw the exit.
const KILLED: u32 = 137;
/// For all of it. containerd gives 5 s.
const LIMIT: Duration = Duration::from_secs(4);
/// How long whoever got the processes of a dead server may take to wait for them.
const REAP_LIMIT: Duration = Duration::from_millis(200);
/// After a Shutdown the server ends by itself, a moment after containerd calls us.
const SERVER_LIMIT: Duration = Duration::from_secs(1);
/// For systemd to answer.
const SCOPE_LIMIT: Duration = Duration::from_millis(700);

/// Whom to clean up after.
#[derive(Clone, Debug)]
pub struct Request {
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox or container.
    pub id: String,
    /// Its bundle; may be gone.
    pub bundle: PathBuf,
}

/// What containerd publishes as its exit.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// 0: not known.
    pub pid: u32,
    pub exit_status: u32,
    pub exited_at: SystemTime,
}

/// Runs every step whatever the others did; what failed is logged.
pub fn delete(request: &Request) -> Outcome {
    delete_by(request, systemd::Places::default())
}

/// The same, with systemd in another place.
pub fn delete_by(request: &Request, places: systemd::Places) -> Outcome {
    let mut places = Some(places);
    let end = Instant::now() + LIMIT;
    let bundle = &request.bundle;
    let log = |result: Result<()>| {
        if let Err(error) = result {
            log::warn!("delete {:?}: {error}", request.id);
        }
    };
    let own = ContainerRecord::read(bundle).unwrap_or_else(|error| {
        log(Err(error));
        None
    });
    let server = ServerRecord::read(bundle).unwrap_or_else(|error| {
        log(Err(error));
        None
    });
    let all = bundle::stands_for_all(bundle, &request.id);
    // A group without a pod: the server was started for this container, and lives on for others.
    let others = || bundle::containers(bundle).into_iter().flatten().any(|r| r.id != request.id);
    let server = server.filter(|_| all || !others());
    if let Some(server) = &server {
        log(end_process(server.shim_pid, server.shim_start_time, SERVER_LIMIT, end).map(drop));
    }
    let mut ended = None;
    let mut remove = |record: &ContainerRecord| {
        let (init, result) = remove_container(bundle, record, &mut places, end);
        if record.id == request.id {
            ended = ended.take().or(init);
        }
        result
    };
    for record in bundle::containers(bundle).into_iter().filter(|_| all) {
        log(record.and_then(|record| remove(&record)));
    }
    log(own.as_ref().map_or(Ok(()), remove));
    if let Some(server) = &server {
        if let (Some(pid), Some(start_time)) = (server.holder_pid, server.holder_start_time) {
            log(end_process(pid, start_time, Duration::ZERO, end).map(drop));
        }
        if let Some(shm) = &server.shm_mount {
            log(sandbox::unmount_shm(shm));
        }
        sandbox::files::remove(bundle);
        bundle::forget_server(bundle);
    }
    if let Some(path) = address(bundle) {
        log(socket::remove_stale(&path));
    }
    let exit = own.as_ref().and_then(ContainerRecord::exit).unwrap_or_else(|| {
        let status = ended.as_ref().and_then(status).unwrap_or(KILLED);
        Exit { status, at: SystemTime::now() }
    });
    let pid = own.map_or(0, |record| record.pid);
    Outcome { pid, exit_status: exit.status, exited_at: exit.at }
}

/// Kills what a container's record names, and removes its cgroup. Its init, if that was still there.
/// `systemd`: none, once it has not answered: to ask it for every container would take all the time.
fn remove_container(
    bundle: &Path,
    record: &ContainerRecord,
    systemd: &mut Option<systemd::Places>,
    end: Instant,
) -> (Option<OwnedFd>, Result<()>) {
    let cgroup = Cgroup::from_record(record.cgroups.clone()).in_unit(record.unit.clone());
    let mut errors = Vec::new();
    if !cgroup.cgroups().unified {
        // A process that is frozen on v1 dies of SIGKILL only once it is thawed: to wait for it before
        // that would take all the time.
        let _ = cgroup.thaw();
    }
    let init = end_process(record.pid, record.start_time, Duration::ZERO, end);
    let init = init.unwrap_or_else(|error| {
        errors.push(error);
        None
    });
    errors.extend(empty(&cgroup, end).err());
    if let (Some(unit), Some(places)) = (cgroup.unit(), systemd.as_ref())
        && let Err(error) = stop_scope(unit, places, end)
    {
        // systemd forgets a scope without processes by itself, once it is well.
        log::warn!("{error}");
        if [Kind::DeadlineExceeded, Kind::Unavailable].contains(&error.kind()) {
            *systemd = None;
        }
    }
    errors.extend(cgroup.remove().and_then(|ops| remove(ops, end)).err());
    let groups = plan::remove(&record.resctrl);
    errors.extend(groups.and_then(|plan| remove(plan.ops, end)).err());
    errors.extend(record.rootfs_mount.as_deref().and_then(|path| unmount(path).err()));
    // Without its record, what is left would never be found again.
    if errors.is_empty() {
        errors.extend(bundle::forget_container(bundle, &record.id, bundle).err());
    }
    (init, Error::join(errors))
}

/// Makes systemd forget a scope.
fn stop_scope(unit: &str, places: &systemd::Places, end: Instant) -> Result<()> {
    let limit = SCOPE_LIMIT.min(end.saturating_duration_since(Instant::now()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.doing(|| "epoll_create")?;
    let systemd = systemd::Systemd::new(places, systemd::socket_to, limit)?;
    runtime.block_on(systemd.stop(unit))
}

/// Ends the process that has this pid since `start_time`; kills it if it does not end by itself
/// within `patience`. `None`: there was none.
fn end_process(
    pid: u32,
    start_time: u64,
    patience: Duration,
    end: Instant,
) -> Result<Option<OwnedFd>> {
    if pid == 0 {
        // On record before it was cloned; its cgroup knows it.
        return Ok(None);
    }
    let pidfd = match sys::fd::pidfd_open(pid) {
        Err(Errno::ESRCH) => return Ok(None),
        pidfd => pidfd.map_err(|errno| Error::sys(format!("pidfd_open({pid})"), errno))?,
    };
    // Opened first and compared then: what the pidfd names cannot change any more.
    if bundle::start_time(pid).ok() != Some(start_time) {
        return Ok(None);
    }
    if ended(&pidfd, patience) {
        return Ok(Some(pidfd));
    }
    let _ = sys::fd::pidfd_signal(&pidfd, libc::SIGKILL);
    if ended(&pidfd, end.saturating_duration_since(Instant::now())) {
        return Ok(Some(pidfd));
    }
    Err(Error::new(Kind::DeadlineExceeded, format!("process {pid} does not die")))
}

/// The exit status of a process that has ended, perhaps before we came: from the kernel, once its new
/// parent has waited for it. `None`: the kernel does not keep it.
fn status(pidfd: &OwnedFd) -> Option<u32> {
    let limit = Instant::now() + REAP_LIMIT;
    let mut pause = Duration::from_millis(1);
    loop {
        match sys::fd::ended(pidfd) {
            Ok(None) if Instant::now() < limit => sleep(&mut pause),
            said => return said.ok().flatten(),
        }
    }
}

fn ended(pidfd: &OwnedFd, patience: Duration) -> bool {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
}

fn empty(cgroup: &Cgroup, end: Instant) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    while !cgroup.empty()? {
        cgroup.kill_all(libc::SIGKILL)?;
        if Instant::now() > end {
            return Err(Error::new(
                Kind::DeadlineExceeded,
                "processes of the container do not die",
            ));
        }
        sleep(&mut pause);
    }
    Ok(())
}

fn remove(ops: Vec<Op>, end: Instant) -> Result<()> {
    let mut errors = Vec::new();
    let mut wait = |tries: u32| {
        let more = Instant::now() < end;
        if more {
            sys::raw::sleep_ms(1 << tries.min(5));
        }
        more
    };
    for op in ops {
        let result = match &op {
            Op::Rmdir { path } => child::cgroup::rmdir(path, &mut wait),
            Op::RemoveCgroup { path } => remove_cgroup(path, &mut wait, end),
            _ => continue,
        };
        errors.extend(
            result
                .err()
                .map(|Fail(call, errno)| Error::sys(format_args!("{op}: {}", call.name()), errno)),
        );
    }
    Error::join(errors)
}

/// What is too much for one go is gone on with until `end`.
fn remove_cgroup(path: &CStr, wait: &mut dyn FnMut(u32) -> bool, end: Instant) -> Result<(), Fail> {
    while !child::cgroup::remove(path, wait)? {
        if Instant::now() > end {
            return Err(Fail(Call::Rmdir, Errno::ETIMEDOUT));
        }
    }
    Ok(())
}

/// Takes a rootfs away from the host. What is not mounted any more is gone.
fn unmount(path: &Path) -> Result<()> {
    let c_path = plan::cpath("rootfs", path)?;
    match sys::raw::umount(&c_path, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) {
        Ok(_) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::sys(format!("umount {path:?}"), errno)),
    }
}

fn sleep(pause: &mut Duration) {
    sys::raw::sleep_ms(pause.as_millis() as i64);
    *pause = (*pause * 2).min(Duration::from_millis(50));
}

/// The socket that `start` wrote into the bundle's `address`.
fn address(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(bundle.join("address")).ok()?;
    let path = Path::new(text.trim().strip_prefix("unix://")?);
    path.is_absolute().then(|| path.to_path_buf())
}
