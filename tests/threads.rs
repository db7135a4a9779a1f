//! The serving process is one thread, whatever its clients do: `clone3`, `setns` and `unshare`
//! rely on it. Alone in its file, for the harness runs the tests of one file side by side.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{ConnectRequest, DeleteRequest, WaitRequest};
use containerd_shim_protos::sandbox_api::PlatformRequest;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::context::with_duration;
use containerd_shim_rs::events::{Event, Queue};
use containerd_shim_rs::service::{forward, server};
use containerd_shim_rs::shim::{Settings, Shim};

fn threads() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    line.trim().parse().unwrap()
}

async fn use_all(address: &SocketAddr) {
    let client = Client::new(Socket::try_from(UnixStream::connect_addr(address).unwrap()).unwrap());
    let (tasks, sandbox) = (TaskClient::new(client.clone()), SandboxClient::new(client));
    let limit = with_duration(Duration::from_secs(1));
    tasks.connect(limit.clone(), &ConnectRequest::new()).await.unwrap();
    sandbox.platform(limit.clone(), &PlatformRequest::new()).await.unwrap();
    let _ = tasks.delete(limit.clone(), &DeleteRequest::new()).await;
    let _ = tasks.wait(limit, &WaitRequest::new()).await;
}

#[tokio::test(flavor = "current_thread")]
async fn serving_starts_no_thread() {
    let before = threads();
    let name = format!("shim-threads-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let mut server = server(Shim::new(Settings::default()), listener).unwrap();
    server.start().await.unwrap();
    let queue = Arc::new(Queue::default());
    let away = || forward::connect("/nonexistent/containerd.sock.ttrpc");
    tokio::spawn(forward::run(queue.clone(), "test".to_string(), away));
    queue.push(Event::Oom { container_id: "web".into() });

    use_all(&address).await;
    assert_eq!(threads(), before, "after one client");
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move { use_all(&address).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(threads(), before, "after a hundred clients at once");
    tokio::time::sleep(Duration::from_millis(300)).await;
    use_all(&address).await;
    assert_eq!(threads(), before, "after idleness");
}
