//! All that one serving process holds: at most one sandbox, and containers. Each verb of the
//! Sandbox and Task services is one method here, in our own types.
//!
//! Methods that are not `async` answer from memory and never wait. An `async` method that changes
//! something must be run to its end even if its client went away (the service spawns it).

mod create;
mod exec;
mod exit;
mod hooks;
mod host;
mod live;
mod logger;
mod oom;
mod pod;
mod rdt;
mod seccomp;
mod start;
mod systemd;
mod user;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::api::{Pid, Status, Target};
use crate::bundle;
use crate::cgroup::{Layout, Stats};
use crate::config::Config;
use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::events::{Exit, Queue};
use crate::namespaces::Pod;
use crate::reaper::{Reaper, ended};
use crate::sandbox::Sandbox;
use crate::stdio::Streams;
use crate::sys;
use crate::systemd::Places;

/// How long a server waits for its first sandbox or container, and a sandbox for its start:
/// containerd may die between the two, or never get through, and nobody else would end us.
const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// How long after a start the process lets go of what only a start needs.
const REST: Duration = Duration::from_secs(2);
/// For clients to take their last replies; they need not be there any more.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long the last events may take to reach containerd.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// The shim's own settings, from its command line and environment.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// containerd's namespace (`-namespace`).
    pub namespace: String,
    /// The sandbox or container that the shim was started for (`-id`).
    pub id: String,
    /// Its bundle: the working directory.
    pub bundle: PathBuf,
    /// containerd's TTRPC socket, for events.
    pub ttrpc_address: String,
    /// Our own socket; removed at the end.
    pub socket: PathBuf,
    pub config: Config,
    /// See [`IDLE_LIMIT`]; `None`: that.
    pub idle_limit: Option<Duration>,
    /// Where systemd is found.
    pub systemd: Places,
    /// Where resctrl is mounted; `None`: [`crate::rdt::ROOT`].
    pub resctrl: Option<PathBuf>,
}

/// The server's whole state. See the module text.
#[derive(Debug)]
pub struct Shim {
    settings: Settings,
    /// What containerd shall hear of.
    pub queue: Arc<Queue>,
    /// How many connections are open.
    pub clients: Arc<watch::Sender<usize>>,
    /// The ends of stdio that clients have as streams.
    pub streams: Arc<Streams>,
    reaper: Arc<Reaper>,
    /// The namespaces that this process has entered.
    pod: Pod,
    state: Mutex<State>,
    /// A process or a sandbox changed its state.
    changed: Notify,
    ending: Notify,
    /// A `rest` is on its way.
    resting: AtomicBool,
    layout: OnceLock<Layout>,
    host: OnceLock<host::Host>,
}

#[derive(Debug, Default)]
struct State {
    sandbox: Option<Sandbox>,
    containers: BTreeMap<String, Container>,
    /// Ids that Create is at work on, with their child once there is one.
    creating: BTreeMap<String, Option<Arc<OwnedFd>>>,
    /// The process will end: nothing new is taken in.
    ending: bool,
}

impl Shim {
    /// An empty shim.
    pub fn new(settings: Settings) -> Arc<Shim> {
        let streams = Arc::new(Streams::new(settings.socket.clone()));
        Arc::new(Shim {
            settings,
            streams,
            queue: Arc::default(),
            clients: Arc::new(watch::Sender::new(0)),
            reaper: Arc::default(),
            pod: Pod::default(),
            state: Mutex::default(),
            changed: Notify::new(),
            ending: Notify::new(),
            resting: AtomicBool::new(false),
            layout: OnceLock::new(),
            host: OnceLock::new(),
        })
    }

    /// The settings it was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Who buries its children.
    pub fn reaper(&self) -> &Arc<Reaper> {
        &self.reaper
    }

    /// Never held across an await (clippy sees to it), so never waited for.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout(&self) -> Result<&Layout> {
        match self.layout.get() {
            Some(layout) => Ok(layout),
            None => {
                let layout = Layout::probe()?;
                Ok(self.layout.get_or_init(|| layout))
            }
        }
    }

    /// Runs `work` in the host's network namespace, whichever this process is in.
    pub fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.pod.outside(work)
    }

    /// Gives back what only a start needs, once there is time.
    fn rest(self: &Arc<Self>) {
        if self.resting.swap(true, Ordering::Relaxed) {
            return;
        }
        let shim = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(REST).await;
            shim.resting.store(false, Ordering::Relaxed);
            sys::memory::release_program();
        });
    }

    /// What State says of a process.
    pub fn state(&self, target: &Target) -> Result<Status> {
        let state = self.lock();
        let container = state.container(&target.container)?;
        let process = container.process(target.exec.as_deref())?;
        Ok(Status {
            id: target.exec.as_ref().unwrap_or(&target.container).clone(),
            bundle: container.bundle.clone(),
            pid: process.pid,
            state: container.frozen_or(process.state()),
            stdio: process.stdio_paths.clone(),
            exit: process.exited(),
        })
    }

    /// Waits for the end of a process. Cancelled with its client.
    pub async fn wait(&self, target: &Target) -> Result<Exit> {
        let mut watch = {
            let state = self.lock();
            state.container(&target.container)?.process(target.exec.as_deref())?.watch()
        };
        Ok(ended(&mut watch).await)
    }

    /// Signals a process, or with `all` every process of the container.
    pub fn kill(&self, target: &Target, signal: u32, all: bool) -> Result<()> {
        let number = i32::try_from(signal).ok().filter(|s| (0..=64).contains(s));
        let signal =
            number.ok_or_else(|| Error::invalid(format!("signal {signal} is none of 0 to 64")))?;
        let mut state = self.lock();
        if let (Some(Some(pidfd)), None) = (state.creating.get(&target.container), &target.exec) {
            return send(pidfd, signal);
        }
        let container = state.container_mut(&target.container)?;
        let pidfd = container.process(target.exec.as_deref())?.pidfd()?;
        if all && target.exec.is_none() {
            return container.kill_all(signal);
        }
        send(&pidfd, signal)?;
        // A frozen process dies only when it is thawed.
        if signal == libc::SIGKILL && target.exec.is_none() {
            container.thaw_to_die()
        } else {
            Ok(())
        }
    }

    /// The processes of a container; of a sandbox, the one that stands for it.
    pub fn pids(&self, id: &str) -> Result<Vec<Pid>> {
        let state = self.lock();
        if let Some(sandbox) = state.sandbox.as_ref().filter(|sandbox| sandbox.id == id) {
            // Empty for one that is not ready: containerd then removes what it had never stored.
            let pid = Some(sandbox.status(false).pid).filter(|pid| *pid != 0);
            return Ok(pid.map(|pid| Pid { pid, exec_id: None }).into_iter().collect());
        }
        let container = state.container(id)?;
        let mut pids = container.cgroup.pids().unwrap_or_default();
        // Never empty and never an error before Delete: containerd takes a container without pids
        // for one that was never made, and removes it at its next start. Hence an ended init too,
        // as in State: its exit status would be lost if it ended while containerd was away.
        let is_alive = container.init.is_alive();
        if pids.is_empty() || (is_alive && !pids.contains(&container.init.pid)) {
            pids.push(container.init.pid);
        }
        let exec_of =
            |pid: u32| container.execs.iter().find(|(_, exec)| exec.pid == pid && exec.is_alive());
        Ok(pids
            .into_iter()
            .map(|pid| Pid { pid, exec_id: exec_of(pid).map(|(id, _)| id.clone()) })
            .collect())
    }

    /// A container's numbers, until it is deleted. Read anew at each call, and at once: the files are
    /// the kernel's memory, so no call hangs, none waits behind another, and there is nothing that
    /// equal calls could share.
    pub fn stats(&self, id: &str) -> Result<Stats> {
        let state = self.lock();
        let container = state.container(id)?;
        match &container.last {
            Some(last) => Ok(Stats::clone(last)),
            None => container.cgroup.stats(),
        }
    }

    /// Sets a terminal's size; without one there is nothing to do.
    pub fn resize_pty(&self, target: &Target, width: u32, height: u32) -> Result<()> {
        let cells = |n: u32| {
            u16::try_from(n)
                .map_err(|_| Error::invalid(format!("{n} columns or rows: at most 65535")))
        };
        let (width, height) = (cells(width)?, cells(height)?);
        let state = self.lock();
        match &state.container(&target.container)?.process(target.exec.as_deref())?.stdio {
            Some(stdio) => stdio.resize(width, height),
            None => Ok(()),
        }
    }

    /// Closes a process' stdin.
    pub fn close_stdin(&self, target: &Target) -> Result<()> {
        let mut state = self.lock();
        let process =
            state.container_mut(&target.container)?.process_mut(target.exec.as_deref())?;
        process.close_stdin();
        Ok(())
    }

    /// (Our pid, the init's or 0). Never fails: containerd removes the pod if it does.
    pub fn connect(&self, id: &str) -> (u32, u32) {
        let state = self.lock();
        let pid = match (&state.sandbox, state.containers.get(id)) {
            (_, Some(container)) => container.init.pid,
            (Some(sandbox), None) if sandbox.id == id => sandbox.status(false).pid,
            _ => 0,
        };
        (std::process::id(), pid)
    }

    /// Ends the process, if nothing lives in it. containerd asks at every Delete.
    pub fn shutdown(&self) -> bool {
        let mut state = self.lock();
        let idle = state.is_idle();
        if idle {
            self.end(&mut state);
        }
        idle
    }

    /// From here on nothing new is taken in.
    fn end(&self, state: &mut State) {
        state.ending = true;
        self.ending.notify_one();
    }

    /// Resolves when the serving process shall end. What it leaves on disk is gone then.
    pub async fn ended(&self) {
        let idle = async {
            let limit = self.settings.idle_limit.unwrap_or(IDLE_LIMIT);
            loop {
                tokio::time::sleep(limit).await;
                let mut state = self.lock();
                if state.is_waiting() {
                    log::warn!("nothing came in {limit:?}: ending");
                    state.ending = true;
                    return;
                }
            }
        };
        tokio::select! {
            () = self.ending.notified() => {}
            () = idle => {}
        }
        self.give_up_waiting();
    }

    /// Waits until every client has closed its connection, having its replies; but not long.
    pub async fn left_alone(&self) {
        let gone = async { self.clients.subscribe().wait_for(|count| *count == 0).await.is_ok() };
        if tokio::time::timeout(CLOSE_LIMIT, gone).await.is_err() {
            log::warn!("connections were still open after {CLOSE_LIMIT:?}");
        }
    }

    /// Waits until containerd has the last events, but not long.
    pub async fn flush(&self) {
        if !self.queue.flush(FLUSH_LIMIT).await {
            log::warn!("the last events did not reach containerd");
        }
    }
}

impl State {
    fn container(&self, id: &str) -> Result<&Container> {
        self.containers.get(id).ok_or_else(|| no_container(id))
    }

    fn container_mut(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| no_container(id))
    }

    /// A process of a pod may only be started while this one is in the pod's namespaces.
    fn check_namespaces(&self) -> Result<()> {
        match &self.sandbox {
            Some(sandbox) if sandbox.ready().is_none() => {
                Err(Error::new(Kind::FailedPrecondition, "the sandbox is not ready"))
            }
            _ => Ok(()),
        }
    }

    /// Nothing that a Shutdown could destroy.
    fn is_idle(&self) -> bool {
        let rests = |sandbox: &Sandbox| sandbox.is_waiting() || sandbox.is_stopped();
        let lives = self.sandbox.as_ref().is_some_and(|sandbox| !rests(sandbox));
        !lives && self.containers.is_empty() && self.creating.is_empty()
    }

    /// Nothing was ever asked for here.
    fn is_empty(&self) -> bool {
        self.sandbox.is_none() && self.containers.is_empty() && self.creating.is_empty()
    }

    /// Nothing was ever started here.
    fn is_waiting(&self) -> bool {
        let waits = self.sandbox.as_ref().is_none_or(Sandbox::is_waiting);
        waits && self.containers.is_empty() && self.creating.is_empty()
    }
}

/// What a request for something new gets from a process that ends.
fn unavailable() -> Error {
    Error::new(Kind::Unavailable, "the shim is ending")
}

fn no_container(id: &str) -> Error {
    let shown: String = id.chars().take(80).collect();
    Error::new(Kind::NotFound, format!("no container {shown:?}"))
}

/// Signals by pidfd; a process that is gone is NotFound, as containerd expects.
fn send(pidfd: &Arc<OwnedFd>, signal: i32) -> Result<()> {
    sys::fd::pidfd_signal(pidfd, signal).map_err(|errno| {
        let error = Error::sys(format!("pidfd_send_signal({signal})"), errno);
        if errno == nix::errno::Errno::ESRCH { error.with_kind(Kind::NotFound) } else { error }
    })
}

/// Where the bundle of this server is; records of its containers are linked from there.
fn home(shim: &Shim) -> &std::path::Path {
    &shim.settings.bundle
}

/// An id as a container's or an exec's.
fn check_ids(target: &Target) -> Result<()> {
    bundle::check_id(&target.container)?;
    target.exec.as_deref().map_or(Ok(()), bundle::check_id)
}
