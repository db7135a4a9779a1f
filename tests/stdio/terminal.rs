//! Processes with a terminal.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::{self};

use containerd_shim_rs::stdio::{Kind, Stdio};
use nix::unistd::ttyname;
use tokio::time::sleep;

use crate::fixture::*;

#[test]
fn last_words_on_a_terminal_wait_for_a_late_reader() {
    let dir = Dir::new();
    run(async {
        let paths = dir.terminal("", "1");
        let (mut stdio, _) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let (master, slave) = pty();
        stdio.attach(master).unwrap();
        File::from(slave).write_all(b"last words").unwrap();
        stdio.exited();
        sleep(SECOND / 5).await;
        let text = join(thread::spawn(move || fs::read_to_string(paths.stdout))).await;
        assert_eq!(text.unwrap(), "last words");
    });
}

#[test]
fn large_output_of_a_terminal_is_whole() {
    let dir = Dir::new();
    for pause in [SLOW, FAST] {
        run(async {
            let paths = dir.terminal("0", "1");
            let (mut stdio, fds) = Stdio::open(&paths, Kind::DirectInit, (0, 0)).unwrap();
            assert!(fds.iter().all(Option::is_none));
            let (master, slave) = pty();
            stdio.attach(master).unwrap();
            let reader = read_all(reader(&paths.stdout), pause);
            let writer = write_all(slave.into(), pattern(TEN_MB));
            join(writer).await;
            stdio.exited();
            assert_same(&join(reader).await, &pattern(TEN_MB));
            stdio.drain(10 * SECOND).await;
        });
    }
}

#[test]
fn a_terminal_takes_input_and_sizes_and_no_end_of_input() {
    let dir = Dir::new();
    run(async {
        let paths = dir.terminal("0", "1");
        let (mut stdio, _) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let (master, slave) = pty();
        stdio.attach(master).unwrap();
        stdio.resize(132, 43).unwrap();
        let reader = read_all(reader(&paths.stdout), FAST);
        let mut child = on_pty("read a; echo got $a; stty size; read b; echo $b", &slave);
        drop(slave);
        fs::write(&paths.stdin, "this\n").unwrap();
        let mut client = OpenOptions::new().write(true).open(&paths.stdin).unwrap();
        stdio.close_stdin();
        sleep(SECOND / 5).await;
        assert!(child.try_wait().unwrap().is_none(), "CloseIO ended the input of a terminal");
        client.write_all(b"that\n").unwrap();
        wait(child).await;
        stdio.exited();
        stdio.resize(1, 1).unwrap();
        assert_eq!(join(reader).await, b"got this\n43 132\nthat\n");
    });
}

#[test]
fn ten_megabytes_are_typed_without_loss() {
    let dir = Dir::new();
    run(async {
        let paths = dir.terminal("0", "");
        let (mut stdio, _) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let (master, slave) = pty();
        stdio.attach(master).unwrap();
        let client = OpenOptions::new().write(true).open(&paths.stdin).unwrap();
        let typist = write_all(client, pattern(TEN_MB));
        let mut slave = File::from(slave);
        let process = thread::spawn(move || {
            let mut all = vec![0; TEN_MB];
            slave.read_exact(&mut all).map(|()| all)
        });
        join(typist).await;
        assert_same(&join(process).await.unwrap(), &pattern(TEN_MB));
    });
}

#[test]
fn a_terminal_can_be_closed_and_opened_again() {
    let dir = Dir::new();
    run(async {
        let paths = dir.terminal("0", "1");
        let (mut stdio, _) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        let (master, slave) = pty();
        let name = ttyname(&slave).unwrap();
        stdio.attach(master).unwrap();
        let reader = read_all(reader(&paths.stdout), FAST);
        File::from(slave).write_all(b"before ").unwrap();
        sleep(SECOND / 10).await;
        let noctty = nix::fcntl::OFlag::O_NOCTTY.bits();
        let mut options = OpenOptions::new();
        let mut slave = options.read(true).write(true).custom_flags(noctty).open(name).unwrap();
        sleep(SECOND / 2).await;
        let before = cpu();
        sleep(SECOND / 2).await;
        assert!(cpu() - before < SECOND / 20, "the loop spins: {:?}", cpu() - before);
        slave.write_all(b"after").unwrap();
        drop(slave);
        stdio.exited();
        assert_eq!(join(reader).await, b"before after");
    });
}
