//! User namespaces, made or looked at through a child that does nothing else.
//!
//! This process must never enter one: it could not come back.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use oci_spec::runtime::Process;

use crate::error::{Doing, Error, Result};
use crate::launch::{self, Child};
use crate::plan::{self, IdMap, IdRange, Input, Plan};
use crate::reaper::Reaper;

/// The user namespaces that a plan wants made.
pub async fn inputs(reaper: &Arc<Reaper>, plan: &Plan) -> Result<Vec<(Input, OwnedFd)>> {
    let mut all = Vec::with_capacity(plan.users.len());
    for (index, map) in plan.users.iter().enumerate() {
        let made = make(reaper, map).await.doing(|| format!("user namespace {map}"))?;
        all.push((Input::User(index), made));
    }
    Ok(all)
}

/// A new user namespace. Nobody is in it when this returns.
pub async fn make(reaper: &Arc<Reaper>, map: &IdMap) -> Result<OwnedFd> {
    let mut child = launch::launch(reaper, plan::user_namespace(None), Vec::new(), None)?;
    child.ready().await?;
    let made = write_maps(&child, map);
    child.kill().await;
    made
}

/// By the host's root, so that setgroups(2) stays allowed inside.
fn write_maps(child: &Child, map: &IdMap) -> Result<OwnedFd> {
    for (name, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
        let path = format!("/proc/{}/{name}", child.pid);
        let text = plan::map_file(ranges);
        std::fs::write(&path, &text).doing(|| format!("write {text:?} to {name}"))?;
    }
    let path = format!("/proc/{}/ns/user", child.pid);
    Ok(File::open(&path).doing(|| format!("open {path}"))?.into())
}

/// The mappings of a user namespace, read from a child that is in it.
pub async fn map_of(reaper: &Arc<Reaper>, ns: OwnedFd) -> Result<IdMap> {
    let input = Input::Namespace(0);
    let plan = plan::user_namespace(Some(input.clone()));
    let mut child = launch::launch(reaper, plan, vec![(input, ns)], None)?;
    child.ready().await?;
    let map = read_maps(child.pid);
    child.kill().await;
    map
}

fn read_maps(pid: u32) -> Result<IdMap> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        let text = std::fs::read_to_string(&path).doing(|| format!("read {path}"))?;
        let wrong = || Error::invalid(format!("{path}: {text:?}"));
        let range = |line: &str| {
            let numbers: Vec<u32> = line.split_whitespace().flat_map(str::parse).collect();
            match numbers[..] {
                [inside, outside, size] => Ok(IdRange { inside, outside, size }),
                _ => Err(wrong()),
            }
        };
        text.lines().map(range).collect::<Result<Vec<_>>>()
    };
    Ok(IdMap { uids: read("uid_map")?, gids: read("gid_map")? })
}

/// Whom the pipes of a process belong to, in the host's ids: in a user namespace to its own user,
/// who could not open `/dev/stdout` again otherwise.
pub fn owner(map: Option<&IdMap>, process: Option<&Process>, given: (u32, u32)) -> (u32, u32) {
    let user = process.map(Process::user);
    let mapped = map.zip(user).and_then(|(map, user)| map.uid(user.uid()).zip(map.gid(user.gid())));
    mapped.unwrap_or(given)
}
