//! `mounts` of the spec, and what the pod adds to them: which host paths to open before anything
//! propagates, and what to attach where, in the spec's order.
//!
//! It must never open a host path after `Propagate`, nor attach a mount without saying how it
//! propagates: a clone of a shared host mount would carry the container's mounts to the host.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWNET, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_SHARED, MS_SLAVE,
};
use oci_spec::runtime::{Linux, Mount, Spec};

use super::namespaces::Namespaces;
use super::options::{Options, param};
use super::paths::{beneath, check_proc, clean, cpath, cstring, on_host, target};
use super::rootfs::fs_params;
use super::user::User;
use super::{Attr, Facts, IdMap, Input, Missing, Op, Param, Plan, Slot};
use super::{cgroups, devices};
use crate::error::{Doing, Error, Result};

/// CRI's annotation that tells a container from its sandbox.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// What a cgroup v1 hierarchy and the tmpfs above all of them are mounted with.
pub(super) const PLAIN: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

/// A source is a descriptor; so many a process may not even have.
const MOST: usize = 4096;

/// One mount to make, checked and in the kernel's terms.
#[derive(Debug)]
pub(super) struct Entry {
    /// The field that asks for it, for errors.
    field: String,
    /// Clean, and never the root.
    destination: String,
    kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Of a host path; `attrs` say how it propagates too.
    Bind {
        source: PathBuf,
        recursive: bool,
        attrs: Vec<Attr>,
        mount: Option<Slot>,
        ids: Option<Ids>,
    },
    /// A `/dev` with its nodes in it, made before a user namespace was entered. `sealed`: to be
    /// read-only once the console is in it.
    Dev {
        mount: Slot,
        sealed: bool,
    },
    /// Of the pod's own `/dev/shm`.
    Shm {
        mount: Option<Slot>,
    },
    New {
        fstype: String,
        params: Vec<Param>,
        attr: Attr,
    },
    /// A tmpfs that begins with what it covers.
    CopyUp {
        params: Vec<Param>,
        attr: Attr,
    },
    /// Not a mount, but made in between.
    Symlink {
        to: String,
    },
}

/// How the ids of a bind mount are mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    /// `None`: as in the container's user namespace.
    map: Option<IdMap>,
    recursive: bool,
}

/// Everything to mount, in order.
pub(super) fn resolve(spec: &Spec, facts: &Facts, ns: &Namespaces) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    let count = spec.mounts().as_ref().map_or(0, Vec::len);
    if count > MOST {
        return Err(Error::invalid(format!("mounts: {count}, the limit is {MOST}")));
    }
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{i}]");
        let destination = clean(mount.destination());
        if destination == "/" {
            let text = format!("{field}.destination: nothing can be mounted on the root");
            return Err(Error::invalid(text));
        }
        let entries = entries(mount, facts, ns).doing(|| field.clone())?;
        all.extend(entries.into_iter().map(|(name, kind)| {
            let destination = match name {
                None => destination.clone(),
                Some(name) => clean(format!("{destination}/{name}").as_ref()),
            };
            Entry { field: field.clone(), destination, kind }
        }));
    }
    inject(&mut all, spec, facts, ns.user.is_some());
    for entry in &all {
        check(entry)?;
    }
    Ok(all)
}

fn check(entry: &Entry) -> Result<bool> {
    let proc = match &entry.kind {
        Kind::New { fstype, .. } => fstype == "proc",
        // A plan cannot look at the source's file system: the host's own procfs, by its name.
        Kind::Bind { source, .. } => source == Path::new("/proc"),
        Kind::Shm { .. } | Kind::Symlink { .. } | Kind::Dev { .. } | Kind::CopyUp { .. } => false,
    };
    check_proc(format_args!("{}.destination", entry.field), &entry.destination, proc)
}

/// What one mount of the spec comes to; a name is that of a file in its destination.
fn entries(mount: &Mount, facts: &Facts, ns: &Namespaces) -> Result<Vec<(Option<String>, Kind)>> {
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let options = options.doing(|| "options")?;
    let fstype = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().clone().unwrap_or_default();
    let mapped = ids(mount, &options, ns.user.is_some())?;
    if options.copy_up && (options.bind.is_some() || fstype != "tmpfs") {
        return Err(Error::invalid("options: \"tmpcopyup\" is for a tmpfs only"));
    }
    if options.bind.is_some() || fstype == "bind" {
        let mut kind = bind(&options, &source, facts)?;
        if let Kind::Bind { ids, .. } = &mut kind {
            *ids = mapped;
        }
        return Ok(vec![(None, kind)]);
    }
    if mapped.is_some() {
        return Err(Error::unimplemented("an id-mapped mount that is no bind mount"));
    }
    if options.remount {
        return Err(Error::unimplemented("options: \"remount\" of a file system"));
    }
    match fstype {
        "" => Err(Error::invalid("type is missing")),
        "cgroup" => cgroups::entries(&source, options, facts, ns.new & CLONE_NEWCGROUP != 0),
        // It belongs to the network namespace, which may not be the container's root's.
        "sysfs" if ns.user.is_some() && ns.new & CLONE_NEWNET == 0 && !facts.user_owns_network => {
            let set = Attr { set: options.new_mount(), recursive: true, ..Attr::default() };
            let slave = Attr { propagation: MS_SLAVE, recursive: true, ..Attr::default() };
            let (source, attrs) = ("/sys".into(), vec![set, slave]);
            let kind = Kind::Bind { source, recursive: true, attrs, mount: None, ids: None };
            Ok(vec![(None, kind)])
        }
        "tmpfs" if options.copy_up => {
            let (params, attr) = parts(&source, &options)?;
            Ok(vec![(None, Kind::CopyUp { params, attr })])
        }
        fstype => Ok(vec![(None, new(fstype, &source, &options)?)]),
    }
}

/// Mappings without the option are mapped all the same, as in runc.
fn ids(mount: &Mount, options: &Options, user: bool) -> Result<Option<Ids>> {
    let map = IdMap::of(mount.uid_mappings(), mount.gid_mappings());
    let map = if map.is_empty() { None } else { Some(map.checked()?) };
    let recursive = options.ids == Some(true);
    match (&map, options.ids) {
        (None, None) => Ok(None),
        (None, Some(_)) if !user => {
            Err(Error::invalid("\"idmap\" without mappings, and without a user namespace"))
        }
        _ => Ok(Some(Ids { map, recursive })),
    }
}

pub(super) fn bind(options: &Options, source: &Path, facts: &Facts) -> Result<Kind> {
    if let Some(param) = options.params.first() {
        let text = format!("options: {:?} has no meaning for a bind mount", param.key);
        return Err(Error::invalid(text));
    }
    if source.as_os_str().is_empty() {
        return Err(Error::invalid("source is missing"));
    }
    let recursive = options.bind == Some(true);
    let mut attrs = Vec::new();
    let mut own = options.own;
    // As `mount --bind -o` always did and runc does: with any option of the mount given, those
    // not given are off, whatever the source's mount has. `remount` changes only what is given.
    if !own.is_empty() && !options.remount {
        own.clear |= (PLAIN | MOUNT_ATTR_RDONLY) & !own.set;
    }
    let kinds = [(own, false), (options.recursive, true)];
    attrs.extend(kinds.iter().filter(|(bits, _)| !bits.is_empty()).map(|(b, r)| b.attr(*r)));
    let flow = |propagation, recursive| Attr { propagation, recursive, ..Attr::default() };
    // No word on the mounts beneath: they follow the host, and the host does not follow them.
    if options.propagation.is_empty() || (recursive && !options.propagation[0].1) {
        attrs.push(flow(MS_SLAVE, true));
    }
    attrs.extend(options.propagation.iter().map(|(flag, recursive)| flow(*flag, *recursive)));
    Ok(Kind::Bind {
        source: on_host(&facts.bundle, source),
        recursive,
        attrs,
        mount: None,
        ids: None,
    })
}

pub(super) fn new(fstype: &str, source: &Path, options: &Options) -> Result<Kind> {
    let (params, attr) = parts(source, options)?;
    Ok(Kind::New { fstype: fstype.into(), params, attr })
}

fn parts(source: &Path, options: &Options) -> Result<(Vec<Param>, Attr)> {
    let mut params = fs_params(options, &source.to_string_lossy())?;
    params.extend(options.params.iter().cloned());
    let propagation = options.propagation.last().map_or(0, |(flag, _)| *flag);
    Ok((params, Attr { set: options.new_mount(), propagation, ..Attr::default() }))
}

/// CRI leaves out the pod's files if it cannot find them, as after a restart of containerd. A
/// `/dev/shm` that is none of a pod's would break shared memory between its containers silently.
fn inject(all: &mut Vec<Entry>, spec: &Spec, facts: &Facts, user: bool) {
    let Some(sandbox) = &facts.sandbox else { return };
    let annotations = spec.annotations().as_ref();
    if annotations.and_then(|a| a.get(CONTAINER_TYPE)).is_none_or(|typ| typ != "container") {
        return;
    }
    let entry = |destination: &str, kind| Entry {
        field: format!("the pod's {destination}"),
        destination: destination.into(),
        kind,
    };
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let bits = if readonly { (MOUNT_ATTR_RDONLY, 0) } else { (0, MOUNT_ATTR_RDONLY) };
    for name in ["hostname", "hosts", "resolv.conf"] {
        let destination = format!("/etc/{name}");
        if all.iter().any(|entry| entry.destination == destination) {
            continue;
        }
        let access = Attr { set: bits.0, clear: bits.1, ..Attr::default() };
        let private = Attr { propagation: MS_PRIVATE, recursive: true, ..Attr::default() };
        let attrs = vec![access, private];
        let source = sandbox.dir.join(name);
        // Root's inside too, as CRI has it.
        let ids = user.then_some(Ids { map: None, recursive: false });
        let kind = Kind::Bind { source, recursive: false, attrs, mount: None, ids };
        all.push(entry(&destination, kind));
    }
    if sandbox.shm {
        let shm = all.iter_mut().find(|entry| entry.destination == "/dev/shm");
        match shm {
            Some(Entry { kind: Kind::Bind { .. }, .. }) => {}
            Some(entry) => entry.kind = Kind::Shm { mount: None },
            None => all.push(entry("/dev/shm", Kind::Shm { mount: None })),
        }
    }
}

/// Opens every source. Before `Propagate`.
pub(super) fn open(plan: &mut Plan, entries: &mut [Entry], user: Option<&User>) -> Result<()> {
    for Entry { field, destination, kind } in entries {
        let mut mapped = None;
        let (into, attrs) = match kind {
            Kind::Bind { source, recursive, attrs, mount, ids } => {
                let into = *mount.insert(plan.slot());
                let source = cpath(format_args!("{field}.source"), source)?;
                plan.ops.push(Op::OpenTree { source, into, recursive: *recursive });
                let mut attrs = attrs.clone();
                if destination == "/dev" {
                    // Read-only once the console is in it.
                    attrs.iter_mut().for_each(|attr| attr.set &= !MOUNT_ATTR_RDONLY);
                }
                // A peer of the host's would carry there what the container's root mounts.
                if user.is_some() {
                    let shared = attrs.iter_mut().filter(|attr| attr.propagation == MS_SHARED);
                    shared.for_each(|attr| attr.propagation = MS_SLAVE);
                }
                mapped = ids.as_ref();
                (into, attrs)
            }
            Kind::Shm { mount } => {
                let into = *mount.insert(plan.input(Input::SandboxShm));
                (into, vec![Attr { propagation: MS_PRIVATE, ..Attr::default() }])
            }
            Kind::New { .. } | Kind::CopyUp { .. } | Kind::Symlink { .. } | Kind::Dev { .. } => {
                continue;
            }
        };
        let attrs = attrs.into_iter().filter(|attr| attr.set | attr.clear | attr.propagation != 0);
        plan.ops.extend(attrs.map(|attr| Op::SetAttr { mount: into, attr }));
        if let Some(Ids { map, recursive }) = mapped {
            let user = match (map, user) {
                (Some(map), Some(user)) if *map == user.map => user.ns,
                (Some(map), _) => plan.user_namespace(map),
                (None, Some(user)) => user.ns,
                // `ids` has refused it.
                (None, None) => continue,
            };
            plan.ops.push(Op::IdMap { mount: into, user, recursive: *recursive });
        }
    }
    Ok(())
}

/// What [`open`] has opened, in order.
pub(super) fn opened(entries: &[Entry]) -> impl Iterator<Item = Slot> {
    entries.iter().filter_map(|entry| match entry.kind {
        Kind::Bind { mount, .. } | Kind::Shm { mount } => mount,
        Kind::New { .. } | Kind::CopyUp { .. } | Kind::Symlink { .. } | Kind::Dev { .. } => None,
    })
}

/// Makes the container's `/dev` with its nodes while the host's rights are there. Its owner is the
/// container's root, but the kernel lets only the host's remount it.
pub(super) fn make_dev(
    plan: &mut Plan,
    linux: &Linux,
    entries: &mut [Entry],
    user: &User,
) -> Result<()> {
    let found = entries.iter_mut().rev().find(|entry| entry.destination == "/dev");
    let Some(Entry { kind, .. }) = found else {
        return Err(Error::unimplemented("a user namespace without a mount on /dev"));
    };
    let (params, attr) = match kind {
        Kind::Bind { .. } => return Ok(()),
        Kind::New { fstype, params, attr } if fstype == "tmpfs" => (params, attr),
        Kind::CopyUp { .. } => {
            return Err(Error::unimplemented("\"tmpcopyup\" on /dev in a user namespace"));
        }
        _ => return Err(Error::unimplemented("a user namespace without a tmpfs on /dev")),
    };
    let mut given = std::mem::take(params);
    given.retain(|param| ![c"uid", c"gid"].contains(&param.key.as_c_str()));
    if !given.iter().any(|param| param.key.as_c_str() == c"mode") {
        given.push(param("mode=755")?);
    }
    let (uid, gid) = user.root();
    given.extend([param(&format!("uid={uid}"))?, param(&format!("gid={gid}"))?]);
    let (sealed, set) = (attr.set & MOUNT_ATTR_RDONLY != 0, attr.set & !MOUNT_ATTR_RDONLY);
    let mount = plan.slot();
    plan.ops.push(Op::NewMount { fstype: c"tmpfs".into(), params: given, attr: set, into: mount });
    let propagation = if attr.propagation == 0 { MS_PRIVATE } else { attr.propagation };
    let attr = Attr { propagation, ..Attr::default() };
    plan.ops.push(Op::SetAttr { mount, attr });
    *kind = Kind::Dev { mount, sealed };
    devices::make(plan, linux, mount, Some(user))
}

/// Attaches all, in order. What it returns turns read-only what was still to be written to: the
/// caller runs it after the last write.
pub(super) fn attach(plan: &mut Plan, entries: &[Entry], root: Slot) -> Result<Vec<Op>> {
    let mut late = Vec::new();
    let seal =
        |mount| Op::SetAttr { mount, attr: Attr { set: MOUNT_ATTR_RDONLY, ..Attr::default() } };
    for (i, entry) in entries.iter().enumerate() {
        let Entry { field, destination, kind } = entry;
        let missing = match kind {
            Kind::Bind { .. } => Missing::LikeSource,
            _ => Missing::Directory,
        };
        let mut target = target(format_args!("{field}.destination"), destination, missing)?;
        target.inside_proc = check(entry)?;
        match kind {
            Kind::Bind { source, attrs, mount: Some(mount), .. } => {
                let sealed = attrs.iter().any(|a| !a.recursive && a.set & MOUNT_ATTR_RDONLY != 0);
                if destination == "/dev" && sealed {
                    late.push(seal(*mount));
                }
                // Not by way of a link to elsewhere, as for a procfs that is new.
                target.no_symlinks = destination == "/proc";
                let source = cpath(format_args!("{field}.source"), source)?;
                plan.ops.push(Op::Attach { mount: *mount, source, root, target });
            }
            Kind::Shm { mount: Some(mount) } => {
                let source = c"shm of the pod".to_owned();
                plan.ops.push(Op::Attach { mount: *mount, source, root, target });
            }
            Kind::Dev { mount, sealed } => {
                late.extend(sealed.then(|| seal(*mount)));
                let source = c"tmpfs".to_owned();
                plan.ops.push(Op::Attach { mount: *mount, source, root, target });
            }
            // `open` comes first.
            Kind::Bind { mount: None, .. } | Kind::Shm { mount: None } => {}
            Kind::New { fstype, params, attr } => {
                target.no_symlinks = matches!(fstype.as_str(), "proc" | "sysfs");
                let filled = |later: &Entry| beneath(&later.destination, destination);
                let fills = fstype == "tmpfs" && entries[i + 1..].iter().any(filled);
                let early = destination != "/dev" && !fills;
                let fstype = cstring(format_args!("{field}.type"), fstype)?;
                let (params, attr) = (params.clone(), *attr);
                if early || attr.set & MOUNT_ATTR_RDONLY == 0 {
                    plan.ops.push(Op::Mount { fstype, params, attr, root, target });
                } else {
                    let tmpfs = (fstype, params, attr);
                    let mount = attach_writable(plan, tmpfs, root, target, false);
                    late.push(seal(mount));
                }
            }
            Kind::CopyUp { params, attr } => {
                let tmpfs = (c"tmpfs".into(), params.clone(), *attr);
                let mount = attach_writable(plan, tmpfs, root, target, true);
                late.extend((attr.set & MOUNT_ATTR_RDONLY != 0).then(|| seal(mount)));
            }
            Kind::Symlink { to } => {
                let to = cstring(field, to)?;
                plan.ops.push(Op::Symlink { root, target, to });
            }
        }
    }
    Ok(late)
}

/// Keeps a mount open, and writable until its content is there. `copy_up`: that of the directory
/// which it covers is part of it.
fn attach_writable(
    plan: &mut Plan,
    (fstype, params, attr): (CString, Vec<Param>, Attr),
    root: Slot,
    target: super::Target,
    copy_up: bool,
) -> Slot {
    let (into, source) = (plan.slot(), fstype.clone());
    let mode = !params.iter().any(|param| param.key.as_c_str() == c"mode");
    let set = attr.set & !MOUNT_ATTR_RDONLY;
    plan.ops.push(Op::NewMount { fstype, params, attr: set, into });
    if copy_up {
        plan.ops.push(Op::CopyUp { mount: into, root, target: target.clone(), mode });
    }
    if attr.propagation != 0 {
        let attr = Attr { propagation: attr.propagation, ..Attr::default() };
        plan.ops.push(Op::SetAttr { mount: into, attr });
    }
    plan.ops.push(Op::Attach { mount: into, source, root, target });
    into
}

/// Whether the spec mounts something at a clean destination that is bound from the host.
pub(super) fn binds(entries: &[Entry], destination: &str) -> bool {
    let is = |entry: &&Entry| entry.destination == destination;
    entries.iter().filter(is).any(|entry| matches!(entry.kind, Kind::Bind { .. }))
}

#[cfg(test)]
mod tests;
