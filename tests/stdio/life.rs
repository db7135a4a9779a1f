//! Relayed and direct streams: what arrives, when EOF does, and that nothing stays open.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::thread::{self};
use std::time::{Duration, Instant};

use containerd_shim_rs::fifo::set_nonblocking;
use containerd_shim_rs::relay::{Relay, Sink};
use containerd_shim_rs::stdio::{Kind, Stdio};
use containerd_shim_rs::sys::io::Polled;
use tokio::io::Interest;
use tokio::time::sleep;

use crate::fixture::*;

#[test]
fn a_slow_reader_gets_every_byte_then_eof() {
    let dir = Dir::new();
    for kind in KINDS {
        run(async {
            let paths = dir.paths("", "1", "2");
            let (mut stdio, [_, out, err]) = Stdio::open(&paths, kind, (0, 0)).unwrap();
            let out_reader = read_all(reader(&paths.stdout), SLOW);
            let err_reader = read_all(reader(&paths.stderr), FAST);
            let out_writer = write_all(out.unwrap().into(), pattern(TEN_MB));
            write_all(err.unwrap().into(), b"err".to_vec());
            join(out_writer).await;
            stdio.exited();
            // EOF comes by itself, not with Delete: clients wait for it first.
            assert_same(&join(out_reader).await, &pattern(TEN_MB));
            assert_eq!(join(err_reader).await, b"err");
            stdio.drain(10 * SECOND).await;
        });
    }
}

#[test]
fn a_full_fifo_stops_the_writer_and_costs_no_cpu() {
    let dir = Dir::new();
    run(async {
        let paths = dir.paths("", "1", "");
        let (stdio, [_, out, _]) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let writer = write_all(out.unwrap().into(), pattern(1 << 20));
        sleep(SECOND / 10).await;
        let before = cpu();
        sleep(SECOND / 2).await;
        assert!(cpu() - before < SECOND / 20, "the loop spins: {:?}", cpu() - before);
        assert!(!writer.is_finished());
        let reader = read_all(reader(&paths.stdout), FAST);
        join(writer).await;
        stdio.drain(10 * SECOND).await;
        assert_same(&join(reader).await, &pattern(1 << 20));
    });
}

#[test]
fn a_restart_of_the_reader_loses_nothing() {
    let dir = Dir::new();
    for kind in KINDS {
        run(async {
            let paths = dir.paths("", "1", "");
            let (mut stdio, [_, out, _]) = Stdio::open(&paths, kind, (0, 0)).unwrap();
            let mut first = reader(&paths.stdout);
            let writer = write_all(out.unwrap().into(), pattern(TEN_MB));
            let mut all = vec![0; 1 << 20];
            let taken = thread::spawn(move || first.read_exact(&mut all).map(|()| all));
            let mut all = join(taken).await.unwrap();
            // Nobody reads now; the writer fills what there is and waits.
            sleep(SECOND / 5).await;
            assert!(!writer.is_finished());
            let second = read_all(reader(&paths.stdout), FAST);
            join(writer).await;
            stdio.exited();
            all.extend(join(second).await);
            assert_same(&all, &pattern(TEN_MB));
        });
    }
}

#[test]
fn last_words_wait_for_a_late_reader() {
    let dir = Dir::new();
    for kind in KINDS {
        run(async {
            let paths = dir.paths("", "1", "2");
            let (mut stdio, fds) = Stdio::open(&paths, kind, (0, 0)).unwrap();
            wait(sh("echo last words; echo sorry >&2", fds)).await;
            stdio.exited();
            sleep(SECOND / 5).await;
            // A blocking open, as containerd's: it returns only because a write end is held.
            for (path, words) in [(&paths.stdout, "last words\n"), (&paths.stderr, "sorry\n")] {
                let path = path.clone();
                let text = join(thread::spawn(move || fs::read_to_string(path))).await;
                assert_eq!(text.unwrap(), words, "{kind:?}");
            }
        });
    }
}

#[test]
fn a_flood_of_output_leaves_the_loop_its_turns() {
    let _dir = Dir::new();
    run(async {
        let (from, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let size = nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        File::from(ours).write_all(&vec![0; size as usize]).unwrap();
        set_nonblocking(&from).unwrap();
        let from = Polled::new(from, Interest::READABLE).unwrap();
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap().into();
        let mut relay = Relay::copy(&from, Sink::File(&null));
        let (mut turns, mut run) = (0, std::pin::pin!(relay.run()));
        let end = std::future::poll_fn(|wake| {
            turns += 1;
            run.as_mut().poll(wake)
        });
        end.await.unwrap();
        // One turn more than the wait for readiness: a megabyte is no single turn.
        assert!(turns > 2, "{turns} turns");
    });
}

#[test]
fn delete_ends_output_that_a_daemonised_child_holds() {
    let dir = Dir::new();
    run(async {
        let paths = dir.paths("", "1", "");
        let (stdio, fds) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let reader = read_all(reader(&paths.stdout), FAST);
        wait(sh("sleep 60 & echo $!", fds)).await;
        let start = Instant::now();
        stdio.drain(SECOND / 2).await;
        assert!((SECOND / 2..SECOND * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
        let pid = String::from_utf8(join(reader).await).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    });
}

#[test]
fn delete_does_not_wait_for_a_reader() {
    let dir = Dir::new();
    for kind in KINDS {
        run(async {
            let (stdio, fds) = Stdio::open(&dir.paths("", "1", "2"), kind, (0, 0)).unwrap();
            wait(sh("echo unheard", fds)).await;
            let start = Instant::now();
            stdio.drain(10 * SECOND).await;
            assert!(start.elapsed() < SECOND);
        });
    }
}

#[test]
fn stdin_stays_open_between_clients_until_close_io() {
    let dir = Dir::new();
    for kind in KINDS {
        run(async {
            let paths = dir.paths("0", "1", "");
            let (mut stdio, fds) = Stdio::open(&paths, kind, (0, 0)).unwrap();
            let reader = read_all(reader(&paths.stdout), FAST);
            let mut cat = sh("cat", fds);
            for word in ["one ", "two "] {
                sleep(SECOND / 10).await;
                assert!(cat.try_wait().unwrap().is_none(), "cat saw EOF");
                fs::write(&paths.stdin, word).unwrap();
            }
            // What the client wrote before CloseIO arrives before the EOF.
            let mut client = OpenOptions::new().write(true).open(&paths.stdin).unwrap();
            client.write_all(&pattern(60_000)).unwrap();
            stdio.close_stdin();
            drop(client);
            stdio.close_stdin();
            wait(cat).await;
            stdio.exited();
            assert_same(&join(reader).await, &[b"one two ", &pattern(60_000)[..]].concat());
        });
    }
}

#[test]
fn ten_megabytes_of_stdin_reach_a_slow_process() {
    let dir = Dir::new();
    run(async {
        let paths = dir.paths("0", "", "");
        let (mut stdio, [stdin, ..]) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let process = read_all(stdin.unwrap().into(), SLOW);
        let client = OpenOptions::new().write(true).open(&paths.stdin).unwrap();
        join(write_all(client, pattern(TEN_MB))).await;
        stdio.close_stdin();
        assert_same(&join(process).await, &pattern(TEN_MB));
    });
}

#[test]
fn an_exit_ends_stdin() {
    let dir = Dir::new();
    run(async {
        let paths = dir.paths("0", "", "");
        let (mut stdio, fds) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let mut client = OpenOptions::new().write(true).open(&paths.stdin).unwrap();
        wait(sh("true", fds)).await;
        stdio.exited();
        sleep(SECOND / 20).await;
        assert_eq!(client.write(b"anyone?").unwrap_err().kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_thousand_rounds_leave_no_descriptor() {
    let dir = Dir::new();
    run(async {
        let mut before = 0;
        for round in 0..1000 {
            // The first rounds open what the runtime keeps.
            if round == 8 {
                before = descriptors();
            }
            let terminal = round % 4 == 3;
            let paths = match terminal {
                true => dir.terminal("0", "1"),
                false => dir.paths("0", "1", "2"),
            };
            let (mut stdio, fds) = Stdio::open(&paths, KINDS[round % 2], (0, 0)).unwrap();
            if terminal {
                let (master, slave) = pty();
                stdio.attach(master).unwrap();
                File::from(slave).write_all(b"x").unwrap();
            } else if let Some(out) = &fds[1] {
                File::from(out.try_clone().unwrap()).write_all(b"x").unwrap();
            }
            // Every way out: an orderly one, a deadline, a launch that failed.
            match round % 3 {
                0 => {
                    drop(fds);
                    stdio.exited();
                    stdio.drain(SECOND).await;
                }
                1 => stdio.drain(Duration::from_millis(1)).await,
                _ => drop(stdio),
            }
        }
        // Tasks that were dropped end at the loop's next turn.
        sleep(SECOND / 20).await;
        assert_eq!(descriptors(), before);
    });
}
