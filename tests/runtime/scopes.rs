//! Scopes of a systemd that is not well: what no real one can be made to do to a shim. Some need a host of cgroup v2 alone, as
//! `hack/vm-test.sh` has it. What a systemd that is well does is in `hack/systemd-check.sh`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use containerd_shim_rs::bundle::{self, ContainerRecord, RECORD_VERSION};
use containerd_shim_rs::cgroup::Layout;
use containerd_shim_rs::cleanup::{Request, delete_by};
use containerd_shim_rs::error::Kind;
use containerd_shim_rs::shim::{Settings, Shim};
use containerd_shim_rs::systemd::Places;
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
