//! resctrl, the kernel's file system for caches and memory bandwidth: made, limited and removed are a
//! container's groups here. See [`crate::plan::rdt`].
//!
//! What can wait for other CPUs is done by a child. It must never remove a group that it found, other
//! than the container's own: the kernel would put all its tasks elsewhere without a word.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use crate::error::{Doing, Error, Kind, Result};
use crate::launch;
use crate::plan::{self, Plan, Rdt};
use crate::reaper::Reaper;

/// Where everybody mounts it.
pub const ROOT: &str = "/sys/fs/resctrl";

/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(10);

/// An error if the file system is not there, or not what a container needs of it.
pub fn check(rdt: &Rdt, root: &Path) -> Result<()> {
    let precondition = |text| Err(Error::new(Kind::FailedPrecondition, text));
    // The mount point is there without it, and empty.
    if !root.join("info").is_dir() {
        return precondition(format!(
            "linux.intelRdt: resctrl is not mounted at {}",
            root.display()
        ));
    }
    if rdt.must_exist() && !rdt.group.is_dir() {
        let text = format!("linux.intelRdt.closID: there is no group {:?}", rdt.group);
        return precondition(format!("{text}, and no schema to make one with"));
    }
    Ok(())
}

/// Makes the groups and limits them. Whether the outer one is new; if this fails, it is no more.
pub async fn make(reaper: &Arc<Reaper>, rdt: &Rdt, root: &Path) -> Result<bool> {
    let made = !rdt.must_exist() && rdt.group != root && make_one(reaper, &rdt.group).await?;
    let Err(error) = fill(reaper, rdt, root).await else { return Ok(made) };
    let left = remove(reaper, &rdt.to_remove(made)).await.err();
    Err(Error::all(error, left))
}

async fn fill(reaper: &Arc<Reaper>, rdt: &Rdt, root: &Path) -> Result<()> {
    if let Some(monitor) = &rdt.monitor {
        make_one(reaper, monitor).await?;
    }
    let Some(plan) = rdt.limit()? else { return Ok(()) };
    run(reaper, plan).await.map_err(|error| match why(root) {
        None => error,
        Some(why) => Error::all(error, [Error::new(Kind::Unknown, why)]),
    })
}

/// What the kernel says of the last command that it refused.
fn why(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join("info/last_cmd_status")).ok()?;
    let text = text.trim();
    (!text.is_empty() && text != "ok").then(|| text.replace('\n', ", "))
}

/// Whether it is new.
async fn make_one(reaper: &Arc<Reaper>, group: &Path) -> Result<bool> {
    match run(reaper, Rdt::make(group)?).await {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn run(reaper: &Arc<Reaper>, plan: Plan) -> Result<()> {
    launch::run(reaper, plan, LIMIT).await.doing(|| "linux.intelRdt")
}

/// Removes groups, innermost first. Twice is as good as once.
pub async fn remove(reaper: &Arc<Reaper>, groups: &[PathBuf]) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    run(reaper, plan::remove(groups)?).await
}
