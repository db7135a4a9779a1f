//! Profiles by chance, always the same ones, against libseccomp.

use std::collections::BTreeSet;

use libseccomp::ScmpArch;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use containerd_shim_rs::plan::seccomp::Arch;

use crate::machine::{Call, run};
use crate::{compare, filter, profile};

const NAMES: [&str; 12] = [
    "read",
    "write",
    "mkdir",
    "chmod",
    "clone",
    "personality",
    "socket",
    "shmat",
    "clone3",
    "openat",
    "futex",
    "time_travel",
];
const VALUES: [u64; 9] =
    [0, 1, 2, 0x7f, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x8000_0000_0000_0000, u64::MAX];

fn action() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"action": "SCMP_ACT_ALLOW"})),
        Just(json!({"action": "SCMP_ACT_ERRNO"})),
        Just(json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 38})),
        Just(json!({"action": "SCMP_ACT_KILL_PROCESS"})),
        Just(json!({"action": "SCMP_ACT_LOG"})),
    ]
}

fn condition() -> impl Strategy<Value = Value> {
    let ops = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let value = || prop::sample::select(VALUES.as_slice());
    (0..4, prop::sample::select(ops.to_vec()), value(), value()).prop_map(
        |(index, op, value, two)| {
            json!({"index": index, "op": format!("SCMP_CMP_{op}"), "value": value, "valueTwo": two})
        },
    )
}

fn rule() -> impl Strategy<Value = Value> {
    let names = prop::sample::subsequence(NAMES.as_slice(), 1..4);
    (names, action(), prop::collection::vec(condition(), 0..3)).prop_map(
        |(names, mut rule, args)| {
            (rule["names"], rule["args"]) = (json!(names), json!(args));
            rule
        },
    )
}

/// Runs `check` on the same profiles every time.
fn each(cases: u32, strategy: impl Strategy<Value = Value>, check: impl Fn(&Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&strategy, |json| {
        check(&json);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn whole(rules: impl Strategy<Value = Vec<Value>>) -> impl Strategy<Value = Value> {
    let archs = prop::sample::subsequence(vec!["SCMP_ARCH_X86", "SCMP_ARCH_X32"], 0..3);
    (action(), archs, rules).prop_map(|(default, archs, rules)| {
        let mut json = json!({"defaultAction": default["action"], "architectures": archs,
            "syscalls": rules});
        if let Some(errno) = default.get("errnoRet") {
            json["defaultErrnoRet"] = errno.clone();
        }
        json
    })
}

fn archs(json: &Value) -> Vec<ScmpArch> {
    let listed = json["architectures"].as_array().unwrap().iter();
    let listed = listed.map(|arch| arch.as_str().unwrap().parse().unwrap());
    std::iter::once(ScmpArch::X8664).chain(listed).collect()
}

/// One rule for each call: nothing overlaps.
#[test]
fn one_rule_for_each_call() {
    let rules = prop::collection::vec(rule(), 1..10).prop_map(|rules| {
        let mut seen = BTreeSet::new();
        let mut kept = rules;
        kept.retain_mut(|rule| {
            let names = rule["names"].as_array_mut().unwrap();
            names.retain(|name| seen.insert(name.as_str().unwrap().to_owned()));
            // Two conditions on one argument are two rules.
            let mut args = BTreeSet::new();
            let list = rule["args"].as_array_mut().unwrap();
            list.retain(|arg| args.insert(arg["index"].as_u64()));
            !rule["names"].as_array().unwrap().is_empty()
        });
        kept
    });
    each(200, whole(rules), |json| {
        compare(&profile(json), Arch::X86_64, &archs(json)).unwrap();
    });
}

/// Several rules, each for certain values of its arguments, as profiles have for `personality`.
#[test]
fn several_values() {
    let equal = prop::collection::vec(prop::sample::select(VALUES.as_slice()), 1..6);
    let rules = (equal, action()).prop_map(|(values, action)| {
        let rule = |value: u64| {
            let mut rule = action.clone();
            rule["names"] = json!(["chmod", "socket"]);
            rule["args"] = json!([{"index": 1, "op": "SCMP_CMP_EQ", "value": value}]);
            rule
        };
        values.into_iter().map(rule).collect()
    });
    each(100, whole(rules), |json| {
        compare(&profile(json), Arch::X86_64, &archs(json)).unwrap();
    });
}

fn holds(condition: &Value, args: [u64; 6], mask: u64) -> bool {
    let field = |name: &str| condition[name].as_u64().unwrap() & mask;
    let (value, arg) = (field("value"), args[field("index") as usize] & mask);
    match condition["op"].as_str().unwrap() {
        "SCMP_CMP_NE" => arg != value,
        "SCMP_CMP_LT" => arg < value,
        "SCMP_CMP_LE" => arg <= value,
        "SCMP_CMP_EQ" => arg == value,
        "SCMP_CMP_GE" => arg >= value,
        "SCMP_CMP_GT" => arg > value,
        _ => arg & value == field("valueTwo") & value,
    }
}

/// Overlapping rules with one action, which libseccomp gets wrong: of `< 0` and `< 0x100000000` it lets
/// 1 match neither. Here the profile itself is the judge.
#[test]
fn overlapping_rules() {
    let list = prop::collection::vec(prop::collection::vec(condition(), 0..4), 1..5);
    let rules = list.prop_map(|list| {
        let rule = |args| json!({"names": ["chmod"], "args": args, "action": "SCMP_ACT_TRAP"});
        list.into_iter().map(rule).collect::<Vec<_>>()
    });
    each(300, whole(rules), |json| {
        let program = filter(&profile(json), Arch::X86_64).program;
        let x86 = json["architectures"].as_array().unwrap().contains(&json!("SCMP_ARCH_X86"));
        for (arch, nr, mask) in [(Arch::X86_64, 90, u64::MAX), (Arch::X86, 15, u64::from(u32::MAX))]
        {
            if arch == Arch::X86 && !x86 {
                continue;
            }
            for (i, first) in VALUES.iter().enumerate() {
                for second in VALUES.iter() {
                    let args = [*first, *second, VALUES[(i + 4) % 9], second ^ 1, 0, 0];
                    let matches = json["syscalls"].as_array().unwrap().iter().any(|rule| {
                        let conditions = rule["args"].as_array().unwrap();
                        let indices: BTreeSet<_> =
                            conditions.iter().map(|c| c["index"].as_u64()).collect();
                        let mut each = conditions.iter().map(|c| holds(c, args, mask));
                        if indices.len() < conditions.len() {
                            each.any(|h| h)
                        } else {
                            each.all(|h| h)
                        }
                    });
                    let answer = run(&program, &Call { nr, arch: arch.audit(), args }).answer;
                    assert_eq!(answer == 0x3_0000, matches, "{args:x?} {json}");
                }
            }
        }
    });
}
