//! Whole profiles: containerd's own, and one for each thing that a profile can say.

use containerd_shim_rs::error::Kind;
use containerd_shim_rs::plan::seccomp::{self, Arch, Listener};
use libseccomp::ScmpArch;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use crate::machine::{Call, run};
use crate::oracle::{self, Oracle, knows};
use crate::{compare, filter, profile};

const X86: [ScmpArch; 3] = [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32];
const ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = 0x5_0000 | 38;
const EPERM: u32 = 0x5_0001;

fn read(name: &str) -> Value {
    let path = format!("{}/tests/data/seccomp/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Without the names that the installed libseccomp is too old for.
fn known(mut json: Value) -> LinuxSeccomp {
    for rule in json["syscalls"].as_array_mut().unwrap() {
        rule["names"].as_array_mut().unwrap().retain(|name| knows(name.as_str().unwrap()));
    }
    profile(&json)
}

#[test]
fn containerds_own() {
    for name in ["cri-default", "cri-admin"] {
        compare(&known(read(name)), Arch::X86_64, &X86).unwrap();
    }
}

#[test]
fn containerds_own_on_other_machines() {
    let mut json = read("cri-default");
    json["architectures"] = json!(["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"]);
    compare_there(&json, Arch::Aarch64, &[ScmpArch::Aarch64, ScmpArch::Arm]);
    json["architectures"] = json!([]);
    compare_there(&json, Arch::Riscv64, &[ScmpArch::Riscv64]);
    compare_there(&json, Arch::Ppc64le, &[ScmpArch::Ppc64Le]);
}

/// On this machine libseccomp always has x86_64 as well, which is not compared there.
fn compare_there(json: &Value, native: Arch, archs: &[ScmpArch]) {
    let profile = known(json.clone());
    let oracle = Oracle::new(&profile, archs, 1).unwrap();
    let filter = filter(&profile, native);
    for arch in archs.iter().map(|arch| oracle::audit(*arch)) {
        for nr in (0..1100).chain(983_030..983_060) {
            for value in
                [0, 1, 8, 0x20000, 38, 39, 40, 41, 0x7e02_0000, 0x1000_0000, u64::MAX, 1 << 32]
            {
                let call = Call { nr, arch, args: [value; 6] };
                assert_eq!(run(&filter.program, &call).answer, oracle.answer(&call), "{call:x?}");
            }
        }
    }
}

#[test]
fn every_name_of_containerds_own_is_known() {
    let (_, unknown) = seccomp::compile(&profile(&read("cri-default")), Arch::X86_64).unwrap();
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn smaller_than_libseccomps_and_few_steps_deep() {
    let profile = known(read("cri-default"));
    let ours = filter(&profile, Arch::X86_64).program;
    let theirs = Oracle::new(&profile, &X86, 2).unwrap().program;
    let arch = Arch::X86_64.audit();
    let steps = |program: &[u64]| {
        let runs = (0..462).map(|nr| run(program, &Call { nr, arch, args: [0; 6] }));
        runs.filter(|run| !run.looked).map(|run| run.steps).max().unwrap()
    };
    let (mine, other) = (steps(&ours), steps(&theirs));
    println!("{} instructions, {mine} steps; libseccomp {}, {other}", ours.len(), theirs.len());
    assert!(ours.len() < theirs.len() / 2 && mine < other, "{mine} {other}");
}

fn one(action: &str, rest: Value) -> Value {
    let mut rule = json!({"names": ["mkdir", "chmod"], "action": action});
    rule.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
}

#[test]
fn every_action() {
    let (nr, arch) = (83, Arch::X86_64.audit());
    for (action, errno, want) in [
        ("KILL", None, 0),
        ("KILL_THREAD", None, 0),
        ("KILL_PROCESS", None, 0x8000_0000),
        ("TRAP", None, 0x3_0000),
        ("ERRNO", None, EPERM),
        ("ERRNO", Some(0), 0x5_0000),
        ("ERRNO", Some(5), 0x5_0005),
        ("TRACE", None, 0x7ff0_0001),
        ("TRACE", Some(7), 0x7ff0_0007),
        ("LOG", None, 0x7ffc_0000),
        ("NOTIFY", None, 0x7fc0_0000),
    ] {
        let mut json = one(&format!("SCMP_ACT_{action}"), json!({}));
        json["listenerPath"] = json!("/run/agent.sock");
        if let Some(errno) = errno {
            json["syscalls"][0]["errnoRet"] = json!(errno);
        }
        let profile = profile(&json);
        let call = Call { nr, arch, args: [0; 6] };
        assert_eq!(run(&filter(&profile, Arch::X86_64).program, &call).answer, want, "{action}");
        compare(&profile, Arch::X86_64, &X86[..1]).unwrap();
    }
}

#[test]
fn every_operator_with_both_words() {
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for value in [0, 1, 0xffff_ffff, 1 << 32, 0x1_0000_0001, 0xdead_beef_0000_0000, u64::MAX] {
            for value_two in [0, 1, 0xffff_ffff, 0x1_0000_0001, u64::MAX] {
                let arg = json!({"index": 2, "op": format!("SCMP_CMP_{op}"), "value": value, "valueTwo": value_two});
                let mut json = one("SCMP_ACT_ERRNO", json!({"args": [arg]}));
                json["architectures"] = json!(["SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
                compare(&profile(&json), Arch::X86_64, &X86).unwrap();
                if op != "MASKED_EQ" {
                    break;
                }
            }
        }
    }
}

/// youki once had it the other way round.
#[test]
fn the_mask_is_value_and_what_it_is_compared_with_value_two() {
    let arg = json!({"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0xf0, "valueTwo": 0x20});
    let filter = filter(&profile(&one("SCMP_ACT_ERRNO", json!({"args": [arg]}))), Arch::X86_64);
    for (arg, want) in [(0x20, EPERM), (0x2f, EPERM), (0xf0, ALLOW), (0x30, ALLOW), (0, ALLOW)] {
        let call = Call { nr: 83, arch: Arch::X86_64.audit(), args: [arg, 0, 0, 0, 0, 0] };
        assert_eq!(run(&filter.program, &call).answer, want, "{arg:#x}");
    }
}

#[test]
fn conditions_on_several_arguments_are_and_on_one_are_or() {
    let arg = |index: u32, value: u32| json!({"index": index, "op": "SCMP_CMP_EQ", "value": value});
    for (args, [first, second, both]) in [
        ([arg(0, 1), arg(1, 2)], [ALLOW, ALLOW, EPERM]),
        ([arg(0, 1), arg(0, 2)], [EPERM, EPERM, ALLOW]),
    ] {
        let profile = profile(&one("SCMP_ACT_ERRNO", json!({"args": args})));
        compare(&profile, Arch::X86_64, &X86[..1]).unwrap();
        let filter = filter(&profile, Arch::X86_64);
        let answer = |a, b| {
            let call = Call { nr: 83, arch: Arch::X86_64.audit(), args: [a, b, 0, 0, 0, 0] };
            run(&filter.program, &call).answer
        };
        let odd = if args[1]["index"] == 0 { answer(3, 2) } else { answer(1, 2) };
        let two = if args[1]["index"] == 0 { answer(2, 0) } else { answer(3, 2) };
        assert_eq!([answer(1, 0), two, odd], [first, second, both]);
    }
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let strict = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]});
    let answer = |json: &Value, nr| {
        let call = Call { nr, arch: Arch::X86_64.audit(), args: [0; 6] };
        run(&filter(&profile(json), Arch::X86_64).program, &call).answer
    };
    assert_eq!(
        [0, 1, 437, 438, 5000].map(|nr| answer(&strict, nr)),
        [ALLOW, EPERM, ALLOW, ENOSYS, ENOSYS]
    );
    for default in ["ERRNO", "KILL", "KILL_PROCESS", "TRAP", "ALLOW", "LOG", "TRACE"] {
        let mut json = strict.clone();
        json["defaultAction"] = json!(format!("SCMP_ACT_{default}"));
        json["syscalls"][0]["action"] = json!("SCMP_ACT_TRAP");
        let stub = !["ALLOW", "LOG", "TRACE"].contains(&default);
        assert_eq!(answer(&json, 438) == ENOSYS, stub, "{default}");
        compare(&profile(&json), Arch::X86_64, &X86[..2]).unwrap();
        compare(&profile(&json), Arch::X86_64, &X86[..2]).unwrap();
    }
}

#[test]
fn architectures_that_are_not_listed_are_killed_and_foreign_ones_harmless() {
    let mut json = read("cri-default");
    for (listed, archs) in [
        (json!(null), &X86[..1]),
        (json!(["SCMP_ARCH_X86"]), &X86[..2]),
        (json!(["SCMP_ARCH_X32"]), &[ScmpArch::X8664, ScmpArch::X32][..]),
    ] {
        json["architectures"] = listed;
        compare(&known(json.clone()), Arch::X86_64, archs).unwrap();
    }
    let alone = filter(&known(json.clone()), Arch::X86_64);
    json["architectures"] =
        json!(["SCMP_ARCH_X32", "SCMP_ARCH_S390X", "SCMP_ARCH_AARCH64", "SCMP_ARCH_MIPS"]);
    assert_eq!(filter(&known(json), Arch::X86_64), alone);
}

#[test]
fn multiplexed_calls_of_x86() {
    let arg = |index: u32| json!({"index": index, "op": "SCMP_CMP_LT", "value": 38});
    for (names, args) in [
        (json!(["socket"]), json!([arg(0)])),
        (json!(["socket", "accept", "recv", "semctl", "shmat"]), json!([arg(1)])),
        (json!(["accept4", "msgget"]), json!([])),
        (json!(["socketcall", "ipc"]), json!([])),
    ] {
        let rule = json!({"names": names, "args": args, "action": "SCMP_ACT_ALLOW"});
        let json = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
            "syscalls": [rule]});
        compare(&profile(&json), Arch::X86_64, &X86[..2]).unwrap();
    }
}

#[test]
fn flags_and_listener() {
    let flags = |flags: Value, listens: bool| {
        let mut json = one(if listens { "SCMP_ACT_NOTIFY" } else { "SCMP_ACT_TRAP" }, json!({}));
        json["flags"] = flags;
        json["listenerPath"] = json!("/run/a.sock");
        json["listenerMetadata"] = json!("m");
        filter(&profile(&json), Arch::X86_64)
    };
    let flag = |name: &str| json!([format!("SECCOMP_FILTER_FLAG_{name}")]);
    assert_eq!(flags(json!(null), false).flags, 4);
    assert_eq!((flags(json!([]), false).flags, flags(flag("TSYNC"), false).flags), (0, 0));
    assert_eq!((flags(flag("LOG"), false).flags, flags(flag("SPEC_ALLOW"), false).flags), (2, 4));
    let wait = flag("WAIT_KILLABLE_RECV");
    assert_eq!((flags(wait.clone(), false).flags, flags(wait, true).flags), (0, 32 | 8));
    assert_eq!(flags(json!([]), false).listener, None);
    let listener = Listener { path: "/run/a.sock".into(), metadata: "m".into() };
    assert_eq!(flags(json!([]), true).listener, Some(listener));
}

#[test]
fn refusals() {
    let arg = json!({"index": 6, "op": "SCMP_CMP_EQ", "value": 1});
    let same = json!({"index": 0, "op": "SCMP_CMP_EQ", "value": 1});
    let mut clash = one("SCMP_ACT_TRAP", json!({"args": [same]}));
    let other = json!({"names": ["mkdir"], "action": "SCMP_ACT_LOG", "args": [same]});
    clash["syscalls"].as_array_mut().unwrap().push(other);
    let long: Vec<Value> = (0..3000)
        .map(|n| {
            json!({"names": ["mkdir"], "action": "SCMP_ACT_TRAP",
            "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": n}]})
        })
        .collect();
    for (json, want) in [
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be the default",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_KILL has none",
        ),
        (
            one("SCMP_ACT_ALLOW", json!({"errnoRet": 1})),
            "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_ALLOW has none",
        ),
        (
            one("SCMP_ACT_ERRNO", json!({"errnoRet": 65536})),
            "linux.seccomp.syscalls[0].errnoRet: 65536 is above 65535",
        ),
        (
            one("SCMP_ACT_NOTIFY", json!({})),
            "linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs one that is absolute",
        ),
        (
            one("SCMP_ACT_NOTIFY", json!({"names": ["read", "write"]})),
            "linux.seccomp.syscalls[0]: SCMP_ACT_NOTIFY cannot be used for write",
        ),
        (
            one("SCMP_ACT_TRAP", json!({"names": ["mkdir", ""]})),
            "linux.seccomp.syscalls[0]: an empty name",
        ),
        (
            one("SCMP_ACT_TRAP", json!({"args": [arg]})),
            "linux.seccomp.syscalls[0].args[0]: index 6 is above 5",
        ),
        (
            clash,
            "linux.seccomp.syscalls: two actions for the same arguments of system call 83 of X86_64",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": long}),
            "linux.seccomp: 12059 instructions, and the kernel takes 4096",
        ),
    ] {
        let error = seccomp::compile(&profile(&json), Arch::X86_64).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (want, Kind::InvalidArgument));
    }
}

#[test]
fn names_that_nobody_has_are_told() {
    let json = one("SCMP_ACT_TRAP", json!({"names": ["mkdir", "time_travel", "arm_fadvise64_64"]}));
    let (filter, unknown) = seccomp::compile(&profile(&json), Arch::X86_64).unwrap();
    assert_eq!(unknown, ["time_travel"]);
    let without = one("SCMP_ACT_TRAP", json!({"names": ["mkdir"]}));
    assert_eq!(filter, seccomp::compile(&profile(&without), Arch::X86_64).unwrap().0);
}

/// A long way between a jump and its target.
#[test]
fn far_jumps() {
    let rules: Vec<Value> = (0..300)
        .map(|n| json!({"names": ["mkdir", "chmod", "umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": n % 7,
            "args": [{"index": n % 3, "op": "SCMP_CMP_EQ", "value": n}]}))
        .collect();
    let json = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    compare(&profile(&json), Arch::X86_64, &X86[..1]).unwrap();
}
