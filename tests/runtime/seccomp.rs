//! Filters in force: in the container's process and in its execs, with and without no-new-privileges.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use containerd_shim_rs::plan::seccomp::Arch;
use containerd_shim_rs::sys::io::Polled;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

fn containerds_own() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/seccomp/cri-default.json");
    let mut profile: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    profile.as_object_mut().unwrap().remove("about");
    profile
}

fn refusing(names: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]})
}

fn allowing(names: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]})
}

/// A container with a profile, with or without no-new-privileges.
pub fn spec(script: &str, profile: Value, nnp: bool) -> Value {
    let spec = with(sh(script), "/linux/seccomp", profile);
    with(spec, "/process/noNewPrivileges", json!(nnp))
}

fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, v.trim())).collect()
}

#[test]
fn a_call_that_is_refused() {
    alone(async |pod: &mut Pod| {
        let script = "mkdir /a 2>&1; echo $?; touch /b; echo $?";
        for nnp in [true, false] {
            let refused = refusing(json!(["mkdir", "mkdirat"]));
            let (_, text) = pod.ran("c", &spec(script, refused.clone(), nnp)).await;
            assert_eq!(text, "mkdir: can't create directory '/a': Operation not supported\n1\n0\n");
            pod.create("d", &spec("sleep 100", refused, nnp)).await.unwrap();
            pod.start("d", "").await.unwrap();
            for nnp in [true, false] {
                let exec = with(process(script), "/noNewPrivileges", json!(nnp));
                let (_, text) = pod.executed("d", "e", &exec).await;
                assert!(text.contains("Operation not supported\n1\n0\n"), "{nnp}: {text}");
            }
            pod.end("d").await;
        }
    });
}

#[test]
fn containerds_own_profile() {
    alone(async |pod: &mut Pod| {
        // A user namespace needs no right, but the profile does not allow it.
        let script =
            "cat /proc/self/status; unshare -U true 2>/dev/null && echo made || echo refused";
        let (_, text) = pod.ran("without", &sh(script)).await;
        assert_eq!(status(&text)["Seccomp"], "0");
        assert!(text.ends_with("made\n"), "this kernel lets nobody make one: {text}");
        for nnp in [true, false] {
            for uid in [0, 1000] {
                let spec = spec(script, containerds_own(), nnp);
                let user = json!({"uid": uid, "gid": uid});
                let spec = with(spec, "/process/user", user.clone());
                let caps = json!(["CAP_CHOWN", "CAP_KILL"]);
                let caps = json!({"bounding": caps, "effective": caps, "permitted": caps});
                let spec = with(spec, "/process/capabilities", caps.clone());
                let (_, text) = pod.ran("c", &spec).await;
                check(&text, uid, nnp);
                pod.create("d", &with(spec, "/process/args", json!(["/bin/sleep", "100"])))
                    .await
                    .unwrap();
                pod.start("d", "").await.unwrap();
                let exec = with(with(process(script), "/user", user), "/capabilities", caps);
                let exec = with(exec, "/noNewPrivileges", json!(nnp));
                let (_, text) = pod.executed("d", "e", &exec).await;
                check(&text, uid, nnp);
                pod.end("d").await;
            }
        }
    });
}

fn check(text: &str, uid: u32, nnp: bool) {
    let said = status(text);
    assert_eq!((said["Seccomp"], said["Seccomp_filters"]), ("2", "1"), "{text}");
    assert_eq!(said["NoNewPrivs"], if nnp { "1" } else { "0" });
    let caps = if uid == 0 { "0000000000000021" } else { "0000000000000000" };
    assert_eq!(said["CapEff"], caps, "{uid}");
    assert!(text.ends_with("refused\n"), "{text}");
}

#[test]
fn an_exec_in_a_terminal_under_containerds_own() {
    alone(async |pod: &mut Pod| {
        pod.create("c", &spec("sleep 100", containerds_own(), false)).await.unwrap();
        pod.start("c", "").await.unwrap();
        let exec = with(process("exec cat /proc/self/status"), "/terminal", json!(true));
        let exec = with(exec, "/noNewPrivileges", json!(false));
        let (code, text) = pod.executed("c", "e", &exec).await;
        assert_eq!((code, status(&text)["Seccomp"]), (0, "2"));
    });
}

/// A program of a few instructions: makes one call without arguments, and ends with its errno.
fn program(pod: &Pod, id: &str, nr: u32) {
    let mut code = vec![0xb8];
    code.extend(nr.to_le_bytes());
    // syscall; neg eax; mov edi, eax; mov eax, 231 (exit_group); syscall
    code.extend([0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]);
    let word = |out: &mut Vec<u8>, value: u64, bytes: usize| {
        out.extend(&value.to_le_bytes()[..bytes]);
    };
    let (base, head) = (0x40_0000, 120);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let header = [
        (2, 2),
        (62, 2),
        (1, 4),
        (base + head, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
        (56, 2),
        (1, 2),
        (0, 2),
        (0, 2),
        (0, 2),
    ];
    let size = head + code.len() as u64;
    let segment = [(1, 4), (5, 4), (0, 8), (base, 8), (base, 8), (size, 8), (size, 8), (0x1000, 8)];
    for (value, bytes) in header.into_iter().chain(segment) {
        word(&mut elf, value, bytes);
    }
    assert_eq!(elf.len() as u64, head);
    elf.extend(code);
    let path = pod.bundle(id).join("rootfs/bin/one-call");
    fs::write(&path, elf).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// The errno of a call in a container; `Err`: what Create or Start said.
async fn errno_of(pod: &mut Pod, nr: u32, profile: Value, nnp: bool) -> Result<u32, String> {
    let args = json!(["/bin/one-call"]);
    let spec = with(spec("", profile, nnp), "/process/args", args);
    pod.write_bundle("one", &spec);
    program(pod, "one", nr);
    let request = pod.request("one");
    let made = pod.send(request).await;
    let started = match made {
        Ok(_) => pod.start("one", "").await,
        Err(error) => Err(error),
    };
    match started {
        Ok(_) => {
            let exit = pod.wait("one", "").await.unwrap();
            pod.end("one").await;
            Ok(exit.status)
        }
        Err(error) => {
            let _ = pod.delete("one", "").await;
            fs::remove_dir_all(pod.bundle("one")).unwrap();
            Err(error.to_string())
        }
    }
}

#[test]
fn a_call_of_the_future_does_not_exist() {
    if Arch::native() != Some(Arch::X86_64) {
        return eprintln!("skipped: the program is x86_64's");
    }
    alone(async |pod: &mut Pod| {
        let profile = containerds_own();
        for nnp in [true, false] {
            for (nr, want) in [
                (100_000, libc::ENOSYS),
                // reboot: known and not allowed.
                (169, libc::EPERM),
                (libc::SYS_clone3 as u32, libc::ENOSYS),
                (libc::SYS_getpid as u32, 255),
            ] {
                let got = errno_of(pod, nr, profile.clone(), nnp).await.unwrap();
                assert_eq!(got as i32, want, "{nr}");
            }
        }
        // Of x32, which is listed there, and here is not: SIGSYS.
        let mut alone = profile;
        alone["architectures"] = json!(["SCMP_ARCH_X86_64"]);
        assert_eq!(errno_of(pod, 0x4000_0027, alone, true).await.unwrap(), 128 + 31);
    });
}

#[test]
fn profiles_that_leave_the_runtime_little() {
    if Arch::native() != Some(Arch::X86_64) {
        return eprintln!("skipped: the program is x86_64's");
    }
    alone(async |pod: &mut Pod| {
        let least = allowing(json!(["read", "write", "execve", "exit_group"]));
        let getpid = libc::SYS_getpid as u32;
        assert_eq!(errno_of(pod, getpid, least.clone(), true).await, Ok(libc::EPERM as u32));
        let error = errno_of(pod, getpid, least, false).await.unwrap_err();
        assert!(error.ends_with(": setuid 0: setresuid: EPERM"), "{error}");
        for profile in [
            allowing(json!(["execve", "exit_group"])),
            json!({"defaultAction": "SCMP_ACT_KILL_PROCESS",
                "syscalls": [{"names": ["execve", "exit_group"], "action": "SCMP_ACT_ALLOW"}]}),
            // Not even its end is a system call then.
            json!({"defaultAction": "SCMP_ACT_ERRNO"}),
        ] {
            for nnp in [true, false] {
                let error = errno_of(pod, getpid, profile.clone(), nnp).await.unwrap_err();
                assert!(error.contains("create container \"one\": "), "{error}");
                assert!(error.contains("perhaps its seccomp filter forbids"), "{error}");
            }
        }
        // Not even the program: known at Start, by its step.
        let none = allowing(json!(["read", "write", "exit_group"]));
        let error = errno_of(pod, getpid, none, true).await.unwrap_err();
        assert!(error.starts_with("start container \"one\": step "), "{error}");
        assert!(error.ends_with(": exec: execve: EPERM"), "{error}");
    });
}

#[test]
fn an_exec_under_a_filter_that_leaves_it_little() {
    alone(async |pod: &mut Pod| {
        let refused = refusing(json!(["clone", "clone3"]));
        pod.create("c", &spec("exec sleep 100", refused, true)).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.exec("c", "e", &process("true")).unwrap();
        let error = pod.start("c", "e").await.unwrap_err().to_string();
        assert!(error.ends_with("birth in the pid namespace: clone: EOPNOTSUPP"), "{error}");
        pod.delete("c", "e").await.unwrap();
    });
}

/// An agent: what it was told, and the descriptor.
pub async fn told(agent: &tokio::net::UnixListener) -> (Value, OwnedFd) {
    let (stream, _) = agent.accept().await.unwrap();
    stream.readable().await.unwrap();
    let stream = stream.into_std().unwrap();
    let (mut bytes, mut space) = (vec![0u8; 65536], nix::cmsg_space!([i32; 1]));
    let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
    let flags = nix::sys::socket::MsgFlags::MSG_CMSG_CLOEXEC;
    let fd = stream.as_raw_fd();
    let message = nix::sys::socket::recvmsg::<()>(fd, &mut iov, Some(&mut space), flags).unwrap();
    let fds = message.cmsgs().unwrap().find_map(|cmsg| match cmsg {
        nix::sys::socket::ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    // SAFETY: the kernel has just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fds.unwrap()[0]) };
    let len = message.bytes;
    (serde_json::from_slice(&bytes[..len]).unwrap(), fd)
}

/// Answers one notification with an errno; which process made what call.
pub async fn answer(fd: OwnedFd, errno: i32) -> (u32, i32) {
    let fd = Polled::new(fd, tokio::io::Interest::READABLE).unwrap();
    drop(fd.readable().await.unwrap());
    // SAFETY: plain integers, for which all zero is a value; the kernel wants them to be zero.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let number = fd.get_ref().as_raw_fd();
    // SECCOMP_IOCTL_NOTIF_RECV and _SEND of linux/seccomp.h.
    // SAFETY: the kernel fills a struct of the size that is in the number.
    assert_eq!(unsafe { libc::ioctl(number, 0xc050_2100, &raw mut asked) }, 0);
    let said = libc::seccomp_notif_resp { id: asked.id, val: 0, error: -errno, flags: 0 };
    // SAFETY: the kernel reads a struct of the size that is in the number.
    assert_eq!(unsafe { libc::ioctl(number, 0xc018_2101, &raw const said) }, 0);
    (asked.pid, asked.data.nr)
}

#[test]
fn an_agent_answers() {
    alone(async |pod: &mut Pod| {
        let path = pod.dir.join("agent.sock");
        let agent = tokio::net::UnixListener::bind(&path).unwrap();
        for nnp in [true, false] {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
                "listenerMetadata": "for whom", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
            let script = "mkdir /a 2>&1; echo $?; touch /done; exec sleep 100";
            let spec = with(spec(script, profile, nnp), "/annotations", json!({"a": "b"}));
            pod.write_bundle("c", &spec);
            let mut request = pod.request("c");
            request.stdio = pod.logged("c");
            let (made, (state, fd)) = tokio::join!(pod.send(request), told(&agent));
            let pid = made.unwrap();
            assert_eq!(
                state["state"],
                json!({"ociVersion": "1.3.0", "id": "c", "pid": pid,
                "status": "creating", "bundle": pod.bundle("c"), "annotations": {"a": "b"}})
            );
            assert_eq!((&state["metadata"], &state["pid"]), (&json!("for whom"), &json!(pid)));
            assert_eq!(
                (&state["fds"], &state["ociVersion"]),
                (&json!(["seccompFd"]), &json!("1.3.0"))
            );
            pod.start("c", "").await.unwrap();
            let (_, nr) = answer(fd, libc::EXDEV).await;
            assert!([libc::SYS_mkdir, libc::SYS_mkdirat].contains(&nr.into()), "{nr}");

            let exec = with(process("mkdir /b"), "/noNewPrivileges", json!(nnp));
            pod.exec("c", "e", &exec).unwrap();
            let (started, (state, fd)) = tokio::join!(pod.start("c", "e"), told(&agent));
            let exec_pid = started.unwrap();
            assert_eq!((&state["pid"], &state["state"]["pid"]), (&json!(exec_pid), &json!(pid)));
            assert_eq!(state["state"]["status"], "running");
            answer(fd, libc::EXDEV).await;
            assert_eq!(pod.wait("c", "e").await.unwrap().status, 1);
            pod.delete("c", "e").await.unwrap();
            assert!(pod.output("e").contains("Invalid cross-device link"));
            pod.until("c", "done").await;
            pod.end("c").await;
            let text = pod.output("c");
            assert!(text.contains("Invalid cross-device link\n1\n"), "{text}");
        }
        drop(agent);
        fs::remove_file(&path).unwrap();
    });
}

#[test]
fn no_agent_no_container() {
    alone(async |pod: &mut Pod| {
        let path = pod.dir.join("nobody.sock");
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
        for nnp in [true, false] {
            let error = pod.create("c", &spec("true", profile.clone(), nnp)).await.unwrap_err();
            let want = format!("linux.seccomp.listenerPath: connect {path:?}: ENOENT");
            assert_eq!(error.to_string(), format!("create container \"c\": {want}"));
            fs::remove_dir_all(pod.bundle("c")).unwrap();
        }
    });
}
