//! The server: the process that stays, one for each pod.
//!
//! One thread. It must never block, and never write to anything but its sockets, its log and what
//! an RPC asks for.

use std::env;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::config::Config;
use containerd_shim_rs::error::{Doing, Error, Result};
use containerd_shim_rs::service::{self, forward};
use containerd_shim_rs::shim::{Settings, Shim};
use containerd_shim_rs::sys::exe;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use signal_hook::low_level::pipe;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::args::{self, Flags};
use crate::logger;
use crate::ready::Ready;
use crate::server;

/// The descriptors that `start` leaves, in the order of its list.
const LISTENER: RawFd = 3;
const READY: RawFd = 4;

/// For connections to take their last replies; containerd need not be there any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves until the pod has ended or a signal asks for the end.
pub fn run(flags: &Flags) -> Result<()> {
    let (id, namespace) = args::identity(flags)?;
    let inherited =
        |fd| exe::inherited(fd).doing(|| format!("descriptor {fd}, which only `start` can give"));
    let listener = UnixListener::from(inherited(LISTENER)?);
    let ready = Ready::new(inherited(READY)?);
    let served = prepare(flags).and_then(|bundle| {
        let settings = Settings {
            namespace: namespace.to_string(),
            id: id.to_string(),
            bundle,
            ttrpc_address: env::var("TTRPC_ADDRESS").unwrap_or_default(),
            socket: socket_path(&listener)?,
            config: config()?,
            idle_limit: None,
            systemd: Default::default(),
            resctrl: None,
        };
        Ok((runtime()?, settings))
    });
    match served {
        Ok((runtime, settings)) => runtime.block_on(serve(settings, listener, ready)),
        Err(error) => {
            ready.error(&error);
            Err(error)
        }
    }
    .inspect_err(|error| log::error!("{error}"))
}

/// What this process is before anything else runs in it. Returns the bundle.
fn prepare(flags: &Flags) -> Result<PathBuf> {
    let bundle = env::current_dir().doing(|| "getcwd")?;
    logger::install(logger::fifo(Path::new("log")), &flags.namespace, &flags.id, flags.debug);
    // The kernel cuts the name to 15 bytes; execveat of a file without a name left a number.
    prctl::set_name(c"containerd-shim-rs-v2").doing(|| "prctl(PR_SET_NAME)")?;
    // Orphans of a container without a PID namespace of its own become ours, not init's.
    prctl::set_child_subreaper(true).doing(|| "prctl(PR_SET_CHILD_SUBREAPER)")?;
    // A child is this process until its execve: nobody in a container may look at it.
    prctl::set_dumpable(false).doing(|| "prctl(PR_SET_DUMPABLE)")?;
    Ok(bundle)
}

/// Read here, where nobody waits yet for an answer.
fn config() -> Result<Config> {
    Config::read(env::var_os(server::CONFIG_PATH).map(PathBuf::from).as_deref())
}

fn socket_path(listener: &UnixListener) -> Result<PathBuf> {
    let address = listener.local_addr().doing(|| format!("getsockname({LISTENER})"))?;
    let path = address.as_pathname().map(Path::to_path_buf);
    path.ok_or_else(|| Error::invalid(format!("descriptor {LISTENER} is not a socket with a path")))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "make the event loop")
}

async fn serve(settings: Settings, listener: UnixListener, ready: Ready) -> Result<()> {
    let socket = settings.socket.clone();
    let shim = Shim::new(settings);
    let started = async {
        let signals = signals(&[Signal::SIGTERM, Signal::SIGINT]);
        let signals = signals.doing(|| "handle SIGTERM and SIGINT")?;
        let children = signals_of_children(&shim)?;
        tokio::spawn(children);
        tokio::spawn(events(shim.clone()));
        let mut server = service::server(shim.clone(), listener)?;
        server
            .start()
            .await
            .map_err(|error| Error::invalid(format!("start the ttrpc server: {error}")))?;
        Ok((signals, server))
    };
    let (mut signals, mut server) = match started.await {
        Ok(started) => started,
        Err(error) => {
            ready.error(&error);
            return Err(error);
        }
    };
    let ended = match ready.ready() {
        Ok(()) => {
            log::info!("serving on {socket:?}");
            tokio::select! {
                () = shim.ended() => ("the pod has ended", true),
                _ = signals.read_u8() => ("a signal asked for it", false),
            }
        }
        // Nobody knows the socket, so nobody will ever ask for the end.
        Err(_) => ("start is gone", false),
    };
    let (why, has_asked) = ended;
    log::info!("ending: {why}");
    // While the listener is still open: a socket that answers is nobody else's to replace, so this
    // one is still ours.
    let removed = match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("unlink {socket:?}"))
        }
        _ => Ok(()),
    };
    shim.flush().await;
    if has_asked {
        // Whoever asked for the end shall have its answer before the connection closes.
        shim.left_alone().await;
    }
    if timeout(CLOSE_TIMEOUT, server.shutdown()).await.is_err() {
        log::warn!("connections were still open after {CLOSE_TIMEOUT:?}");
    }
    removed
}

/// Buries the orphans of containers.
fn signals_of_children(shim: &Shim) -> Result<impl Future<Output = ()> + use<>> {
    let sigchld = signals(&[Signal::SIGCHLD]).doing(|| "handle SIGCHLD")?;
    Ok(shim.reaper().clone().run(sigchld))
}

/// Brings the events to containerd. Its socket is made in the host's network namespace: one made in
/// the pod's would keep that alive from containerd's end.
async fn events(shim: Arc<Shim>) {
    let Settings { namespace, ttrpc_address, .. } = shim.settings().clone();
    let connect = || shim.outside(|| forward::connect(&ttrpc_address));
    forward::run(shim.queue.clone(), namespace, connect).await;
}

/// A stream that gets a byte for each of these signals. No thread, and nothing but a write in the
/// handler.
fn signals(list: &[Signal]) -> io::Result<UnixStream> {
    let (reader, writer) = std::os::unix::net::UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in list {
        pipe::register(*signal as i32, writer.try_clone()?)?;
    }
    UnixStream::from_std(reader)
}
