//! Where in a plan the filter comes. The golden plans show it; here it is held for every kind.

use std::sync::Arc;

use containerd_shim_rs::plan::seccomp::Arch;
use containerd_shim_rs::plan::{self, Facts, Op, Plan};
use serde_json::json;

use crate::{filter, profile};

fn facts(terminal: bool) -> Facts {
    let profile = profile(&json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    let seccomp = Some(Arc::new(filter(&profile, Arch::X86_64)));
    Facts { bundle: "/b".into(), seccomp, terminal, ..Facts::default() }
}

fn container(nnp: bool, facts: &Facts) -> containerd_shim_rs::error::Result<Plan> {
    let spec = json!({"root": {"path": "rootfs"},
        "process": {"user": {}, "cwd": "/", "args": ["x"], "noNewPrivileges": nnp},
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "namespaces": [{"type": "mount"}, {"type": "pid"}]}});
    plan::container(&plan::spec::parse(&serde_json::to_vec(&spec).unwrap()).unwrap().0, facts)
}

fn exec(nnp: bool, namespaces: i32, facts: &Facts) -> Plan {
    let process = json!({"user": {}, "cwd": "/", "args": ["x"], "noNewPrivileges": nnp});
    let process = serde_json::from_value(process).unwrap();
    plan::exec(&process, namespaces, facts).unwrap()
}

/// What comes right after the only filter of a plan.
fn next(plan: &Plan) -> &Op {
    let is = |op: &&Op| matches!(op, Op::Seccomp { .. });
    assert_eq!(plan.ops.iter().filter(is).count(), 1, "{plan}");
    let at = plan.ops.iter().position(|op| is(&op)).unwrap();
    &plan.ops[at + 1]
}

#[test]
fn while_it_may_be_loaded_and_before_anybody_can_see() {
    for terminal in [false, true] {
        let facts = facts(terminal);
        let pid = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        let privileged = [
            container(false, &facts).unwrap(),
            exec(false, pid, &facts),
            exec(false, libc::CLONE_NEWNS, &facts),
        ];
        for plan in &privileged {
            assert!(matches!(next(plan), Op::Uid { .. }), "{plan}");
        }
        assert_eq!(next(&container(true, &facts).unwrap()), &Op::Ready);
        assert_eq!(next(&exec(true, pid, &facts)), &Op::Birth);
        assert_eq!(next(&exec(true, libc::CLONE_NEWNS, &facts)), &Op::Exec);
    }
}

#[test]
fn no_plan_without_the_filter_of_its_spec() {
    let error = container(true, &Facts { seccomp: None, ..facts(false) }).unwrap_err();
    assert_eq!(error.to_string(), "linux.seccomp has not been compiled");
}
