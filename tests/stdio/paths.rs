//! What the stdio fields may name, and what a process is given for it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use containerd_shim_rs::api::StdioPaths;
use containerd_shim_rs::fifo::set_nonblocking;
use containerd_shim_rs::relay::{Relay, Sink};
use containerd_shim_rs::stdio::{Kind, Stdio};
use containerd_shim_rs::sys::io::Polled;
use tokio::io::Interest;

use crate::fixture::*;

#[test]
fn logs_to_files_are_appended_by_the_shim() {
    let dir = Dir::new();
    run(async {
        let log = dir.path("a/b c/log");
        let uri = format!("file://{}", log.replace(' ', "%20"));
        for stderr in [String::new(), uri.clone()] {
            let stdout = uri.clone();
            let paths = StdioPaths { stdin: String::new(), stdout, stderr, terminal: false };
            let (stdio, fds) = Stdio::open(&paths, Kind::DirectInit, (0, 0)).unwrap();
            // A container must not be able to empty the log.
            wait(sh("echo out > /dev/stdout; echo err >&2", fds)).await;
            stdio.drain(10 * SECOND).await;
        }
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!((text.matches("out\n").count(), text.matches("err\n").count()), (2, 2));

        let paths = StdioPaths { stdout: uri.clone(), ..StdioPaths::default() };
        let (stdio, [_, out, err]) = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap();
        drop(err);
        join(write_all(out.unwrap().into(), pattern(TEN_MB))).await;
        stdio.drain(10 * SECOND).await;
        assert_same(&fs::read(&log).unwrap()[text.len()..], &pattern(TEN_MB));

        fs::remove_file(&log).unwrap();
        fs::write(dir.path("precious"), "").unwrap();
        symlink(dir.path("precious"), &log).unwrap();
        let error = Stdio::open(&paths, Kind::Relay, (0, 0)).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ELOOP), "{error}");
    });
}

#[test]
fn a_full_disk_does_not_stop_the_writer() {
    let _dir = Dir::new();
    run(async {
        let (from, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let writer = write_all(ours.into(), pattern(1 << 20));
        set_nonblocking(&from).unwrap();
        let from = Polled::new(from, Interest::READABLE).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap().into();
        Relay::copy(&from, Sink::File(&full)).run().await.unwrap();
        join(writer).await;
    });
}

#[test]
fn what_is_not_a_fifo_is_refused_by_name() {
    let dir = Dir::new();
    run(async {
        fs::write(dir.path("file"), "").unwrap();
        symlink(dir.path("1"), dir.path("link")).unwrap();
        for kind in KINDS {
            for name in ["file", "link", "/dev/null", "absent"] {
                for (paths, field) in [
                    (dir.paths(name, "", ""), "stdin"),
                    (dir.paths("", name, ""), "stdout"),
                    (dir.paths("", "", name), "stderr"),
                    (dir.terminal("", name), "stdout"),
                ] {
                    let path = dir.path(name);
                    let expected = match name {
                        "absent" => format!("{field}: open({path:?}, O_PATH|O_NOFOLLOW): ENOENT"),
                        _ => format!("{field}: {path:?} is not a FIFO"),
                    };
                    let error = Stdio::open(&paths, kind, (0, 0)).unwrap_err();
                    assert_eq!(error.to_string(), expected);
                }
            }
        }
    });
}

#[test]
fn pipes_belong_to_the_owner_and_descriptors_are_as_a_process_expects() {
    let dir = Dir::new();
    for kind in KINDS {
        run(async {
            let (_stdio, fds) = Stdio::open(&dir.paths("0", "1", ""), kind, (1000, 1001)).unwrap();
            for (number, fd) in fds.into_iter().enumerate() {
                let file = File::from(fd.unwrap());
                let stat = file.metadata().unwrap();
                assert_eq!(stat.file_type().is_fifo(), number < 2);
                let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL).unwrap();
                assert_eq!(flags & libc_nonblock(), 0, "{number} is non-blocking");
                let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).unwrap();
                assert_eq!(flags, 1, "{number} is not FD_CLOEXEC");
                // `/dev/null` is everybody's.
                let owner = if number < 2 { (1000, 1001) } else { (0, 0) };
                assert_eq!((stat.uid(), stat.gid()), owner, "{number} {kind:?}");
            }
        });
    }
}
