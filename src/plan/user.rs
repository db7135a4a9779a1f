//! User namespaces: mappings, and the way of a child into the one of its container.
//!
//! The parent makes the namespace and brings its descriptor, so that host paths are opened with the
//! host's rights before the child gives them up. Every other new namespace is made inside, or the
//! container's root would have no rights over it.

use std::fmt;

use libc::{CLONE_NEWNS, CLONE_NEWUSER};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType as Type, Process, Spec};

use super::{Facts, Input, Op, Plan, Slot};
use crate::error::{Error, Result};

/// The kernel's own limit (`UID_GID_MAP_MAX_EXTENTS`).
const MOST_RANGES: usize = 340;

/// `RLIMIT_NOFILE`.
const FILES: u32 = 7;
/// No shim has a lower hard limit: to set one needs no right.
const FEW_FILES: u64 = 1024;

/// `size` ids from `inside` on are the host's from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub size: u32,
}

/// The mappings of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdMap {
    pub uids: Vec<IdRange>,
    pub gids: Vec<IdRange>,
}

impl IdMap {
    /// Checks what a client sent. Overlaps are for the kernel to find.
    pub fn checked(self) -> Result<IdMap> {
        for (field, ranges) in [("uidMappings", &self.uids), ("gidMappings", &self.gids)] {
            if ranges.is_empty() {
                return Err(Error::invalid(format!("{field} is missing")));
            }
            if ranges.len() > MOST_RANGES {
                let text = format!("{field}: {} ranges, the limit is {MOST_RANGES}", ranges.len());
                return Err(Error::invalid(text));
            }
            for (i, IdRange { inside, outside, size }) in ranges.iter().enumerate() {
                let fits = |first: &u32| first.checked_add(*size).is_some();
                if *size == 0 || !fits(inside) || !fits(outside) {
                    let text = format!("{field}[{i}]: {size} ids from {inside} and {outside} on");
                    return Err(Error::invalid(text));
                }
            }
        }
        Ok(self)
    }

    /// What a spec says; `None`: nothing.
    pub fn of_spec(spec: &Spec) -> Option<IdMap> {
        let linux = spec.linux().as_ref()?;
        let map = IdMap::of(linux.uid_mappings(), linux.gid_mappings());
        (!map.is_empty()).then_some(map)
    }

    pub(super) fn of(
        uids: &Option<Vec<LinuxIdMapping>>,
        gids: &Option<Vec<LinuxIdMapping>>,
    ) -> IdMap {
        let ranges = |list: &Option<Vec<LinuxIdMapping>>| {
            let range = |m: &LinuxIdMapping| IdRange {
                inside: m.container_id(),
                outside: m.host_id(),
                size: m.size(),
            };
            list.iter().flatten().map(range).collect()
        };
        IdMap { uids: ranges(uids), gids: ranges(gids) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// The host's id of a user inside.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        find(&self.uids, inside)
    }

    /// The host's id of a group inside.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        find(&self.gids, inside)
    }
}

fn find(ranges: &[IdRange], inside: u32) -> Option<u32> {
    let range = ranges.iter().find(|r| inside >= r.inside && inside - r.inside < r.size)?;
    Some(range.outside + (inside - range.inside))
}

/// As `/proc/PID/uid_map` takes it.
pub fn map_file(ranges: &[IdRange]) -> String {
    ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.size)).collect()
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, ranges) in [("uids", &self.uids), (" gids", &self.gids)] {
            write!(f, "{name}")?;
            for IdRange { inside, outside, size } in ranges {
                write!(f, " {inside}:{outside}:{size}")?;
            }
        }
        Ok(())
    }
}

/// The user namespace of a container.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub ns: Slot,
    pub map: IdMap,
}

impl User {
    /// The one that the spec asks for, if it does.
    pub fn of(plan: &mut Plan, linux: &Linux, facts: &Facts) -> Result<Option<User>> {
        let given = IdMap::of(linux.uid_mappings(), linux.gid_mappings());
        let mut all = linux.namespaces().iter().flatten().enumerate();
        let found = all.find(|(_, ns)| ns.typ() == Type::User);
        let ours = |i: usize| facts.ours.get(i).copied().unwrap_or(false);
        let Some((i, entry)) = found.filter(|(i, _)| !ours(*i)) else {
            if !given.is_empty() {
                let text = "linux.uidMappings: there is no user namespace to map";
                return Err(Error::invalid(text));
            }
            return Ok(None);
        };
        let by_path = entry.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        if !by_path {
            let map = given.checked().map_err(|e| e.doing("linux"))?;
            let ns = plan.user_namespace(&map);
            return User { ns, map }.rooted().map(Some);
        }
        let Some(map) = facts.user_map.clone() else {
            return Err(Error::invalid(format!("linux.namespaces[{i}]: its mappings are unknown")));
        };
        // containerd sends both; another mapping than the namespace has would not come true.
        if !given.is_empty() && given != map {
            let text = format!("linux.uidMappings: {given}, but linux.namespaces[{i}] has {map}");
            return Err(Error::invalid(text));
        }
        User { ns: plan.input(Input::Namespace(i)), map }.rooted().map(Some)
    }

    /// What is made inside belongs to its root.
    fn rooted(self) -> Result<User> {
        for (field, id) in [("uidMappings", self.map.uid(0)), ("gidMappings", self.map.gid(0))] {
            if id.is_none() {
                return Err(Error::invalid(format!("linux.{field}: 0 is not mapped")));
            }
        }
        Ok(self)
    }

    /// The host's ids of its root.
    pub fn root(&self) -> (u32, u32) {
        // `rooted` has seen to it.
        (self.map.uid(0).unwrap_or(u32::MAX), self.map.gid(0).unwrap_or(u32::MAX))
    }

    /// Enters, and makes the other namespaces inside. The process keeps the host's root as its
    /// user, who may still get to the rootfs, until `UserRoot`. With a PID namespace among `new`, a
    /// `Birth` follows: procfs belongs to the user namespace that its PID namespace belongs to.
    pub fn enter(&self, plan: &mut Plan, new: i32) {
        plan.ops.push(Op::Setns { ns: self.ns, flags: CLONE_NEWUSER });
        plan.ops.push(Op::Unshare { flags: new | CLONE_NEWNS });
    }
}

/// Refuses a user that no id of the host stands for: the kernel's EINVAL would not say which.
pub(super) fn check_user(process: &Process, map: &IdMap) -> Result<()> {
    let user = process.user();
    let missing = |field: &str, id: u32| {
        Error::invalid(format!("process.user.{field}: {id} is not mapped in the user namespace"))
    };
    if map.uid(user.uid()).is_none() {
        return Err(missing("uid", user.uid()));
    }
    let more = user.additional_gids().iter().flatten().map(|gid| ("additionalGids", *gid));
    let gids = std::iter::once(("gid", user.gid())).chain(more);
    let mut wrong = gids.filter(|(_, gid)| map.gid(*gid).is_none());
    wrong.next().map_or(Ok(()), |(field, gid)| Err(missing(field, gid)))
}

/// Moves the limits to before the step that enters the user namespace: a right of the host's is
/// needed to raise one. The one of open files, which later steps need, is only raised there.
pub(super) fn limits_first(plan: &mut Plan) {
    let enters = |op: &Op| matches!(op, Op::Setns { flags, .. } if flags & CLONE_NEWUSER != 0);
    let Some(at) = plan.ops.iter().position(enters) else { return };
    let all = std::mem::take(&mut plan.ops);
    let (mut limits, mut rest) = (Vec::new(), Vec::new());
    for op in all {
        match op {
            Op::Rlimit { resource: FILES, hard, .. } => {
                let raised = Op::Rlimit { resource: FILES, soft: hard, hard };
                limits.extend((hard > FEW_FILES).then_some(raised));
                rest.push(op);
            }
            Op::Rlimit { .. } => limits.push(op),
            op => rest.push(op),
        }
    }
    let tail = rest.split_off(at);
    plan.ops = [rest, limits, tail].concat();
}

/// A process that is in a new user namespace, for as long as its parent writes its mappings and
/// opens it; with `Some`, in that one, for its mappings to be read.
pub fn user_namespace(existing: Option<Input>) -> Plan {
    let mut plan = Plan::default();
    plan.input(Input::Report);
    match existing {
        None => plan.namespaces = CLONE_NEWUSER,
        Some(input) => {
            let ns = plan.input(input);
            plan.ops.push(Op::Setns { ns, flags: CLONE_NEWUSER });
        }
    }
    plan.ops.extend([Op::Ready, Op::Exit]);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, size: u32) -> IdRange {
        IdRange { inside, outside, size }
    }

    #[test]
    fn ids_are_found_in_their_range() {
        let uids = vec![range(0, 1000, 10), range(100, 0, 1)];
        let map = IdMap { uids, gids: vec![range(0, 7, 1)] };
        for (inside, outside) in [(0, Some(1000)), (9, Some(1009)), (10, None), (100, Some(0))] {
            assert_eq!(map.uid(inside), outside, "{inside}");
        }
        assert_eq!((map.gid(0), map.gid(1)), (Some(7), None));
        assert_eq!(map_file(&map.uids), "0 1000 10\n100 0 1\n");
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        let good = vec![range(0, 1, u32::MAX - 1)];
        for bad in [
            vec![],
            vec![range(0, 0, 0)],
            vec![range(u32::MAX, 0, 2)],
            vec![range(0, u32::MAX, 2)],
            vec![range(0, 0, 1); MOST_RANGES + 1],
        ] {
            let map = IdMap { uids: good.clone(), gids: bad };
            let error = map.checked().unwrap_err().to_string();
            assert!(error.starts_with("gidMappings"), "{error}");
        }
        assert!(IdMap { uids: good.clone(), gids: good }.checked().is_ok());
    }
}
