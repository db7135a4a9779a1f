//! What `linux.intelRdt` comes to. It must never make a directory.

use super::*;
use crate::error::Kind;
use serde_json::{Value, json};

fn rdt(value: Value) -> Result<Rdt> {
    let spec: Spec = serde_json::from_value(json!({"linux": {"intelRdt": value}})).unwrap();
    Rdt::of(&spec, "web", Path::new("/r")).map(Option::unwrap)
}

#[test]
fn no_field_no_group() {
    let spec: Spec = serde_json::from_value(json!({"linux": {}})).unwrap();
    assert_eq!(Rdt::of(&spec, "web", Path::new("/r")).unwrap(), None);
}

#[test]
fn groups_are_named_and_go_with_who_made_them() {
    let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
    let own = rdt(json!({"enableMonitoring": true})).unwrap();
    assert_eq!(own.groups(), paths(&["/r/web", "/r/web/mon_groups/web"]));
    assert_eq!(own.to_remove(false), paths(&["/r/web/mon_groups/web", "/r/web"]));
    assert!(!own.must_exist() && own.limit().unwrap().is_none());
    let named = rdt(json!({"closID": "gold"})).unwrap();
    assert_eq!(named.groups(), paths(&["/r/gold"]));
    assert!(named.must_exist());
    assert_eq!(named.to_remove(false), paths(&[]));
    let limited = rdt(json!({"closID": "gold", "l3CacheSchema": "L3:0=f"})).unwrap();
    assert!(!limited.must_exist());
    assert_eq!(limited.to_remove(true), paths(&["/r/gold"]));
    let root = rdt(json!({"closID": "/", "enableMonitoring": true})).unwrap();
    assert_eq!(root.groups(), paths(&["/r", "/r/mon_groups/web"]));
    assert_eq!(root.to_remove(false), paths(&["/r/mon_groups/web"]));
}

#[test]
fn schemata_are_one_write() {
    let all = json!({"l3CacheSchema": "L3:0=f;1=f\nMB:0=1", "memBwSchema": "MB:0=20",
        "schemata": ["L2:0=3", "L3CODE:0=1"]});
    let all = rdt(all).unwrap();
    assert_eq!(all.schemata, "L3:0=f;1=f\nMB:0=20\nL2:0=3\nL3CODE:0=1\n");
    let plan = all.limit().unwrap().unwrap().to_string();
    let write = r#"write "L3:0=f;1=f\nMB:0=20\nL2:0=3\nL3CODE:0=1\n" to "/r/web/schemata""#;
    assert!(plan.contains(&format!("  1 {write}\n  2 exit")), "{plan}");
    assert_eq!(
        rdt(json!({"l3CacheSchema": "L3:0=f\nMB:0=1"})).unwrap().schemata,
        "L3:0=f\nMB:0=1\n"
    );
}

#[test]
fn what_names_no_group_is_refused() {
    let long = "x".repeat(256);
    for name in [".", "..", "info", "mon_groups", "mon_data", "a/b", "/a", "a\nb", "a\0", &long] {
        let error = rdt(json!({"closID": name})).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert_eq!(error.to_string(), format!("linux.intelRdt.closID: {name:?} names no group"));
    }
    let error = rdt(json!({"closID": "a", "schemata": ["L3:0=\0"]})).unwrap_err();
    assert_eq!(error.to_string(), "linux.intelRdt contains a NUL byte");
}
