//! What the host has mounted stays as it is for a container's root in a user namespace: with
//! CAP_SYS_ADMIN there it may mount, but not look beneath the host's mounts nor lift their limits
//! (mount_namespaces(7), "Restrictions on mount namespaces").

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use crate::alone::alone;
use crate::pod::{Pod, with};
use crate::usernamespace::{mapped, privileged, ran, user};

#[test]
fn what_the_host_has_mounted_stays() {
    alone(async |pod: &mut Pod| {
        let none = None::<&str>;
        let volume = pod.dir.join("volume");
        let below = volume.join("below");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("hidden"), "hidden\n").unwrap();
        fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        mount(Some("t"), &below, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let limited = pod.dir.join("limited");
        fs::create_dir(&limited).unwrap();
        mount(Some(&volume), &limited, none, MsFlags::MS_BIND, none).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
        mount(none, &limited, none, flags, none).unwrap();
        let script = "exec 2>/tmp/errors; umount /vol/below && cat /vol/below/hidden || echo covered; \
            mount -o remount,bind,rw,nodev /limited && touch /limited/x && echo written || echo limited; \
            mount -o remount,bind,ro,dev /limited && echo devices || echo nodev; \
            mount -o remount,bind,rw /ro && touch /ro/x && echo written || echo read-only; \
            touch /vol/x && echo made; cat /tmp/errors";
        let bind = |to: &str, from: &std::path::Path, options: &[&str]| json!({"destination": to, "source": from, "options": options});
        let spec = privileged(user(script));
        let spec =
            with(spec, "/mounts/-", json!({"destination": "/tmp", "type": "tmpfs", "source": "t"}));
        let spec = with(spec, "/mounts/-", bind("/vol", &volume, &["rbind"]));
        let spec = with(spec, "/mounts/-", bind("/limited", &limited, &["rbind"]));
        let spec = with(spec, "/mounts/-", bind("/ro", &volume, &["rbind", "ro", "runbindable"]));
        let (_, text) = ran(pod, &spec).await;
        for mounted in [&below, &limited] {
            umount2(mounted, MntFlags::MNT_DETACH).unwrap();
        }
        fs::remove_dir_all(&volume).unwrap();
        fs::remove_dir_all(&limited).unwrap();
        assert!(text.starts_with("covered\nlimited\nnodev\nread-only\nmade\n"), "{text}");
    });
}

#[test]
fn a_rootfs_that_is_read_only_stays_so() {
    alone(async |pod: &mut Pod| {
        let script = "mount -o remount,bind,rw / 2>/dev/null; \
            touch /x 2>/dev/null && echo written || echo read-only";
        let mut spec = privileged(user(script));
        spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/sys");
        let bundle = pod.write_bundle("c", &spec);
        for name in ["proc", "dev", "sys/fs/cgroup"] {
            fs::create_dir_all(bundle.join("rootfs").join(name)).unwrap();
        }
        let mut request = pod.request("c");
        let mut rootfs = mapped(&bundle.join("rootfs"));
        rootfs.options.retain(|option| option != "rw");
        rootfs.options.push("ro".into());
        request.rootfs = vec![rootfs];
        assert_eq!(pod.ran_request(request).await.1, "read-only\n");
    });
}
