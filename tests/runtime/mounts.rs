//! What a container sees mounted, and what the host sees of it: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::alone::{alone, lines, new_mounts};
use crate::pod::{Pod, rootfs_mount, sh, with};

/// Mount point → its options and propagation, as `ro,nosuid,... shared:1`.
fn table(mountinfo: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let end = fields.iter().position(|field| *field == "-").unwrap();
        (fields[4].to_owned(), [&[fields[5]], &fields[6..end]].concat().join(" "))
    };
    mountinfo.lines().map(line).collect()
}

fn bind(spec: Value, source: &Path, destination: &str, options: &[&str]) -> Value {
    let mount = json!({"destination": destination, "source": source, "options": options});
    with(spec, "/mounts/-", mount)
}

const MOUNTS: &str = "cat /proc/self/mountinfo";

#[test]
fn options_of_mounts() {
    alone(async |pod: &mut Pod| {
        let source = pod.dir.join("source");
        fs::create_dir_all(source.join("below")).unwrap();
        let below = source.join("below");
        mount(Some("t"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let spec = with(sh(MOUNTS), "/root/readonly", json!(true));
        let spec = bind(spec, &source, "/ro", &["rbind", "ro", "nosuid"]);
        let spec = bind(spec, &source, "/rro", &["rbind", "rro", "nodev"]);
        let spec = bind(spec, &source, "/one", &["bind", "rprivate"]);
        let (_, text) = pod.ran("c", &spec).await;
        umount2(&below, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir_all(&source).unwrap();
        let mounts = table(&text);
        let has = |at: &str, option: &str| {
            let options = mounts.get(at).unwrap_or_else(|| panic!("nothing on {at}: {text}"));
            options.split([',', ' ']).any(|o| o == option)
        };
        assert!(has("/", "ro") && has("/ro", "ro") && has("/ro", "nosuid"), "{text}");
        assert!(!has("/ro/below", "ro") && has("/rro", "ro") && has("/rro/below", "ro"), "{text}");
        assert!(has("/rro", "nodev") && !has("/rro", "nosuid") && !has("/one", "ro"), "{text}");
        assert!(!mounts.contains_key("/one/below"));
        for (at, options) in [
            ("/proc", "rw nosuid nodev noexec"),
            ("/proc/sys", "ro nosuid nodev noexec"),
            ("/sys", "ro nosuid nodev noexec"),
            ("/sys/fs/cgroup", "ro nosuid nodev noexec"),
            ("/dev", "rw nosuid"),
        ] {
            assert!(options.split(' ').all(|o| has(at, o)), "{at}: {:?}", mounts[at]);
        }
        // Nothing in it is anybody's peer.
        assert!(!text.contains("shared:"), "{text}");
    });
}

/// A shared mount on the host, gone with the test.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(pod: &Pod) -> Shared {
        let path = pod.dir.join("shared");
        fs::create_dir(&path).unwrap();
        mount(Some("t"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let none = None::<&str>;
        mount(none, &path, none, MsFlags::MS_SHARED, none).unwrap();
        for name in ["in", "out"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        Shared(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for name in ["in", "out", "."] {
            let _ = umount2(&self.0.join(name), MntFlags::MNT_DETACH);
        }
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn propagation() {
    alone(async |pod: &mut Pod| {
        let shared = Shared::new(pod);
        let admin = json!(["CAP_SYS_ADMIN"]);
        let caps = json!({"bounding": admin, "effective": admin, "permitted": admin});
        for (option, to_host, from_host) in [
            ("", false, true),
            ("rprivate", false, false),
            ("rslave", false, true),
            ("rshared", true, true),
        ] {
            let script = "mount -t tmpfs t /vol/in && touch /vol/in/made /tmp/did; \
                while [ ! -e /tmp/go ]; do sleep 0.01; done; test -e /vol/out/there";
            let spec = with(sh(script), "/process/capabilities", caps.clone());
            let spec = bind(spec, &shared.0, "/vol", &["rbind", option]);
            pod.create("c", &spec).await.unwrap();
            pod.start("c", "").await.unwrap();
            let tmp = pod.bundle("c").join("rootfs/tmp");
            pod.until("c", "tmp/did").await;
            assert_eq!(shared.0.join("in/made").exists(), to_host, "{option:?}");
            let out = shared.0.join("out");
            mount(Some("t"), &out, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            fs::write(out.join("there"), "").unwrap();
            fs::write(tmp.join("go"), "").unwrap();
            let exit = pod.wait("c", "").await.unwrap();
            assert_eq!(exit.status == 0, from_host, "{option:?}");
            umount2(&out, MntFlags::MNT_DETACH).unwrap();
            if to_host {
                umount2(&shared.0.join("in"), MntFlags::MNT_DETACH).unwrap();
            }
            pod.end("c").await;
        }
        drop(shared);
    });
}

#[test]
fn nothing_is_mounted_on_the_host() {
    alone(async |pod: &mut Pod| {
        let before = lines("/proc/self/mountinfo");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| pod.dir.join(name));
        pod.rootfs(&lower);
        for dir in [&upper, &work] {
            fs::create_dir(dir).unwrap();
        }
        let option = |name: &str, dir: &Path| format!("{name}={}", dir.display());
        let overlay = [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)]
            .map(|(name, dir)| option(name, dir));
        for (fstype, source, options) in [
            ("overlay", "overlay".into(), overlay.to_vec()),
            ("bind", lower.clone(), vec!["rbind".to_owned(), "rw".to_owned()]),
        ] {
            pod.write_bundle("c", &sh("echo x > /made; sleep 100"));
            let rootfs = pod.bundle("c").join("rootfs");
            fs::remove_dir_all(&rootfs).unwrap();
            fs::create_dir(&rootfs).unwrap();
            let mut request = pod.request("c");
            request.rootfs = vec![rootfs_mount(fstype, Path::new(&source), &options)];
            pod.send(request).await.unwrap();
            pod.start("c", "").await.unwrap();
            assert_eq!(new_mounts(&before), [""; 0]);
            assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 0);
            let made = if fstype == "overlay" { &upper } else { &lower }.join("made");
            while !made.exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(upper.join("made").exists());
            pod.end("c").await;
        }
        for dir in [&lower, &upper, &work] {
            fs::remove_dir_all(dir).unwrap();
        }
    });
}

#[test]
fn masked_and_read_only_paths() {
    alone(async |pod: &mut Pod| {
        let script = "ls /hide; cat /secret | wc -c; ls -l /secret | cut -c1; \
            touch /fixed/x || echo refused; touch /hide/x || echo refused; \
            echo 1 > /proc/sys/vm/swappiness || echo refused; ls /hide2 | wc -l";
        let masked = json!(["/hide", "/secret", "/absent/x", "/hide2"]);
        let spec = with(sh(&format!("exec 2>/dev/null; {script}")), "/linux/maskedPaths", masked);
        let spec = with(spec, "/linux/readonlyPaths", json!(["/fixed", "/absent", "/proc/sys"]));
        let bundle = pod.write_bundle("c", &spec);
        for dir in ["hide", "fixed", "hide2"] {
            fs::create_dir(bundle.join("rootfs").join(dir)).unwrap();
            fs::write(bundle.join("rootfs").join(dir).join("f"), "x").unwrap();
        }
        fs::write(bundle.join("rootfs/secret"), "s").unwrap();
        let request = pod.request("c");
        let (_, text) = pod.ran_request(request).await;
        assert_eq!(text, "0\nc\nrefused\nrefused\nrefused\n0\n");
    });
}

#[test]
fn devices() {
    alone(async |pod: &mut Pod| {
        let devices = json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640,
                "uid": 1000, "gid": 7},
            {"path": "/dev/deep/pipe", "type": "p", "fileMode": 0o600},
        ]);
        let script = "stat -c '%n %F %a %u:%g %t:%T' /dev/mine /dev/deep/pipe /dev/null /dev/zero; \
            readlink /dev/ptmx; readlink /dev/fd; readlink /dev/stdout; ls /dev";
        let (_, text) = pod.ran("c", &with(sh(script), "/linux/devices", devices)).await;
        let want = "/dev/mine character special file 640 1000:7 1:3\n\
            /dev/deep/pipe fifo 600 0:0 0:0\n\
            /dev/null character special file 666 0:0 1:3\n\
            /dev/zero character special file 666 0:0 1:5\n\
            pts/ptmx\n/proc/self/fd\n/proc/self/fd/1\n\
            core\ndeep\nfd\nfull\nmine\nnull\nptmx\npts\nrandom\nstderr\nstdin\nstdout\ntty\n\
            urandom\nzero\n";
        assert_eq!(text, want);
    });
}

#[test]
fn a_cgroup_of_its_own() {
    alone(async |pod: &mut Pod| {
        let (_, text) = pod.ran("c", &sh("cat /proc/self/cgroup; ls /sys/fs/cgroup/pids")).await;
        let cgroups = text.lines().filter(|line| line.contains(":pids:"));
        assert!(cgroups.clone().all(|line| line.ends_with(":/")), "{text}");
        assert!(!text.contains("rs-test"), "{text}");
        if cgroups.count() > 0 {
            assert!(text.contains("pids.max"), "its own part of the hierarchy: {text}");
        }
    });
}
