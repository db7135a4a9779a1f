//! A bundle to run the real binary in, the servers that it starts, and system calls that fail on
//! demand. Ends by its pid every server that it started, and leaves no file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::Options;

pub const BINARY: &str = env!("CARGO_BIN_EXE_containerd-shim-rs-v2");
pub const NAMESPACE: &str = "launch-test";
pub const GRPC: &str = "/run/no-such-containerd/containerd.sock";
pub const LEGACY_SOCKETS: &str = "/run/containerd/s";

/// Nothing here takes a second; this is for a test that hangs because the code is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);
static LEGACY: Mutex<()> = Mutex::new(());

/// One bundle, and every server whose id is its id.
pub struct Bundle {
    root: PathBuf,
    /// The working directory.
    pub dir: PathBuf,
    pub sockets: PathBuf,
    pub id: String,
}

impl Bundle {
    /// None without the privilege that making a mount needs.
    pub fn new(below: &str) -> Option<Bundle> {
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: needs root");
            return None;
        }
        let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(format!("shim-launch-{id}"));
        let dir = root.join(below).join(NAMESPACE).join(&id);
        fs::create_dir_all(&dir).unwrap();
        Some(Bundle { sockets: root.join("s"), root, dir, id })
    }

    pub fn task() -> Option<Bundle> {
        Bundle::new("io.containerd.runtime.v2.task")
    }

    /// What containerd 2.3 writes on stdin.
    pub fn params(&self, options: Option<&Options>) -> Vec<u8> {
        let extensions = options.map(|options| Extension {
            value: MessageField::some(any(options)),
            ..Extension::default()
        });
        let params = BootstrapParams {
            instance_id: self.id.clone(),
            namespace: NAMESPACE.to_string(),
            containerd_ttrpc_address: format!("{GRPC}.ttrpc"),
            containerd_grpc_address: GRPC.to_string(),
            socket_dir: Some(self.sockets.display().to_string()),
            extensions: extensions.into_iter().collect(),
            ..BootstrapParams::default()
        };
        params.write_to_bytes().unwrap()
    }

    /// A binary of its own, which no other test runs. By cp: a descriptor of ours that is open for
    /// writing could be inherited by another test's child, and then nothing can run the file.
    pub fn copy_binary(&self) -> String {
        let copy = self.root.join("containerd-shim-rs-v2");
        assert!(Command::new("cp").arg(BINARY).arg(&copy).status().unwrap().success());
        copy.display().to_string()
    }

    /// The command that containerd runs for `action`.
    pub fn command(&self, action: &str) -> Command {
        self.command_of(BINARY, action)
    }

    pub fn command_of(&self, program: &str, action: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-namespace", NAMESPACE, "-address", GRPC, "-publish-binary", "/bin/true"]);
        command.args(["-id", &self.id]);
        if action == "delete" {
            command.arg("-bundle").arg(&self.dir);
        }
        command.arg(action).current_dir(&self.dir);
        command.env_clear().env("TTRPC_ADDRESS", "/env.ttrpc").env("SECRET", "of containerd");
        command.env("MAX_SHIM_VERSION", "2").env("PATH", "/usr/bin:/bin");
        command
    }

    /// `start` as containerd 2.3 calls it.
    pub fn start(&self) -> Output {
        self.finish(self.command("start"), &self.params(None))
    }

    /// Runs `command` to the end of its output, as containerd waits for it.
    pub fn finish(&self, mut command: Command, stdin: &[u8]) -> Output {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(child.wait_with_output()));
        match receiver.recv_timeout(PATIENCE) {
            Ok(output) => output.unwrap(),
            Err(_) => panic!("no end of stdout and stderr after {PATIENCE:?}"),
        }
    }

    /// The path of its socket when `socket_dir` is given.
    pub fn socket(&self) -> PathBuf {
        let address = containerd_shim::socket_address(GRPC, NAMESPACE, &self.id);
        self.sockets.join(Path::new(&address).file_name().unwrap())
    }

    /// The pids of its servers.
    pub fn servers(&self) -> Vec<i32> {
        let marker = format!("-id\0{}\0", self.id);
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains(&marker) && line.ends_with("\0serve\0")
        })
        .collect()
    }

    /// The pid of its only server.
    pub fn server(&self) -> i32 {
        let servers = self.servers();
        assert_eq!(servers.len(), 1, "{servers:?}");
        servers[0]
    }

    /// Sends `signal` to its servers and waits until they are gone.
    pub fn end_servers(&self, signal: i32) {
        for pid in self.servers() {
            // SAFETY: integers only; the pid was found by our own id.
            unsafe { libc::kill(pid, signal) };
        }
        eventually(|| match self.servers() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?} do not end")),
        });
    }

    /// Nothing that `start` makes is there.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.servers(), Vec::<i32>::new());
        assert!(!self.socket().exists(), "the socket is left");
        let left: Vec<_> = fs::read_dir(&self.dir).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for pid in self.servers() {
            // SAFETY: integers only; the pid was found by our own id.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The socket directory that old containerd versions take for granted. Removed if it was not there.
pub struct LegacySockets {
    new: Vec<PathBuf>,
    socket: PathBuf,
    _only: MutexGuard<'static, ()>,
}

impl LegacySockets {
    pub fn of(bundle: &Bundle) -> LegacySockets {
        let only = LEGACY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let dirs = Path::new(LEGACY_SOCKETS).ancestors().take(2);
        let new = dirs.filter(|dir| !dir.exists()).map(Path::to_path_buf).collect();
        let socket = Path::new(LEGACY_SOCKETS).join(bundle.socket().file_name().unwrap());
        LegacySockets { new, socket, _only: only }
    }

    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Drop for LegacySockets {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        for dir in &self.new {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A cgroup in two hierarchies of v1, or in the one of v2. Ends the servers in it.
pub struct Cgroups<'a> {
    pub name: String,
    pub dirs: Vec<PathBuf>,
    bundle: &'a Bundle,
}

impl Cgroups<'_> {
    pub fn new(bundle: &Bundle) -> Cgroups<'_> {
        let name = format!("/shim-launch-{}", bundle.id);
        let v1 = ["pids", "freezer"].map(|controller| format!("/sys/fs/cgroup/{controller}"));
        let mut roots: Vec<_> = v1.into_iter().filter(|root| Path::new(root).exists()).collect();
        if roots.is_empty() {
            roots.push("/sys/fs/cgroup".to_string());
        }
        let mut cgroups = Cgroups { dirs: Vec::new(), bundle, name };
        for root in roots {
            let dir = PathBuf::from(format!("{root}{}", cgroups.name));
            fs::create_dir(&dir).unwrap();
            cgroups.dirs.push(dir);
        }
        cgroups
    }
}

impl Drop for Cgroups<'_> {
    fn drop(&mut self) {
        self.bundle.end_servers(libc::SIGKILL);
        for dir in &self.dirs {
            // EBUSY until the kernel has forgotten the server.
            eventually(|| fs::remove_dir(dir));
        }
    }
}

/// Runtime options as containerd packs them.
pub fn any(options: &Options) -> Any {
    Any {
        type_url: "containerd.runc.v1.Options".to_string(),
        value: options.write_to_bytes().unwrap(),
        ..Any::default()
    }
}

/// What seccomp does with one system call.
pub fn on_syscall(command: &mut Command, number: i64, action: u32) {
    let instruction =
        |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 1 - jt, k };
    let filter = [
        // The number is the first field of seccomp_data.
        libc::sock_filter {
            code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        },
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, number as u32),
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action },
        libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ALLOW,
        },
    ];
    let install = move || {
        let program =
            libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: `program` and the filter that it points to outlive the call.
        let ret = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes one system call on what it owns.
    unsafe { command.pre_exec(install) };
}

/// Starts `command` with a signal ignored, a signal blocked and a descriptor too many.
pub fn burden(command: &mut Command) {
    let install = || {
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        let usr1 = 1_u64 << (libc::SIGUSR1 - 1);
        let (how, null) = (i64::from(libc::SIG_BLOCK), std::ptr::null_mut::<u64>());
        // SAFETY: the set outlives the call; 8 is its size.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const usr1, null, 8_usize) };
        // SAFETY: the path is NUL-terminated. Without O_CLOEXEC on purpose.
        if unsafe { libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(install) };
}

/// SECCOMP_RET_ERRNO with this errno.
pub fn fails_with(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// Tries until it works, two seconds at most.
pub fn eventually<E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<(), E>) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while let Err(error) = attempt() {
        assert!(Instant::now() < deadline, "{error:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn proc_file(pid: i32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap()
}

pub fn proc_link(pid: i32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap().display().to_string()
}

/// The binary that `pid` runs, opened so that it stays reachable when `pid` is gone.
pub fn hold_exe(pid: i32) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let path = format!("/proc/{pid}/exe");
    File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap()
}
