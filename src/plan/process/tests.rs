//! Plans of processes, as text. It must never run one.

use super::*;
use crate::error::Kind;
use serde_json::{Value, json};

fn planned(patch: Value) -> Result<Plan> {
    let mut process = json!({"user": {}, "cwd": "/", "args": ["sh"]});
    process.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    let process: Process = serde_json::from_value(process).unwrap();
    let mut plan = Plan::default();
    let facts = Facts { last_cap: 40, ..Facts::default() };
    early(&mut plan, &process, &facts)?;
    run(&mut plan, &process, None, &facts)?;
    Ok(plan)
}

fn step(patch: Value, start: &str) -> String {
    let plan = planned(patch).unwrap();
    let all: Vec<_> = plan.ops.iter().map(|op| op.to_string()).collect();
    all.into_iter().find(|op| op.starts_with(start)).unwrap_or_default()
}

#[test]
fn the_program_is_looked_for_where_its_path_says() {
    let find = |env: Value, name: &str| {
        step(json!({"env": env, "args": [name]}), "find").replace("find executable ", "")
    };
    assert_eq!(find(json!(["PATH=/a:/b/:c::/"]), "x"), r#"["/a/x", "/b/x", "/x"]"#);
    assert_eq!(find(json!(["PATH=/a", "PATH=/b"]), "x"), r#"["/b/x"]"#);
    assert_eq!(find(json!(["PATH=/a"]), "./x"), r#"["./x"]"#);
    assert_eq!(find(json!(["PATH="]), "x"), "[]");
    assert!(find(json!(null), "x").starts_with(r#"["/usr/local/sbin/x", "#));
}

#[test]
fn the_last_of_equal_names_counts_and_home_comes_last() {
    let plan = planned(json!({"env": ["A=1", "HOME=", "B=2", "A=3", "C="]})).unwrap();
    assert_eq!(plan.env, [c"B=2".to_owned(), c"A=3".into(), c"C=".into(), c"HOME=".into()]);
    assert!(plan.ops.contains(&Op::Home { uid: 0 }));
    let plan = planned(json!({"env": ["HOME=/root", "A=1"]})).unwrap();
    assert_eq!(plan.env, [c"HOME=/root".to_owned(), c"A=1".into()]);
    assert!(!plan.ops.iter().any(|op| matches!(op, Op::Home { .. })));
    // As runc: the empty one that comes last hides the one before.
    let plan = planned(json!({"env": ["HOME=/root", "HOME="]})).unwrap();
    assert_eq!(plan.env, [c"HOME=".to_owned()]);
}

#[test]
fn capabilities_are_those_named() {
    let caps = json!({"bounding": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_CHOWN"]});
    let caps = json!({"capabilities": caps});
    assert_eq!(step(caps.clone(), "bounding"), "bounding set 0x10000000001");
    assert_eq!(step(caps.clone(), "capset"), "capset eff=0x1 perm=0x21 inh=0x20");
    assert_eq!(step(caps, "ambient"), "ambient 0x20");
    let nothing = json!({});
    assert_eq!(step(nothing.clone(), "bounding"), "bounding set 0x0");
    assert_eq!(step(nothing, "capset"), "capset eff=0x0 perm=0x0 inh=0x0");
}

#[test]
fn a_capability_that_the_kernel_lacks_is_dropped() {
    let caps = json!({"bounding": ["CAP_CHOWN", "CAP_BPF"]});
    let process = json!({"user": {}, "cwd": "/", "capabilities": caps});
    let process: Process = serde_json::from_value(process).unwrap();
    assert_eq!(Rights::of(&process, 38).unwrap().bounding, 1);
    assert_eq!(Rights::of(&process, 39).unwrap().bounding, 1 | 1 << 39);
}

#[test]
fn no_new_privileges_only_if_true() {
    let want = "no new privileges";
    assert_eq!(step(json!({"noNewPrivileges": true}), want), want);
    assert_eq!(step(json!({"noNewPrivileges": false}), want), "");
}

#[test]
fn rlimits_by_number() {
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]);
    assert_eq!(step(json!({"rlimits": limits}), "rlimit"), "rlimit 7 1:2");
    assert_eq!((resource(Limit::RlimitCpu), resource(Limit::RlimitRttime)), (0, 15));
    // As far as the C library's constants can be compared on this machine.
    assert_eq!(resource(Limit::RlimitNproc), libc::RLIMIT_NPROC);
    assert_eq!(resource(Limit::RlimitMsgqueue), libc::RLIMIT_MSGQUEUE);
}

#[test]
fn bad_values_are_refused_by_field() {
    for (patch, want) in [
        (json!({"args": []}), "process.args names no program"),
        (json!({"args": [""]}), "process.args names no program"),
        (json!({"args": ["a", "b\0"]}), "process.args[1] contains a NUL byte"),
        (json!({"cwd": "tmp"}), "process.cwd: \"tmp\" is not absolute"),
        (json!({"cwd": ""}), "process.cwd: \"\" is not absolute"),
        (json!({"env": ["A"]}), "process.env[0]: \"A\" has no \"=\""),
        (json!({"env": ["A=", "=1"]}), "process.env[1]: \"=1\" has no name"),
        (json!({"env": ["A=\0"]}), "process.env[0] contains a NUL byte"),
        (json!({"user": {"uid": u32::MAX}}), "process.user.uid: 4294967295 is no id"),
        (json!({"user": {"gid": u32::MAX}}), "process.user.gid: 4294967295 is no id"),
        (
            json!({"user": {"additionalGids": [1, u32::MAX]}}),
            "process.user.additionalGids: 4294967295 is no id",
        ),
        (json!({"user": {"umask": 0o1000}}), "process.user.umask: 0o1000 is no umask"),
        (json!({"oomScoreAdj": 1001}), "process.oomScoreAdj: 1001 is not between -1000 and 1000"),
        (
            json!({"rlimits": [{"type": "RLIMIT_AS", "soft": 2, "hard": 1}]}),
            "process.rlimits[0]: soft 2 is above hard 1",
        ),
        (
            json!({"rlimits": [{"type": "RLIMIT_AS"}, {"type": "RLIMIT_AS"}]}),
            "process.rlimits[1]: a second RLIMIT_AS",
        ),
        (
            json!({"capabilities": {"effective": ["CAP_KILL"]}}),
            "process.capabilities.effective: CAP_KILL is not in permitted",
        ),
    ] {
        let error = planned(patch).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (want, Kind::InvalidArgument));
    }
}

#[test]
fn a_label_that_the_kernel_cannot_give_is_an_error() {
    for (field, value, module) in [
        ("apparmorProfile", "cri-containerd.apparmor.d", "AppArmor"),
        ("selinuxLabel", "system_u:system_r:container_t:s0", "SELinux"),
    ] {
        let error = planned(json!({ field: value })).unwrap_err();
        let want = format!("process.{field} {value:?}: the kernel does not run with {module}");
        assert_eq!(error.to_string(), want);
        assert_eq!(error.kind(), Kind::FailedPrecondition);
    }
    for none in [
        json!({"apparmorProfile": "", "selinuxLabel": ""}),
        json!({"apparmorProfile": "unconfined", "execCPUAffinity": {}}),
    ] {
        assert!(!planned(none).unwrap().ops.iter().any(|op| matches!(op, Op::Label { .. })));
    }
}
