//! Brings events to containerd, in order, however long it is away.
//!
//! It must never block the loop: the socket is connected without waiting, and every try has a
//! deadline. An event is lost only to a full [`Queue`], or if containerd calls it invalid.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::{self, Code, context};
use containerd_shim_protos::{events, topics};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
use tokio::time::sleep;

use super::convert::{api_mount, pack, timestamp};
use crate::events::{Event, Queue};

/// How long one try, and the pauses between tries, may take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    attempt: Duration,
    first: Duration,
    longest: Duration,
}

const PACE: Pace = Pace {
    attempt: Duration::from_secs(5),
    first: Duration::from_millis(100),
    longest: Duration::from_secs(2),
};

/// Forwards what comes out of `queue` for ever. `connect` makes a connection to containerd's
/// TTRPC socket, at once or not at all; see [`connect`].
pub async fn run(
    queue: Arc<Queue>,
    namespace: String,
    connect: impl Fn() -> io::Result<UnixStream>,
) {
    Forwarder { namespace, connect, pace: PACE, client: None }.run(&queue).await
}

/// Connects to the socket at `address`, and fails with EAGAIN where that would take time.
pub fn connect(address: &str) -> io::Result<UnixStream> {
    let address = UnixAddr::new(address.trim_start_matches("unix://"))?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)?;
    Ok(UnixStream::from(socket))
}

struct Forwarder<C> {
    namespace: String,
    connect: C,
    pace: Pace,
    client: Option<EventsClient>,
}

/// Why an event is not at containerd.
enum Failure {
    /// containerd is away, or busy.
    Later(String),
    /// containerd will never take it.
    Refused(String),
}

impl<C: Fn() -> io::Result<UnixStream>> Forwarder<C> {
    async fn run(&mut self, queue: &Queue) {
        loop {
            let (at, event) = queue.next().await;
            match queue.dropped() {
                0 => {}
                lost => log::warn!("{lost} events were lost while containerd was away"),
            }
            self.deliver(envelope(&self.namespace, at, event)).await;
        }
    }

    /// Tries until containerd has it.
    async fn deliver(&mut self, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let request =
            api::ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let mut pause = self.pace.first;
        let mut failed = false;
        loop {
            let stale = self.client.is_some();
            let reason = match self.send(&request).await {
                Ok(()) => break,
                Err(Failure::Refused(reason)) => {
                    log::warn!("event {topic}: containerd refuses it: {reason}");
                    return;
                }
                Err(Failure::Later(reason)) => reason,
            };
            self.client = None;
            if stale {
                // containerd may have come back since the last event.
                continue;
            }
            if !failed {
                failed = true;
                log::warn!("event {topic}: {reason}; events wait for containerd");
            }
            sleep(pause).await;
            pause = self.pace.longest.min(pause * 2);
        }
        if failed {
            log::info!("events reach containerd again");
        }
    }

    async fn send(&mut self, request: &api::ForwardRequest) -> std::result::Result<(), Failure> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let socket = (self.connect)()
                    .and_then(Socket::try_from)
                    .map_err(|e| Failure::Later(format!("connect to containerd: {e}")))?;
                self.client.insert(EventsClient::new(Client::new(socket)))
            }
        };
        match client.forward(context::with_duration(self.pace.attempt), request).await {
            Ok(_) => Ok(()),
            // Not `{:?}` nor `{}`: both print the status by reflection.
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::INVALID_ARGUMENT => {
                Err(Failure::Refused(status.message))
            }
            Err(ttrpc::Error::RpcStatus(status)) => Err(Failure::Later(status.message)),
            Err(error) => Err(Failure::Later(error.to_string())),
        }
    }
}

fn envelope(namespace: &str, at: SystemTime, event: Event) -> Envelope {
    Envelope {
        timestamp: timestamp(at),
        namespace: namespace.to_string(),
        topic: topic(&event).to_string(),
        event: MessageField::some(message(event)),
        ..Default::default()
    }
}

fn topic(event: &Event) -> &'static str {
    match event {
        Event::Create { .. } => topics::TASK_CREATE_EVENT_TOPIC,
        Event::Start { .. } => topics::TASK_START_EVENT_TOPIC,
        Event::Exit { .. } => topics::TASK_EXIT_EVENT_TOPIC,
        Event::Delete { .. } => topics::TASK_DELETE_EVENT_TOPIC,
        Event::ExecAdded { .. } => topics::TASK_EXEC_ADDED_EVENT_TOPIC,
        Event::ExecStarted { .. } => topics::TASK_EXEC_STARTED_EVENT_TOPIC,
        Event::Paused { .. } => topics::TASK_PAUSED_EVENT_TOPIC,
        Event::Resumed { .. } => topics::TASK_RESUMED_EVENT_TOPIC,
        Event::Oom { .. } => topics::TASK_OOM_EVENT_TOPIC,
    }
}

fn message(event: Event) -> Any {
    use events::task::*;
    match event {
        Event::Create { container_id, bundle, rootfs, stdin, stdout, stderr, terminal, pid } => {
            let io = TaskIO { stdin, stdout, stderr, terminal, ..Default::default() };
            let mut create = TaskCreate { container_id, bundle, pid, ..Default::default() };
            create.rootfs = rootfs.into_iter().map(api_mount).collect();
            create.io = MessageField::some(io);
            pack("containerd.events.TaskCreate", &create)
        }
        Event::Start { container_id, pid } => {
            let start = TaskStart { container_id, pid, ..Default::default() };
            pack("containerd.events.TaskStart", &start)
        }
        Event::Exit { container_id, id, pid, exit } => {
            let mut message = TaskExit { container_id, id, pid, ..Default::default() };
            message.exit_status = exit.status;
            message.exited_at = timestamp(exit.at);
            pack("containerd.events.TaskExit", &message)
        }
        Event::Delete { container_id, pid, exit } => {
            let mut delete = TaskDelete { container_id, pid, ..Default::default() };
            delete.exit_status = exit.status;
            delete.exited_at = timestamp(exit.at);
            pack("containerd.events.TaskDelete", &delete)
        }
        Event::ExecAdded { container_id, exec_id } => {
            let added = TaskExecAdded { container_id, exec_id, ..Default::default() };
            pack("containerd.events.TaskExecAdded", &added)
        }
        Event::ExecStarted { container_id, exec_id, pid } => {
            let started = TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
            pack("containerd.events.TaskExecStarted", &started)
        }
        Event::Paused { container_id } => {
            let paused = TaskPaused { container_id, ..Default::default() };
            pack("containerd.events.TaskPaused", &paused)
        }
        Event::Resumed { container_id } => {
            let resumed = TaskResumed { container_id, ..Default::default() };
            pack("containerd.events.TaskResumed", &resumed)
        }
        Event::Oom { container_id } => {
            let oom = TaskOOM { container_id, ..Default::default() };
            pack("containerd.events.TaskOOM", &oom)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::SocketAddr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Instant, UNIX_EPOCH};

    use async_trait::async_trait;
    use containerd_shim_protos::protobuf::Message;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
    use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};
    use tokio::time::timeout;

    use super::*;
    use crate::events::Exit;
    use crate::service::tests::socket;

    const QUICK: Pace = Pace {
        attempt: Duration::from_millis(100),
        first: Duration::from_millis(5),
        longest: Duration::from_millis(10),
    };

    /// containerd: where it listens, if it runs, and what it heard.
    #[derive(Default)]
    struct Containerd {
        address: Mutex<Option<SocketAddr>>,
        connections: AtomicUsize,
        heard: Mutex<Vec<Envelope>>,
    }

    struct Service(Arc<Containerd>);

    #[async_trait]
    impl Events for Service {
        async fn forward(
            &self,
            _: &TtrpcContext,
            r: api::ForwardRequest,
        ) -> ttrpc::Result<api::Empty> {
            let envelope = r.envelope.unwrap();
            if envelope.topic == topics::TASK_PAUSED_EVENT_TOPIC {
                let status = ttrpc::get_status(Code::INVALID_ARGUMENT, "bad event");
                return Err(ttrpc::Error::RpcStatus(status));
            }
            self.0.heard.lock().unwrap().push(envelope);
            Ok(api::Empty::new())
        }
    }

    impl Containerd {
        async fn start(self: &Arc<Self>) -> Server {
            let (listener, address) = socket();
            let mut server = Server::new()
                .register_service(create_events(Arc::new(Service(self.clone()))))
                .add_listener(Listener::try_from(listener).unwrap());
            server.start().await.unwrap();
            *self.address.lock().unwrap() = Some(address);
            server
        }

        async fn stop(&self, mut server: Server) {
            *self.address.lock().unwrap() = None;
            server.shutdown().await.unwrap();
        }

        fn connect(&self) -> io::Result<UnixStream> {
            self.connections.fetch_add(1, Ordering::Relaxed);
            match &*self.address.lock().unwrap() {
                Some(address) => UnixStream::connect_addr(address),
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        }

        /// The containers whose start it heard of.
        fn started(&self) -> Vec<String> {
            let heard = self.heard.lock().unwrap();
            heard.iter().map(|e| started(&e.event.value)).collect()
        }
    }

    fn started(value: &[u8]) -> String {
        events::task::TaskStart::parse_from_bytes(value).unwrap().container_id
    }

    fn start(n: usize) -> Event {
        Event::Start { container_id: n.to_string(), pid: 1 }
    }

    /// A forwarder from the queue to `containerd`, until it is dropped.
    fn forward(containerd: &Arc<Containerd>) -> (Arc<Queue>, tokio::task::JoinHandle<()>) {
        let (queue, containerd) = (Arc::new(Queue::default()), containerd.clone());
        let connect = move || containerd.connect();
        let namespace = "k8s.io".to_string();
        let mut forwarder = Forwarder { namespace, connect, pace: QUICK, client: None };
        let taken = queue.clone();
        (queue, tokio::spawn(async move { forwarder.run(&taken).await }))
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn events_arrive_in_order_whenever_containerd_is_there() {
        let containerd = Arc::new(Containerd::default());
        let (queue, _task) = forward(&containerd);
        (0..3).for_each(|n| queue.push(start(n)));
        assert!(!queue.flush(Duration::from_millis(50)).await, "containerd is not there yet");
        assert!(containerd.connections.load(Ordering::Relaxed) > 1, "it must try again");

        let server = containerd.start().await;
        assert!(queue.flush(LONG).await);
        let connections = containerd.connections.load(Ordering::Relaxed);
        (3..6).for_each(|n| queue.push(start(n)));
        assert!(queue.flush(LONG).await);
        assert_eq!(connections, containerd.connections.load(Ordering::Relaxed), "one is kept");

        containerd.stop(server).await;
        (6..9).for_each(|n| queue.push(start(n)));
        assert!(!queue.flush(Duration::from_millis(50)).await, "containerd is away");
        let _server = containerd.start().await;
        assert!(queue.flush(LONG).await);
        assert_eq!(containerd.started(), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    }

    #[tokio::test]
    async fn an_event_that_containerd_refuses_does_not_hold_up_the_rest() {
        let containerd = Arc::new(Containerd::default());
        let _server = containerd.start().await;
        let (queue, _task) = forward(&containerd);
        queue.push(Event::Paused { container_id: "p".into() });
        queue.push(start(1));
        assert!(queue.flush(LONG).await);
        assert_eq!(containerd.started(), ["1"]);
    }

    #[tokio::test]
    async fn a_containerd_that_hangs_is_given_up() {
        let containerd = Arc::new(Containerd::default());
        let (listener, address) = socket();
        *containerd.address.lock().unwrap() = Some(address);
        let (queue, _task) = forward(&containerd);
        queue.push(start(1));
        let two = async {
            while containerd.connections.load(Ordering::Relaxed) < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, two).await.unwrap();
        let _server = containerd.start().await;
        assert!(queue.flush(LONG).await);
        assert_eq!(containerd.started(), ["1"]);
        drop(listener);
    }

    #[test]
    fn an_envelope_has_all_that_containerd_checks() {
        let at = UNIX_EPOCH + Duration::from_secs(5);
        let exit = Exit { status: 137, at: UNIX_EPOCH + Duration::from_secs(4) };
        let (container_id, id) = ("web".to_string(), "e1".to_string());
        let envelope = envelope("k8s.io", at, Event::Exit { container_id, id, pid: 9, exit });
        assert_eq!((envelope.timestamp.seconds, envelope.namespace.as_str()), (5, "k8s.io"));
        assert_eq!(envelope.topic, "/tasks/exit");
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        let exit = events::task::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str(), exit.pid), ("web", "e1", 9));
        assert_eq!((exit.exit_status, exit.exited_at.seconds), (137, 4));
    }

    #[test]
    fn each_event_has_its_topic_and_type() {
        let id = || "x".to_string();
        let exit = Exit { status: 0, at: UNIX_EPOCH };
        let create = Event::Create {
            container_id: id(),
            bundle: id(),
            rootfs: vec![],
            stdin: id(),
            stdout: id(),
            stderr: id(),
            terminal: true,
            pid: 1,
        };
        for (event, expected) in [
            (create, "/tasks/create TaskCreate"),
            (start(1), "/tasks/start TaskStart"),
            (Event::Delete { container_id: id(), pid: 1, exit }, "/tasks/delete TaskDelete"),
            (
                Event::ExecAdded { container_id: id(), exec_id: id() },
                "/tasks/exec-added TaskExecAdded",
            ),
            (
                Event::ExecStarted { container_id: id(), exec_id: id(), pid: 1 },
                "/tasks/exec-started TaskExecStarted",
            ),
            (Event::Paused { container_id: id() }, "/tasks/paused TaskPaused"),
            (Event::Resumed { container_id: id() }, "/tasks/resumed TaskResumed"),
            (Event::Oom { container_id: id() }, "/tasks/oom TaskOOM"),
        ] {
            let envelope = envelope("ns", UNIX_EPOCH, event);
            let name = envelope.event.type_url.strip_prefix("containerd.events.").unwrap();
            assert_eq!(format!("{} {name}", envelope.topic), expected);
        }
    }

    #[test]
    fn a_connection_is_made_at_once_or_not_at_all() {
        let path = std::env::temp_dir().join(format!("shim-forward-{}", std::process::id()));
        let address = format!("unix://{}", path.display());
        assert_eq!(connect(&address).unwrap_err().kind(), io::ErrorKind::NotFound);
        let flags = SockFlag::SOCK_CLOEXEC;
        let family = AddressFamily::Unix;
        let server = nix::sys::socket::socket(family, SockType::Stream, flags, None).unwrap();
        nix::sys::socket::bind(
            std::os::fd::AsRawFd::as_raw_fd(&server),
            &UnixAddr::new(&path).unwrap(),
        )
        .unwrap();
        nix::sys::socket::listen(&server, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let since = Instant::now();
        let mut made = Vec::new();
        let error = loop {
            match connect(&address) {
                Ok(stream) => made.push(stream),
                Err(error) => break error,
            }
        };
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!made.is_empty() && since.elapsed() < LONG);
    }
}
