//! Stdio as streams: whom an exit and a Delete wait for, and what a failed Create leaves.

use std::time::Duration;

use containerd_shim_rs::api::{State, StdioPaths};
use containerd_shim_rs::error::Kind;
use containerd_shim_rs::stdio::{Client, Way};
use tokio::time::timeout;

use crate::alone::alone;
use crate::pod::{Pod, process, sh, target};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

fn stream(id: &str) -> String {
    format!("ttrpc+unix:///any?streaming_id={id}")
}

fn paths(stdin: &str, stdout: &str, terminal: bool) -> StdioPaths {
    let stdin = if stdin.is_empty() { String::new() } else { stream(stdin) };
    StdioPaths { stdin, stdout: stream(stdout), terminal, ..StdioPaths::default() }
}

async fn connect(pod: &Pod, id: &str) -> Client {
    timeout(LONG, pod.shim.streams.end(id)).await.expect("no such stream").connect()
}

/// The rest of an output.
async fn rest(client: &Client) -> String {
    let mut all = Vec::new();
    while timeout(LONG, client.end.fill(4096)).await.expect("no end").is_some() {
        let n = client.end.unsent().len();
        all.extend_from_slice(&client.end.unsent());
        client.end.given(n);
    }
    String::from_utf8(all).unwrap()
}

async fn create(pod: &mut Pod, id: &str, script: &str, stdio: StdioPaths) {
    let mut spec = sh(script);
    spec["process"]["terminal"] = stdio.terminal.into();
    pod.write_bundle(id, &spec);
    let mut request = pod.request(id);
    request.stdio = stdio;
    pod.send(request).await.unwrap();
}

#[test]
fn an_exit_is_told_when_its_output_has_been_read() {
    alone(async |pod: &mut Pod| {
        for (id, terminal) in [("pipe", false), ("terminal", true)] {
            create(pod, id, "echo last", paths("", id, terminal)).await;
            let client = connect(pod, id).await;
            pod.start(id, "").await.unwrap();
            let wait = pod.wait(id, "");
            tokio::pin!(wait);
            assert!(timeout(SHORT, &mut wait).await.is_err(), "{id}: told before it was read");
            assert_eq!(pod.state(id, "").unwrap(), State::Running);
            assert_eq!(rest(&client).await.trim_end(), "last");
            drop(client);
            assert_eq!(timeout(LONG, wait).await.unwrap().unwrap().status, 0);
            // Who comes later is waited for by State, and by nobody while it is not there.
            let target = target(id, "");
            timeout(SHORT, pod.shim.delivered(&target)).await.expect("waits for nobody");
            let late = connect(pod, id).await;
            assert!(timeout(SHORT, pod.shim.delivered(&target)).await.is_err());
            drop(late);
            pod.end(id).await;
        }
    });
}

#[test]
fn without_a_client_nothing_is_waited_for() {
    alone(async |pod: &mut Pod| {
        create(pod, "c", "echo lost", paths("in", "out", false)).await;
        pod.start("c", "").await.unwrap();
        timeout(LONG / 4, pod.wait("c", "")).await.expect("the exit waits").unwrap();
        timeout(LONG / 4, pod.end("c")).await.expect("Delete waits");
    });
}

#[test]
fn an_exec_has_streams_and_ends_with_its_input() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "sleep 1000").await;
        let json = serde_json::to_vec(&process("read a; echo got $a; cat; echo end")).unwrap();
        pod.shim.exec(target("c", "e"), &json, paths("e-stdin", "e-stdout", false)).unwrap();
        pod.start("c", "e").await.unwrap();
        let (input, output) = (connect(pod, "e-stdin").await, connect(pod, "e-stdout").await);
        assert_eq!((input.end.way, output.end.way), (Way::In, Way::Out));
        input.end.unsent().extend_from_slice(b"this\n");
        input.end.flush().await.unwrap();
        drop(input);
        assert!(timeout(SHORT, pod.wait("c", "e")).await.is_err(), "a client's end is no EOF");
        pod.shim.close_stdin(&target("c", "e")).unwrap();
        assert_eq!(timeout(LONG, pod.wait("c", "e")).await.unwrap().unwrap().status, 0);
        assert_eq!(rest(&output).await, "got this\nend\n");
        drop(output);
        pod.delete("c", "e").await.unwrap();
        pod.end("c").await;
    });
}

#[test]
fn a_failed_create_gives_its_streams_back() {
    alone(async |pod: &mut Pod| {
        let mut spec = sh("true");
        spec["process"]["cwd"] = "/bin/sh".into();
        pod.write_bundle("c", &spec);
        let mut request = pod.request("c");
        request.stdio = paths("in", "out", false);
        pod.send(request.clone()).await.unwrap_err();
        assert!(pod.shim.streams.find("in").is_none() && pod.shim.streams.find("out").is_none());
        request.stdio.stderr = stream("out");
        let error = pod.send(request).await.unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists, "{error}");
        assert!(pod.shim.streams.find("in").is_none() && pod.shim.streams.find("out").is_none());
        std::fs::remove_dir_all(pod.bundle("c")).unwrap();
    });
}
