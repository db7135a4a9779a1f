//! The cgroup hierarchies, and what they can.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Asker, Found, Row, row, there, yes};
use crate::cgroup::Layout;
use crate::plan::device_filter;
use crate::plan::{CgroupDir, Cgroups};
use crate::sys;

/// What limits are mostly for.
const V1: [&str; 7] = ["blkio", "cpu", "cpuset", "devices", "freezer", "memory", "pids"];
const V2: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

pub(super) fn rows(asker: Asker) -> Vec<Row> {
    let layout = match Layout::probe() {
        Ok(layout) => layout.cgroups(Path::new("/")),
        Err(error) => return vec![row("cgroups", Found::No(error.to_string()), true, "no pod")],
    };
    let mut rows = vec![
        row("cgroups", Found::Yes(name(&layout).into()), true, "no pod"),
        controllers(&layout),
    ];
    if let (true, Some(at)) = (layout.unified, layout.dirs.first()) {
        rows.extend(v2(asker, at));
    }
    let pressure = there(Path::new("/proc/pressure/cpu").exists(), "not in this kernel, or off");
    rows.push(row("pressure (PSI)", pressure, false, "statistics have none"));
    rows
}

fn name(layout: &Cgroups) -> &'static str {
    if layout.unified { "v2" } else { "v1" }
}

fn controllers(layout: &Cgroups) -> Row {
    let have: Vec<&str> =
        layout.dirs.iter().flat_map(|dir| &dir.controllers).map(String::as_str).collect();
    let wanted: &[&str] = if layout.unified { &V2 } else { &V1 };
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !have.contains(name)).collect();
    let found = match missing.is_empty() {
        true => Found::Yes(wanted.join(" ")),
        false => Found::No(missing.join(" ")),
    };
    row("cgroup controllers", found, false, "limits that need one which is missing are refused")
}

fn v2(asker: Asker, at: &CgroupDir) -> Vec<Row> {
    // The root has none of these files.
    let groups: Vec<PathBuf> = fs::read_dir(&at.mountpoint)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    let file = |name: &str, beside: &str| {
        let mut groups = groups.iter().filter(|group| group.join(beside).exists()).peekable();
        match groups.peek() {
            None => Found::Unknown("there is no cgroup to look at".into()),
            Some(_) => there(groups.any(|group| group.join(name).exists()), "not in this kernel"),
        }
    };
    let kill = file("cgroup.kill", "cgroup.procs");
    vec![
        row("device filters (eBPF)", device_filters(asker), true, "no container"),
        row("cgroup.freeze", file("cgroup.freeze", "cgroup.procs"), false, "no Pause"),
        row("cgroup.kill", kill, false, "processes are frozen, then killed one by one"),
        row("memory.peak", file("memory.peak", "memory.current"), false, "statistics have 0"),
    ]
}

/// A program is loaded and gone again: it was attached to nothing.
fn device_filters(asker: Asker) -> Found {
    let program: Vec<u64> = device_filter::compile(&[]).into_iter().map(|i| i.encode()).collect();
    match sys::bpf::can_load(&program) {
        Ok(()) => yes(),
        // CAP_BPF, where there is one.
        Err(Errno::EPERM) if !asker.admin => Found::Unknown("needs root".into()),
        Err(errno) => Found::No(format!("{errno:?}")),
    }
}
