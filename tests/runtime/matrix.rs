//! Every verb in every state: what is done, and what is refused as what.

use std::sync::Arc;

use containerd_shim_rs::error::{Kind, Result};

use crate::alone::{alone, threads};
use crate::pod::{Pod, process, sh, target};

const STATES: [&str; 5] = ["absent", "created", "running", "paused", "stopped"];

/// For each verb what it answers in each state: `ok`, or the kind of its error.
const INIT: &[(&str, [&str; 5])] = &[
    ("state", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("start", ["NotFound", "ok", "FailedPrecondition", "FailedPrecondition", "FailedPrecondition"]),
    ("kill", ["NotFound", "ok", "ok", "ok", "NotFound"]),
    ("kill all", ["NotFound", "ok", "ok", "ok", "NotFound"]),
    ("delete", ["NotFound", "ok", "FailedPrecondition", "FailedPrecondition", "ok"]),
    ("exec", ["NotFound", "ok", "ok", "FailedPrecondition", "FailedPrecondition"]),
    ("pids", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("stats", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("pause", ["NotFound", "FailedPrecondition", "ok", "FailedPrecondition", "FailedPrecondition"]),
    (
        "resume",
        ["NotFound", "FailedPrecondition", "FailedPrecondition", "ok", "FailedPrecondition"],
    ),
    ("update", ["NotFound", "ok", "ok", "ok", "FailedPrecondition"]),
    ("resize", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("close stdin", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("connect", ["ok", "ok", "ok", "ok", "ok"]),
    ("create", ["ok", "AlreadyExists", "AlreadyExists", "AlreadyExists", "AlreadyExists"]),
];

/// The same of an exec in a container that runs (or is paused, or has stopped).
const EXEC: &[(&str, [&str; 5])] = &[
    ("state", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("start", ["NotFound", "ok", "FailedPrecondition", "FailedPrecondition", "FailedPrecondition"]),
    ("kill", ["NotFound", "FailedPrecondition", "ok", "ok", "NotFound"]),
    ("delete", ["NotFound", "ok", "FailedPrecondition", "FailedPrecondition", "ok"]),
    ("resize", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("close stdin", ["NotFound", "ok", "ok", "ok", "ok"]),
    ("exec", ["ok", "AlreadyExists", "AlreadyExists", "AlreadyExists", "AlreadyExists"]),
];

async fn call(pod: &mut Pod, verb: &str, exec: &str) -> Result<()> {
    let (shim, at) = (Arc::clone(&pod.shim), target("c", exec));
    match verb {
        "state" => shim.state(&at).map(drop),
        "start" => pod.start("c", exec).await.map(drop),
        "kill" => shim.kill(&at, 0, false),
        "kill all" => shim.kill(&at, 0, true),
        "delete" => pod.delete("c", exec).await.map(drop),
        "exec" => {
            let exec = if exec.is_empty() { "e" } else { exec };
            pod.exec("c", exec, &process("sleep 100"))
        }
        "pids" => {
            let pids = shim.pids("c")?;
            assert!(!pids.is_empty(), "containerd would remove it at its next start");
            Ok(())
        }
        "stats" => shim.stats("c").map(drop),
        "pause" => shim.pause("c".into()).await,
        "resume" => shim.resume("c".into()).await,
        "update" => shim.update("c".into(), br#"{"pids": {"limit": 50}}"#.to_vec()).await,
        "resize" => shim.resize_pty(&at, 80, 24),
        "close stdin" => shim.close_stdin(&at),
        "connect" => {
            assert_eq!(shim.connect("c").0, std::process::id());
            Ok(())
        }
        "create" => {
            let request = pod.request("c");
            pod.send(request).await.map(drop)
        }
        other => panic!("no verb is called {other}"),
    }
}

/// Brings a container, or an exec in one that runs, into a state.
async fn bring(pod: &mut Pod, state: &str, exec: &str) {
    pod.write_bundle("c", &sh("sleep 100"));
    if exec.is_empty() && state == "absent" {
        return;
    }
    let request = pod.request("c");
    pod.send(request).await.unwrap();
    if exec.is_empty() && state == "created" {
        return;
    }
    pod.start("c", "").await.unwrap();
    if !exec.is_empty() && state != "absent" {
        pod.exec("c", exec, &process("sleep 100")).unwrap();
        if state == "created" {
            return;
        }
        pod.start("c", exec).await.unwrap();
    }
    match state {
        "paused" => Arc::clone(&pod.shim).pause("c".into()).await.unwrap(),
        "stopped" => {
            pod.kill("c", exec, libc::SIGKILL).unwrap();
            pod.wait("c", exec).await.unwrap();
        }
        _ => {}
    }
}

async fn cross(pod: &mut Pod, table: &[(&str, [&str; 5])], exec: &str) {
    for (verb, answers) in table {
        for (state, want) in STATES.iter().zip(answers) {
            bring(pod, state, exec).await;
            let got = match call(pod, verb, exec).await {
                Ok(()) => "ok".to_owned(),
                Err(error) => {
                    assert_ne!(error.kind(), Kind::Unknown, "{verb} when {state}: {error}");
                    format!("{:?}", error.kind())
                }
            };
            assert_eq!(got, *want, "{verb} of {exec:?} when {state}");
            pod.delete_all().await;
            assert_eq!(threads(), 1, "{verb} when {state}");
        }
    }
}

#[test]
fn of_an_init() {
    alone(async |pod: &mut Pod| cross(pod, INIT, "").await);
}

#[test]
fn of_an_exec() {
    alone(async |pod: &mut Pod| cross(pod, EXEC, "x").await);
}
