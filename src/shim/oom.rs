//! TaskOOM: that the kernel has killed a process of a container for want of memory.
//!
//! One event for each time that the counter is found higher, while the init lives and once more
//! before its exit is told. It must never keep a descriptor after the init's end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Shim;
use crate::cgroup::{Cgroup, Notices};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::reaper::{ExitWatch, ended};

/// v1 gives notice before it chooses a victim: the counter grows a little later. It is looked at
/// after 1, 2, 4… ms, the last time after two seconds; what is slower still is found at the next
/// notice, or at the exit.
const LATER_LOOKS: u32 = 11;

/// Tells if something was killed since the last look.
pub(super) fn look(shim: &Shim, container: &mut Container) {
    let kills = container.cgroup.oom_kills().unwrap_or(0);
    if kills > container.oom_kills {
        container.oom_kills = kills;
        shim.queue.push(Event::Oom { container_id: container.id.clone() });
    }
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
            Err(error) = follow(&shim, &id, &notices, looks) => at_exit(&id, &error),
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
