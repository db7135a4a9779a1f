//! What hooks see of the rootfs and of the mounts, and what is left of it on the host: nothing.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs::api::CreateContainer;
use containerd_shim_rs::cleanup;
use serde_json::{Value, json};

use crate::alone::{alone, lines, new_mounts};
use crate::hooks::{hook, script};
use crate::pod::{Pod, rootfs_mount, sh, with};

/// A bind mount as containerd asks for one, and what is in it.
pub fn snapshot(pod: &Pod) -> (CreateContainer, PathBuf) {
    let snapshot = pod.dir.join("snapshot");
    pod.rootfs(&snapshot);
    let mut request = pod.request("c");
    request.rootfs = vec![rootfs_mount("bind", &snapshot, &["rbind".into(), "rw".into()])];
    (request, snapshot)
}

pub fn bundle_without_rootfs(pod: &Pod, spec: &Value) {
    let bundle = pod.bundle("c");
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    fs::write(bundle.join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
}

#[test]
fn hooks_see_the_rootfs_on_the_host() {
    alone(async |pod: &mut Pod| {
        let (mut request, snapshot) = snapshot(pod);
        let [upper, work] = ["upper", "work"].map(|name| pod.dir.join(name));
        let all = [("lowerdir", &snapshot), ("upperdir", &upper), ("workdir", &work)];
        let options = all.map(|(name, dir)| {
            fs::create_dir_all(dir).unwrap();
            format!("{name}={}", dir.display())
        });
        request.rootfs = vec![rootfs_mount("overlay", Path::new("overlay"), &options)];
        let rootfs = pod.bundle("c").join("rootfs");
        let seen =
            format!("cat {}/etc/passwd > {}", rootfs.display(), pod.dir.join("seen").display());
        let spec = hook(sh("cat /made /over/there"), "createRuntime", script(&seen));
        // In the container's mount namespace, before its root is changed.
        let made = "echo made > made; mkdir over; mount -t tmpfs t over; echo there > over/there";
        let spec = hook(spec, "createContainer", script(made));
        let gone = format!("test -e {}/made && ! test -e {0}/over/there", rootfs.display());
        let spec = hook(
            spec,
            "poststop",
            script(&format!("{gone} && touch {}", pod.dir.join("stop").display())),
        );
        bundle_without_rootfs(pod, &spec);
        let before = lines("/proc/self/mountinfo");
        request.stdio = pod.logged("c");
        pod.send(request.clone()).await.unwrap();
        let passwd = fs::read_to_string(snapshot.join("etc/passwd")).unwrap();
        assert_eq!(fs::read_to_string(pod.dir.join("seen")).unwrap(), passwd);
        let mounts = new_mounts(&before);
        assert_eq!(mounts.len(), 1, "{mounts:#?}");
        assert!(mounts[0].contains(rootfs.to_str().unwrap()), "{mounts:#?}");
        assert!(!mounts[0].contains("shared:"), "{mounts:#?}");
        pod.start("c", "").await.unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 0);
        pod.delete("c", "").await.unwrap();
        assert_eq!(pod.output("c"), "made\nthere\n");
        assert_eq!(new_mounts(&before), [""; 0]);
        assert!(pod.dir.join("stop").exists(), "poststop saw another rootfs");
        for file in ["seen", "stop"] {
            fs::remove_file(pod.dir.join(file)).unwrap();
        }

        // Without a hook that looks at the host, nothing is mounted on it.
        let spec = hook(sh("cat /made"), "startContainer", json!({"path": "/bin/true"}));
        bundle_without_rootfs(pod, &spec);
        pod.send(request.clone()).await.unwrap();
        assert_eq!(new_mounts(&before), [""; 0]);
        pod.start("c", "").await.unwrap();
        pod.end("c").await;

        // A shim that is gone: `delete` has nothing but the records.
        bundle_without_rootfs(pod, &hook(sh("true"), "poststart", json!({"path": "/bin/true"})));
        pod.send(request).await.unwrap();
        assert_eq!(new_mounts(&before).len(), 1);
        let other = pod.dir.join("other");
        fs::create_dir(&other).unwrap();
        fs::rename(pod.dir.join("home/shim-containers"), other.join("shim-containers")).unwrap();
        let (namespace, id, bundle) = ("rs-test".into(), "home".into(), other.clone());
        cleanup::delete(&cleanup::Request { namespace, id, bundle });
        assert_eq!(new_mounts(&before), [""; 0]);
        pod.wait("c", "").await.unwrap();
        pod.delete("c", "").await.unwrap();
        assert_eq!(fs::read_to_string(upper.join("made")).unwrap(), "made\n");
        for dir in [&other, &snapshot, &upper, &work, &pod.bundle("c")] {
            fs::remove_dir_all(dir).unwrap();
        }
    });
}

/// Sources are attached before the hooks, and follow the host from then on.
#[test]
fn what_a_hook_mounts_below_a_source_reaches_the_container() {
    alone(async |pod: &mut Pod| {
        let source = pod.dir.join("source");
        let below = source.join("below");
        fs::create_dir_all(&below).unwrap();
        let at = below.display();
        let bind = json!({"destination": "/vol", "source": source, "options": ["rbind", "rslave"]});
        let spec = with(sh("cat /vol/below/there"), "/mounts/-", bind);
        let text = format!("mount -t tmpfs t {at} && echo there > {at}/there");
        let spec = hook(spec, "createRuntime", script(&text));
        let spec = hook(spec, "poststop", script(&format!("umount {at}")));
        assert_eq!(pod.ran("c", &spec).await, (0, "there\n".into()));
        fs::remove_dir_all(&source).unwrap();
    });
}
