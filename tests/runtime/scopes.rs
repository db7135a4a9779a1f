//! Scopes of a systemd that is not well. Some tests need a host of cgroup v2 alone, as `hack/vm-test.sh` has it, and some a real
//! systemd (`vm-test.sh --systemd`). What one that is well does is in `hack/systemd-check.sh`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use containerd_shim_rs::bundle::{self, ContainerRecord, RECORD_VERSION};
use containerd_shim_rs::cgroup::Layout;
use containerd_shim_rs::cleanup::{Request, delete_by};
use containerd_shim_rs::error::Kind;
use containerd_shim_rs::shim::{Settings, Shim};
use containerd_shim_rs::systemd::Places;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use tokio::net::UnixListener;

use crate::alone::{alone, children};
use crate::pod::{Pod, sh, with};
use crate::unified::unified;

/// A systemd that is a socket in a directory.
fn places(dir: &Path) -> Places {
    fs::create_dir_all(dir.join("system")).unwrap();
    Places { booted: dir.join("system"), private: dir.join("private"), bus: dir.join("none") }
}

/// A shim that takes it for the real one.
fn fake(pod: &mut Pod) -> UnixListener {
    let systemd = places(&pod.dir.join("systemd"));
    let listener = UnixListener::bind(&systemd.private).unwrap();
    let settings = pod.shim.settings();
    let (namespace, id) = (settings.namespace.clone(), settings.id.clone());
    let (bundle, resctrl) = (settings.bundle.clone(), settings.resctrl.clone());
    pod.shim =
        Shim::new(Settings { namespace, id, bundle, resctrl, systemd, ..Settings::default() });
    listener
}

/// Whether a real one can be asked.
fn booted() -> bool {
    let booted = Places::default().booted.is_dir();
    if !booted {
        eprintln!("skipped: needs a host of systemd");
    }
    booted && unified()
}

fn shown(unit: &str, property: &str) -> String {
    let mut show = Command::new("systemctl");
    let output = show.args(["show", "--value", "-p", property, unit]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_a_pause_held_back_is_told_at_last_and_never_over_what_is_newer() {
    if !booted() {
        return;
    }
    alone(async |pod: &mut Pod| {
        // In the mount namespace of this test.
        let private = Places::default().private;
        let silent = pod.dir.join("silent");
        let listener = UnixListener::bind(&silent).unwrap();
        let name = format!("p{}", std::process::id());
        let unit = format!("rs-{name}.scope");
        let limit = |mib: u64| json!({"memory": {"limit": mib << 20}});
        let spec = with(sh("sleep 1000"), "/linux/resources", limit(50));
        let spec = with(spec, "/linux/cgroupsPath", json!(format!("system.slice:rs:{name}")));
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        let update = |json: serde_json::Value| {
            Arc::clone(&pod.shim).update("c".into(), serde_json::to_vec(&json).unwrap())
        };
        let max = || shown(&unit, "MemoryMax").parse::<u64>().unwrap() >> 20;
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        update(limit(60)).await.unwrap();
        assert_eq!(max(), 50);
        mount(Some(&silent), &private, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Arc::clone(&pod.shim).resume("c".into()).await.unwrap();
        // One that fails for it takes nothing away of what is still to be told.
        let error = update(limit(65)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        umount2(&private, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(max(), 50);
        // Nor does one that systemd refuses.
        let error = update(json!({"unified": {"cpu.weight": "99999"}})).await.unwrap_err();
        assert!(error.to_string().contains("SetUnitProperties: InvalidArgs"), "{error}");
        // With the next word to systemd comes what it has not heard.
        update(json!({"pids": {"limit": 77}})).await.unwrap();
        assert_eq!((max(), shown(&unit, "TasksMax").as_str()), (60, "77"));
        // What is newer takes the place of what was held back.
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        update(limit(70)).await.unwrap();
        update(limit(80)).await.unwrap();
        Arc::clone(&pod.shim).resume("c".into()).await.unwrap();
        assert_eq!(max(), 80);
        pod.end("c").await;
        drop(listener);
        fs::remove_file(&silent).unwrap();
    });
}

#[test]
fn kills_of_others_in_the_slice_are_not_taken_for_ours() {
    if !booted() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let slice = format!("rsoom{}.slice", std::process::id());
        let foreign = |script: &str| {
            let mut run = Command::new("systemd-run");
            run.args(["--quiet", "--scope", "--slice", &slice, "-p", "MemoryMax=16M"]);
            run.args(["-p", "MemorySwapMax=0", "sh", "-c", script]);
            run.stderr(std::process::Stdio::null()).spawn().unwrap()
        };
        // Before it and, in a slice that was its own, after it.
        for before in [true, false] {
            let mut beside = before.then(|| foreign("sleep 1; tail /dev/zero; exec sleep 1000"));
            let path = format!("{slice}:rs:c{}", std::process::id());
            let spec = with(
                sh("until [ -e /end ]; do sleep 0.01; done"),
                "/linux/cgroupsPath",
                json!(path),
            );
            pod.create("c", &spec).await.unwrap();
            pod.start("c", "").await.unwrap();
            let beside = beside.get_or_insert_with(|| foreign("tail /dev/zero; exec sleep 1000"));
            let events = format!("/sys/fs/cgroup/{slice}/memory.events");
            let kills = if before { 1 } else { 2 };
            let told = format!("oom_kill {kills}\n");
            while !fs::read_to_string(&events).unwrap().contains(&told) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            fs::write(pod.bundle("c").join("rootfs/end"), "").unwrap();
            assert_eq!(pod.wait("c", "").await.unwrap().status, 0);
            pod.delete("c", "").await.unwrap();
            assert_eq!(pod.events().await, ["create c", "start c", "exit c 0", "delete c 0"]);
            // The shim's reaper may have had it first.
            let _ = (beside.kill(), beside.wait());
        }
        let stop = Command::new("systemctl").args(["stop", &slice]).status().unwrap();
        assert!(stop.success());
    });
}

#[test]
fn a_create_that_waits_for_systemd_ends_when_it_is_to() {
    if !unified() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let listener = fake(pod);
        let before = children();
        for by_delete in [true, false] {
            let spec = with(sh("true"), "/linux/cgroupsPath", json!("a.slice:rs:c"));
            pod.write_bundle("c", &spec);
            let create = tokio::spawn(Arc::clone(&pod.shim).create(pod.request("c")));
            // It listens, and says nothing.
            let hung = listener.accept().await.unwrap();
            if by_delete {
                assert_eq!(pod.delete("c", "").await.unwrap_err().kind(), Kind::NotFound);
            } else {
                pod.kill("c", "", libc::SIGKILL).unwrap();
            }
            let error = create.await.unwrap().unwrap_err().to_string();
            assert!(error.contains("start unit \"rs-c.scope\": it was killed"), "{error}");
            assert_eq!(children(), before);
            drop(hung);
        }
        fs::remove_dir_all(pod.dir.join("systemd")).unwrap();
    });
}

#[test]
fn delete_asks_a_systemd_that_hangs_only_once() {
    let dir = std::env::temp_dir().join(format!("rs-scopes-{}", std::process::id()));
    let (home, places) = (dir.join("home"), places(&dir));
    let listener = std::os::unix::net::UnixListener::bind(&places.private).unwrap();
    let layout = Layout::probe().unwrap();
    for n in 0..9 {
        let id = format!("c{n}");
        let bundle = dir.join(&id);
        for dir in [&home, &bundle] {
            fs::create_dir_all(dir).unwrap();
        }
        let record = ContainerRecord {
            version: RECORD_VERSION,
            unit: Some(format!("rs-{id}.scope")),
            cgroups: layout.cgroups(&Path::new("/rs-test-none").join(&id)),
            id,
            ..ContainerRecord::default()
        };
        record.write(&home, &bundle).unwrap();
    }
    assert_eq!(bundle::containers(&home).len(), 9);
    let (namespace, id) = ("rs-test".into(), "home".into());
    delete_by(&Request { namespace, id, bundle: home.clone() }, places);
    assert_eq!(bundle::containers(&home).len(), 0);
    listener.set_nonblocking(true).unwrap();
    let asked = std::iter::from_fn(|| listener.accept().ok()).count();
    fs::remove_dir_all(dir).unwrap();
    assert_eq!(asked, 1);
}
