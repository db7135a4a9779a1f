//! Containers and execs from Create to Delete: states, exit codes, events.

use std::sync::Arc;

use containerd_shim_rs::api::{Pid, State};
use containerd_shim_rs::error::Kind;
use containerd_shim_rs::events::Exit;
use serde_json::json;

use crate::alone::{alone, threads};
use crate::pod::{Pod, process, sh, target, with};

#[test]
fn a_life_with_its_states_and_events() {
    alone(async |pod: &mut Pod| {
        for (script, status) in
            [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("sleep 100", 143)]
        {
            // Process 1 of a PID namespace cannot signal itself.
            let spec = with(sh(script), "/linux/namespaces", json!([{"type": "mount"}]));
            let spec = with(spec, "/hostname", json!(""));
            let id = format!("c{status}");
            let pid = pod.create(&id, &spec).await.unwrap();
            assert!(pid > 1);
            assert_eq!(pod.state(&id, "").unwrap(), State::Created);
            assert_eq!(pod.events().await, [format!("create {id}")]);
            assert_eq!(pod.start(&id, "").await.unwrap(), pid);
            if status == 143 {
                assert_eq!(pod.state(&id, "").unwrap(), State::Running);
                pod.kill(&id, "", libc::SIGTERM).unwrap();
            }
            let exit = pod.wait(&id, "").await.unwrap();
            assert_eq!(exit.status, status);
            let said = pod.shim.state(&target(&id, "")).unwrap();
            assert_eq!((said.state, said.pid), (State::Stopped, pid));
            assert_eq!((said.id.as_str(), said.exit), (id.as_str(), Some(exit)));
            assert_eq!(said.bundle, pod.bundle(&id));
            let deleted = pod.delete(&id, "").await.unwrap();
            assert_eq!((deleted.pid, deleted.exit), (pid, exit));
            let want = ["start", "exit", "delete"].map(|e| match e {
                "start" => format!("start {id}"),
                e => format!("{e} {id} {status}"),
            });
            assert_eq!(pod.events().await, want);
            assert_eq!(pod.state(&id, "").unwrap_err().kind(), Kind::NotFound);
            assert_eq!(threads(), 1);
        }
    });
}

#[test]
fn a_signal_of_the_container_itself() {
    alone(async |pod: &mut Pod| {
        // With a PID namespace: pid 1 gets no signal that it does not handle.
        pod.running("c", "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.01; done").await;
        pod.until("c", "ready").await;
        pod.kill("c", "", libc::SIGTERM).unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 3);
        assert_eq!(pod.kill("c", "", libc::SIGTERM).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pod.kill("c", "", 65).unwrap_err().kind(), Kind::InvalidArgument);
    });
}

#[test]
fn execs() {
    alone(async |pod: &mut Pod| {
        pod.create("c", &sh("sleep 100")).await.unwrap();
        // Registered before the start of the init.
        pod.exec("c", "early", &process("exit 5")).unwrap();
        assert_eq!(pod.state("c", "early").unwrap(), State::Created);
        let error = pod.kill("c", "early", libc::SIGTERM).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        pod.start("c", "").await.unwrap();
        assert_eq!(pod.events().await, ["create c", "added c/early", "start c"]);
        let pid = pod.start("c", "early").await.unwrap();
        assert_eq!(pod.wait("c", "early").await.unwrap().status, 5);
        let said = pod.shim.state(&target("c", "early")).unwrap();
        assert_eq!((said.id.as_str(), said.pid, said.state), ("early", pid, State::Stopped));
        assert_eq!(pod.start("c", "early").await.unwrap_err().kind(), Kind::FailedPrecondition);
        assert_eq!(pod.kill("c", "early", 9).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pod.delete("c", "early").await.unwrap().pid, pid);
        assert_eq!(pod.delete("c", "early").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pod.events().await, ["started c/early", "exit c/early 5"]);

        let (status, output) = pod.executed("c", "e", &process("echo $$ in; exit 1")).await;
        assert_eq!(status, 1);
        assert!(output.ends_with(" in\n") && output != "1 in\n", "{output:?}");
        let (status, _) = pod.executed("c", "e", &process("kill -9 $$")).await;
        assert_eq!(status, 137);
        // Never started: gone without an event.
        pod.events().await;
        pod.exec("c", "unborn", &process("true")).unwrap();
        pod.delete("c", "unborn").await.unwrap();
        assert_eq!(pod.events().await, ["added c/unborn"]);
        assert_eq!(threads(), 1);
    });
}

#[test]
fn an_exec_without_its_program() {
    alone(async |pod: &mut Pod| {
        let script = "printf '#!/nowhere' >/script; chmod 755 /script; touch /ready; sleep 100";
        pod.running("c", script).await;
        pod.until("c", "ready").await;
        let nowhere = with(process(""), "/args", json!(["nowhere"]));
        let cwd = with(process("true"), "/cwd", json!("/no/such"));
        let directory = with(process(""), "/args", json!(["/bin"]));
        let text = with(process(""), "/args", json!(["/etc/passwd"]));
        let script = with(process(""), "/args", json!(["/script"]));
        for (exec, process, status, want) in [
            (
                "missing",
                nowhere,
                127,
                "find executable [\"/bin/nowhere\"]: \"nowhere\": executable",
            ),
            ("cwd", cwd, 127, "chdir \"/no/such\" (may wait for the user): chdir: ENOENT"),
            ("directory", directory, 126, "\"/bin\": is a directory: EISDIR"),
            ("text", text, 126, "\"/etc/passwd\": permission denied: EACCES"),
            (
                "script",
                script,
                127,
                "\"/script\": its interpreter: no such file or directory: ENOENT",
            ),
        ] {
            pod.exec("c", exec, &process).unwrap();
            let error = pod.start("c", exec).await.unwrap_err().to_string();
            let start = format!("start exec {exec:?} of container \"c\": step ");
            assert!(error.starts_with(&start) && error.contains(want), "{error}");
            assert_eq!(pod.state("c", exec).unwrap(), State::Stopped);
            assert_eq!(pod.wait("c", exec).await.unwrap().status, status);
            assert_eq!(pod.delete("c", exec).await.unwrap().exit.status, status);
        }
        let added = ["missing", "cwd", "directory", "text", "script"];
        assert_eq!(pod.events().await[2..], added.map(|exec| format!("added c/{exec}")));
    });
}

#[test]
fn no_failed_start_is_ever_a_success() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "sleep 100").await;
        for _ in 0..300 {
            // The child may be gone before its report is read.
            pod.exec("c", "e", &with(process(""), "/args", json!(["nowhere"]))).unwrap();
            let error = pod.start("c", "e").await.unwrap_err();
            assert!(error.to_string().contains("executable file not found"), "{error}");
            pod.delete("c", "e").await.unwrap();
        }
    });
}

#[test]
fn execs_end_with_their_container() {
    alone(async |pod: &mut Pod| {
        for (own, namespaces) in
            [("own", sh("")["linux"]["namespaces"].clone()), ("shared", json!([{"type": "mount"}]))]
        {
            let spec = with(sh("sleep 100"), "/linux/namespaces", namespaces);
            let spec = with(spec, "/hostname", json!(""));
            let init = pod.create(own, &spec).await.unwrap();
            pod.start(own, "").await.unwrap();
            let (one, two) = (format!("{own}1"), format!("{own}2"));
            for exec in [&one, &two] {
                pod.exec(own, exec, &process("setsid sleep 100 & sleep 100")).unwrap();
                pod.start(own, exec).await.unwrap();
            }
            pod.events().await;
            pod.kill(own, "", libc::SIGKILL).unwrap();
            assert_eq!(pod.wait(own, "").await.unwrap().status, 137);
            // The init's exit comes last, and by then all are dead.
            let mut events = pod.events().await;
            assert_eq!(events.pop().unwrap(), format!("exit {own} 137"));
            events.sort();
            assert_eq!(events, [&one, &two].map(|exec| format!("exit {own}/{exec} 137")));
            assert_eq!(pod.shim.pids(own).unwrap(), [Pid { pid: init, exec_id: None }]);
            let error = pod.exec(own, "late", &process("true")).unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains("init process is not running"), "{error}");
            // Delete of the container takes its execs along.
            pod.delete(own, "").await.unwrap();
            assert_eq!(pod.state(own, &one).unwrap_err().kind(), Kind::NotFound);
        }
    });
}

#[test]
fn waiters() {
    alone(async |pod: &mut Pod| {
        pod.create("c", &sh("exit 9")).await.unwrap();
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let shim = Arc::clone(&pod.shim);
                tokio::spawn(async move { shim.wait(&target("c", "")).await.unwrap() })
            })
            .collect();
        tokio::task::yield_now().await;
        pod.start("c", "").await.unwrap();
        let exits: Vec<Exit> = {
            let mut all = Vec::new();
            for waiter in waiting {
                all.push(waiter.await.unwrap());
            }
            all
        };
        assert!(exits.iter().all(|exit| *exit == exits[0] && exit.status == 9));
        assert_eq!(pod.state("c", "").unwrap(), State::Stopped);
        assert_eq!(pod.wait("c", "").await.unwrap(), exits[0]);
        pod.delete("c", "").await.unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap_err().kind(), Kind::NotFound);
    });
}

#[test]
fn a_created_container_may_be_killed_or_deleted() {
    alone(async |pod: &mut Pod| {
        pod.create("killed", &sh("true")).await.unwrap();
        pod.kill("killed", "", libc::SIGKILL).unwrap();
        assert_eq!(pod.wait("killed", "").await.unwrap().status, 137);
        let error = pod.start("killed", "").await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("cannot start a stopped process"), "{error}");
        pod.delete("killed", "").await.unwrap();
        assert_eq!(pod.events().await, ["create killed", "exit killed 137", "delete killed 137"]);

        pod.create("deleted", &sh("true")).await.unwrap();
        assert_eq!(pod.delete("deleted", "").await.unwrap().exit.status, 137);
        let want = ["create deleted", "exit deleted 137", "delete deleted 137"];
        assert_eq!(pod.events().await, want);
        let error = pod.delete("deleted", "").await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
    });
}

#[test]
fn names_are_used_once() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "sleep 100").await;
        let error = pod.create("c", &sh("true")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        pod.exec("c", "e", &process("sleep 100")).unwrap();
        for exec in ["e", "c"] {
            let error = pod.exec("c", exec, &process("true")).unwrap_err();
            assert_eq!(error.kind(), Kind::AlreadyExists);
        }
        for exec in ["", "a/b", "..", &"x".repeat(1024)] {
            let stdio = Default::default();
            let target = containerd_shim_rs::api::Target {
                container: "c".into(),
                exec: Some(exec.to_owned()),
            };
            let error = pod.shim.exec(target, b"{}", stdio).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{exec:?}");
        }
        assert_eq!(pod.start("c", "").await.unwrap_err().kind(), Kind::FailedPrecondition);
        let error = pod.delete("c", "").await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("it is running"), "{error}");
        // Two at once: one of them wins.
        pod.write_bundle("d", &sh("true"));
        let (one, two) = (pod.request("d"), pod.request("d"));
        let shim = Arc::clone(&pod.shim);
        let (one, two) = tokio::join!(pod.send(one), shim.create(two));
        assert!(one.is_ok());
        assert_eq!(two.unwrap_err().kind(), Kind::AlreadyExists);
    });
}

#[test]
fn processes_of_a_container() {
    alone(async |pod: &mut Pod| {
        let init = pod.create("c", &sh("sleep 100 & sleep 100")).await.unwrap();
        assert_eq!(pod.shim.pids("c").unwrap(), [Pid { pid: init, exec_id: None }]);
        assert_eq!(pod.shim.connect("c"), (std::process::id(), init));
        pod.start("c", "").await.unwrap();
        pod.exec("c", "e", &process("sleep 100 & sleep 100")).unwrap();
        let exec = pod.start("c", "e").await.unwrap();
        let pids = pod.shim.pids("c").unwrap();
        assert!(pids.contains(&Pid { pid: init, exec_id: None }), "{pids:?}");
        assert!(pids.contains(&Pid { pid: exec, exec_id: Some("e".into()) }), "{pids:?}");
        assert!(pod.shim.stats("c").is_ok());
        pod.kill("c", "", libc::SIGKILL).unwrap();
        pod.wait("c", "").await.unwrap();
        assert!(pod.shim.stats("c").is_ok(), "until it is deleted");
        pod.delete("c", "").await.unwrap();
        assert_eq!(pod.shim.stats("c").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pod.shim.pids("c").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pod.shim.connect("c"), (std::process::id(), 0));
        assert!(pod.shim.shutdown());
    });
}

#[test]
fn orphans_and_leftovers() {
    alone(async |pod: &mut Pod| {
        // No PID namespace of its own: what the init leaves is ours to kill and to bury.
        let script = "for i in 1 2 3; do setsid sh -c 'sleep 100 & exit' & done; sleep 0.1; exit 4";
        let spec = with(sh(script), "/linux/namespaces", json!([{"type": "mount"}]));
        let spec = with(spec, "/hostname", json!(""));
        assert_eq!(pod.ran("c", &spec).await.0, 4);
    });
}
