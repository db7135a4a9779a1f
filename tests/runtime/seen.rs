//! What a container's process is and sees: rights, user, environment, descriptors, names.

use std::collections::BTreeMap;

use containerd_shim_rs::error::Kind;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

/// `/proc/self/status` of the container's own process, and what else `script` says after it.
fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, v.trim())).collect()
}

const STATUS: &str = "exec cat /proc/self/status";
const NONE: &str = "0000000000000000";

#[test]
fn no_right_that_is_not_named() {
    alone(async |pod: &mut Pod| {
        let (_, text) = pod.ran("c", &sh(STATUS)).await;
        let said = status(&text);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(said[set], NONE, "{set}");
        }
        assert_eq!(said["NoNewPrivs"], "1");
        assert_eq!(said["Umask"], "0022");
        // `sh` handles SIGCHLD only for its own; `cat` has what it was given.
        assert_eq!((said["SigBlk"], said["SigIgn"], said["SigCgt"]), (NONE, NONE, NONE));
        assert_eq!(said["NSpid"].split_whitespace().last(), Some("1"), "process 1 is the program");
    });
}

#[test]
fn rights_that_are_named() {
    alone(async |pod: &mut Pod| {
        let some = json!(["CAP_KILL", "CAP_CHOWN"]);
        let caps = json!({"bounding": some, "effective": some, "permitted": some});
        let spec = with(sh(STATUS), "/process/capabilities", caps.clone());
        let spec = with(spec, "/process/noNewPrivileges", json!(false));
        let (_, text) = pod.ran("root", &spec).await;
        let said = status(&text);
        let both = "0000000000000021";
        assert_eq!((said["CapBnd"], said["CapPrm"], said["CapEff"]), (both, both, both));
        assert_eq!((said["CapInh"], said["CapAmb"]), (NONE, NONE), "CVE-2022-29162");
        assert_eq!(said["NoNewPrivs"], "0");
        // A user's process loses them at its execve, unless they are ambient.
        let user = json!({"uid": 1000, "gid": 1000});
        let (_, text) = pod.ran("user", &with(spec.clone(), "/process/user", user.clone())).await;
        let said = status(&text);
        assert_eq!((said["CapPrm"], said["CapEff"], said["CapBnd"]), (NONE, NONE, both));
        let mut caps = caps;
        caps["inheritable"] = json!(["CAP_KILL"]);
        caps["ambient"] = json!(["CAP_KILL"]);
        let spec = with(with(spec, "/process/user", user), "/process/capabilities", caps);
        let (_, text) = pod.ran("ambient", &spec).await;
        let said = status(&text);
        let kill = "0000000000000020";
        assert_eq!((said["CapPrm"], said["CapEff"], said["CapAmb"]), (kill, kill, kill));
    });
}

#[test]
fn an_exec_has_its_own_rights() {
    alone(async |pod: &mut Pod| {
        let all = json!(["CAP_KILL"]);
        let caps = json!({"bounding": all, "effective": all, "permitted": all});
        let spec = with(sh("sleep 100"), "/process/capabilities", caps.clone());
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        let (_, text) = pod.executed("c", "none", &process(STATUS)).await;
        let said = status(&text);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn"] {
            assert_eq!(said[set], NONE, "{set}");
        }
        let user = json!({"uid": 1000, "gid": 7, "additionalGids": [8, 9], "umask": 0o77});
        let exec = with(process(STATUS), "/user", user);
        let (_, text) = pod.executed("c", "user", &with(exec, "/capabilities", caps)).await;
        let said = status(&text);
        assert_eq!((said["CapInh"], said["CapEff"]), (NONE, NONE));
        assert_eq!(said["CapBnd"], "0000000000000020");
        assert_eq!(said["Uid"], "1000\t1000\t1000\t1000");
        assert_eq!(said["Gid"], "7\t7\t7\t7");
        assert_eq!((said["Groups"], said["Umask"]), ("8 9", "0077"));
    });
}

#[test]
fn users() {
    alone(async |pod: &mut Pod| {
        for uid in [1000u32, 2147483647, 2147483648, 4294967294] {
            let user = json!({"uid": uid, "gid": uid, "additionalGids": [uid]});
            let (_, text) = pod.ran("c", &with(sh(STATUS), "/process/user", user)).await;
            let said = status(&text);
            let want = [uid; 4].map(|id| id.to_string()).join("\t");
            assert_eq!((said["Uid"], said["Gid"]), (want.as_str(), want.as_str()));
            assert_eq!(said["Groups"], uid.to_string());
        }
        // What would wrap to root, or mean "leave it".
        for uid in [json!(4294967295u32), json!(4294967296u64), json!(-1), json!("0"), json!(0.5)] {
            let user = json!({"uid": uid, "gid": 0});
            let error = pod.create("bad", &with(sh("true"), "/process/user", user)).await;
            assert_eq!(error.unwrap_err().kind(), Kind::InvalidArgument, "{uid}");
        }
    });
}

#[test]
fn home_and_environment() {
    alone(async |pod: &mut Pod| {
        let env = json!(["PATH=/bin", "A=1", "B=2", "A=3"]);
        for (uid, home) in [(0, "/root"), (1000, "/home/user"), (4711, "/")] {
            let spec = with(sh(""), "/process/args", json!(["env"]));
            let spec = with(spec, "/process/env", env.clone());
            let spec = with(spec, "/process/user", json!({"uid": uid, "gid": 0}));
            let (_, text) = pod.ran("c", &spec).await;
            assert_eq!(text, format!("PATH=/bin\nB=2\nA=3\nHOME={home}\n"), "{uid}");
        }
        let spec = with(sh("echo $HOME"), "/process/env", json!(["PATH=/bin", "HOME=/x"]));
        assert_eq!(pod.ran("c", &spec).await.1, "/x\n");
    });
}

#[test]
fn working_directory() {
    alone(async |pod: &mut Pod| {
        let spec = with(sh("pwd; stat -c '%a %u' ."), "/process/cwd", json!("/made/for/it"));
        assert_eq!(pod.ran("c", &spec).await.1, "/made/for/it\n755 0\n");
        // A read-only root has it all the same.
        let spec = with(spec, "/root/readonly", json!(true));
        assert_eq!(pod.ran("c", &spec).await.1, "/made/for/it\n755 0\n");
        // Closed to root without rights, open to the user.
        pod.write_bundle("c", &Value::Null);
        let dir = pod.bundle("c").join("rootfs/mine");
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let spec = with(sh("pwd"), "/process/cwd", json!("/mine"));
        let spec = with(spec, "/process/user", json!({"uid": 1000, "gid": 1000}));
        assert_eq!(pod.ran("c", &spec).await.1, "/mine\n");
    });
}

#[test]
fn only_three_descriptors() {
    alone(async |pod: &mut Pod| {
        // The fourth is what `ls` itself reads.
        pod.create("c", &sh("ls /proc/self/fd; sleep 100")).await.unwrap();
        let (_, list) =
            pod.ran("d", &with(sh(""), "/process/args", json!(["ls", "/proc/self/fd"]))).await;
        assert_eq!(list, "0\n1\n2\n3\n");
        pod.start("c", "").await.unwrap();
        let exec = with(process(""), "/args", json!(["ls", "/proc/self/fd"]));
        assert_eq!(pod.executed("c", "e", &exec).await.1, "0\n1\n2\n3\n");
    });
}

#[test]
fn limits_of_a_process() {
    alone(async |pod: &mut Pod| {
        let rlimits = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
        let spec = with(
            sh("ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj"),
            "/process/rlimits",
            rlimits,
        );
        let spec = with(spec, "/process/oomScoreAdj", json!(777));
        assert_eq!(pod.ran("c", &spec).await.1, "100\n200\n0\n777\n");
    });
}

#[test]
fn names_and_keyring() {
    alone(async |pod: &mut Pod| {
        let spec = with(
            sh("hostname; cat /proc/sys/kernel/domainname; cat /proc/keys"),
            "/domainname",
            json!("dom"),
        );
        let spec = with(spec, "/linux/maskedPaths", json!([]));
        let spec = with(spec, "/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
        let host = nix::unistd::gethostname().unwrap();
        let (_, text) = pod.ran("c", &spec).await;
        assert!(text.starts_with("box\ndom\n"), "domain: {text}");
        assert!(text.contains("_ses.c"), "{text}");
        assert_eq!(nix::unistd::gethostname().unwrap(), host);
        let spec = with(spec, "/process/args", json!(["cat", "/proc/sys/net/ipv4/ip_forward"]));
        assert_eq!(pod.ran("c", &spec).await.1, "1\n");
        let keys = with(sh("cat /proc/keys"), "/linux/maskedPaths", json!([]));
        pod.write_bundle("keyless", &keys);
        let mut request = pod.request("keyless");
        request.options.no_new_keyring = true;
        let (_, text) = pod.ran_request(request).await;
        assert!(!text.contains("_ses.keyless"), "{text}");
    });
}
