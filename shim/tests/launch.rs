//! `start`, `delete`, `-info` and `-v` of the real binary, as containerd 1.6 to 2.4 call them.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::*;
use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::shim::shim::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The only output of a `start` that worked.
fn reply(output: Output) -> Vec<u8> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.is_empty(), "{:?} {stderr}", output.status);
    output.stdout
}

/// The only output of a `start` that failed.
fn failure(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    text
}

#[test]
fn containerd_2_3_gets_a_protobuf_reply() {
    let Some(bundle) = Bundle::task() else { return };
    let result = BootstrapResult::parse_from_bytes(&reply(bundle.start())).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert_eq!(result.address, format!("unix://{}", bundle.socket().display()));
    assert_eq!(fs::read_to_string(bundle.dir.join("address")).unwrap(), result.address);
    let files = fs::read_dir(&bundle.dir).unwrap().count();
    assert_eq!(files, 1, "only `address`");
    assert_eq!((mode(&bundle.sockets), mode(&bundle.socket())), (0o700, 0o600));
    UnixStream::connect(bundle.socket()).unwrap();
}

#[test]
fn older_containerd_gets_a_plain_address() {
    for stdin in [Vec::new(), any(&Options::default()).write_to_bytes().unwrap()] {
        let Some(bundle) = Bundle::task() else { return };
        let sockets = LegacySockets::of(&bundle);
        let text = reply(bundle.finish(bundle.command("--start"), &stdin));
        assert_eq!(String::from_utf8(text).unwrap(), sockets.address());
        assert_eq!(fs::read_to_string(bundle.dir.join("address")).unwrap(), sockets.address());
        UnixStream::connect(sockets.address().strip_prefix("unix://").unwrap()).unwrap();
    }
}

#[test]
fn a_sandbox_of_containerd_2_0_gets_json() {
    let Some(bundle) = Bundle::new("io.containerd.sandbox.controller.v1.shim") else { return };
    let sockets = LegacySockets::of(&bundle);
    let json = reply(bundle.finish(bundle.command("start"), &[]));
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let expected =
        serde_json::json!({"version": 3, "address": sockets.address(), "protocol": "ttrpc"});
    assert_eq!(json, expected);
}

#[test]
fn the_server_is_a_detached_process_of_one_thread_that_holds_nothing_of_ours() {
    let Some(bundle) = Bundle::task() else { return };
    let mut command = bundle.command("start");
    burden(&mut command);
    // Waits for the end of the output, which the server must not hold.
    reply(bundle.finish(command, &bundle.params(None)));
    let pid = bundle.server();
    assert_eq!(proc_file(pid, "comm"), "containerd-shim\n");
    assert_eq!(proc_link(pid, "cwd"), bundle.dir.display().to_string());
    let status = proc_file(pid, "status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_string()
    };
    assert_eq!((field("Threads:"), field("NSsid:")), ("1".to_string(), pid.to_string()));
    // SIGPIPE (13) and no other.
    assert_eq!(
        (field("SigBlk:"), field("SigIgn:")),
        ("0".repeat(16), "0000000000001000".to_string())
    );
    for fd in 0..3 {
        assert_eq!(proc_link(pid, &format!("fd/{fd}")), "/dev/null");
    }
    // The pipe on which it said that it is ready is closed a moment later.
    let strangers = || {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let mut fds =
            fds.filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.display().to_string()));
        let ours = ["/dev/null", "socket:", "anon_inode:"];
        fds.find(|fd| !ours.iter().any(|kind| fd.starts_with(kind)))
    };
    eventually(|| strangers().map_or(Ok(()), |fd| Err(format!("{fd} is open"))));
    let environment = proc_file(pid, "environ");
    assert_eq!(environment, format!("TTRPC_ADDRESS={GRPC}.ttrpc\0PATH=/usr/bin:/bin\0"));
    let score = |pid: &str| {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
            .unwrap()
            .trim()
            .parse::<i32>()
            .unwrap()
    };
    assert_eq!(score(&pid.to_string()), (score("self") + 1).min(1000));
}

#[test]
fn the_binary_cannot_be_written_through_the_server() {
    let Some(bundle) = Bundle::task() else { return };
    let command = bundle.command_of(&bundle.copy_binary(), "start");
    reply(bundle.finish(command, &bundle.params(None)));
    let pid = bundle.server();
    assert_eq!(proc_link(pid, "exe"), "/containerd-shim-rs-v2");
    let held = hold_exe(pid);
    let write = || {
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        File::options().write(true).open(path).unwrap_err().raw_os_error().unwrap()
    };
    assert!([libc::EROFS, libc::ETXTBSY].contains(&write()));
    // Nothing runs it any more: now only the mount protects it.
    bundle.end_servers(libc::SIGKILL);
    let protected =
        || if write() == libc::EROFS { Ok(()) } else { Err("still running".to_string()) };
    eventually(protected);
}

#[test]
fn a_binary_that_is_a_bind_mount_runs_itself_and_not_what_is_beneath() {
    let Some(bundle) = Bundle::task() else { return };
    let placeholder = bundle.sockets.with_file_name("placeholder");
    fs::write(&placeholder, "").unwrap();
    let plain = bundle.command_of(BINARY, "start");
    let script = r#"mount --bind "$BINARY" "$PLACEHOLDER" && exec "$PLACEHOLDER" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).args(plain.get_args());
    command.env("BINARY", bundle.copy_binary()).env("PLACEHOLDER", &placeholder);
    command.current_dir(&bundle.dir);
    reply(bundle.finish(command, &bundle.params(None)));
    let pid = bundle.server();
    assert_eq!(proc_file(pid, "comm"), "containerd-shim\n");
    let held = hold_exe(pid);
    bundle.end_servers(libc::SIGKILL);
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let error = File::options().write(true).open(path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn a_second_start_finds_the_server_of_the_first() {
    let Some(bundle) = Bundle::task() else { return };
    let first = reply(bundle.start());
    let pid = bundle.server();
    fs::remove_file(bundle.dir.join("address")).unwrap();
    assert_eq!(reply(bundle.start()), first);
    assert_eq!(bundle.server(), pid);
    assert!(bundle.dir.join("address").exists());
}

#[test]
fn a_dead_socket_is_replaced_by_exactly_one_of_many() {
    let Some(bundle) = Bundle::task() else { return };
    for _ in 0..5 {
        reply(bundle.start());
        bundle.end_servers(libc::SIGKILL);
        assert!(fs::symlink_metadata(bundle.socket()).unwrap().file_type().is_socket());
        std::thread::scope(|scope| {
            let starts: Vec<_> = (0..6).map(|_| scope.spawn(|| reply(bundle.start()))).collect();
            let replies: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
            assert!(replies.iter().all(|other| *other == replies[0]));
        });
        bundle.server();
        UnixStream::connect(bundle.socket()).unwrap();
        bundle.end_servers(libc::SIGKILL);
    }
}

#[test]
fn a_server_that_cannot_start_leaves_its_error_and_nothing_else() {
    for (number, action, expected) in [
        (libc::SYS_epoll_create1, fails_with(libc::EPERM), "make the event loop: EPERM"),
        (libc::SYS_epoll_create1, libc::SECCOMP_RET_KILL_PROCESS, "the server died: signal SIGSYS"),
        (libc::SYS_setsid, fails_with(libc::EMFILE), "setsid: EMFILE"),
    ] {
        let Some(bundle) = Bundle::task() else { return };
        let mut command = bundle.command("start");
        on_syscall(&mut command, number, action);
        let text = failure(bundle.finish(command, &bundle.params(None)));
        assert!(text.starts_with("containerd-shim-rs-v2: start the server: "), "{text}");
        assert!(text.ends_with(&format!("{expected}\n")), "{text}");
        bundle.assert_nothing_left();
    }
}

#[test]
fn a_start_that_fails_early_leaves_nothing() {
    let Some(bundle) = Bundle::task() else { return };
    let text = failure(bundle.finish(bundle.command("start"), &[0xff; 64]));
    assert!(text.contains("neither BootstrapParams for this id nor an Any"), "{text}");
    let options = Options { shim_cgroup: "/no/such/cgroup".to_string(), ..Options::default() };
    let text = failure(bundle.finish(bundle.command("start"), &bundle.params(Some(&options))));
    assert!(text.contains("shim_cgroup \"/no/such/cgroup\" does not exist"), "{text}");
    bundle.assert_nothing_left();
}

#[test]
fn a_reply_that_nobody_reads_is_a_failure() {
    let Some(bundle) = Bundle::task() else { return };
    let mut command = bundle.command("start");
    let full = File::options().write(true).open("/dev/full").unwrap();
    command.stdout(full).stdin(std::process::Stdio::null());
    let params = bundle.dir.join("params");
    fs::write(&params, bundle.params(None)).unwrap();
    let output = command.stdin(File::open(&params).unwrap()).output().unwrap();
    fs::remove_file(&params).unwrap();
    assert!(failure(output).contains("write the reply to stdout: ENOSPC"));
    bundle.assert_nothing_left();
}

#[test]
fn the_server_is_in_the_shim_cgroup() {
    let Some(bundle) = Bundle::task() else { return };
    let cgroups = Cgroups::new(&bundle);
    let options = Options { shim_cgroup: cgroups.name.clone(), ..Options::default() };
    reply(bundle.finish(bundle.command("start"), &bundle.params(Some(&options))));
    let of_server = proc_file(bundle.server(), "cgroup");
    let joined = of_server.lines().filter(|line| line.ends_with(&format!(":{}", cgroups.name)));
    assert_eq!(joined.count(), cgroups.dirs.len(), "{of_server}");
}

#[test]
fn sigterm_ends_the_server_and_its_socket_even_with_a_client() {
    let Some(bundle) = Bundle::task() else { return };
    reply(bundle.start());
    let _client = UnixStream::connect(bundle.socket()).unwrap();
    let began = Instant::now();
    bundle.end_servers(libc::SIGTERM);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(!bundle.socket().exists());
}

#[test]
fn the_log_goes_to_the_fifo_and_nobody_need_read_it() {
    let Some(bundle) = Bundle::task() else { return };
    let fifo = bundle.dir.join("log");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // No reader yet: a blocking open would hang here.
    reply(bundle.start());
    let flags = libc::O_NONBLOCK;
    let mut reader =
        File::options().read(true).write(true).custom_flags(flags).open(&fifo).unwrap();
    let mut line = vec![0; 4096];
    eventually(|| reader.read(&mut line).map(|n| line.truncate(n)));
    let line = String::from_utf8(line).unwrap();
    assert!(line.starts_with("time=\"20"), "{line}");
    let rest = format!(
        " level=info msg=\"serving on \\\"{}\\\"\" namespace=\"{NAMESPACE}\" id=\"{}\"\n",
        bundle.socket().display(),
        bundle.id
    );
    assert!(line.ends_with(&rest), "{line}");
}

#[test]
fn delete_answers_the_same_twice_and_removes_only_a_dead_socket() {
    let Some(bundle) = Bundle::task() else { return };
    let delete = || {
        let bytes = reply(bundle.finish(bundle.command("delete"), &[]));
        let response = DeleteResponse::parse_from_bytes(&bytes).unwrap();
        assert!(response.exited_at.seconds > 1_700_000_000);
        assert_eq!((response.pid, response.exit_status), (0, 137));
    };
    reply(bundle.start());
    delete();
    assert!(bundle.socket().exists(), "a live socket was removed");
    bundle.end_servers(libc::SIGKILL);
    assert!(bundle.socket().exists());
    delete();
    assert!(!bundle.socket().exists());
    delete();
}

#[test]
fn info_says_what_is_supported() {
    let options = any(&Options { root: "/r".to_string(), ..Options::default() });
    for (stdin, echo) in [(Vec::new(), None), (options.write_to_bytes().unwrap(), Some(options))] {
        let Some(bundle) = Bundle::task() else { return };
        let mut command = Command::new(BINARY);
        command.arg("-info").env_clear();
        let info = RuntimeInfo::parse_from_bytes(&reply(bundle.finish(command, &stdin))).unwrap();
        assert_eq!(info.name, "io.containerd.rs.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(info.options.into_option(), echo);
        let url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
        assert_eq!(info.features.type_url, url);
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        let mount_options = features["mountOptions"].as_array().unwrap();
        for option in ["rro", "rbind", "async", "unbindable", "nosymfollow", "ridmap"] {
            assert!(mount_options.iter().any(|have| have == option), "{option}");
        }
        assert!(mount_options.is_sorted_by_key(|option| option.as_str()));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        let namespaces = features["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.iter().any(|have| have == "user"), "{namespaces:?}");
        assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    }
}

#[test]
fn version_is_one_line_and_nonsense_is_an_error() {
    for flag in ["-v", "-version", "--version"] {
        let output = Command::new(BINARY).arg(flag).output().unwrap();
        let text = String::from_utf8(reply(output)).unwrap();
        let expected = concat!("containerd-shim-rs-v2 ", env!("CARGO_PKG_VERSION"));
        assert!(text.starts_with(expected) && text.matches('\n').count() == 1, "{text}");
    }
    for args in [
        &[][..],
        &["dance"],
        &["-nonsense"],
        &["start"],
        &["-id", "a/b", "-namespace", "n", "start"],
    ] {
        let output =
            Command::new(BINARY).args(args).stdin(std::process::Stdio::null()).output().unwrap();
        failure(output);
    }
    // `serve` by hand: there is no descriptor 3.
    let output =
        Command::new(BINARY).args(["-id", "x", "-namespace", "n", "serve"]).output().unwrap();
    assert!(failure(output).contains("descriptor 3, which only `start` can give: EBADF"));
}
