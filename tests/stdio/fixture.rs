//! FIFOs, ptys, children, and both ends' programs. It must leave nothing behind.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use containerd_shim_rs::api::StdioPaths;
use containerd_shim_rs::stdio::Kind;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::mkfifo;
use tokio::time::{sleep, timeout};

pub const KINDS: [Kind; 2] = [Kind::DirectInit, Kind::Relay];
pub const TEN_MB: usize = 10 << 20;
pub const SECOND: Duration = Duration::from_secs(1);
static TURN: Mutex<()> = Mutex::new(());

/// A directory with FIFOs, gone with the test.
pub struct Dir(pub PathBuf, #[allow(dead_code)] MutexGuard<'static, ()>);

impl Dir {
    pub fn new() -> Dir {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut template = std::env::temp_dir().join("stdio-XXXXXX").into_os_string();
        template = nix::unistd::mkdtemp(template.as_os_str()).unwrap().into_os_string();
        let dir = Dir(template.into(), turn);
        for name in ["0", "1", "2"] {
            mkfifo(&dir.0.join(name), Mode::from_bits_truncate(0o700)).unwrap();
        }
        dir
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn paths(&self, stdin: &str, stdout: &str, stderr: &str) -> StdioPaths {
        let path = |name: &str| if name.is_empty() { String::new() } else { self.path(name) };
        let (stdin, stdout, stderr) = (path(stdin), path(stdout), path(stderr));
        StdioPaths { stdin, stdout, stderr, terminal: false }
    }

    pub fn terminal(&self, stdin: &str, stdout: &str) -> StdioPaths {
        StdioPaths { terminal: true, ..self.paths(stdin, stdout, "") }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

pub fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(20 * SECOND, test).await.expect("the test hangs") })
}

/// Waits for a thread while the loop goes on.
pub async fn join<T>(thread: JoinHandle<T>) -> T {
    while !thread.is_finished() {
        sleep(Duration::from_millis(2)).await;
    }
    thread.join().unwrap()
}

pub async fn wait(mut child: Child) {
    while child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(2)).await;
    }
}

/// Runs `script` on the three descriptors.
pub fn sh(script: &str, fds: [Option<OwnedFd>; 3]) -> Child {
    let [stdin, stdout, stderr] = fds.map(Option::unwrap);
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(stdin).stdout(stdout).stderr(stderr);
    command.spawn().unwrap()
}

/// Bytes that show a gap, a repetition or a swap.
pub fn pattern(len: usize) -> Vec<u8> {
    let lines = (0..).flat_map(|line: u32| format!("line {line}\n").into_bytes());
    lines.take(len).collect()
}

pub fn assert_same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "not the bytes that were written");
}

/// Writes all in a thread; an EPIPE fails the test.
pub fn write_all(mut file: File, bytes: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || file.write_all(&bytes).unwrap())
}

/// Reads to EOF in a thread, with a pause after each `pause.0` bytes.
pub fn read_all(mut file: File, pause: (usize, Duration)) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), vec![0; pause.0]);
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => return all,
                n => all.extend_from_slice(&buffer[..n]),
            }
            thread::sleep(pause.1);
        }
    })
}

pub const FAST: (usize, Duration) = (1 << 16, Duration::ZERO);
pub const SLOW: (usize, Duration) = (50_000, Duration::from_millis(1));

/// As containerd opens its end at once and blocks in no `open`.
pub fn reader(path: &str) -> File {
    let file = OpenOptions::new().read(true).custom_flags(libc_nonblock()).open(path).unwrap();
    let flags = nix::fcntl::OFlag::empty();
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    file
}

pub fn libc_nonblock() -> i32 {
    nix::fcntl::OFlag::O_NONBLOCK.bits()
}

pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// CPU time of this thread, which is the loop's.
pub fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// A pty whose slave changes no byte.
pub fn pty() -> (OwnedFd, OwnedFd) {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let mut termios = tcgetattr(&slave).unwrap();
    cfmakeraw(&mut termios);
    tcsetattr(&slave, SetArg::TCSANOW, &termios).unwrap();
    for fd in [&master, &slave] {
        let cloexec = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(fd, cloexec).unwrap();
    }
    (master, slave)
}

pub fn on_pty(script: &str, slave: &OwnedFd) -> Child {
    sh(script, [0; 3].map(|_| Some(slave.try_clone().unwrap())))
}
