//! Loggers (`binary://`): real programs that read what real containers say.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use containerd_shim_rs::api::{CreateSandbox, NamespaceMode, Options, PodConfig, StdioPaths};
use containerd_shim_rs::error::{Kind, Result};
use containerd_shim_rs::launch::launch;
use containerd_shim_rs::plan::{Input, Op, Plan};
use containerd_shim_rs::reaper::ended;
use nix::fcntl::{FcntlArg, fcntl};
use serde_json::json;

use crate::alone::alone;
use crate::pod::{Pod, process, sh, target, with};

/// A logger's program and what it writes; all gone with it.
struct Logger(PathBuf);

impl Logger {
    fn new(pod: &Pod, script: &str) -> Logger {
        let logger = Logger(pod.dir.join("logger"));
        fs::create_dir(&logger.0).unwrap();
        let text = format!("#!/bin/sh\ndir={}\n{script}\n", logger.0.display());
        fs::write(logger.0.join("log"), text).unwrap();
        fs::set_permissions(logger.0.join("log"), PermissionsExt::from_mode(0o755)).unwrap();
        logger
    }

    /// As `nerdctl` names it: in stdout and stderr.
    fn paths(&self, scheme: &str, query: &str) -> StdioPaths {
        let uri = format!("{scheme}://{}/log{query}", self.0.display());
        StdioPaths { stdout: uri.clone(), stderr: uri, ..StdioPaths::default() }
    }

    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn remove(self) {
        fs::remove_dir_all(self.0).unwrap();
    }
}

/// Writes down who it is, then what it reads.
const GOOD: &str = "
    name=$(tr '\\0' '\\n' < /proc/$$/environ | sed -n s/^CONTAINER_ID=//p)
    mkdir $dir/$name
    cd $dir/$name
    tr '\\0' '\\n' < /proc/$$/environ > environ
    ls /proc/$$/fd > fds
    null=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
    echo \"$null\" > null
    for kind in net ipc uts mnt pid; do readlink /proc/$$/ns/$kind; done > namespaces
    for arg; do echo \"[$arg]\"; done > args
    cat <&4 5>&- > err &
    printf x >&5
    exec 4<&- 5>&-
    cat <&3 > out
    wait
    sleep 0.2
    echo bye > bye";

async fn created(pod: &mut Pod, script: &str, stdio: StdioPaths) -> Result<u32> {
    created_with(pod, script, stdio, Options::default()).await
}

async fn created_with(
    pod: &mut Pod,
    script: &str,
    stdio: StdioPaths,
    options: Options,
) -> Result<u32> {
    pod.write_bundle("c", &with(sh(script), "/process/terminal", json!(stdio.terminal)));
    let mut request = pod.request("c");
    (request.stdio, request.options) = (stdio, options);
    pod.send(request).await
}

/// Start, Wait and Delete of the container or an exec in it; how it ended.
async fn ends(pod: &Pod, exec: &str) -> u32 {
    pod.start("c", exec).await.unwrap();
    let exit = pod.wait("c", exec).await.unwrap();
    pod.delete("c", exec).await.unwrap();
    exit.status
}

#[test]
fn every_line_reaches_the_logger_with_args_and_environment() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, GOOD);
        let script = "seq 1 100000; echo problem >&2; echo the last";
        let (lines, query) = ((1..=100_000).map(|n| format!("{n}\n")), "?a=1+2&empty=&b=%2Fx&a=9");
        let want: String = lines.chain(["the last\n".into()]).collect();
        for (scheme, exec) in [("binary", ""), ("binary-v2", ""), ("binary", "e")] {
            let paths = logger.paths(scheme, query);
            let name = if exec.is_empty() {
                created(pod, script, paths).await.unwrap();
                assert_eq!(ends(pod, "").await, 0);
                "c"
            } else {
                pod.running("c", "sleep 100").await;
                let json = serde_json::to_vec(&process(script)).unwrap();
                pod.shim.exec(target("c", exec), &json, paths).unwrap();
                assert_eq!(ends(pod, exec).await, 0);
                pod.end("c").await;
                exec
            };
            // Delete has waited for it: nothing is still to come.
            let said = |file: &str| logger.said(&format!("{name}/{file}"));
            assert!(said("out") == want, "{scheme} {exec}: {} bytes", said("out").len());
            assert_eq!(said("err"), "problem\n");
            assert_eq!(said("bye"), "bye\n", "it was not left to end by itself");
            assert_eq!(said("args"), "[a]\n[1 2]\n[empty]\n[]\n[b]\n[/x]\n");
            let environ = format!("CONTAINER_ID={name}\nCONTAINER_NAMESPACE=rs-test\n");
            assert_eq!(said("environ"), environ);
            // From 10 on they are the shell's own.
            let fds = said("fds");
            let fds: Vec<&str> = fds.lines().filter(|fd| fd.len() == 1).collect();
            assert_eq!(fds, ["0", "1", "2", "3", "4", "5"]);
            assert_eq!(said("null"), "/\n/\n/\n", "the host's /dev/null, by itself");
            let ours = ["net", "ipc", "uts", "mnt", "pid"]
                .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
            let theirs: Vec<PathBuf> = said("namespaces").lines().map(PathBuf::from).collect();
            assert_eq!(theirs, ours);
            fs::remove_dir_all(logger.0.join(name)).unwrap();
        }
        logger.remove();
    });
}

#[test]
fn descriptors_may_have_the_very_numbers_that_they_shall_not_have() {
    alone(async |pod: &mut Pod| {
        let file = |name: &str| fs::File::create(pod.dir.join("home").join(name)).unwrap();
        // Each at the number that the other one shall get.
        let at = |file: fs::File, number: i32| {
            let fd = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(number)).unwrap();
            assert_eq!(fd, number);
            // SAFETY: made a line above, and nobody else's.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        let fds = [file("said.out").into(), at(file("one.out"), 101), at(file("two.out"), 100)];
        let mut plan = Plan::default();
        plan.input(Input::Report);
        plan.ops.push(Op::LiftFds { above: 101 });
        for (number, to) in [(0, 1), (1, 100), (2, 101)] {
            let from = plan.input(Input::Stdio(number));
            plan.ops.push(Op::Dup { from, to });
        }
        plan.ops.extend([Op::FindExecutable { candidates: vec![c"/bin/sh".into()] }, Op::Exec]);
        let script = c"readlink /proc/self/fd/100; readlink /proc/self/fd/101";
        plan.args = vec![c"sh".into(), c"-c".into(), script.into()];
        let inputs = (0..).map(Input::Stdio).zip(fds).collect();
        let mut child = launch(pod.shim.reaper(), plan, inputs, None).unwrap();
        child.go().await.unwrap();
        assert_eq!(ended(&mut child.exit).await.status, 0);
        let said = fs::read_to_string(pod.dir.join("home/said.out")).unwrap();
        let names: Vec<_> = said.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["one.out", "two.out"]);
    });
}

#[test]
fn a_terminal_may_have_a_logger() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, GOOD);
        let paths = StdioPaths { terminal: true, ..logger.paths("binary", "") };
        created(pod, "test -t 1 && seq 1 20000; exit 3", paths).await.unwrap();
        assert_eq!(ends(pod, "").await, 3);
        let want: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect();
        assert!(logger.said("c/out") == want, "{} bytes", logger.said("c/out").len());
        assert_eq!(logger.said("c/err"), "");
        logger.remove();
    });
}

#[test]
fn a_logger_that_dies_blocks_nobody() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, "exit 1");
        // EPIPE, as with containerd's own shim.
        created(pod, "yes; exit 4", logger.paths("binary", "")).await.unwrap();
        assert_eq!(ends(pod, "").await, 4);
        let paths = StdioPaths { terminal: true, ..logger.paths("binary", "") };
        created(pod, "yes | head -c 1000000; exit 5", paths).await.unwrap();
        assert_eq!(ends(pod, "").await, 5);
        logger.remove();
    });
}

#[test]
fn a_logger_that_is_not_ready_fails_the_create() {
    alone(async |pod: &mut Pod| {
        for (scheme, script, kind, text) in [
            ("binary", "exec sleep 1000", Kind::DeadlineExceeded, "not ready within 10s"),
            ("binary-v2", "exit 0", Kind::Unknown, "was not ready"),
        ] {
            let logger = Logger::new(pod, script);
            let error = created(pod, "true", logger.paths(scheme, "")).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
            logger.remove();
        }
        let paths = StdioPaths { stdout: "binary:///no/such/logger".into(), ..Default::default() };
        let error = created(pod, "true", paths).await.unwrap_err().to_string();
        assert!(
            error.contains("logger \"/no/such/logger\": step 10/11: find executable"),
            "{error}"
        );
    });
}

#[test]
fn a_logger_that_does_not_end_is_killed_by_delete() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, "trap '' TERM; exec 5>&-; exec sleep 1000");
        created(pod, "true", logger.paths("binary", "")).await.unwrap();
        assert_eq!(ends(pod, "").await, 0);
        logger.remove();
    });
}

#[test]
fn a_create_that_fails_takes_its_logger_along() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, "exec 5>&-; exec sleep 1000");
        pod.write_bundle("c", &with(sh(""), "/process/args", json!(["/no/such/program"])));
        let mut request = pod.request("c");
        request.stdio = logger.paths("binary", "");
        let error = pod.send(request).await.unwrap_err();
        assert!(error.to_string().contains("executable file not found"), "{error}");
        logger.remove();
    });
}

#[test]
fn cve_2026_53488_only_allowed_programs_run() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, GOOD);
        let allowed = |dirs: &[&str]| Options {
            loggers: Some(dirs.iter().map(PathBuf::from).collect()),
            ..Options::default()
        };
        let mark = pod.dir.join("home/mark");
        let touch = format!("binary:///bin/touch?{}", mark.display());
        let touch = StdioPaths { stdout: touch, ..StdioPaths::default() };
        let directory = logger.0.to_str().unwrap();
        for dirs in [&[][..], &[directory]] {
            let error = created_with(pod, "true", touch.clone(), allowed(dirs)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            assert!(error.to_string().contains("none of the directories"), "{error}");
        }
        // The container's options are its execs' as well.
        let paths = logger.paths("binary", "");
        created_with(pod, "sleep 100", paths.clone(), allowed(&[directory])).await.unwrap();
        pod.start("c", "").await.unwrap();
        let json = serde_json::to_vec(&process("true")).unwrap();
        pod.shim.exec(target("c", "e"), &json, touch).unwrap();
        let error = pod.start("c", "e").await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        pod.shim.exec(target("c", "f"), &json, paths).unwrap();
        assert_eq!(ends(pod, "f").await, 0);
        pod.end("c").await;
        assert!(!mark.exists());
        logger.remove();
    });
}

#[test]
fn a_sandbox_has_no_loggers() {
    alone(async |pod: &mut Pod| {
        let logger = Logger::new(pod, GOOD);
        let shim = pod.shim.clone();
        let node = NamespaceMode::Node;
        let (network, ipc, pid) = (node, node, NamespaceMode::Container);
        let config = PodConfig { network, ipc, pid, ..PodConfig::default() };
        let (id, bundle) = ("sandbox".into(), pod.dir.join("home"));
        let create = CreateSandbox { id, bundle, netns_path: String::new(), config };
        shim.clone().create_sandbox(create).await.unwrap();
        shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        let error = created(pod, "true", logger.paths("binary", "")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
        assert!(error.to_string().contains("(binary://) for a container of a sandbox"), "{error}");
        assert!(!logger.0.join("c").exists(), "it ran");
        shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
        shim.shutdown_sandbox("sandbox".into()).await;
        logger.remove();
    });
}
