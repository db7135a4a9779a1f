//! The root file system: containerd's mounts, opened before anything else is touched, and put at
//! exactly `root.path` inside the container's mount namespace, where hooks and tools look for it.
//!
//! It must never leave a mount that a mount made inside the container could travel out of.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use libc::{MOUNT_ATTR_RDONLY, MS_PRIVATE};
use oci_spec::runtime::Spec;

use super::options::Options;
use super::paths::{clean, cpath, cstring, on_host, target};
use super::user::User;
use super::{Attr, Facts, IdMap, IdRange, Missing, Op, Param, Plan, RootfsMount, Slot};
use crate::error::{Doing, Error, Result};

const UIDMAP: &str = "uidmap=";
const GIDMAP: &str = "gidmap=";

/// `fsconfig(2)` takes no longer string.
const LONGEST_VALUE: usize = 255;
/// `mount(2)` takes one page.
const LONGEST_PAGE: usize = 4095;
/// `OVL_MAX_STACK` of the kernel.
const MOST_LAYERS: usize = 500;

/// A source is a descriptor.
const MOST_MOUNTS: usize = 512;

/// Mounts that are open, or to be mounted the old way; each with its place beneath the root.
#[derive(Debug)]
pub(super) struct Rootfs {
    /// `root.path` on the host.
    pub path: PathBuf,
    opened: Vec<(String, String, Opened)>,
    /// What can be made only once nothing propagates.
    later: Vec<Op>,
}

impl Rootfs {
    /// Whether some of it can be mounted in a mount namespace of its own only.
    pub fn is_unfinished(&self) -> bool {
        !self.later.is_empty()
    }

    /// Makes the rest of what [`open`] opened. After `Propagate`.
    pub fn finish(&mut self, plan: &mut Plan) {
        plan.ops.append(&mut self.later);
    }
}

#[derive(Debug)]
enum Opened {
    Mount(Slot),
    /// For `mount(2)`, which can only come once nothing propagates.
    Old(Op),
}

/// `root.path` on the host.
pub(super) fn path(spec: &Spec, facts: &Facts) -> Result<PathBuf> {
    let Some(root) = spec.root() else { return Err(Error::invalid("root is missing")) };
    if root.path().as_os_str().is_empty() {
        return Err(Error::invalid("root.path is empty"));
    }
    let path = on_host(&facts.bundle, root.path());
    if path == Path::new("/") {
        return Err(Error::invalid("root.path is the host's root"));
    }
    Ok(path)
}

/// Opens what the root file system is made of. Before `Propagate`.
pub(super) fn open(
    plan: &mut Plan,
    spec: &Spec,
    facts: &Facts,
    user: Option<&User>,
) -> Result<Rootfs> {
    let path = path(spec, facts)?;
    let count = facts.rootfs.len();
    if count > MOST_MOUNTS {
        return Err(Error::invalid(format!("rootfs: {count} mounts, the limit is {MOST_MOUNTS}")));
    }
    let (mut opened, mut later) = (Vec::new(), Vec::new());
    if !facts.rootfs.iter().any(|mount| at(mount) == "/") {
        let slot = bind(plan, cpath("root.path", &path)?, true, Attr::default());
        opened.push(("/".into(), path.display().to_string(), Opened::Mount(slot)));
    }
    for (i, mount) in facts.rootfs.iter().enumerate() {
        let one = open_one(plan, mount, &path, facts, &mut later);
        let one = one.doing(|| format!("rootfs[{i}]"))?;
        if user.is_some() && matches!(one, Opened::Old(_)) {
            // Mounted inside, it would be the container's and not the host's.
            let text = format!("rootfs[{i}]: so long options with a user namespace");
            return Err(Error::unimplemented(text));
        }
        opened.push((at(mount), mount.source.clone(), one));
    }
    Ok(Rootfs { path, opened, later })
}

fn at(mount: &RootfsMount) -> String {
    clean(Path::new(&mount.target))
}

/// Clones a host path's mount; private, or the host would see what is mounted in it.
fn bind(plan: &mut Plan, source: CString, recursive: bool, attr: Attr) -> Slot {
    let into = plan.slot();
    plan.ops.push(Op::OpenTree { source, into, recursive });
    if attr != Attr::default() {
        plan.ops.push(Op::SetAttr { mount: into, attr });
    }
    let attr = Attr { propagation: MS_PRIVATE, recursive, ..Attr::default() };
    plan.ops.push(Op::SetAttr { mount: into, attr });
    into
}

fn open_one(
    plan: &mut Plan,
    mount: &RootfsMount,
    root: &Path,
    facts: &Facts,
    later: &mut Vec<Op>,
) -> Result<Opened> {
    let map = id_map(mount)?;
    if mount.fstype.starts_with("fuse.") || mount.fstype.starts_with("fuse3.") {
        return Err(Error::unimplemented(format!("type {:?}", mount.fstype)));
    }
    let others = ["X-containerd.", UIDMAP, GIDMAP];
    let ours = |option: &&String| !others.iter().any(|other| option.starts_with(other));
    let options: Vec<String> = mount.options.iter().filter(ours).cloned().collect();
    let options = Options::parse(&options).doing(|| "options")?;
    if options.remount {
        return Err(Error::unimplemented("\"remount\""));
    }
    if options.copy_up {
        return Err(Error::invalid("options: \"tmpcopyup\" has no meaning for a rootfs"));
    }
    if options.bind.is_some() || mount.fstype == "bind" {
        if let Some(param) = options.params.first() {
            let text = format!("options: {:?} has no meaning for a bind mount", param.key);
            return Err(Error::invalid(text));
        }
        let source = cpath("source", &on_host(&facts.bundle, Path::new(&mount.source)))?;
        let recursive = options.bind == Some(true);
        let attr = Attr { clear: 0, ..options.own.attr(false) };
        let into = bind(plan, source, recursive, attr);
        if let Some(map) = map {
            let user = plan.user_namespace(&map);
            plan.ops.push(Op::IdMap { mount: into, user, recursive });
        }
        return Ok(Opened::Mount(into));
    }
    if options.ids.is_some() {
        return Err(Error::unimplemented("\"idmap\" of a file system"));
    }
    let overlay = mount.fstype == "overlay";
    let layers = match options.params.iter().find(|p| overlay && p.key.as_c_str() == c"lowerdir") {
        Some(param) => layers(param)?,
        None => Vec::new(),
    };
    match map {
        Some(map) if overlay => map_layers(plan, &layers, &map, later)?,
        Some(_) => return Err(Error::unimplemented(format!("{UIDMAP:?} of {:?}", mount.fstype))),
        None => {}
    }
    let mut params = fs_params(&options, &mount.source)?;
    for param in &options.params {
        let lower = !layers.is_empty() && param.key.as_c_str() == c"lowerdir";
        match lower && facts.overlay_lowerdir_plus {
            true => params.extend(layers.iter().map(Layer::param)),
            false => params.push(param.clone()),
        }
    }
    if params.iter().flat_map(|p| &p.value).any(|v| v.as_bytes().len() > LONGEST_VALUE) {
        return old_mount(mount, &options, &layers, root).map(Opened::Old);
    }
    let (fstype, into) = (cstring("type", &mount.fstype)?, plan.slot());
    let op = Op::NewMount { fstype, params, attr: options.new_mount(), into };
    // An overlay takes what is mounted on its directories, for which it has to wait.
    if later.is_empty() {
        plan.ops.push(op)
    } else {
        later.push(op)
    }
    Ok(Opened::Mount(into))
}

/// The mapping of `uidmap=` and `gidmap=`, as containerd's snapshotters give them: ranges of
/// `inside:outside:size` with commas between.
fn id_map(mount: &RootfsMount) -> Result<Option<IdMap>> {
    let ranges = |name: &str| -> Result<Vec<IdRange>> {
        let Some(text) = mount.options.iter().rev().find_map(|o| o.strip_prefix(name)) else {
            return Ok(Vec::new());
        };
        let wrong =
            || Error::invalid(format!("options: {name}{text}: not \"inside:outside:size\""));
        let number = |part: Option<&str>| part.and_then(|p| p.parse().ok()).ok_or_else(wrong);
        let range = |range: &str| {
            let mut parts = range.split(':');
            let (inside, outside) = (number(parts.next())?, number(parts.next())?);
            let range = IdRange { inside, outside, size: number(parts.next())? };
            if parts.next().is_none() { Ok(range) } else { Err(wrong()) }
        };
        text.split(',').map(range).collect()
    };
    let map = IdMap { uids: ranges(UIDMAP)?, gids: ranges(GIDMAP)? };
    if map.is_empty() { Ok(None) } else { map.checked().doing(|| "options").map(Some) }
}

/// The lower directories with their ids mapped, each mounted over itself: the upper directory is
/// written with the host's ids, and cannot be mapped.
fn map_layers(plan: &mut Plan, layers: &[Layer], map: &IdMap, later: &mut Vec<Op>) -> Result<()> {
    let user = plan.user_namespace(map);
    for layer in layers {
        let Some(path) = layer.param().value else { continue };
        let mount = bind(plan, path.clone(), false, Attr::default());
        plan.ops.push(Op::IdMap { mount, user, recursive: false });
        later.push(Op::AttachRootfs { mount, path });
    }
    if layers.is_empty() {
        return Err(Error::invalid("options: lowerdir is missing"));
    }
    Ok(())
}

/// The source, and the flags of the superblock. A device may itself be read-only, so there `ro`
/// is for the file system as well; one without a device may be the only one of its kind, shared
/// with the host, which must not turn read-only with ours.
pub(super) fn fs_params(options: &Options, source: &str) -> Result<Vec<Param>> {
    let mut params = Vec::new();
    if !source.is_empty() {
        params.push(Param { key: c"source".into(), value: Some(cstring("source", source)?) });
    }
    params.extend(options.superblock_params().doing(|| "options")?);
    if source.starts_with('/') && options.new_mount() & MOUNT_ATTR_RDONLY != 0 {
        params.push(Param { key: c"ro".into(), value: None });
    }
    Ok(params)
}

/// One lower directory of an overlay.
struct Layer {
    /// As given, with its escapes.
    escaped: Vec<u8>,
    /// After `::`: holds data only.
    data_only: bool,
}

impl Layer {
    /// `lowerdir+` takes the path as it is, without the escapes of `lowerdir`.
    fn param(&self) -> Param {
        let mut raw = Vec::with_capacity(self.escaped.len());
        let mut bytes = self.escaped.iter();
        while let Some(byte) = bytes.next() {
            raw.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
        }
        let key = if self.data_only { c"datadir+" } else { c"lowerdir+" };
        // Came out of a CString.
        Param { key: key.into(), value: CString::new(raw).ok() }
    }
}

fn layers(lowerdir: &Param) -> Result<Vec<Layer>> {
    let bytes = lowerdir.value.as_deref().unwrap_or_default().to_bytes();
    let mut layers = vec![Layer { escaped: Vec::new(), data_only: false }];
    let mut escape = false;
    for &byte in bytes {
        let last = layers.len() - 1;
        if byte == b':' && !escape {
            // `a::b`: the empty one in between makes `b` a data-only layer.
            match layers[last].escaped.is_empty() && !layers[last].data_only && last > 0 {
                true => layers[last].data_only = true,
                false => layers.push(Layer { escaped: Vec::new(), data_only: false }),
            }
            continue;
        }
        escape = byte == b'\\' && !escape;
        layers[last].escaped.push(byte);
    }
    if layers.iter().any(|layer| layer.escaped.is_empty()) {
        return Err(Error::invalid("options: lowerdir has an empty part"));
    }
    if layers.len() > MOST_LAYERS {
        let have = layers.len();
        let text = format!("options: lowerdir has {have} parts, overlay takes {MOST_LAYERS}");
        return Err(Error::invalid(text));
    }
    Ok(layers)
}

/// What is too long for `fsconfig(2)`: the lower directories by names relative to the longest
/// directory that they share.
fn old_mount(mount: &RootfsMount, options: &Options, layers: &[Layer], root: &Path) -> Result<Op> {
    if at(mount) != "/" {
        return Err(Error::unimplemented("such long options below the root"));
    }
    let shared = shared_directory(layers);
    let mut page: Vec<u8> = Vec::new();
    for param in &options.params {
        if !page.is_empty() {
            page.push(b',');
        }
        page.extend(param.key.as_bytes());
        if !layers.is_empty() && param.key.as_c_str() == c"lowerdir" {
            page.push(b'=');
            for (i, layer) in layers.iter().enumerate() {
                page.extend(match (i, layer.data_only) {
                    (0, _) => &b""[..],
                    (_, false) => b":",
                    (_, true) => b"::",
                });
                page.extend(&layer.escaped[shared..]);
            }
        } else if let Some(value) = &param.value {
            page.push(b'=');
            page.extend(value.as_bytes());
        }
    }
    if page.len() > LONGEST_PAGE {
        let text = format!("options: {} bytes, mount(2) takes {LONGEST_PAGE}", page.len());
        return Err(Error::invalid(text));
    }
    let chdir = match (shared, layers.first()) {
        (0, _) | (_, None) => None,
        (shared, Some(first)) => {
            let above = Layer { escaped: first.escaped[..shared].to_vec(), data_only: false };
            above.param().value
        }
    };
    Ok(Op::OldMount {
        chdir,
        source: cstring("source", &mount.source)?,
        target: cpath("root.path", root)?,
        fstype: cstring("type", &mount.fstype)?,
        flags: options.old_flags(),
        data: CString::new(page).map_err(|_| Error::invalid("options contain a NUL byte"))?,
    })
}

/// How many bytes of every layer's path name the directory that all share, slash included.
fn shared_directory(layers: &[Layer]) -> usize {
    let Some((first, rest)) = layers.split_first() else { return 0 };
    let mut shared = first.escaped.len();
    for layer in rest {
        let same = first.escaped.iter().zip(&layer.escaped).take_while(|(a, b)| a == b).count();
        shared = shared.min(same);
    }
    let end = first.escaped[..shared].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    // Nothing is won by a chdir to the root, and a name must remain.
    let named = layers.iter().all(|layer| layer.escaped.len() > end);
    if end > 1 && named { end } else { 0 }
}

/// Attaches it and opens the root of all targets. After `Propagate`.
pub(super) fn attach(plan: &mut Plan, rootfs: Rootfs) -> Result<Slot> {
    let path = cpath("root.path", &rootfs.path)?;
    let mut beneath = Vec::new();
    for (at, source, opened) in rootfs.opened {
        match opened {
            Opened::Old(op) => plan.ops.push(op),
            Opened::Mount(mount) if at == "/" => {
                plan.ops.push(Op::AttachRootfs { mount, path: path.clone() });
            }
            Opened::Mount(mount) => beneath.push((at, source, mount)),
        }
    }
    let root = plan.slot();
    plan.ops.push(Op::OpenRootfs { path, into: root });
    for (at, source, mount) in beneath {
        let target = target("rootfs target", &at, Missing::LikeSource)?;
        plan.ops.push(Op::Attach { mount, source: cstring("source", &source)?, root, target });
    }
    Ok(root)
}

#[cfg(test)]
mod tests;
