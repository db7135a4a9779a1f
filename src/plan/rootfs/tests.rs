//! Plans of a root file system, as text. It must never mount one.

use super::*;

fn overlay(options: &[&str], plus: bool) -> Result<Vec<String>> {
    let options = options.iter().map(|o| o.to_string()).collect();
    let mount = RootfsMount {
        fstype: "overlay".into(),
        source: "overlay".into(),
        options,
        ..RootfsMount::default()
    };
    let facts = Facts { overlay_lowerdir_plus: plus, ..Facts::default() };
    let mut plan = Plan::default();
    let opened = open_one(&mut plan, &mount, Path::new("/b/rootfs"), &facts, &mut Vec::new())?;
    if let Opened::Old(op) = opened {
        plan.ops.push(op);
    }
    Ok(plan.ops.iter().map(|op| op.to_string()).collect())
}

#[test]
fn lower_directories_one_by_one_and_unescaped() {
    let ops = overlay(&["index=off", "lowerdir=/a\\:b:/c\\\\d::/e::/f", "ro"], true).unwrap();
    let want = "new mount overlay -> #0 [ro] source=overlay,index=off,lowerdir+=/a:b,\
        lowerdir+=/c\\d,datadir+=/e,datadir+=/f";
    assert_eq!(ops, [want]);
}

#[test]
fn lower_directories_in_one_string() {
    let ops = overlay(&["lowerdir=/a\\:b:/c", "upperdir=/u"], false).unwrap();
    let want = "new mount overlay -> #0 [] source=overlay,lowerdir=/a\\:b:/c,upperdir=/u";
    assert_eq!(ops, [want]);
}

#[test]
fn long_ones_by_mount_after_chdir() {
    let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
    let lower: Vec<_> = (1..9).map(|i| format!("{snapshots}/{i}/fs")).collect();
    let lower = format!("lowerdir={}", lower.join(":"));
    let ops = overlay(&["upperdir=/u", &lower, "ro", "nosuid"], false).unwrap();
    let names = "1/fs:2/fs:3/fs:4/fs:5/fs:6/fs:7/fs:8/fs";
    let want = format!(
        "mount(\"overlay\", \"/b/rootfs\", \"overlay\", 0x3, \"upperdir=/u,lowerdir={names}\") \
         in \"{snapshots}/\""
    );
    assert_eq!(ops, [want]);
    assert_eq!(overlay(&["upperdir=/u", &lower], true).unwrap().len(), 1);
}

#[test]
fn the_shared_directory_leaves_a_name_to_each() {
    let shared = |paths: &[&str]| {
        let layer = |p: &&str| Layer { escaped: p.as_bytes().to_vec(), data_only: false };
        shared_directory(&paths.iter().map(layer).collect::<Vec<_>>())
    };
    assert_eq!(shared(&["/s/10/fs", "/s/1/fs"]), 3);
    assert_eq!(shared(&["/s/1/fs"]), 5);
    assert_eq!(shared(&["/a/fs", "/b/fs"]), 0);
    assert_eq!(shared(&["/a/b/", "/a/b/c"]), 0);
}

#[test]
fn refusals() {
    let long = format!("lowerdir=/l{}", ":/l".repeat(500));
    for (option, want) in [
        (&*long, "options: lowerdir has 501 parts, overlay takes 500"),
        ("lowerdir=/a::", "options: lowerdir has an empty part"),
        ("lowerdir=", "options: lowerdir has an empty part"),
        ("uidmap=0:1:2", "options: gidMappings is missing"),
        ("uidmap=0:1", "options: uidmap=0:1: not \"inside:outside:size\""),
        ("gidmap=0:1:2:3", "options: gidmap=0:1:2:3: not \"inside:outside:size\""),
        ("loop", "options: \"loop\" is not supported"),
        ("remount", "\"remount\" is not supported"),
    ] {
        assert_eq!(overlay(&[option], true).unwrap_err().to_string(), want);
    }
    let data = format!("x={}", "y".repeat(5000));
    let error = overlay(&[&data], true).unwrap_err();
    assert_eq!(error.to_string(), "options: 5002 bytes, mount(2) takes 4095");
}

#[test]
fn read_only_reaches_the_file_system_of_a_device() {
    let options = Options::parse(&["ro".into(), "sync".into()]).unwrap();
    let keys = |source: &str| -> Vec<_> {
        fs_params(&options, source).unwrap().into_iter().map(|p| p.key).collect()
    };
    assert_eq!(keys("/dev/sda"), [c"source".to_owned(), c"sync".into(), c"ro".into()]);
    assert_eq!(keys("debugfs"), [c"source".to_owned(), c"sync".into()]);
}
