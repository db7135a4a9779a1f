//! TaskOOM: that the kernel has killed a process of a container for want of memory.
//!
//! One event for each time that the counter is found higher, while the init lives and once more
//! before its exit is told. It must never keep a descriptor after the init's end.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::timeout;

use super::{Shim, State};
use crate::cgroup::{Cgroup, Notices, Slice};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::events::{Event, Exit};
use crate::reaper::{ExitWatch, ended};

/// v1 gives notice before it chooses a victim: the counter grows a little later. It is looked at
/// after 1, 2, 4… ms, the last time after two seconds; what is slower still is found at the next
/// notice, or at the exit.
const LATER_LOOKS: u32 = 11;
/// The exit status of a process that SIGKILL has ended.
const KILLED: u32 = 137;

/// Tells if something was killed since the last look.
pub(super) fn look(shim: &Shim, container: &mut Container) {
    let new = container.cgroup.oom_kills().unwrap_or(0).saturating_sub(container.oom_kills);
    if let Some(slice) = &container.slice {
        slice.tell(new);
    }
    told(shim, container, new);
}

fn told(shim: &Shim, container: &mut Container, new: u64) {
    if new > 0 {
        container.oom_kills += new;
        shim.queue.push(Event::Oom { container_id: container.id.clone() });
    }
}

/// The same once the init has ended. systemd may have been quicker and removed a scope's cgroup: then
/// the kills of its slice that are no other container's are its own. It has to have been killed
/// itself, if there is anybody else whom they could belong to.
pub(super) fn last_look(shim: &Shim, state: &mut State, id: &str, exit: Exit) {
    let Some(container) = state.containers.get_mut(id) else { return };
    look(shim, container);
    let Some(slice) = container.slice.clone() else { return };
    if container.cgroup.oom_kills().is_some() {
        return;
    }
    let mut alone = slice.only(|name| is_ours(state, name));
    for (_, other) in state.containers.iter_mut().filter(|(other, _)| *other != id) {
        if other.slice.as_ref().is_some_and(|other| Arc::ptr_eq(other, &slice)) {
            alone = false;
            look(shim, other);
        }
    }
    if let Some(container) = state.containers.get_mut(id)
        && (alone || exit.status == KILLED)
    {
        told(shim, container, slice.rest());
    }
}

/// The slice of a new container's scope: one for all that are in it. None: somebody else is, too.
pub(super) fn slice(state: &State, cgroup: &Cgroup) -> Option<Arc<Slice>> {
    let there = state.containers.values().filter_map(|container| container.slice.as_ref());
    let known = there.filter(|_| cgroup.unit().is_some()).find(|slice| slice.holds(cgroup));
    let own = |name: &str| cgroup.unit() == Some(name);
    let alone = |slice: &Slice| slice.only(|name| own(name) || is_ours(state, name));
    known.cloned().or_else(|| Slice::of(cgroup).filter(alone).map(Arc::new))
}

/// Whether a scope is that of a container of this pod, or will be.
fn is_ours(state: &State, name: &str) -> bool {
    let of = |container: &Container| container.cgroup.unit() == Some(name);
    let scope = |id: &String| is_scope_of(name, id);
    state.containers.values().any(of) || state.creating.keys().any(scope)
}

/// By what containerd and docker call them: `prefix-ID.scope`.
fn is_scope_of(name: &str, id: &str) -> bool {
    let before = name.strip_suffix(".scope").and_then(|name| name.strip_suffix(id));
    before.is_some_and(|before| before.is_empty() || before.ends_with('-'))
}

/// Follows a container's notices until its init has ended.
pub(super) fn watch(shim: &Arc<Shim>, id: &str, cgroup: &Cgroup, mut exit: ExitWatch) {
    let notices = match cgroup.oom_notices() {
        Ok(Some(notices)) => notices,
        Ok(None) => return,
        Err(error) => return at_exit(id, &error),
    };
    let looks = if cgroup.cgroups().unified { 0 } else { LATER_LOOKS };
    let (shim, id) = (Arc::clone(shim), id.to_owned());
    tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = ended(&mut exit) => {}
            Err(error) = follow(&shim, &id, &notices, looks) => match error.errno() {
                // systemd has removed an empty scope: the exit is on its way.
                Some(Errno::ENODEV) => {}
                _ => at_exit(&id, &error),
            },
        }
    });
}

/// Less than was meant, but no reason to refuse a container.
fn at_exit(id: &str, error: &Error) {
    log::warn!("container {id:?}: its oom kills are told only at its exit: {error}");
}

async fn follow(shim: &Shim, id: &str, notices: &Notices, looks: u32) -> Result<()> {
    // The first look is at once: it may have happened before there was anybody to be told.
    let mut turn = looks;
    loop {
        look(shim, shim.lock().container_mut(id)?);
        let noticed = match turn {
            turn if turn < looks => timeout(Duration::from_millis(1 << turn), notices.next()).await,
            _ => Ok(notices.next().await),
        };
        match noticed {
            Ok(noticed) => {
                noticed?;
                turn = 0;
            }
            Err(_) => turn += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CgroupDir, Cgroups};

    #[test]
    fn a_slice_is_its_own_whatever_the_scope_is_called() {
        let mountpoint = std::env::temp_dir().join(format!("rs-slice-{}", std::process::id()));
        let slice = mountpoint.join("x.slice");
        let path = slice.join("rs-name.scope");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(slice.join("memory.events"), "oom_kill 3\n").unwrap();
        let at = CgroupDir { controllers: vec!["memory".into()], mountpoint, path };
        let top = at.mountpoint.clone();
        let cgroup = Cgroup::from_record(Cgroups { unified: true, dirs: vec![at] })
            .in_unit(Some("rs-name.scope".into()));
        let mut state = State::default();
        state.creating.insert("id".into(), None);
        let alone = super::slice(&state, &cgroup).is_some();
        std::fs::create_dir(slice.join("other.scope")).unwrap();
        let beside = super::slice(&state, &cgroup).is_some();
        std::fs::remove_dir_all(top).unwrap();
        assert!(alone && !beside);
    }

    #[test]
    fn a_scope_whose_name_ends_alike_is_another() {
        assert!(is_scope_of("cri-containerd-1.scope", "1") && is_scope_of("1.scope", "1"));
        assert!(!is_scope_of("docker-11.scope", "1") && !is_scope_of("docker-1.service", "1"));
    }
}
