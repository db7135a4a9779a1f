//! Attacks that worked on other runtimes, by hostile images and by containers that share a volume.
//! On the host a canary must see nothing.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::{Value, json};

use crate::alone::{alone, lines, new_mounts};
use crate::pod::{Pod, process, sh, with};

/// Stands for core_pattern, which not every kernel has.
const SYSCTL: &str = "/proc/sys/vm/swappiness";

/// A directory of the host that nothing may get into.
fn canary(pod: &Pod) -> PathBuf {
    let canary = pod.dir.join("canary");
    fs::create_dir_all(&canary).unwrap();
    canary
}

fn assert_untouched(canary: &Path, what: &str) {
    let found: Vec<_> = fs::read_dir(canary).unwrap().flatten().map(|e| e.path()).collect();
    assert!(found.is_empty(), "{what}: {found:?}");
}

/// Without the mounts whose destination begins so.
fn without(mut spec: Value, destination: &str) -> Value {
    let list = spec["mounts"].as_array_mut().unwrap();
    list.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(destination));
    spec
}

#[test]
fn cve_2024_21626_working_directory_of_a_descriptor() {
    alone(async |pod: &mut Pod| {
        // The shim has a directory of the host open, which no image could know of.
        let host = File::open("/").unwrap();
        pod.running("live", "sleep 100").await;
        for n in 0..48 {
            for path in ["/proc/self/fd", "/proc/thread-self/fd", "/proc/self/fd/../fd"] {
                let cwd = json!(format!("{path}/{n}"));
                let spec = with(sh("pwd"), "/process/cwd", cwd.clone());
                assert!(pod.create("c", &spec).await.is_err(), "{cwd}");
                pod.exec("live", "e", &with(process("pwd; ls"), "/cwd", cwd.clone())).unwrap();
                let started = pod.start("live", "e").await;
                assert!(started.is_err(), "{cwd}");
                pod.delete("live", "e").await.unwrap();
            }
        }
        drop(host);
    });
}

#[test]
fn cve_2025_31133_null_that_is_a_link() {
    alone(async |pod: &mut Pod| {
        let before = fs::read_to_string(SYSCTL).unwrap();
        let script =
            "echo pwned > /secret; cat /secret; echo pwned > /dev/null; stat -c %t:%T /secret";
        let spec = with(sh(script), "/linux/maskedPaths", json!(["/secret"]));
        // In the image: what is there is no null device.
        let plain = without(spec.clone(), "/dev");
        let bundle = pod.write_bundle("image", &plain);
        symlink(SYSCTL, bundle.join("rootfs/dev/null")).unwrap();
        fs::write(bundle.join("rootfs/secret"), "s").unwrap();
        let error = pod.send(pod.request("image")).await.unwrap_err().to_string();
        assert!(error.contains("mknod \"/dev/null\"") && error.contains("EEXIST"), "{error}");
        // In a volume that is /dev: the mask is the host's own null device.
        let volume = pod.dir.join("shared");
        fs::create_dir(&volume).unwrap();
        symlink(SYSCTL, volume.join("null")).unwrap();
        let bind = json!({"destination": "/dev", "source": volume, "options": ["rbind"]});
        let bundle = pod.write_bundle("volume", &with(plain, "/mounts/-", bind));
        fs::write(bundle.join("rootfs/secret"), "s").unwrap();
        let (_, text) = pod.ran_request(pod.request("volume")).await;
        assert!(text.ends_with("1:3\n") && !text.contains("pwned\n"), "{text}");
        assert_eq!(fs::read_to_string(SYSCTL).unwrap(), before);
        fs::remove_dir_all(&volume).unwrap();
    });
}

#[test]
fn cve_2026_88265_owner_of_a_host_file() {
    alone(async |pod: &mut Pod| {
        let victim = pod.dir.join("victim");
        fs::write(&victim, "").unwrap();
        let bind = json!({"destination": "/victim", "source": victim, "options": ["bind"]});
        let spec = with(without(sh("true"), "/dev"), "/mounts/-", bind);
        let spec = with(spec, "/process/user", json!({"uid": 1000, "gid": 1000}));
        let bundle = pod.write_bundle("c", &spec);
        symlink("/victim", bundle.join("rootfs/dev/null")).unwrap();
        assert!(pod.send(pod.request("c")).await.is_err());
        // stdio that is /dev/null is nobody's to give away.
        let user = with(sh("true"), "/process/user", json!({"uid": 1000, "gid": 1000}));
        pod.create("d", &user).await.unwrap();
        pod.start("d", "").await.unwrap();
        assert_eq!(pod.wait("d", "").await.unwrap().status, 0);
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
        assert_eq!(fs::metadata("/dev/null").unwrap().uid(), 0);
        fs::remove_file(&victim).unwrap();
    });
}

#[test]
fn cve_2025_52565_console_that_is_a_link() {
    alone(async |pod: &mut Pod| {
        let mut spec = with(sh("true"), "/process/terminal", json!(true));
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev");
        let canary = canary(pod);
        for link in ["/proc/sysrq-trigger", canary.join("x").to_str().unwrap(), "../../../../x"] {
            let bundle = pod.write_bundle("c", &spec);
            symlink(link, bundle.join("rootfs/dev/console")).unwrap();
            let mut request = pod.request("c");
            request.stdio.terminal = true;
            let error = pod.send(request).await.unwrap_err().to_string();
            assert!(error.contains("\"/dev/console\": another file is there: ELOOP"), "{error}");
            fs::remove_dir_all(bundle).unwrap();
        }
        assert_untouched(&canary, "console");
        fs::remove_dir(canary).unwrap();
    });
}

#[test]
fn cve_2026_41579_dev_that_is_a_link() {
    alone(async |pod: &mut Pod| {
        let canary = canary(pod);
        let deep = "../".repeat(30) + &canary.to_str().unwrap()[1..];
        for link in [canary.to_str().unwrap(), &deep] {
            for spec in [sh("true"), without(sh("true"), "/dev")] {
                let bundle = pod.write_bundle("c", &spec);
                fs::remove_dir(bundle.join("rootfs/dev")).unwrap();
                symlink(link, bundle.join("rootfs/dev")).unwrap();
                // Nothing there: refused. A directory there, in the image: that one is meant.
                assert!(pod.send(pod.request("c")).await.is_err());
                assert_untouched(&canary, link);
                fs::create_dir_all(bundle.join("rootfs").join(&canary.to_str().unwrap()[1..]))
                    .unwrap();
                pod.send(pod.request("c")).await.unwrap();
                assert_untouched(&canary, link);
                pod.end("c").await;
            }
        }
        fs::remove_dir(canary).unwrap();
    });
}

#[test]
fn cve_2023_27561_proc_that_is_a_link() {
    alone(async |pod: &mut Pod| {
        for name in ["proc", "sys"] {
            let bundle = pod.write_bundle("c", &sh("true"));
            let rootfs = bundle.join("rootfs");
            fs::create_dir_all(rootfs.join("bad").join(name)).unwrap();
            fs::remove_dir(rootfs.join(name)).unwrap();
            symlink(format!("/bad/{name}"), rootfs.join(name)).unwrap();
            let error = pod.send(pod.request("c")).await.unwrap_err().to_string();
            assert!(error.contains("openat2: ELOOP"), "{error}");
            fs::remove_dir_all(bundle).unwrap();
        }
    });
}

#[test]
fn cve_2019_16884_mounts_inside_proc() {
    alone(async |pod: &mut Pod| {
        for (destination, source) in
            [("/proc", "/tmp"), ("/proc/self/attr", "/tmp"), ("/proc/sys/kernel", "/tmp")]
        {
            let bind = json!({"destination": destination, "source": source, "options": ["bind"]});
            let spec = with(sh("true"), "/mounts/-", bind);
            assert!(pod.create("c", &spec).await.is_err(), "{destination}");
        }
        // By way of a link in the image.
        let bind = json!({"destination": "/link/attr", "source": "/tmp", "options": ["bind"]});
        let bundle = pod.write_bundle("c", &with(sh("true"), "/mounts/-", bind));
        symlink("/proc/self", bundle.join("rootfs/link")).unwrap();
        let error = pod.send(pod.request("c")).await.unwrap_err().to_string();
        assert!(error.contains("inside a procfs: EPERM") || error.contains("ELOOP"), "{error}");
        let uptime = pod.dir.join("uptime");
        fs::write(&uptime, "1 1\n").unwrap();
        let bind = json!({"destination": "/proc/uptime", "source": uptime, "options": ["bind"]});
        let (_, text) = pod.ran("d", &with(sh("cat /proc/uptime"), "/mounts/-", bind)).await;
        assert_eq!(text, "1 1\n");
        fs::remove_file(uptime).unwrap();
    });
}

/// Swaps two names for as long as it lives.
struct Racer(Arc<AtomicBool>, Option<std::thread::JoinHandle<usize>>);

impl Racer {
    fn new(one: PathBuf, two: PathBuf) -> Racer {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !seen.load(Ordering::Relaxed) {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &one, AT_FDCWD, &two, flags).unwrap();
                swaps += 1;
            }
            swaps
        });
        Racer(stop, Some(thread))
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let swaps = self.1.take().unwrap().join().unwrap();
        assert!(swaps > 100, "no race: {swaps}");
    }
}

/// CVE-2021-30465, CVE-2024-45310: a co-container swaps a directory of a volume for a link to the
/// host while it is resolved, made and mounted on.
#[test]
fn cve_2021_30465_links_that_come_and_go() {
    alone(async |pod: &mut Pod| {
        let (canary, volume) = (canary(pod), pod.dir.join("volume"));
        let before = lines("/proc/self/mountinfo");
        let up = "../".repeat(30) + &canary.to_str().unwrap()[1..];
        let (mut went, mut failed) = (0, 0);
        for link in [canary.to_str().unwrap(), &up] {
            fs::create_dir_all(volume.join("dir")).unwrap();
            symlink(link, volume.join("link")).unwrap();
            let racer = Racer::new(volume.join("dir"), volume.join("link"));
            for round in 0..60 {
                let tail = format!("/vol/dir/tail{round}");
                let mut spec = sh("true");
                for mount in [
                    json!({"destination": "/vol", "source": volume, "options": ["rbind"]}),
                    json!({"destination": tail, "type": "tmpfs", "source": "t"}),
                    json!({"destination": "/vol/dir", "type": "tmpfs", "source": "t"}),
                    json!({"destination": format!("{tail}f"), "source": "/etc/passwd",
                        "options": ["bind"]}),
                ] {
                    // One of the last three in each round.
                    let list = spec["mounts"].as_array_mut().unwrap();
                    if list.len() < 6 || round % 3 == 0 {
                        list.push(mount);
                    }
                }
                // Every step more is one that fails half of the time.
                let cwd = if round % 2 == 0 { format!("/vol/dir/cwd{round}") } else { "/".into() };
                let spec = with(spec, "/process/cwd", json!(cwd));
                let spec = with(spec, "/linux/maskedPaths", json!(["/vol/dir"]));
                match pod.create("c", &spec).await {
                    Ok(_) => {
                        went += 1;
                        assert_eq!(new_mounts(&before), [""; 0]);
                        pod.end("c").await;
                    }
                    Err(_) => failed += 1,
                }
                assert_untouched(&canary, link);
            }
            drop(racer);
            fs::remove_dir_all(&volume).unwrap();
        }
        assert_eq!(new_mounts(&before), [""; 0]);
        assert!(went > 0 && failed > 0, "both sides of the race: {went} went, {failed} failed");
        fs::remove_dir(canary).unwrap();
    });
}
