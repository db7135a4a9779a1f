//! The services over a real socket, on the one thread that they are made for.

use std::future::pending;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::shim_async::{Client, Task, TaskClient};
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::{self, Code, context};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::call::{Call, detached, run};
use super::*;
use crate::error::{Error, Kind};
use crate::shim::Settings;

const LONG: Duration = Duration::from_secs(10);

/// A socket in the abstract namespace: nothing to clean up.
pub(super) fn socket() -> (UnixListener, SocketAddr) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("shim-service-test-{}-{count}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

fn client(address: &SocketAddr) -> Client {
    Client::new(Socket::try_from(UnixStream::connect_addr(address).unwrap()).unwrap())
}

/// The code and the text of an error.
fn code<T>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Ok(_) => (Code::OK, String::new()),
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        Err(other) => panic!("no answer: {other}"),
    }
}

/// A Task service whose verbs do what the tests need, run as ours are run.
#[derive(Debug, Default)]
struct Probe {
    begun: Arc<Notify>,
    proceed: Arc<Notify>,
    ended: Arc<Notify>,
    waiting: Arc<AtomicBool>,
}

struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

const KINDS: [(Kind, Code); 8] = [
    (Kind::InvalidArgument, Code::INVALID_ARGUMENT),
    (Kind::NotFound, Code::NOT_FOUND),
    (Kind::AlreadyExists, Code::ALREADY_EXISTS),
    (Kind::FailedPrecondition, Code::FAILED_PRECONDITION),
    (Kind::Unimplemented, Code::UNIMPLEMENTED),
    (Kind::DeadlineExceeded, Code::DEADLINE_EXCEEDED),
    (Kind::Unavailable, Code::UNAVAILABLE),
    (Kind::Unknown, Code::UNKNOWN),
];

#[async_trait]
impl Task for Probe {
    async fn create(
        &self,
        _: &TtrpcContext,
        _: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let (begun, proceed, ended) =
            (self.begun.clone(), self.proceed.clone(), self.ended.clone());
        detached(Call::new("Create", "probe"), async move {
            begun.notify_one();
            proceed.notified().await;
            ended.notify_one();
            Ok(CreateTaskResponse::new())
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, _: WaitRequest) -> ttrpc::Result<WaitResponse> {
        run(Call::new("Wait", "probe"), async {
            self.waiting.store(true, Ordering::Relaxed);
            let _waiting = Waiting(self.waiting.clone());
            self.begun.notify_one();
            pending().await
        })
        .await
    }

    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> ttrpc::Result<StateResponse> {
        let (kind, _) = KINDS[r.id.parse::<usize>().unwrap()];
        run(Call::new("State", &r.id), async { Err(Error::new(kind, "the text")) }).await
    }

    async fn start(&self, _: &TtrpcContext, _: StartRequest) -> ttrpc::Result<StartResponse> {
        detached(Call::new("Start", "probe"), async { panic!("start fell over") }).await
    }

    async fn kill(&self, _: &TtrpcContext, _: KillRequest) -> ttrpc::Result<Empty> {
        run(Call::new("Kill", "probe"), async { panic!("kill fell over") }).await
    }
}

async fn probe() -> (Arc<Probe>, Server, SocketAddr) {
    let (listener, address) = socket();
    let probe = Arc::new(Probe::default());
    let uid = nix::unistd::geteuid().as_raw();
    let listener = accept::listener(listener, uid, Arc::default(), Arc::default()).unwrap();
    let mut server =
        Server::new().register_service(create_task(probe.clone())).add_listener(listener);
    server.start().await.unwrap();
    (probe, server, address)
}

#[tokio::test]
async fn each_kind_of_error_arrives_as_its_code() {
    let (_probe, _server, address) = probe().await;
    let tasks = TaskClient::new(client(&address));
    for (i, (_, expected)) in KINDS.iter().enumerate() {
        let request = StateRequest { id: i.to_string(), ..Default::default() };
        let answer = tasks.state(context::with_duration(LONG), &request).await;
        assert_eq!(code(answer), (*expected, "the text".to_string()));
    }
}

#[tokio::test]
async fn a_create_ends_though_its_client_went_away() {
    let (probe, _server, address) = probe().await;
    let tasks = TaskClient::new(client(&address));
    let request = CreateTaskRequest::new();
    tokio::select! {
        _ = tasks.create(context::Context::default(), &request) => unreachable!(),
        _ = probe.begun.notified() => {}
    }
    drop(tasks);
    // Long enough for the server to see the end of the connection.
    tokio::time::sleep(Duration::from_millis(50)).await;
    probe.proceed.notify_one();
    timeout(LONG, probe.ended.notified()).await.unwrap();
}

#[tokio::test]
async fn a_create_ends_though_its_time_is_up() {
    let (probe, _server, address) = probe().await;
    let tasks = TaskClient::new(client(&address));
    let short = context::with_duration(Duration::from_millis(50));
    assert!(tasks.create(short, &CreateTaskRequest::new()).await.is_err());
    tokio::time::sleep(Duration::from_millis(50)).await;
    probe.proceed.notify_one();
    timeout(LONG, probe.ended.notified()).await.unwrap();
}

#[tokio::test]
async fn a_wait_ends_with_its_client() {
    let (probe, _server, address) = probe().await;
    let tasks = TaskClient::new(client(&address));
    let request = WaitRequest::new();
    tokio::select! {
        _ = tasks.wait(context::Context::default(), &request) => unreachable!(),
        _ = probe.begun.notified() => {}
    }
    assert!(probe.waiting.load(Ordering::Relaxed));
    drop(tasks);
    let gone = async {
        while probe.waiting.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, gone).await.unwrap();
}

#[tokio::test]
async fn a_panic_fails_its_own_call_only() {
    let (_probe, _server, address) = probe().await;
    let tasks = TaskClient::new(client(&address));
    let start = tasks.start(context::with_duration(LONG), &StartRequest::new()).await;
    assert_eq!(code(start), (Code::INTERNAL, "panic: start fell over".to_string()));
    let kill = tasks.kill(context::with_duration(LONG), &KillRequest::new()).await;
    assert_eq!(code(kill), (Code::INTERNAL, "panic: kill fell over".to_string()));
    let request = StateRequest { id: "0".into(), ..Default::default() };
    let state = tasks.state(context::with_duration(LONG), &request).await;
    assert_eq!(code(state).0, Code::INVALID_ARGUMENT);
}

/// The real services, and a client.
async fn real() -> (Server, Client) {
    let (listener, address) = socket();
    let mut server = server(Shim::new(Settings::default()), listener).unwrap();
    server.start().await.unwrap();
    (server, client(&address))
}

async fn call(client: &Client, service: &str, method: &str, payload: &[u8]) -> (Code, String) {
    let mut request = ttrpc::Request::new();
    request.service = service.to_string();
    request.method = method.to_string();
    request.payload = payload.to_vec();
    request.timeout_nano = LONG.as_nanos() as i64;
    code(client.request(request).await)
}

/// `options` of type `x`, which no verb takes: neither Create nor CreateSandbox gets past it.
const CREATE: &[u8] = b"\x52\x03\x0a\x01x";
const CREATE_SANDBOX: &[u8] = b"\x22\x03\x0a\x01x";

#[tokio::test]
async fn every_method_is_ours_under_every_name() {
    let (_server, client) = real().await;
    let tasks = [
        "State",
        "Start",
        "Delete",
        "Pids",
        "Pause",
        "Resume",
        "Checkpoint",
        "Kill",
        "Exec",
        "ResizePty",
        "CloseIO",
        "Update",
        "Wait",
        "Stats",
        "Connect",
        "Shutdown",
    ];
    let sandboxes = [
        "StartSandbox",
        "Platform",
        "StopSandbox",
        "WaitSandbox",
        "SandboxStatus",
        "PingSandbox",
        "SandboxMetrics",
        "ShutdownSandbox",
    ];
    let old = tasks.map(|method| (TASK_V2, method));
    let new = tasks.map(|method| ("containerd.task.v3.Task", method));
    let sandbox = sandboxes.map(|method| ("containerd.runtime.sandbox.v1.Sandbox", method));
    for (service, method) in old.into_iter().chain(new).chain(sandbox) {
        let (code, text) = call(&client, service, method, b"").await;
        // What the generated default, and a server without the name, would say.
        let foreign = text.starts_with('/') || text.contains(" service does not exist");
        assert!(!foreign && code != Code::INTERNAL, "{service}/{method}: {code:?} {text}");
    }
    let invalid = (Code::INVALID_ARGUMENT, "options have the unknown type \"x\"".to_string());
    assert_eq!(call(&client, TASK_V2, "Create", CREATE).await, invalid);
    assert_eq!(call(&client, "containerd.task.v3.Task", "Create", CREATE).await, invalid);
    let sandbox = "containerd.runtime.sandbox.v1.Sandbox";
    let (code, text) = call(&client, sandbox, "CreateSandbox", CREATE_SANDBOX).await;
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert_eq!(text, "sandbox options have the unknown type \"x\"");
}

#[tokio::test]
async fn checkpoint_is_refused_by_name() {
    let (_server, client) = real().await;
    let answer = call(&client, "containerd.task.v3.Task", "Checkpoint", b"").await;
    assert_eq!(answer, (Code::UNIMPLEMENTED, "Checkpoint is not supported".to_string()));
}

#[tokio::test]
async fn what_must_never_fail_does_not() {
    let (_server, client) = real().await;
    for (service, method) in [
        (TASK_V2, "Connect"),
        (TASK_V2, "Shutdown"),
        ("containerd.runtime.sandbox.v1.Sandbox", "Platform"),
        ("containerd.runtime.sandbox.v1.Sandbox", "ShutdownSandbox"),
    ] {
        assert_eq!(call(&client, service, method, b"").await.0, Code::OK, "{method}");
    }
}
