//! Plans of namespaces, as text. It must never make one.

use super::*;
use crate::error::Kind;
use serde_json::json;

fn resolved(namespaces: serde_json::Value, facts: &Facts) -> Result<(Plan, Namespaces)> {
    let linux: Linux = serde_json::from_value(json!({"namespaces": namespaces})).unwrap();
    let mut plan = Plan::default();
    let all = resolve(&mut plan, &linux, facts)?;
    Ok((plan, all))
}

fn unified() -> Facts {
    let mut facts = Facts::default();
    facts.cgroups.unified = true;
    facts
}

#[test]
fn new_ones_are_made_at_clone_but_a_v1_cgroup_namespace() {
    let list = json!([{"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": ""}]);
    let (plan, all) = resolved(list.clone(), &unified()).unwrap();
    assert_eq!(plan.namespaces, CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWPID);
    assert_eq!((all.unshare, all.own), (0, plan.namespaces));
    let (plan, all) = resolved(list, &Facts::default()).unwrap();
    assert_eq!(plan.namespaces, CLONE_NEWNS | CLONE_NEWPID);
    assert_eq!(all.unshare, CLONE_NEWCGROUP);
    assert_eq!(all.new, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP);
}

#[test]
fn by_path_is_joined_and_ours_is_left() {
    let list = json!([{"type": "mount"}, {"type": "pid", "path": "/p"},
        {"type": "network", "path": "/n"}, {"type": "ipc", "path": "/i"},
        {"type": "user", "path": "/u"}]);
    let ours = vec![false, false, false, true, true];
    let (plan, all) = resolved(list, &Facts { ours, ..Facts::default() }).unwrap();
    assert_eq!(plan.pid_namespace, Some(Input::Namespace(1)));
    assert_eq!(plan.inputs, [(Input::Namespace(2), crate::plan::Slot(0))]);
    assert_eq!(all.joins.len(), 1);
    assert_eq!(all.own, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET);
}

#[test]
fn refusals() {
    let two = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "ipc", "path": "/x"}]);
    let error = resolved(two, &Facts::default()).unwrap_err();
    assert_eq!(error.to_string(), "linux.namespaces[2]: a second Ipc namespace");
    for list in [json!([{"type": "mount", "path": "/m"}]), json!([{"type": "pid"}])] {
        let error = resolved(list, &Facts::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
    }
    // Even if it is ours: the rootfs would be mounted on the host.
    let facts = Facts { ours: vec![true], ..Facts::default() };
    assert!(resolved(json!([{"type": "mount", "path": "/m"}]), &facts).is_err());
}

#[test]
fn mappings_are_of_a_user_namespace() {
    let unmapped = json!([{"type": "mount"}, {"type": "user"}]);
    let error = resolved(unmapped, &Facts::default()).unwrap_err();
    assert_eq!(error.to_string(), "linux: uidMappings is missing");
    let unknown = json!([{"type": "mount"}, {"type": "user", "path": "/u"}]);
    let error = resolved(unknown, &Facts::default()).unwrap_err();
    assert_eq!(error.to_string(), "linux.namespaces[1]: its mappings are unknown");
    for field in ["uidMappings", "gidMappings"] {
        let linux = json!({"namespaces": [{"type": "mount"}], field: [{"size": 1}]});
        let linux: Linux = serde_json::from_value(linux).unwrap();
        let error = resolve(&mut Plan::default(), &linux, &unified()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}

fn sysctl(key: &str, own: i32) -> Result<String> {
    let linux: Linux = serde_json::from_value(json!({"sysctl": {key: "1"}})).unwrap();
    let mut plan = Plan::default();
    sysctls(&mut plan, &linux, own)?;
    Ok(plan.ops[0].to_string())
}

#[test]
fn sysctls_stay_in_their_namespace() {
    let all = CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS;
    for (key, path) in [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eno2/100.rp_filter", "net/ipv4/conf/eno2.100/rp_filter"),
        ("net/ipv4/conf/eno2.100/rp_filter", "net/ipv4/conf/eno2.100/rp_filter"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("kernel.domainname", "kernel/domainname"),
    ] {
        let want = format!("sysctl \"/proc/sys/{path}\" = \"1\"");
        assert_eq!(sysctl(key, all).unwrap(), want, "{key}");
        assert!(sysctl(key, CLONE_NEWNS).is_err(), "{key}");
    }
    for key in [
        "kernel.hostname",
        "kernel.core_pattern",
        "vm.swappiness",
        "user.max_user_namespaces",
        "net/../kernel/core_pattern",
        "net./.kernel",
        "net..x",
        "net",
        "fs.file-max",
    ] {
        assert_eq!(sysctl(key, all).unwrap_err().kind(), Kind::InvalidArgument, "{key}");
    }
}
