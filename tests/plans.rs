//! Golden plans: for each `tests/data/plans/<case>.json` the plan, or the error, that it makes.
//!
//! `UPDATE=1 cargo test --test plans` writes the texts anew; a change of behaviour is then a diff.
//! The rules that hold for every plan are checked over all cases, not by eye.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use containerd_shim_rs::error::{Kind, Result};
use containerd_shim_rs::plan::{
    self, CgroupDir, Cgroups, Facts, Input, Missing, Op, Plan, RootfsMount, SandboxFiles, Slot,
    Target,
};
use serde_json::{Value, json};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/plans")
}

/// Every case by its name, with what it is `like` filled in.
fn cases() -> Vec<(String, Value)> {
    let mut names: Vec<String> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), case(&name))).collect()
}

fn case(name: &str) -> Value {
    let bytes = fs::read(directory().join(format!("{name}.json"))).unwrap();
    let patch: Value = serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    let Some(like) = patch.get("like") else { return patch };
    let mut whole = case(like.as_str().unwrap());
    merge(&mut whole, &patch);
    whole
}

/// A JSON merge patch (RFC 7396), but with `+key` to append to a list.
fn merge(to: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *to = patch.clone();
        return;
    };
    if !to.is_object() {
        *to = Value::Object(Default::default());
    }
    let to = to.as_object_mut().unwrap();
    for (key, value) in patch {
        match key.strip_prefix('+') {
            Some(key) => {
                let list = to.get_mut(key).and_then(Value::as_array_mut).unwrap();
                list.extend(value.as_array().unwrap().iter().cloned());
            }
            None if value.is_null() => {
                to.remove(key);
            }
            None => merge(to.entry(key).or_insert(Value::Null), value),
        }
    }
}

fn string(value: &Value, key: &str) -> String {
    value.get(key).map(|v| v.as_str().unwrap().to_owned()).unwrap_or_default()
}

fn yes(value: &Value, key: &str) -> bool {
    value.get(key).is_some_and(|v| v.as_bool().unwrap())
}

fn list(value: &Value, key: &str) -> Vec<Value> {
    value.get(key).map(|v| v.as_array().unwrap().clone()).unwrap_or_default()
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    list(value, key).iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn facts(value: &Value) -> Facts {
    let mount = |m: &Value| RootfsMount {
        fstype: string(m, "type"),
        source: string(m, "source"),
        target: string(m, "target"),
        options: strings(m, "options"),
    };
    let hierarchy = |dir: &Value| CgroupDir {
        controllers: strings(dir, "controllers"),
        mountpoint: string(dir, "mountpoint").into(),
        path: string(dir, "path").into(),
    };
    let cgroups = value.get("cgroups").cloned().unwrap_or_default();
    Facts {
        bundle: string(value, "bundle").into(),
        rootfs: list(value, "rootfs").iter().map(mount).collect(),
        overlay_lowerdir_plus: yes(value, "lowerdir+"),
        ours: list(value, "ours").iter().map(|v| v.as_bool().unwrap()).collect(),
        cgroups: Cgroups {
            unified: yes(&cgroups, "unified"),
            dirs: list(&cgroups, "dirs").iter().map(hierarchy).collect(),
        },
        last_cap: 40,
        sandbox: value
            .get("sandbox")
            .map(|s| SandboxFiles { dir: string(s, "dir").into(), shm: yes(s, "shm") }),
        keyring: string(value, "keyring"),
        terminal: yes(value, "terminal"),
    }
}

fn planned(case: &Value) -> Result<Plan> {
    let facts = facts(&case["facts"]);
    let bytes = |key: &str| serde_json::to_vec(&case[key]).unwrap();
    match case["plan"].as_str().unwrap() {
        "container" => plan::container(&plan::spec::parse(&bytes("spec"))?.0, &facts),
        "exec" => {
            let (process, _) = plan::spec::parse_process(&bytes("process"))?;
            let flags = strings(case, "namespaces").iter().fold(0, |f, name| f | flag(name));
            plan::exec(&process, flags, &facts)
        }
        "holder" => plan::holder(&["containerd-shim-rs-v2", "holder"], &facts),
        "remove" => {
            let dirs: Vec<PathBuf> = strings(case, "dirs").into_iter().map(PathBuf::from).collect();
            plan::remove(&dirs)
        }
        "write" => {
            let file = |v: Value| (string(&v, "path").into(), string(&v, "text"));
            plan::write(&list(case, "files").into_iter().map(file).collect::<Vec<_>>())
        }
        other => panic!("no plan is called {other}"),
    }
}

fn flag(namespace: &str) -> i32 {
    match namespace {
        "mnt" => libc::CLONE_NEWNS,
        "pid" => libc::CLONE_NEWPID,
        "net" => libc::CLONE_NEWNET,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        "cgroup" => libc::CLONE_NEWCGROUP,
        other => panic!("no namespace is called {other}"),
    }
}

fn target(op: &Op) -> Option<&Target> {
    match op {
        Op::Attach { target, .. }
        | Op::Mount { target, .. }
        | Op::MakeDir { target, .. }
        | Op::MakeNode { target, .. }
        | Op::Symlink { target, .. }
        | Op::Mask { target, .. }
        | Op::Readonly { target, .. } => Some(target),
        _ => None,
    }
}

/// The plan's own text, and behind each target how it is to be found.
fn text(result: &Result<Plan>) -> String {
    let plan = match result {
        Ok(plan) => plan,
        Err(error) => return format!("{:?}: {error}\n", error.kind()),
    };
    let whole = plan.to_string();
    let mut lines = whole.lines();
    let mut text = String::new();
    let head = whole.lines().position(|l| l.starts_with("  0 ")).unwrap_or_default();
    lines.by_ref().take(head).for_each(|line| writeln!(text, "{line}").unwrap());
    for op in &plan.ops {
        text.push_str(lines.next().unwrap());
        if let Some(target) = target(op) {
            let missing = match target.missing {
                Missing::Fail => "",
                Missing::Directory => " directory",
                Missing::LikeSource => " like-source",
                Missing::File => " file",
            };
            let nofollow = if target.no_symlinks { " no-symlinks" } else { "" };
            let inside = if target.inside_proc { " inside-proc" } else { "" };
            let how = format!("{missing}{nofollow}{inside}");
            if !how.is_empty() {
                write!(text, "  ({})", how.trim()).unwrap();
            }
        }
        text.push('\n');
    }
    lines.for_each(|line| writeln!(text, "{line}").unwrap());
    text
}

fn all() -> Vec<(String, Plan)> {
    let plans = cases().into_iter();
    plans.filter_map(|(name, case)| planned(&case).ok().map(|plan| (name, plan))).collect()
}

#[test]
fn golden() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        let path = directory().join(format!("{name}.txt"));
        let have = text(&planned(&case));
        let about = string(&case, "about");
        let have = if about.is_empty() { have } else { format!("# {about}\n{have}") };
        if update {
            fs::write(&path, have).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != have {
            wrong.push(format!("== {name}: not as in {}, but:\n{have}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\nUPDATE=1 writes them anew", wrong.join("\n"));
}

#[test]
fn no_text_is_left_without_its_case() {
    let names: BTreeSet<String> = cases().into_iter().map(|(name, _)| name).collect();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(names.contains(name), "{}", path.display());
    }
}

#[test]
fn equal_input_makes_equal_plans() {
    for (name, case) in cases() {
        // Sets and maps of the spec have another order each time.
        assert_eq!(text(&planned(&case)), text(&planned(&case)), "{name}");
    }
}

/// A field that is not honoured must not pass in silence.
#[test]
fn what_is_missing_is_refused_by_its_name() {
    let hook = json!([{"path": "/bin/true"}]);
    for (field, value) in [
        ("linux.seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})),
        ("linux.mountLabel", json!("system_u:object_r:container_file_t:s0")),
        ("linux.intelRdt", json!({"closID": "guaranteed"})),
        ("linux.memoryPolicy", json!({"mode": "MPOL_DEFAULT"})),
        ("linux.personality", json!({"domain": "LINUX32"})),
        ("linux.netDevices", json!({"eth1": {"name": "eth0"}})),
        ("linux.timeOffsets", json!({"boottime": {"secs": 1}})),
        ("process.scheduler", json!({"policy": "SCHED_BATCH"})),
        ("hooks.prestart", hook.clone()),
        ("hooks.createRuntime", hook.clone()),
        ("hooks.createContainer", hook.clone()),
        ("hooks.startContainer", hook.clone()),
        ("hooks.poststart", hook.clone()),
        ("hooks.poststop", hook),
    ] {
        let mut case = case("omitted-capabilities");
        let (section, name) = field.split_once('.').unwrap();
        merge(&mut case["spec"], &json!({section: {name: value}}));
        let error = planned(&case).unwrap_err();
        assert_eq!(error.to_string(), format!("{field} is not supported"));
        assert_eq!(error.kind(), Kind::Unimplemented);
    }
}

#[test]
fn every_plan_ends() {
    for (name, plan) in all() {
        let ends = |op: &Op| matches!(op, Op::Exec | Op::ExecFd { .. } | Op::Exit);
        assert_eq!(plan.ops.iter().position(ends), Some(plan.ops.len() - 1), "{name}");
        let runs = !matches!(plan.ops.last(), Some(Op::Exit));
        assert_eq!(runs, !plan.args.is_empty(), "{name}");
        assert_eq!(plan.inputs[0], (Input::Report, Slot(0)), "{name}");
    }
}

/// The slots that an op needs, and those that it fills.
fn slots(op: &Op) -> (Vec<Slot>, Vec<Slot>) {
    match op {
        Op::JoinCgroup { procs } => (vec![*procs], vec![]),
        Op::Setns { ns, .. } => (vec![*ns], vec![]),
        Op::OpenTree { into, .. } | Op::NewMount { into, .. } | Op::OpenRootfs { into, .. } => {
            (vec![], vec![*into])
        }
        Op::CloneTree { from, into } => (vec![*from], vec![*into]),
        Op::SetAttr { mount, .. } | Op::AttachRootfs { mount, .. } => (vec![*mount], vec![]),
        Op::Attach { mount, root, .. } => (vec![*mount, *root], vec![]),
        Op::Mount { root, .. }
        | Op::MakeDir { root, .. }
        | Op::MakeNode { root, .. }
        | Op::Symlink { root, .. }
        | Op::Readonly { root, .. }
        | Op::Pivot { root } => (vec![*root], vec![]),
        // Filled by the first that needs it.
        Op::Mask { root, empty, .. } => (vec![*root], vec![*empty]),
        Op::OpenPty { root, into, .. } => (vec![*root], vec![*into]),
        Op::AttachConsole { pty, root } => (vec![*pty, *root], vec![]),
        Op::Dup { from, .. } => (vec![*from], vec![]),
        Op::ExecFd { exe } => (vec![*exe], vec![]),
        _ => (vec![], vec![]),
    }
}

#[test]
fn every_slot_is_filled_once_and_before_it_is_used() {
    for (name, plan) in all() {
        let mut filled = BTreeSet::new();
        for (input, slot) in &plan.inputs {
            assert!(filled.insert(*slot), "{name}: {input:?} shares {slot}");
        }
        let mut masks = None;
        for op in &plan.ops {
            let (needs, fills) = slots(op);
            for slot in needs {
                assert!(filled.contains(&slot), "{name}: nothing is in {slot} for: {op}");
            }
            for slot in fills {
                let again = matches!(op, Op::Mask { .. }) && masks == Some(slot);
                assert!(filled.insert(slot) || again, "{name}: {slot} is filled again by: {op}");
                masks = if matches!(op, Op::Mask { .. }) { Some(slot) } else { masks };
            }
        }
        assert_eq!(filled.len(), usize::from(plan.slots), "{name}: a slot that nobody fills");
    }
}

/// Where the ops of a kind are.
fn places(plan: &Plan, kind: impl Fn(&Op) -> bool) -> Vec<usize> {
    plan.ops.iter().enumerate().filter(|(_, op)| kind(op)).map(|(i, _)| i).collect()
}

/// All of the first kind come before any of the second.
#[track_caller]
fn before(name: &str, plan: &Plan, first: impl Fn(&Op) -> bool, second: impl Fn(&Op) -> bool) {
    let last = places(plan, first).last().copied();
    let next = places(plan, second).first().copied();
    if let (Some(last), Some(next)) = (last, next) {
        assert!(last < next, "{name}: {} comes after {}", plan.ops[last], plan.ops[next]);
    }
}

#[test]
fn host_paths_are_opened_before_anything_else_is_done_to_mounts() {
    for (name, plan) in &all() {
        let opens = |op: &Op| matches!(op, Op::OpenTree { .. } | Op::CloneTree { .. });
        before(name, plan, opens, |op| matches!(op, Op::Propagate { .. }));
        before(name, plan, |op| matches!(op, Op::JoinCgroup { .. }), opens);
        before(
            name,
            plan,
            |op| matches!(op, Op::JoinCgroup { .. }),
            |op| matches!(op, Op::Unshare { .. }),
        );
        let attaches = |op: &Op| {
            let attaches = matches!(op, Op::Attach { .. } | Op::AttachRootfs { .. });
            attaches || matches!(op, Op::Mount { .. } | Op::OldMount { .. })
        };
        let slave = |op: &Op| matches!(op, Op::Propagate { flags } if *flags == 0x8_4000);
        before(name, plan, slave, attaches);
        before(name, plan, attaches, |op| matches!(op, Op::Pivot { .. }));
        if plan.ops.iter().any(attaches) {
            assert_eq!(places(plan, slave).len(), 1, "{name}");
        }
    }
}

#[test]
fn every_open_tree_says_how_it_propagates_before_it_is_attached() {
    for (name, plan) in all() {
        for (at, op) in plan.ops.iter().enumerate() {
            let (Op::OpenTree { into, .. } | Op::CloneTree { into, .. }) = op else { continue };
            let recursive = matches!(op, Op::OpenTree { recursive: true, .. });
            let says = |op: &&Op| {
                matches!(op, Op::SetAttr { mount, attr }
                    if mount == into && attr.propagation != 0 && (attr.recursive || !recursive))
            };
            let attached = |op: &&Op| match op {
                Op::Attach { mount, .. } | Op::AttachRootfs { mount, .. } => mount == into,
                _ => false,
            };
            let next = plan.ops[at..].iter().find(|op| says(op) || attached(op));
            assert!(next.is_some_and(|op| says(&op)), "{name}: {op}");
        }
    }
}

#[test]
fn rights_are_dropped_in_the_one_sound_order() {
    let mut seen = 0;
    for (name, plan) in all() {
        let rank = |op: &Op| match op {
            Op::Pivot { .. } | Op::Setns { .. } => Some(0),
            Op::Rlimit { .. } => Some(1),
            Op::BoundingSet { .. } => Some(2),
            Op::KeepCaps { on: true } => Some(3),
            Op::ChownStdio { .. } => Some(4),
            Op::Groups { .. } => Some(5),
            Op::Gid { .. } => Some(6),
            Op::Uid { .. } => Some(7),
            Op::Chdir { retry: false, .. } => Some(8),
            Op::VerifyCwd => Some(9),
            Op::KeepCaps { on: false } => Some(10),
            Op::Capset { .. } => Some(11),
            Op::Ambient { .. } => Some(12),
            Op::NoNewPrivs => Some(13),
            Op::FindExecutable { .. } => Some(14),
            Op::CloseFds => Some(15),
            Op::Birth => Some(16),
            Op::Setsid if !matches!(plan.ops.last(), Some(Op::ExecFd { .. })) => Some(17),
            Op::ControllingTerminal => Some(18),
            Op::Ready => Some(19),
            Op::Exec | Op::ExecFd { .. } => Some(20),
            _ => None,
        };
        if matches!(plan.ops.last(), Some(Op::Exit)) {
            continue;
        }
        seen += 1;
        let ranks: Vec<i32> = plan.ops.iter().filter_map(rank).collect();
        assert!(ranks.is_sorted(), "{name}: {ranks:?}");
        for needed in [2, 5, 6, 7, 11, 12, 15, 20] {
            assert_eq!(ranks.iter().filter(|r| **r == needed).count(), 1, "{name}: {needed}");
        }
        // Nothing but what is ranked happens to a process that is no longer root.
        let uid = places(&plan, |op| matches!(op, Op::Uid { .. }))[0];
        assert!(plan.ops[uid..].iter().all(|op| rank(op).is_some()), "{name}");
        if matches!(plan.ops.last(), Some(Op::Exec)) {
            for needed in [3, 4, 8, 9, 10, 14] {
                assert_eq!(ranks.iter().filter(|r| **r == needed).count(), 1, "{name}: {needed}");
            }
        }
    }
    assert!(seen > 20);
}

#[test]
fn nothing_is_written_to_a_root_that_is_read_only() {
    for (name, plan) in &all() {
        let Some(root) = plan.ops.iter().find_map(|op| match op {
            Op::OpenRootfs { into, .. } => Some(*into),
            _ => None,
        }) else {
            continue;
        };
        let seals = |op: &Op| matches!(op, Op::SetAttr { mount, .. } if *mount == root);
        let writes = |op: &Op| target(op).is_some_and(|target| target.missing != Missing::Fail);
        before(name, plan, writes, seals);
        before(name, plan, |op| matches!(op, Op::AttachConsole { .. }), seals);
        // A container can cover what is masked with nothing that comes later.
        let restricts = |op: &Op| matches!(op, Op::Mask { .. } | Op::Readonly { .. });
        before(name, plan, writes, restricts);
    }
}

#[test]
fn a_home_to_look_up_is_the_last_of_the_environment() {
    for (name, plan) in all() {
        let looks = plan.ops.iter().any(|op| matches!(op, Op::Home { .. }));
        let empty = plan.env.iter().position(|entry| entry.as_c_str() == c"HOME=");
        assert_eq!(looks.then(|| plan.env.len() - 1), empty, "{name}");
    }
}

#[test]
fn procfs_and_sysfs_are_on_no_symlink_and_proc_stays_closed() {
    for (name, plan) in all() {
        for op in &plan.ops {
            if let Op::Mount { fstype, target, .. } = op {
                let special = [c"proc", c"sysfs"].contains(&fstype.as_c_str());
                assert_eq!(target.no_symlinks, special, "{name}: {op}");
            }
            let mounts = matches!(op, Op::Mount { .. } | Op::Attach { .. });
            let path = target(op).and_then(|t| t.prefixes.last());
            let path = path.map(|p| p.to_str().unwrap()).unwrap_or_default();
            if mounts && path.starts_with("proc/") {
                assert!(target(op).unwrap().inside_proc, "{name}: {op}");
            }
        }
    }
}
