//! Golden plans: for each `tests/data/plans/<case>.json` the plan, or the error, that it makes.
//!
//! `UPDATE=1 cargo test --test plans` writes the texts anew; a change of behaviour is then a diff.
//! The rules that hold for every plan are checked over all cases, not by eye.

mod rules;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_rs::error::Result;
use containerd_shim_rs::plan::seccomp::Arch;
use containerd_shim_rs::plan::{
    self, CgroupDir, Cgroups, Facts, Input, Missing, Modules, Op, Plan, RootfsMount, SandboxFiles,
    Shared, Slot, Target,
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
        walks_into_cgroup: yes(value, "walksIntoCgroup"),
        seccomp: None,
        modules: Modules {
            apparmor: yes(value, "apparmor"),
            confined: yes(value, "confined"),
            selinux: yes(value, "selinux"),
        },
        shared: shared(value),
        user_owns_network: yes(value, "userOwnsNetwork"),
        rdt: strings(value, "rdt").into_iter().map(PathBuf::from).collect(),
        user_map: value.get("userMap").map(|map| serde_json::from_value(map.clone()).unwrap()),
    }
}

/// What an exec has of its container's `linux`.
fn shared(value: &Value) -> Shared {
    let linux = value.get("shared").cloned().unwrap_or(json!({}));
    Shared::of(&serde_json::from_value(linux).unwrap())
}

fn planned(case: &Value) -> Result<Plan> {
    let mut facts = facts(&case["facts"]);
    // An exec has its container's.
    let profile = case.get("seccomp").or(case.pointer("/spec/linux/seccomp"));
    if let Some(profile) = profile.map(|p| serde_json::from_value(p.clone()).unwrap()) {
        facts.seccomp = Some(Arc::new(plan::seccomp::compile(&profile, Arch::X86_64)?.0));
    }
    let bytes = |key: &str| serde_json::to_vec(&case[key]).unwrap();
    match case["plan"].as_str().unwrap() {
        "container" => plan::container(&plan::spec::parse(&bytes("spec"))?.0, &facts),
        "exec" => {
            let (process, _) = plan::spec::parse_process(&bytes("process"))?;
            let flags = strings(case, "namespaces").iter().fold(0, |f, name| f | flag(name));
            plan::exec(&process, flags, &facts)
        }
        "net-devices" => {
            let spec = plan::spec::parse(&bytes("spec"))?.0;
            plan::net_devices(&spec).map(Option::unwrap)
        }
        "hook" => hook(case, &facts),
        "mount-rootfs" => {
            let (spec, _) = plan::spec::parse(&bytes("spec"))?;
            Ok(plan::hooks::mount_rootfs(&spec, &facts)?.unwrap().0)
        }
        "unmount-rootfs" => plan::hooks::unmount_rootfs(&PathBuf::from(string(case, "path"))),
        "holder" => holder(case, &facts),
        "logger" => {
            plan::logger(&string(case, "program"), &strings(case, "args"), "web", "default")
        }
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

/// The one hook of a spec.
fn hook(case: &Value, facts: &Facts) -> Result<Plan> {
    let (spec, _) = plan::spec::parse(&serde_json::to_vec(&case["spec"]).unwrap())?;
    let flags: Vec<i32> = strings(case, "namespaces").iter().map(|name| flag(name)).collect();
    let all = flags.iter().fold(0, |all, flag| all | flag);
    let hooks = plan::hooks::Hooks::of(&spec)?;
    let (runtime, create) = (hooks.create_runtime.first(), hooks.create_container.first());
    match (runtime, create, hooks.start_container.first()) {
        (Some(hook), None, None) => plan::hooks::runtime(hook, &facts.bundle, &flags),
        (None, Some(hook), None) => plan::hooks::create_container(hook, &spec, all, facts),
        (None, None, Some(hook)) => {
            let process = spec.process().as_ref().unwrap();
            plan::hooks::start_container(hook, process, all, facts)
        }
        _ => panic!("one hook"),
    }
}

fn holder(case: &Value, facts: &Facts) -> Result<Plan> {
    let flags = strings(case, "namespaces").iter().fold(0, |f, name| f | flag(name));
    let sysctls = case.get("sysctls").map(|all| serde_json::from_value(all.clone()).unwrap());
    let sysctls: Vec<(String, String)> = sysctls.unwrap_or_default();
    let hostname = string(case, "hostname");
    let holds = plan::Holder {
        namespaces: flags,
        user: facts.user_map.as_ref(),
        hostname: (!hostname.is_empty()).then_some(&hostname),
        sysctls: &sysctls,
    };
    plan::holder(&["containerd-shim-rs-v2", "holder"], holds, facts)
}

fn flag(namespace: &str) -> i32 {
    match namespace {
        "mnt" => libc::CLONE_NEWNS,
        "pid" => libc::CLONE_NEWPID,
        "net" => libc::CLONE_NEWNET,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        "cgroup" => libc::CLONE_NEWCGROUP,
        "user" => libc::CLONE_NEWUSER,
        "time" => 0x80,
        other => panic!("no namespace is called {other}"),
    }
}

fn target(op: &Op) -> Option<&Target> {
    match op {
        Op::Attach { target, .. }
        | Op::Mount { target, .. }
        | Op::CopyUp { target, .. }
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
