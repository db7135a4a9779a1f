//! The parent's half of a plan: descriptors in, clone, reports out, errors in words.
//!
//! It must never decide what a child does; that is in the plan. A child that fails is dead and
//! buried before its error is returned.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::sys::io::Polled;
use nix::errno::Errno;
use tokio::io::Interest;

use crate::agent::Agent;
use crate::child::report::{Call, GO, Report};
use crate::child::{self, Frozen};
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Exit;
use crate::plan::{Input, Op, Plan};
use crate::reaper::{ExitWatch, Expecting, Reaper, ended};
use crate::sys;

/// 128 + SIGKILL.
const KILLED: u32 = 137;
/// Ops are numbered with 16 bits in a report.
const MAX_OPS: usize = u16::MAX as usize;

/// How long a child that was killed is waited for.
const DEATH_LIMIT: Duration = Duration::from_secs(1);
/// How long the report of a birth may take after it.
const BIRTH_LIMIT: Duration = Duration::from_secs(1);

/// A child on its way through its plan.
#[derive(Debug)]
pub struct Child {
    /// In the shim's PID namespace.
    pub pid: u32,
    /// Never names another process.
    pub pidfd: Arc<OwnedFd>,
    /// How it ends.
    pub exit: ExitWatch,
    /// The master of its pty, once it has sent one.
    pub master: Option<OwnedFd>,
    /// Who gets the notifications of its seccomp filter.
    pub agent: Option<Agent>,
    /// They have come, and wait for the process that they will be of.
    notifications: Option<Polled>,
    reports: Polled,
    plan: Plan,
    reaper: Arc<Reaper>,
    /// A `Birth` has not been reported yet.
    expecting: Option<Expecting>,
    /// Its program runs, or it has ended well: nobody has to kill it.
    released: bool,
}

/// What a child has come to.
enum Step {
    /// It has stopped at this step, and waits.
    Stopped(u16),
    /// Its plan goes on in another process.
    Born,
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.released {
            let _ = sys::fd::pidfd_signal(&self.pidfd, libc::SIGKILL);
        }
    }
}

/// Clones a child that carries out `plan`. `inputs` holds what the plan asks for, `Report` aside;
/// they are closed in this process. `cgroup` is a cgroup v2 directory for the child to be born in.
pub fn launch(
    reaper: &Arc<Reaper>,
    mut plan: Plan,
    inputs: Vec<(Input, OwnedFd)>,
    cgroup: Option<OwnedFd>,
) -> Result<Child> {
    if plan.ops.len() > MAX_OPS {
        return Err(Error::invalid(format!(
            "{} steps; at most {MAX_OPS} are possible",
            plan.ops.len()
        )));
    }
    let (ours, theirs) = sys::fd::message_pair().doing(|| "socketpair")?;
    let reports = Polled::new(ours, Interest::READABLE).doing(|| "epoll_ctl(reports)")?;
    let report = plan.input(Input::Report);
    let find = |input: &Input| match input {
        Input::Report => Ok(theirs.as_raw_fd()),
        input => inputs
            .iter()
            .find(|(have, _)| have == input)
            .map(|(_, fd)| fd.as_raw_fd())
            .ok_or_else(|| Error::invalid(format!("no descriptor for {input:?}"))),
    };
    let slots = plan
        .inputs
        .iter()
        .map(|(input, slot)| Ok((*slot, find(input)?)))
        .collect::<Result<Vec<_>>>()?;
    let mut frozen = Frozen::new(&plan.ops, &plan.args, &plan.env, plan.slots, &slots, report);
    let cgroup = cgroup.as_ref().map(OwnedFd::as_fd);
    let mut clone = || sys::clone::child_of(plan.namespaces, cgroup, child::run, &mut frozen);
    let cloned = match &plan.pid_namespace {
        None => clone().doing(|| "clone3"),
        Some(input) => {
            let home = File::open("/proc/self/ns/pid").doing(|| "open /proc/self/ns/pid")?;
            let fd = inputs.iter().find(|(have, _)| have == input).map(|(_, fd)| fd.as_fd());
            let fd = fd.ok_or_else(|| Error::invalid(format!("no descriptor for {input:?}")))?;
            sys::clone::with_pid_namespace(fd, home.as_fd(), clone).map_err(join_error)
        }
    }?;
    let expecting = plan.ops.contains(&Op::Birth).then(|| reaper.expect_birth());
    let pidfd = Arc::new(cloned.pidfd);
    let exit = reaper.adopt(cloned.pid, &pidfd).inspect_err(|_| {
        let _ = sys::fd::pidfd_signal(&pidfd, libc::SIGKILL);
    })?;
    let reaper = Arc::clone(reaper);
    Ok(Child {
        pid: cloned.pid,
        pidfd,
        exit,
        master: None,
        agent: None,
        notifications: None,
        reports,
        plan,
        reaper,
        expecting,
        released: false,
    })
}

/// The plan of a process, a line each: one message has a limit.
pub fn log_plan(container: &str, plan: &Plan) {
    if log::log_enabled!(log::Level::Debug) {
        for line in plan.to_string().lines() {
            log::debug!("plan of {container:?}: {line}");
        }
    }
}

/// setns(2) of a pidfd says ESRCH, and clone(2) in a PID namespace without an init ENOMEM.
fn join_error(errno: Errno) -> Error {
    match errno {
        Errno::ESRCH | Errno::ENOMEM => {
            Error::sys("clone3 in the PID namespace: init is not running", errno)
                .with_kind(Kind::FailedPrecondition)
        }
        errno => Error::sys("clone3 in the PID namespace", errno),
    }
}

/// Carries out a plan that runs no program; its child is killed at the deadline, and mostly dead when
/// the error is returned.
pub async fn run(reaper: &Arc<Reaper>, plan: Plan, deadline: Duration) -> Result<()> {
    run_with(reaper, plan, Vec::new(), deadline).await
}

/// The same, with descriptors.
pub async fn run_with(
    reaper: &Arc<Reaper>,
    plan: Plan,
    inputs: Vec<(Input, OwnedFd)>,
    deadline: Duration,
) -> Result<()> {
    let mut child = launch(reaper, plan, inputs, None)?;
    let whole = async {
        child.go().await?;
        match ended(&mut child.exit).await.status {
            0 => Ok(()),
            _ => Err(child.died().await),
        }
    };
    match tokio::time::timeout(deadline, whole).await {
        Ok(result) => result,
        Err(_) => {
            let _ = sys::fd::pidfd_signal(&child.pidfd, libc::SIGKILL);
            // No longer: a child that hangs in the kernel dies when the kernel lets it.
            let _ = tokio::time::timeout(DEATH_LIMIT, ended(&mut child.exit)).await;
            let text = format!(
                "{}: no answer within {deadline:?}",
                child.plan.ops.first().map_or_else(String::new, Op::to_string)
            );
            Err(Error::new(Kind::DeadlineExceeded, text))
        }
    }
}

impl Child {
    /// Waits until the child is parked before its program. On an error it is dead.
    pub async fn ready(&mut self) -> Result<()> {
        while !self.reached(&Op::Ready).await? {}
        Ok(())
    }

    /// Waits until the child has stopped at this step, or its plan goes on in another process: then
    /// `false`, and there is another pid. On an error it is dead.
    pub async fn reached(&mut self, at: &Op) -> Result<bool> {
        match self.next().await? {
            Some(Step::Stopped(op)) if self.is(op, |op| op == at) => Ok(true),
            Some(Step::Stopped(_)) => Err(self.out_of_order().await),
            Some(Step::Born) => Ok(false),
            None => Err(self.died().await),
        }
    }

    /// Lets a child go on that has stopped.
    pub fn resume(&self) {
        let _ = sys::raw::send(self.reports.get_ref().as_raw_fd(), &GO, None);
    }

    /// Lets a parked child go on, and waits until its program runs or it has ended well.
    pub async fn go(&mut self) -> Result<()> {
        // Only where it is read: an unread message would make the child's end an ECONNRESET.
        if self.plan.ops.contains(&Op::Ready) {
            self.resume();
        }
        let next = match self.next().await? {
            Some(Step::Born) => self.next().await?,
            next => next,
        };
        match next {
            None if self.expecting.is_some() => Err(self.died().await),
            None => {
                self.released = true;
                Ok(())
            }
            Some(_) => Err(self.out_of_order().await),
        }
    }

    async fn out_of_order(&mut self) -> Error {
        self.failed(Error::new(Kind::Unknown, "a report out of order")).await
    }

    /// `None`: the other end is closed, by `execve` or by death.
    async fn next(&mut self) -> Result<Option<Step>> {
        loop {
            let mut guard = tokio::select! {
                biased;
                ready = self.reports.readable() => ready.doing(|| "epoll_wait(reports)")?,
                // It asks before its birth, and says no more until it has an answer.
                () = asks(self.notifications.as_ref()) => {
                    self.give_to_agent().await?;
                    continue;
                }
            };
            let message = match sys::fd::receive(self.reports.get_ref().as_fd()) {
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                // The reset comes before what is still queued, and is gone once it was read.
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                Ok(None) => return Ok(None),
                Err(errno) => return Err(self.failed(Error::sys("recvmsg", errno)).await),
                Ok(Some(message)) => message,
            };
            match (Report::decode(message.0), message.1) {
                (Some(Report::Ready { op }), None) => return Ok(Some(Step::Stopped(op))),
                (Some(Report::Master { op }), Some(fd))
                    if self.master.is_none()
                        && self.is(op, |op| matches!(op, Op::OpenPty { .. })) =>
                {
                    self.master = Some(fd);
                }
                (Some(Report::Born { op, pid }), None) if self.is(op, |op| *op == Op::Birth) => {
                    self.born(pid as u32).await?;
                    self.hand_over().await?;
                    return Ok(Some(Step::Born));
                }
                (Some(Report::Listener { op, fd }), None)
                    if self.notifications.is_none()
                        && self.is(op, |op| matches!(op, Op::Seccomp { .. })) =>
                {
                    self.fetch(fd).await?;
                    self.hand_over().await?;
                }
                (Some(Report::Failed { op, call, errno }), None) => {
                    let error = step_error(&self.plan, op, call, Errno::from_raw(errno));
                    return Err(self.failed(error).await);
                }
                _ => {
                    return Err(self
                        .failed(Error::new(Kind::Unknown, "a report that is none"))
                        .await);
                }
            }
        }
    }

    /// Whether a report comes from a step that makes such reports.
    fn is(&self, index: u16, kind: impl Fn(&Op) -> bool) -> bool {
        self.plan.ops.get(usize::from(index)).is_some_and(kind)
    }

    /// The plan goes on in another process.
    async fn born(&mut self, pid: u32) -> Result<()> {
        if self.expecting.is_none() {
            return Err(self.failed(Error::new(Kind::Unknown, "a second birth")).await);
        }
        // Its own pid, or a zombie's: a child of ours that nobody has waited for.
        let pidfd = match sys::fd::pidfd_open(pid) {
            Ok(pidfd) => Arc::new(pidfd),
            Err(errno) => {
                return Err(self.failed(Error::sys(format!("pidfd_open({pid})"), errno)).await);
            }
        };
        let adopted = self.reaper.adopt(pid, &pidfd);
        (self.pid, self.pidfd) = (pid, pidfd);
        match adopted {
            Ok(exit) => self.exit = exit,
            Err(error) => {
                let _ = sys::fd::pidfd_signal(&self.pidfd, libc::SIGKILL);
                return Err(error);
            }
        }
        self.expecting = None;
        Ok(())
    }

    /// Takes a copy of the child's descriptor, and lets it go on.
    async fn fetch(&mut self, number: i32) -> Result<()> {
        let fetched = sys::fd::pidfd_getfd(&self.pidfd, number)
            .map_err(|errno| Error::sys(format!("pidfd_getfd({number})"), errno))
            .and_then(|fd| {
                Polled::new(fd, Interest::READABLE).doing(|| "epoll_ctl(notifications)")
            });
        match fetched {
            Ok(fd) => self.notifications = Some(fd),
            Err(error) => return Err(self.failed(error).await),
        }
        let _ = sys::raw::send(self.reports.get_ref().as_raw_fd(), &GO, None);
        Ok(())
    }

    /// Gives the notifications to the agent, once there is the process that it will be asked about.
    async fn hand_over(&mut self) -> Result<()> {
        if self.expecting.is_some() { Ok(()) } else { self.give_to_agent().await }
    }

    async fn give_to_agent(&mut self) -> Result<()> {
        let Some(fd) = self.notifications.take() else { return Ok(()) };
        let result = match self.agent.take() {
            Some(agent) => agent.take(self.pid, fd.into_inner()).await,
            None => Err(Error::invalid("notifications, and no agent for them")),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Makes sure that a child which failed is gone.
    async fn failed(&mut self, error: Error) -> Error {
        self.kill().await;
        error
    }

    /// The error of a child that ended without a report.
    async fn died(&mut self) -> Error {
        let exit = self.kill().await;
        let mut text =
            format!("the child ended before its program ran, with status {}", exit.status);
        if exit.status == KILLED {
            text.push_str("; it was killed, as by a memory limit that is too low");
        }
        // It could not say more: even its report is a system call.
        if self.plan.ops.iter().any(|op| matches!(op, Op::Seccomp { .. })) {
            text.push_str("; perhaps its seccomp filter forbids what it needs until then");
        }
        Error::new(Kind::Unknown, text)
    }

    /// Kills the child and waits for its end.
    pub async fn kill(&mut self) -> Exit {
        let _ = sys::fd::pidfd_signal(&self.pidfd, libc::SIGKILL);
        ended(&mut self.exit).await
    }
}

/// Until somebody asks, and no birth is reported for a while: it is not the process that was born.
async fn asks(notifications: Option<&Polled>) {
    let Some(fd) = notifications else { return std::future::pending().await };
    drop(fd.readable().await);
    tokio::time::sleep(BIRTH_LIMIT).await;
}

/// `step 14/52: mount proc on "/proc": fsmount: EPERM`.
fn step_error(plan: &Plan, op: u16, call: Call, errno: Errno) -> Error {
    let index = usize::from(op);
    let text = plan.ops.get(index).map_or_else(String::new, Op::to_string);
    let error = Error::sys(call.name(), errno);
    let error = match (plan.ops.get(index), errno) {
        // setns(2) with the pidfd of a dead process; a PID namespace without its init.
        (Some(Op::Setns { .. } | Op::Birth), Errno::ESRCH | Errno::ENOMEM) => {
            error.with_kind(Kind::FailedPrecondition).doing("init is not running")
        }
        (Some(Op::BringDevice { .. }), Errno::ENODEV) if call == Call::FindDevice => {
            error.doing("there is no such device")
        }
        (Some(Op::Label { .. }), Errno::ENOENT) if call == Call::Write => {
            error.doing("no such profile is loaded")
        }
        (Some(op), _) => match not_run(op, errno) {
            Some(words) => {
                let name = plan.args.first().map(|name| name.to_string_lossy().into_owned());
                let name = name.unwrap_or_default();
                // A hook's first argument may be any text.
                let path = match op {
                    Op::FindExecutable { candidates } if candidates.len() == 1 => {
                        candidates.first()
                    }
                    _ => None,
                };
                let path = path.map(|path| path.to_string_lossy().into_owned());
                let name = path.filter(|path| !path.ends_with(&name)).unwrap_or(name);
                Error::sys(format!("{name:?}: {words}"), errno)
            }
            None => error,
        },
        (None, _) => error,
    };
    error.doing(format!("step {}/{}: {text}", index + 1, plan.ops.len()))
}

/// Why a program cannot be run, in the words by which docker finds its exit codes 126 and 127.
fn not_run(op: &Op, errno: Errno) -> Option<&'static str> {
    match (op, errno) {
        (Op::FindExecutable { .. }, Errno::ENOENT) => Some("executable file not found in $PATH"),
        (Op::FindExecutable { .. }, Errno::EISDIR) => Some("is a directory"),
        (Op::FindExecutable { .. } | Op::Exec, Errno::EACCES) => Some("permission denied"),
        // The program itself has been found: a script's interpreter, or a loader.
        (Op::Exec, Errno::ENOENT) => Some("its interpreter: no such file or directory"),
        (Op::Exec, Errno::ENOEXEC) => Some("exec format error"),
        _ => None,
    }
}
