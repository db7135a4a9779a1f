//! The FIFOs of real processes: all that they say, and all that is said to them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::StdioPaths;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, sh, target, with};

/// containerd's ends of one process' FIFOs; all gone with it.
struct Client {
    paths: StdioPaths,
    stdin: Option<File>,
    stdout: File,
    stderr: Option<File>,
}

impl Client {
    fn new(pod: &Pod, terminal: bool) -> Client {
        let path = |name: &str| pod.dir.join(name).to_str().unwrap().to_owned();
        let open = |name: &str| {
            let path = path(name);
            mkfifo(path.as_str(), Mode::from_bits_truncate(0o700)).unwrap();
            let mut options = OpenOptions::new();
            options.read(true).write(name == "0").custom_flags(libc::O_NONBLOCK).open(path).unwrap()
        };
        let (stdin, stdout) = (Some(open("0")), open("1"));
        let stderr = (!terminal).then(|| open("2"));
        let error = if terminal { String::new() } else { path("2") };
        let paths = StdioPaths { stdin: path("0"), stdout: path("1"), stderr: error, terminal };
        Client { paths, stdin, stdout, stderr }
    }

    /// What there is until every writer is gone, while the loop goes on.
    async fn rest(file: &mut File) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 65536]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    async fn until(file: &mut File, want: &str) {
        let mut all = Vec::new();
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !String::from_utf8_lossy(&all).contains(want) {
            let said = String::from_utf8_lossy(&all);
            assert!(std::time::Instant::now() < end, "no {want:?} in {said:?}");
            let mut buffer = [0; 4096];
            match file.read(&mut buffer) {
                Ok(n) => all.extend_from_slice(&buffer[..n]),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
            tokio::task::yield_now().await;
        }
    }

    fn remove(self, pod: &Pod) {
        for name in ["0", "1", "2"] {
            let _ = std::fs::remove_file(pod.dir.join(name));
        }
    }
}

/// An init, or an exec in a container that runs.
async fn started(pod: &mut Pod, exec: &str, client: &Client, script: &str) {
    if exec.is_empty() {
        let spec = with(sh(""), "/process", speaking(script, client));
        pod.write_bundle("c", &spec);
        let mut request = pod.request("c");
        request.stdio = client.paths.clone();
        pod.send(request).await.unwrap();
    } else {
        pod.running("c", "sleep 100").await;
        let json = serde_json::to_vec(&speaking(script, client)).unwrap();
        pod.shim.exec(target("c", exec), &json, client.paths.clone()).unwrap();
    }
    pod.start("c", exec).await.unwrap();
}

fn speaking(script: &str, client: &Client) -> Value {
    let process = with(process(script), "/terminal", json!(client.paths.terminal));
    with(process, "/consoleSize", json!({"height": 24, "width": 80}))
}

#[test]
fn all_output_arrives() {
    alone(async |pod: &mut Pod| {
        for exec in ["", "e"] {
            let mut client = Client::new(pod, false);
            let script = "seq 1 100000; echo problem >&2; exit 2";
            started(pod, exec, &client, script).await;
            let output = Client::rest(&mut client.stdout).await;
            let want: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
            assert!(output == want.as_bytes(), "{} of {} bytes", output.len(), want.len());
            assert_eq!(Client::rest(client.stderr.as_mut().unwrap()).await, b"problem\n");
            assert_eq!(pod.wait("c", exec).await.unwrap().status, 2);
            let said = pod.shim.state(&target("c", exec)).unwrap();
            assert_eq!(said.stdio, client.paths, "as they came");
            pod.end("c").await;
            client.remove(pod);
        }
    });
}

#[test]
fn what_is_said_comes_back_until_the_end_of_stdin() {
    alone(async |pod: &mut Pod| {
        for exec in ["", "e"] {
            let mut client = Client::new(pod, false);
            started(pod, exec, &client, "cat; echo end").await;
            let mut stdin = client.stdin.take().unwrap();
            for n in 0..2000 {
                while stdin.write(format!("{n:07}\n").as_bytes()).is_err() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            // A client that comes back is not the end; CloseIO is.
            drop(stdin);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(pod.shim.state(&target("c", exec)).unwrap().exit.is_none());
            pod.shim.close_stdin(&target("c", exec)).unwrap();
            pod.shim.close_stdin(&target("c", exec)).unwrap();
            let output = Client::rest(&mut client.stdout).await;
            let want: String = (0..2000).map(|n| format!("{n:07}\n")).collect();
            assert_eq!(String::from_utf8(output).unwrap(), want + "end\n");
            assert_eq!(pod.wait("c", exec).await.unwrap().status, 0);
            pod.end("c").await;
            client.remove(pod);
        }
    });
}

#[test]
fn terminals() {
    alone(async |pod: &mut Pod| {
        for exec in ["", "e"] {
            let mut client = Client::new(pod, true);
            // Process 1 dies of no signal that it does not handle.
            let script = "trap 'exit 130' INT; test -t 0 -a -t 1 -a -t 2 && stty size; read word; stty size; \
                echo got $word; ls -l /dev/console 2>&1 | cut -c1; cat";
            let script = script.replace("stty", "busybox stty");
            started(pod, exec, &client, &script).await;
            Client::until(&mut client.stdout, "24 80").await;
            pod.shim.resize_pty(&target("c", exec), 132, 43).unwrap();
            client.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
            // The init's is the console; an exec has one of its own, and `ls` an error.
            let kind = if exec.is_empty() { "c" } else { "l" };
            let want = format!("43 132\r\ngot hello\r\n{kind}\r\n");
            Client::until(&mut client.stdout, &want).await;
            // What the terminal echoes, and what `cat` says: only then is it there to be stopped.
            client.stdin.as_mut().unwrap().write_all(b"ping\n").unwrap();
            Client::until(&mut client.stdout, "ping\r\nping\r\n").await;
            client.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
            assert_eq!(pod.wait("c", exec).await.unwrap().status, 130);
            Client::rest(&mut client.stdout).await;
            pod.shim.resize_pty(&target("c", exec), 1, 1).unwrap();
            pod.end("c").await;
            client.remove(pod);
        }
    });
}

#[test]
fn a_terminal_has_its_size_before_the_program_runs() {
    alone(async |pod: &mut Pod| {
        for (resized, want) in [(None, "24 80"), (Some((100, 30)), "30 100")] {
            let mut client = Client::new(pod, true);
            pod.write_bundle(
                "c",
                &with(sh(""), "/process", speaking("busybox stty size", &client)),
            );
            let mut request = pod.request("c");
            request.stdio = client.paths.clone();
            pod.send(request).await.unwrap();
            if let Some((width, height)) = resized {
                pod.shim.resize_pty(&target("c", ""), width, height).unwrap();
            }
            pod.start("c", "").await.unwrap();
            assert_eq!(pod.wait("c", "").await.unwrap().status, 0);
            let said = Client::rest(&mut client.stdout).await;
            assert_eq!(String::from_utf8(said).unwrap(), format!("{want}\r\n"));
            pod.end("c").await;
            client.remove(pod);
        }
    });
}

#[test]
fn a_user_may_open_its_own_stdout_again() {
    alone(async |pod: &mut Pod| {
        for exec in ["", "e"] {
            let mut client = Client::new(pod, false);
            let user = json!({"uid": 1000, "gid": 1000});
            if exec.is_empty() {
                let spec = with(sh("echo again > /dev/stdout"), "/process/user", user);
                pod.write_bundle("c", &spec);
                let mut request = pod.request("c");
                request.stdio = client.paths.clone();
                pod.send(request).await.unwrap();
            } else {
                pod.running("c", "sleep 100").await;
                let process = with(process("echo again > /dev/stdout"), "/user", user);
                let json = serde_json::to_vec(&process).unwrap();
                pod.shim.exec(target("c", exec), &json, client.paths.clone()).unwrap();
            }
            pod.start("c", exec).await.unwrap();
            assert_eq!(Client::rest(&mut client.stdout).await, b"again\n");
            assert_eq!(pod.wait("c", exec).await.unwrap().status, 0);
            pod.end("c").await;
            client.remove(pod);
        }
    });
}

#[test]
fn a_child_that_keeps_the_pipe_does_not_delay_the_exit() {
    alone(async |pod: &mut Pod| {
        let mut client = Client::new(pod, false);
        started(pod, "e", &client, "echo said; setsid sleep 100 & exit 6").await;
        assert_eq!(pod.wait("c", "e").await.unwrap().status, 6);
        Client::until(&mut client.stdout, "said").await;
        let shim = Arc::clone(&pod.shim);
        shim.kill(&target("c", ""), libc::SIGKILL as u32, false).unwrap();
        assert_eq!(Client::rest(&mut client.stdout).await, b"");
        pod.end("c").await;
        client.remove(pod);
    });
}
