//! `config.json` and the process of an exec, from bytes to types.
//!
//! What runc and crun accept is accepted: where the types are stricter than the specification, the
//! document is put right and read again, and the caller is told what to warn of. It must never
//! read more than [`LIMIT`], which the loop parses in some milliseconds.

use oci_spec::runtime::{Capability, LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, from_slice, json};

use crate::error::{Error, Result};

/// The largest document that is read.
pub const LIMIT: usize = 4 << 20;
const RESOURCES: &str = "/linux/resources";
const PIDS_LIMIT: &str = "/linux/resources/pids/limit";

/// Reads a `config.json`; also what to warn of.
pub fn parse(bytes: &[u8]) -> Result<(Spec, Vec<String>)> {
    let (spec, warnings): (Spec, _) = read("config.json", bytes, put_right)?;
    // `"pids": {}` reads as a limit of 0, which is a real one.
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let pids = resources.and_then(|resources| resources.pids().as_ref());
    if pids.is_some_and(|pids| pids.limit() == 0) {
        let mut value = tree("config.json", bytes)?;
        if value.pointer(PIDS_LIMIT).is_none_or(Value::is_null) {
            let mut warnings = Vec::new();
            put_right(&mut value, &mut warnings);
            at(&mut value, RESOURCES).map(|resources| resources.remove("pids"));
            return Ok((typed("config.json", &value)?, warnings));
        }
    }
    Ok((spec, warnings))
}

/// Reads the process of an exec; also what to warn of.
pub fn parse_process(bytes: &[u8]) -> Result<(Process, Vec<String>)> {
    read("process", bytes, put_process_right)
}

/// Reads the resources of an update, as those of a `config.json` are: containerd sends the spec's own.
pub fn parse_resources(bytes: &[u8]) -> Result<LinuxResources> {
    let mut spec = json!({"linux": {"resources": tree("resources", bytes)?}});
    put_right(&mut spec, &mut Vec::new());
    let pids = spec.pointer("/linux/resources/pids");
    if pids
        .and_then(Value::as_object)
        .is_some_and(|pids| pids.get("limit").is_none_or(Value::is_null))
    {
        at(&mut spec, RESOURCES).map(|resources| resources.remove("pids"));
    }
    typed("resources", spec.pointer(RESOURCES).unwrap_or(&Value::Null))
}

fn read<T: DeserializeOwned>(
    what: &str,
    bytes: &[u8],
    put_right: fn(&mut Value, &mut Vec<String>),
) -> Result<(T, Vec<String>)> {
    if bytes.len() > LIMIT {
        let text = format!("{what} has {} bytes, the limit is {LIMIT}", bytes.len());
        return Err(Error::invalid(text));
    }
    if let Ok(parsed) = from_slice(bytes) {
        return Ok((parsed, Vec::new()));
    }
    let mut value = tree(what, bytes)?;
    let mut warnings = Vec::new();
    put_right(&mut value, &mut warnings);
    Ok((typed(what, &value)?, warnings))
}

fn tree(what: &str, bytes: &[u8]) -> Result<Value> {
    from_slice(bytes).map_err(|e| Error::invalid(format!("{what}: {e}")))
}

/// By way of its text: `from_value` would have the compiler make every type's parser once more.
fn typed<T: DeserializeOwned>(what: &str, value: &Value) -> Result<T> {
    let text = value.to_string();
    from_slice(text.as_bytes()).map_err(|e| Error::invalid(format!("{what}: {e}")))
}

fn at<'a>(value: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    value.pointer_mut(pointer)?.as_object_mut()
}

fn list<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

fn put_right(spec: &mut Value, warnings: &mut Vec<String>) {
    if let Some(process) = spec.get_mut("process").filter(|process| process.is_object()) {
        put_process_right(process, warnings);
    }
    // As runc has it: a profile without a default and without rules is none.
    let empty = |profile: &Value| {
        let default = profile.get("defaultAction").and_then(Value::as_str).unwrap_or_default();
        let rules = profile.get("syscalls").and_then(Value::as_array);
        profile.is_object() && default.is_empty() && rules.is_none_or(Vec::is_empty)
    };
    if let Some(linux) = at(spec, "/linux")
        && linux.get("seccomp").is_some_and(empty)
    {
        linux.remove("seccomp");
    }
    for page in list(spec, "/linux/resources/hugepageLimits") {
        // u64 in the specification, i64 in the types: no machine has that much.
        if page
            .get("limit")
            .and_then(Value::as_u64)
            .is_some_and(|limit| i64::try_from(limit).is_err())
        {
            page["limit"] = i64::MAX.into();
        }
    }
    for rule in list(spec, "/linux/resources/devices") {
        if rule.get("type").is_some_and(|typ| typ == "")
            && let Some(rule) = rule.as_object_mut()
        {
            rule.remove("type");
        }
    }
}

fn put_process_right(process: &mut Value, warnings: &mut Vec<String>) {
    let Some(all) = process.as_object_mut() else { return };
    if all.get("user").is_none_or(Value::is_null) {
        all.insert("user".into(), Value::Object(Map::new()));
    }
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        let names = process.pointer_mut(&format!("/capabilities/{set}"));
        let Some(names) = names.and_then(Value::as_array_mut) else { continue };
        names.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                // The specification wants a warning and no error.
                warnings.push(format!("process.capabilities.{set}: {name} is unknown, ignored"));
            }
            known
        });
    }
    for flag in list(process, "/scheduler/flags") {
        let spelled = match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => "SCHED_RESET_ON_FORK",
            Some("SCHED_FLAG_DL_OVERRUN") => "SCHED_FLAG_D_L_OVERRUN",
            _ => continue,
        };
        *flag = spelled.into();
    }
    if let Some(affinity) = at(process, "/execCPUAffinity") {
        affinity.retain(|_, cpus| *cpus != "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn parsed(spec: Value) -> Result<(Spec, Vec<String>)> {
        parse(&serde_json::to_vec(&spec).unwrap())
    }

    #[test]
    fn an_unknown_capability_is_a_warning() {
        let caps = json!({"bounding": ["CAP_KILL", "CAP_TELEPORT"], "effective": ["CAP_KILL"]});
        let spec = json!({"process": {"cwd": "/", "user": {}, "capabilities": caps}});
        let (spec, warnings) = parsed(spec).unwrap();
        let want = "process.capabilities.bounding: \"CAP_TELEPORT\" is unknown, ignored";
        assert_eq!(warnings, [want]);
        let caps = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(caps.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(caps.effective().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_the_types_refuse_and_the_specification_allows() {
        let process = json!({"cwd": "/",
            "scheduler": {"policy": "SCHED_OTHER",
                "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]},
            "execCPUAffinity": {"initial": "", "final": "1"}});
        let resources = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": u64::MAX}],
            "devices": [{"allow": false, "type": "", "access": "rwm"}]});
        let spec = json!({"process": process, "linux": {"resources": resources}});
        assert!(serde_json::from_value::<Spec>(spec.clone()).is_err());
        let (spec, warnings) = parsed(spec).unwrap();
        assert!(warnings.is_empty());
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.user().uid(), 0);
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 2);
        let bytes = br#"{"cwd": "/", "user": null}"#;
        assert_eq!(parse_process(bytes).unwrap().0.user().uid(), 0);
    }

    #[test]
    fn no_limit_of_pids_is_not_a_limit_of_none() {
        let limit = |pids: Value| {
            let (spec, _) = parsed(json!({"linux": {"resources": {"pids": pids}}})).unwrap();
            let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
            resources.pids().as_ref().map(|pids| pids.limit())
        };
        assert_eq!(limit(json!({})), None);
        assert_eq!(limit(json!({"limit": 0})), Some(0));
        assert_eq!(limit(json!({"limit": 7})), Some(7));
    }

    #[test]
    fn an_update_is_read_as_a_spec_is() {
        let read = |json: Value| parse_resources(&serde_json::to_vec(&json).unwrap());
        let spec = json!({"pids": {}, "cpu": {"shares": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": u64::MAX}],
            "devices": [{"allow": false, "type": "", "access": "rwm"}]});
        let resources = read(spec).unwrap();
        assert_eq!(*resources.pids(), None);
        assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(7));
        let limit = |json| read(json).unwrap().pids().as_ref().map(|pids| pids.limit());
        assert_eq!(limit(json!({"pids": {"limit": 0}})), Some(0));
        for wrong in [json!(3), json!({"pids": 7}), json!({"cpu": {"shares": "many"}})] {
            let error = read(wrong).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("resources: "), "{error}");
        }
    }

    #[test]
    fn a_seccomp_profile_that_says_nothing_is_none() {
        for none in [json!({}), json!({"defaultAction": ""}), json!({"syscalls": []})] {
            let (spec, _) = parsed(json!({"linux": {"seccomp": none}})).unwrap();
            assert_eq!(*spec.linux().as_ref().unwrap().seccomp(), None);
        }
        let rule = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        for wrong in
            [json!({"syscalls": [rule]}), json!({"defaultAction": "SCMP_ACT_SMILE"}), json!(3)]
        {
            assert!(parsed(json!({"linux": {"seccomp": wrong}})).is_err(), "{wrong}");
        }
    }

    #[test]
    fn refusals() {
        let error = parse(&vec![b' '; LIMIT + 1]).unwrap_err();
        assert_eq!(error.to_string(), "config.json has 4194305 bytes, the limit is 4194304");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for bytes in [&b""[..], b"{", b"7", br#"{"linux": 3}"#, deep.as_bytes()] {
            assert_eq!(parse(bytes).unwrap_err().kind(), Kind::InvalidArgument);
        }
        let bytes = br#"{"linux": {"namespaces": [{"type": "galaxy"}]}}"#;
        assert!(parse(bytes).unwrap_err().to_string().contains("galaxy"));
        assert!(parse_process(b"3").is_err());
    }
}
