//! A tmpfs that begins with what the image has there.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::alone::{alone, lines, new_mounts};
use crate::pod::{Pod, sh, with};
use crate::usernamespace::{mapped, user};

fn copied(spec: Value, destination: &str, options: &[&str]) -> Value {
    let mut all = vec!["tmpcopyup"];
    all.extend(options);
    let mount = json!({"destination": destination, "type": "tmpfs", "source": "t", "options": all});
    with(spec, "/mounts/-", mount)
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Bytes that are not the same anywhere.
fn big() -> Vec<u8> {
    (0..3u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// One of everything below `/tree`.
fn tree(at: &Path, outside: &Path) {
    fs::create_dir_all(at.join("one/two/three")).unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    fs::write(at.join("one/two/three/file"), "deep").unwrap();
    fs::write(at.join("big"), big()).unwrap();
    fs::write(at.join("setuid"), "").unwrap();
    for n in 0..300 {
        fs::write(at.join("one").join(format!("one-of-many-files-{n}")), "").unwrap();
    }
    symlink(outside, at.join("link")).unwrap();
    symlink("nowhere", at.join("dangling")).unwrap();
    lchown(at.join("dangling"), Some(7), Some(8)).unwrap();
    let rw = Mode::from_bits_truncate(0o640);
    mknod(&at.join("null"), SFlag::S_IFCHR, rw, makedev(1, 3)).unwrap();
    mknod(&at.join("pipe"), SFlag::S_IFIFO, rw, 0).unwrap();
    chown(at.join("one/two"), Some(1000), Some(7)).unwrap();
    chown(at.join("setuid"), Some(1000), Some(7)).unwrap();
    mode(&at.join("setuid"), 0o4711);
    mode(&at.join("one/two"), 0o2775);
    mode(&at.join("empty"), 0o1777);
    mode(at, 0o751);
}

#[test]
fn a_tree_is_copied_up() {
    alone(async |pod: &mut Pod| {
        let outside = pod.dir.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "host").unwrap();
        let script = "cd /tree; stat -c '%n %F %a %u:%g' . empty setuid null pipe one/two dangling; \
            stat -c '%t:%T' null; cat one/two/three/file; echo; ls one | wc -l; readlink link; \
            test -e link/secret || echo not followed; stat -f -c %T .; touch new && echo new; \
            cat big > /out";
        let bundle = pod.write_bundle("c", &copied(sh(script), "/tree", &["size=16m"]));
        let rootfs = bundle.join("rootfs");
        tree(&rootfs.join("tree"), &outside);
        let mut request = pod.request("c");
        request.stdio = pod.logged("c");
        pod.send(request).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.wait("c", "").await.unwrap();
        let text = pod.output("c");
        let want = format!(
            ". directory 751 0:0\nempty directory 1777 0:0\nsetuid regular empty file 4711 1000:7\n\
            null character special file 640 0:0\npipe fifo 640 0:0\none/two directory 2775 1000:7\n\
            dangling symbolic link 777 7:8\n1:3\ndeep\n301\n{}\nnot followed\ntmpfs\nnew\n",
            outside.display()
        );
        assert_eq!(text, want);
        assert!(fs::read(rootfs.join("out")).unwrap() == big());
        // What it was copied from is as it was.
        assert!(!rootfs.join("tree/new").exists());
        pod.end("c").await;
        fs::remove_dir_all(outside).unwrap();
    });
}

#[test]
fn a_copy_that_is_read_only_or_of_nothing() {
    alone(async |pod: &mut Pod| {
        let script =
            "cat /ro/file; touch /ro/new || echo refused; stat -c %a /ro; ls /absent/dir | wc -l";
        let spec = copied(sh(&format!("exec 2>/dev/null; {script}")), "/ro", &["ro", "mode=711"]);
        let bundle = pod.write_bundle("c", &copied(spec, "/absent/dir", &[]));
        fs::create_dir(bundle.join("rootfs/ro")).unwrap();
        fs::write(bundle.join("rootfs/ro/file"), "there\n").unwrap();
        let request = pod.request("c");
        let (_, text) = pod.ran_request(request).await;
        assert_eq!(text, "there\nrefused\n711\n0\n");
    });
}

#[test]
fn a_copy_stays_inside_the_rootfs() {
    alone(async |pod: &mut Pod| {
        let host = pod.dir.join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("secret"), "host").unwrap();
        // The destination itself is a link to a directory of the host: it is one of the image.
        let spec = copied(sh("ls /link/ /inside; ls /inside | wc -l"), "/link", &[]);
        let bundle = pod.write_bundle("c", &spec);
        symlink(&host, bundle.join("rootfs/link")).unwrap();
        assert!(pod.send(pod.request("c")).await.is_err());
        fs::remove_file(bundle.join("rootfs/link")).unwrap();
        symlink("../../../inside", bundle.join("rootfs/link")).unwrap();
        fs::create_dir(bundle.join("rootfs/inside")).unwrap();
        fs::write(bundle.join("rootfs/inside/own"), "").unwrap();
        let request = pod.request("c");
        let (_, text) = pod.ran_request(request).await;
        assert_eq!(text, "/inside:\nown\n\n/link/:\nown\n1\n");
        // A mount beneath is another's.
        let bind = json!({"destination": "/tree/vol", "source": host, "options": ["bind"]});
        let spec = copied(with(sh("true"), "/mounts/-", bind), "/tree", &[]);
        let error = pod.create("c", &spec).await.unwrap_err().to_string();
        assert!(error.contains("copy \"/tree\" into") && error.contains("EXDEV"), "{error}");
        fs::remove_dir_all(host).unwrap();
    });
}

#[test]
fn a_copy_that_does_not_fit() {
    alone(async |pod: &mut Pod| {
        let before = lines("/proc/self/mountinfo");
        for (options, deep, want) in
            [(["size=1m"], 1, "sendfile: ENOSPC"), (["size=16m"], 80, "ELOOP")]
        {
            let bundle = pod.write_bundle("c", &copied(sh("true"), "/tree", &options));
            let tree = bundle.join("rootfs/tree");
            fs::create_dir_all(tree.join("d/".repeat(deep))).unwrap();
            fs::write(tree.join("big"), big()).unwrap();
            let error = pod.send(pod.request("c")).await.unwrap_err().to_string();
            assert!(error.contains("copy \"/tree\" into") && error.contains(want), "{error}");
            assert_eq!(new_mounts(&before), [""; 0]);
            assert!(pod.state("c", "").is_err());
            fs::remove_dir_all(&bundle).unwrap();
        }
    });
}

#[test]
fn a_copy_in_a_user_namespace() {
    alone(async |pod: &mut Pod| {
        let script = "stat -c '%n %a %u:%g' /tree/mine /tree/strange; cat /tree/mine";
        pod.write_bundle("c", &copied(user(script), "/tree", &[]));
        let rootfs = pod.bundle("c").join("rootfs");
        fs::create_dir(rootfs.join("tree")).unwrap();
        for (name, owner) in [("mine", 5), ("strange", 70_000)] {
            fs::write(rootfs.join("tree").join(name), "x").unwrap();
            chown(rootfs.join("tree").join(name), Some(owner), Some(6)).unwrap();
            mode(&rootfs.join("tree").join(name), 0o4755);
        }
        let mut request = pod.request("c");
        request.rootfs = vec![mapped(&rootfs)];
        let (_, text) = pod.ran_request(request).await;
        // Whose number is none of the container's is nobody's, as it was seen before.
        assert_eq!(text, "/tree/mine 4755 5:6\n/tree/strange 4755 65534:6\nx");
    });
}
