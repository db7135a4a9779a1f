//! Containers in user and time namespaces of their own: who they are inside and to the host, whose
//! the files are, and what their root may not do.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, rootfs_mount, sh, with};

/// Where the ids of the containers begin on the host.
pub const FIRST: u32 = 1_000_000;
pub const SIZE: u32 = 65536;

fn mapping() -> Value {
    json!([{"containerID": 0, "hostID": FIRST, "size": SIZE}])
}

/// A spec with a user namespace.
pub fn user(script: &str) -> Value {
    let spec = with(sh(script), "/linux/namespaces/-", json!({"type": "user"}));
    let spec = with(spec, "/linux/uidMappings", mapping());
    with(spec, "/linux/gidMappings", mapping())
}

/// All capabilities that there are.
pub fn privileged(spec: Value) -> Value {
    let all: Vec<String> = caps::all().iter().map(|cap| cap.to_string()).collect();
    let sets = json!({"bounding": all, "effective": all, "permitted": all});
    with(spec, "/process/capabilities", sets)
}

/// Runs a container whose rootfs has the container's root as its owner, by an id-mapped bind.
pub async fn ran(pod: &mut Pod, spec: &Value) -> (u32, String) {
    pod.write_bundle("c", spec);
    let mut request = pod.request("c");
    request.rootfs = vec![mapped(&pod.bundle("c").join("rootfs"))];
    pod.ran_request(request).await
}

pub fn mapped(rootfs: &Path) -> containerd_shim_rs::plan::RootfsMount {
    let options =
        ["rbind", "rw", &format!("uidmap=0:{FIRST}:{SIZE}"), &format!("gidmap=0:{FIRST}:{SIZE}")];
    rootfs_mount("bind", rootfs, &options.map(str::to_owned))
}

#[test]
fn who_it_is() {
    alone(async |pod: &mut Pod| {
        let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; id -G; \
            cat /proc/self/setgroups; touch /made; stat -c %u:%g /made /dev/null /dev /proc; \
            echo x > /dev/null && echo null; grep Cap /proc/self/status | sort -u -k2 | wc -l";
        pod.write_bundle("c", &user(script));
        let rootfs = pod.bundle("c").join("rootfs");
        let mut request = pod.request("c");
        request.rootfs = vec![mapped(&rootfs)];
        request.stdio = pod.logged("c");
        let pid = pod.send(request).await.unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let ids = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!((ids("Uid:"), ids("Gid:")), (FIRST.to_string(), FIRST.to_string()), "{status}");
        // Every namespace belongs to the user namespace.
        for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            assert!(owned(pid, kind), "{kind}");
        }
        pod.start("c", "").await.unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 0);
        // To the file system, id-mapped, it was root.
        let made = fs::metadata(rootfs.join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
        pod.delete("c", "").await.unwrap();
        let text = pod.output("c");
        let words: Vec<&str> = text.split_whitespace().collect();
        let (first, size) = (FIRST.to_string(), SIZE.to_string());
        assert_eq!(words[..6], ["0", &first, &size, "0", &first, &size], "{text}");
        let rest = ["0", "0", "0", "allow", "0:0", "0:0", "0:0", "65534:65534", "null", "1"];
        // A procfs' own root directory is the host's root's everywhere.
        assert_eq!(words[6..], rest, "{text}");
        fs::remove_dir_all(pod.bundle("c")).unwrap();
    });
}

/// Whether a namespace of a process belongs to the process' own user namespace.
pub fn owned(pid: u32, kind: &str) -> bool {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    /// `NS_GET_USERNS` of ioctl_ns(2).
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    let file = fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
    // SAFETY: the request takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS as _) };
    assert!(fd >= 0, "{kind}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    let owner = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) }).metadata().unwrap();
    let user = fs::metadata(format!("/proc/{pid}/ns/user")).unwrap();
    owner.ino() == user.ino()
}

#[test]
fn an_exec_is_inside_too() {
    alone(async |pod: &mut Pod| {
        pod.write_bundle("c", &user("sleep 100"));
        let mut request = pod.request("c");
        request.rootfs = vec![mapped(&pod.bundle("c").join("rootfs"))];
        pod.send(request).await.unwrap();
        pod.start("c", "").await.unwrap();
        let script = "cat /proc/self/uid_map; id -u; id -G; touch /x; stat -c %u /x; \
            echo again > /dev/stdout; readlink /proc/self/ns/user; readlink /proc/1/ns/user";
        let (status, text) = pod.executed("c", "e", &process(script)).await;
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(status, 0, "{text}");
        let first = FIRST.to_string();
        assert_eq!(words[..7], ["0", &first, "65536", "0", "0", "0", "again"], "{text}");
        assert_eq!(words[7], words[8]);
        let mut other = process("id -u; id -g; echo again > /dev/stdout");
        other["user"] = json!({"uid": 1000, "gid": 7});
        assert_eq!(pod.executed("c", "e", &other).await, (0, "1000\n7\nagain\n".into()));
        other["user"] = json!({"uid": 70000, "gid": 7});
        pod.exec("c", "f", &other).unwrap();
        let error = pod.start("c", "f").await.unwrap_err().to_string();
        assert!(error.contains("process.user.uid: 70000 is not mapped"), "{error}");
        pod.end("c").await;
    });
}

#[test]
fn its_root_has_no_rights_on_the_host() {
    alone(async |pod: &mut Pod| {
        let secret = pod.dir.join("secret");
        fs::write(&secret, "s").unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let script = "exec 2>/dev/null; cat /secret || echo unread; chmod 777 /secret || echo fixed; \
            dd if=/dev/zero of=/proc/sys/kernel/panic count=1 || echo kept; \
            mount -o remount,size=1m /dev || echo refused; \
            hostname me && hostname; mount -t tmpfs t /tmp && echo mounted";
        let spec = privileged(user(script));
        let spec = with(spec, "/linux/readonlyPaths", json!([]));
        let bind = json!({"destination": "/secret", "source": secret, "options": ["bind", "rw"]});
        let (_, text) = ran(pod, &with(spec, "/mounts/-", bind)).await;
        assert_eq!(text, "unread\nfixed\nkept\nrefused\nme\nmounted\n");
        fs::remove_file(secret).unwrap();
    });
}

#[test]
fn its_mounts_do_not_reach_the_host() {
    alone(async |pod: &mut Pod| {
        let shared = pod.dir.join("shared");
        fs::create_dir_all(shared.join("in")).unwrap();
        let none = None::<&str>;
        mount(Some("t"), &shared, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
        fs::create_dir(shared.join("in")).unwrap();
        let script = "mount -t tmpfs t /vol/in && touch /vol/in/made && echo made";
        for option in ["rshared", "rslave", ""] {
            let bind =
                json!({"destination": "/vol", "source": shared, "options": ["rbind", option]});
            let spec = with(privileged(user(script)), "/mounts/-", bind);
            assert_eq!(ran(pod, &spec).await.1, "made\n");
            assert!(!shared.join("in/made").exists(), "{option:?}");
        }
        umount2(&shared, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir_all(&shared).unwrap();
    });
}

#[test]
fn volumes_with_mapped_ids() {
    alone(async |pod: &mut Pod| {
        let volume = pod.dir.join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("f"), "x").unwrap();
        chown(volume.join("f"), Some(7), Some(8)).unwrap();
        let below = volume.join("below");
        fs::create_dir(&below).unwrap();
        // A mount of the same kind: a tmpfs maps no ids before Linux 6.3.
        let other = pod.dir.join("other");
        fs::create_dir(&other).unwrap();
        mount(Some(&other), &below, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let bind = |options: Value, maps: Option<Value>| {
            let mut bind = json!({"destination": "/vol", "source": volume, "options": options});
            if let Some(maps) = maps {
                bind["uidMappings"] = maps.clone();
                bind["gidMappings"] = maps;
            }
            bind
        };
        let script = "stat -c %u:%g /vol/f /vol/below";
        // As in the container's own user namespace; of one mount or of all.
        for (options, maps, want) in [
            (json!(["rbind", "idmap"]), None, "7:8\n65534:65534\n"),
            (json!(["rbind", "ridmap"]), None, "7:8\n0:0\n"),
            (json!(["rbind"]), Some(mapping()), "7:8\n65534:65534\n"),
            (json!(["rbind"]), None, "65534:65534\n65534:65534\n"),
        ] {
            let spec = with(user(script), "/mounts/-", bind(options.clone(), maps));
            assert_eq!(ran(pod, &spec).await.1, want, "{options}");
        }
        // Another mapping, and no user namespace: what is 7 on disk is 107 there.
        let maps = json!([{"containerID": 0, "hostID": 100, "size": 1000}]);
        let spec = with(sh(script), "/mounts/-", bind(json!(["rbind", "ridmap"]), Some(maps)));
        assert_eq!(pod.ran("c", &spec).await.1, "107:108\n100:100\n");
        let spec = with(sh(script), "/mounts/-", bind(json!(["rbind", "idmap"]), None));
        let error = pod.create("c", &spec).await.unwrap_err().to_string();
        assert!(error.contains("without mappings, and without a user namespace"), "{error}");
        umount2(&below, MntFlags::MNT_DETACH).unwrap();
        for dir in [&volume, &other] {
            fs::remove_dir_all(dir).unwrap();
        }
    });
}

#[test]
fn an_overlay_with_mapped_layers() {
    alone(async |pod: &mut Pod| {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| pod.dir.join(name));
        pod.rootfs(&lower);
        for dir in [&upper, &work] {
            fs::create_dir(dir).unwrap();
            chown(dir, Some(FIRST), Some(FIRST)).unwrap();
        }
        pod.write_bundle(
            "c",
            &user("stat -c %u:%g /bin /; echo x > /bin/new; stat -c %u /bin/new"),
        );
        let mut request = pod.request("c");
        let dir = |name: &str, dir: &Path| format!("{name}={}", dir.display());
        let options = [
            dir("lowerdir", &lower),
            dir("upperdir", &upper),
            dir("workdir", &work),
            format!("uidmap=0:{FIRST}:{SIZE}"),
            format!("gidmap=0:{FIRST}:{SIZE}"),
        ];
        request.rootfs = vec![rootfs_mount("overlay", Path::new("overlay"), &options)];
        let (_, text) = pod.ran_request(request).await;
        assert_eq!(text, "0:0\n0:0\n0\n");
        assert_eq!(fs::metadata(upper.join("bin/new")).unwrap().uid(), FIRST);
        for dir in [&lower, &upper, &work] {
            fs::remove_dir_all(dir).unwrap();
        }
    });
}

#[test]
fn without_a_network_of_its_own() {
    alone(async |pod: &mut Pod| {
        let spec = user("test -d /sys/class/net/lo && echo sys; touch /sys/x || echo ro");
        let mut spec = with(spec, "/process/env", json!(["PATH=/bin"]));
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|ns| ns["type"] != "network");
        let (_, text) = ran(pod, &spec).await;
        assert!(text.starts_with("sys\n") && text.contains("\nro\n"), "{text}");
    });
}

#[test]
fn terminals_and_limits() {
    alone(async |pod: &mut Pod| {
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
        let spec = with(user("ulimit -n; ulimit -Hn"), "/process/rlimits", limits);
        assert_eq!(ran(pod, &spec).await.1, "100\n200\n");
        let spec = with(
            user("test -t 0 && echo tty; stat -c %u:%t:%T /dev/console /dev/pts/0"),
            "/process/terminal",
            json!(true),
        );
        pod.write_bundle("c", &spec);
        let mut request = pod.request("c");
        request.rootfs = vec![mapped(&pod.bundle("c").join("rootfs"))];
        request.stdio = pod.logged("c");
        request.stdio.terminal = true;
        pod.send(request).await.unwrap();
        pod.start("c", "").await.unwrap();
        let status = pod.wait("c", "").await.unwrap().status;
        pod.delete("c", "").await.unwrap();
        fs::remove_dir_all(pod.bundle("c")).unwrap();
        let text = pod.output("c");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!((status, &words[..]), (0, &["tty", "0:88:0", "0:88:0"][..]));
    });
}

#[test]
fn clocks_of_its_own() {
    alone(async |pod: &mut Pod| {
        const DAY: u64 = 86400;
        let uptime = || {
            let text = fs::read_to_string("/proc/uptime").unwrap();
            text.split(['.', ' ']).next().unwrap().parse::<u64>().unwrap()
        };
        let offsets = json!({"boottime": {"secs": 100 * DAY}, "monotonic": {"secs": 50 * DAY}});
        for spec in
            [sh("cut -d. -f1 /proc/uptime; sleep 100"), user("cut -d. -f1 /proc/uptime; sleep 100")]
        {
            let spec = with(spec, "/linux/namespaces/-", json!({"type": "time"}));
            let spec = with(spec, "/linux/timeOffsets", offsets.clone());
            pod.write_bundle("c", &spec);
            let mut request = pod.request("c");
            request.rootfs = vec![mapped(&pod.bundle("c").join("rootfs"))];
            if spec["linux"]["uidMappings"].is_null() {
                request.rootfs.clear();
            }
            request.stdio = pod.logged("c");
            let pid = pod.send(request).await.unwrap();
            // Parked before its program, it is inside already: execve(2) need not move it.
            let time = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            assert_eq!(time("time"), time("time_for_children"));
            assert_ne!(time("time"), fs::read_link("/proc/self/ns/time").unwrap());
            let host = uptime();
            pod.start("c", "").await.unwrap();
            let (_, text) = pod.executed("c", "e", &process("cut -d. -f1 /proc/uptime")).await;
            let days = |text: &str| (text.trim().parse::<u64>().unwrap() - host) / DAY;
            assert_eq!(days(&text), 100);
            // The shim's own clock has not moved.
            assert!(uptime() - host < DAY);
            pod.kill("c", "", libc::SIGKILL).unwrap();
            pod.wait("c", "").await.unwrap();
            pod.delete("c", "").await.unwrap();
            assert_eq!(days(&pod.output("c")), 100);
            fs::remove_dir_all(pod.bundle("c")).unwrap();
        }
    });
}

#[test]
fn refusals() {
    alone(async |pod: &mut Pod| {
        let no_maps = with(sh("true"), "/linux/namespaces/-", json!({"type": "user"}));
        let other = json!([{"containerID": 5, "hostID": FIRST, "size": 9}]);
        let not_root = with(user("true"), "/linux/uidMappings", other);
        let no_user = with(sh("true"), "/linux/uidMappings", mapping());
        let stranger = with(user("true"), "/process/user/uid", json!(SIZE));
        let group = with(user("true"), "/process/user/additionalGids", json!([SIZE]));
        let twice = json!([{"containerID": 0, "hostID": 1, "size": 9}, {"containerID": 8, "hostID": 20, "size": 9}]);
        let twice = with(user("true"), "/linux/uidMappings", twice);
        let clock = with(sh("true"), "/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
        // Once it is born inside; what it leaves behind would fail the test.
        let unknown = json!({"destination": "/tmp", "type": "nosuch", "source": "x"});
        let unknown = with(user("true"), "/mounts/-", unknown);
        for (spec, want) in [
            (unknown, "mount nosuch on \"/tmp\" source=x: fsopen: ENODEV"),
            (no_maps, "linux: uidMappings is missing"),
            (not_root, "linux.uidMappings: 0 is not mapped"),
            (no_user, "linux.uidMappings: there is no user namespace to map"),
            (stranger, "process.user.uid: 65536 is not mapped in the user namespace"),
            (group, "process.user.additionalGids: 65536 is not mapped"),
            (twice, "user namespace uids 0:1:9 8:20:9 gids 0:1000000:65536: write"),
            (clock, "linux.timeOffsets needs a new time namespace"),
        ] {
            let error = pod.create("c", &spec).await.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    });
}
