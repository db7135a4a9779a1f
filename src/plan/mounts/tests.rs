//! Plans of mounts, as text. It must never make one.

use super::*;
use crate::error::Kind as ErrorKind;
use serde_json::{Value, json};

fn ops(mounts: Value) -> Result<Vec<Op>> {
    let spec: Spec = serde_json::from_value(json!({"mounts": mounts})).unwrap();
    let facts = Facts { bundle: "/bundle".into(), ..Facts::default() };
    let mut plan = Plan::default();
    let mut entries = resolve(&spec, &facts, &Namespaces::default())?;
    open(&mut plan, &mut entries, None)?;
    let late = attach(&mut plan, &entries, Slot(99))?;
    plan.ops.extend(late);
    Ok(plan.ops)
}

fn text(mounts: Value) -> Vec<String> {
    ops(mounts).unwrap().iter().map(|op| op.to_string()).collect()
}

fn propagation(options: &[&str]) -> Vec<String> {
    let mounts = json!([{"destination": "/d", "source": "s", "options": options}]);
    let ops = text(mounts);
    assert_eq!(ops.last().unwrap(), "attach #0 \"/bundle/s\" on \"/d\"");
    ops[1..ops.len() - 1].iter().map(|op| op.replace("set attributes of #0 ", "")).collect()
}

#[test]
fn every_bind_says_how_it_propagates() {
    assert_eq!(propagation(&["bind"]), ["slave recursive"]);
    assert_eq!(propagation(&["rbind"]), ["slave recursive"]);
    assert_eq!(propagation(&["rbind", "rshared"]), ["shared recursive"]);
    assert_eq!(propagation(&["rbind", "rprivate"]), ["private recursive"]);
    assert_eq!(propagation(&["bind", "shared"]), ["shared"]);
    // The mounts beneath must not stay peers of the host's.
    assert_eq!(propagation(&["rbind", "private"]), ["slave recursive", "private"]);
    assert_eq!(propagation(&["rbind", "rslave", "shared"]), ["slave recursive", "shared"]);
}

#[test]
fn an_option_of_a_bind_resets_the_others() {
    assert_eq!(propagation(&["bind", "ro", "slave"]), ["+ro -nosuid,nodev,noexec", "slave"]);
    assert_eq!(propagation(&["bind", "rw", "slave"]), ["-ro,nosuid,nodev,noexec", "slave"]);
    assert_eq!(propagation(&["bind", "remount", "ro", "slave"]), ["+ro", "slave"]);
    assert_eq!(
        propagation(&["rbind", "rro", "rnoatime", "rslave"]),
        ["+ro,noatime -noatime,strictatime recursive", "slave recursive"]
    );
}

#[test]
fn proc_and_sysfs_land_on_no_symlink() {
    let all = ops(json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/proc/uptime", "source": "/lxcfs/uptime", "options": ["bind"]},
        {"destination": "/proc", "source": "/proc", "options": ["rbind"]}
    ]));
    let targets: Vec<_> = all
        .unwrap()
        .into_iter()
        .filter_map(|op| match op {
            Op::Mount { target, .. } | Op::Attach { target, .. } => Some(target),
            _ => None,
        })
        .map(|t| (t.no_symlinks, t.inside_proc, t.missing))
        .collect();
    let want = [
        (true, false, Missing::Directory),
        (true, false, Missing::Directory),
        (false, false, Missing::Directory),
        (false, true, Missing::LikeSource),
        (true, false, Missing::LikeSource),
    ];
    assert_eq!(targets, want);
}

#[test]
fn read_only_comes_after_what_is_beneath() {
    let tmpfs =
        |options: &[&str]| json!({"destination": "/a", "type": "tmpfs", "options": options});
    assert_eq!(text(json!([tmpfs(&["ro"])])), ["mount tmpfs on \"/a\" +ro"]);
    let bind = json!({"destination": "/a/b", "source": "/s", "options": ["bind"]});
    let all = text(json!([tmpfs(&["ro", "shared"]), bind]));
    let want = [
        "open tree \"/s\" -> #0",
        "set attributes of #0 slave recursive",
        "new mount tmpfs -> #1 []",
        "set attributes of #1 shared",
        "attach #1 \"tmpfs\" on \"/a\"",
        "attach #0 \"/s\" on \"/a/b\"",
        "set attributes of #1 +ro",
    ];
    assert_eq!(all, want);
    let dev = json!([{"destination": "/dev/", "source": "/d", "options": ["bind", "ro", "nodev"]}]);
    let want = [
        "open tree \"/d\" -> #0",
        "set attributes of #0 +nodev -nosuid,noexec",
        "set attributes of #0 slave recursive",
        "attach #0 \"/d\" on \"/dev\"",
        "set attributes of #0 +ro",
    ];
    assert_eq!(text(dev), want);
}

#[test]
fn refusals() {
    for (mount, want) in [
        (
            json!({"destination": "/a/.."}),
            "mounts[0].destination: nothing can be mounted on the root",
        ),
        (json!({"destination": "/a"}), "mounts[0]: type is missing"),
        (json!({"destination": "/a", "options": ["bind"]}), "mounts[0]: source is missing"),
        (
            json!({"destination": "/a", "source": "/b", "options": ["bind", "size=1"]}),
            "mounts[0]: options: \"size\" has no meaning for a bind mount",
        ),
        (
            json!({"destination": "/proc", "type": "tmpfs"}),
            "mounts[0].destination: only proc can be mounted on \"/proc\"",
        ),
        (
            json!({"destination": "/proc/self/../1/attr", "source": "/b", "options": ["bind"]}),
            "mounts[0].destination: \"/proc/1/attr\" is inside /proc",
        ),
        (
            json!({"destination": "/a", "source": "/b", "options": ["bind"], "uidMappings": [{"size": 1}]}),
            "mounts[0]: gidMappings is missing",
        ),
        (
            json!({"destination": "/a", "source": "/b", "options": ["bind", "idmap"]}),
            "mounts[0]: \"idmap\" without mappings, and without a user namespace",
        ),
        (
            json!({"destination": "/a", "source": "/b", "options": ["bind", "tmpcopyup"]}),
            "mounts[0]: options: \"tmpcopyup\" is for a tmpfs only",
        ),
        (
            json!({"destination": "/a", "type": "mqueue", "options": ["tmpcopyup"]}),
            "mounts[0]: options: \"tmpcopyup\" is for a tmpfs only",
        ),
    ] {
        let error = ops(json!([mount])).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (want, ErrorKind::InvalidArgument));
    }
    for (mount, want) in [
        (
            json!({"destination": "/a", "type": "tmpfs", "options": ["remount"]}),
            "mounts[0]: options: \"remount\" of a file system is not supported",
        ),
        (
            json!({"destination": "/a", "type": "tmpfs", "uidMappings": [{"size": 1}],
                "gidMappings": [{"size": 1}]}),
            "mounts[0]: an id-mapped mount that is no bind mount is not supported",
        ),
    ] {
        let error = ops(json!([mount])).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), (want, ErrorKind::Unimplemented));
    }
    let many = vec![json!({"destination": "/a", "type": "tmpfs"}); MOST + 1];
    assert_eq!(ops(many.into()).unwrap_err().to_string(), "mounts: 4097, the limit is 4096");
}
