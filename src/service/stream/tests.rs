//! Streams of a real server, to real processes, for ttrpc's own client.

use std::process::{Child, Command};

use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::asynchronous::{Client as Connection, Server, StreamInner};
use containerd_shim_protos::ttrpc::{Error as TtrpcError, Request};
use tokio::time::sleep;

use super::*;
use crate::api::StdioPaths;
use crate::error::Kind as ErrorKind;
use crate::service::tests::socket;
use crate::shim::{Settings, Shim};
use crate::stdio::{Kind, Stdio};

const LONG: Duration = Duration::from_secs(20);

/// A server, and what its processes' stdio is named.
struct Place {
    shim: Arc<Shim>,
    _server: Server,
    address: std::os::unix::net::SocketAddr,
}

impl Place {
    async fn new() -> Place {
        let (listener, address) = socket();
        let shim = Shim::new(Settings::default());
        let mut server = crate::service::server(shim.clone(), listener).unwrap();
        server.start().await.unwrap();
        Place { shim, _server: server, address }
    }

    /// Runs `script` with the streams `names`.
    fn run(&self, script: &str, names: [&str; 3]) -> (Stdio, Child) {
        let [stdin, stdout, stderr] = names.map(|name| match name {
            "" => String::new(),
            name => format!("ttrpc+unix:///any?streaming_id={name}"),
        });
        let paths = StdioPaths { stdin, stdout, stderr, terminal: false };
        let (stdio, fds) =
            Stdio::open_with(&paths, Kind::DirectInit, (0, 0), None, &self.shim.streams).unwrap();
        let [stdin, stdout, stderr] = fds.map(Option::unwrap);
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(stdin).stdout(stdout).stderr(stderr);
        (stdio, command.spawn().unwrap())
    }

    /// A connection with one stream, to which nothing was said.
    async fn silent(&self) -> Peer {
        let socket = std::os::unix::net::UnixStream::connect_addr(&self.address).unwrap();
        let connection = Connection::new(Socket::try_from(socket).unwrap());
        let mut request = Request::new();
        request.service = "containerd.services.streaming.v1.Streaming".into();
        request.method = "Stream".into();
        let stream = connection.new_stream(request, true, true).await.unwrap();
        Peer { stream, _connection: connection }
    }

    /// The same, acknowledged.
    async fn connect(&self, id: &str) -> Peer {
        let mut peer = self.silent().await;
        let init = StreamInit { id: id.into(), ..Default::default() };
        peer.say(INIT_TYPE, &init).await;
        assert_eq!(peer.next().await.unwrap(), (EMPTY_TYPE.to_string(), Vec::new()));
        peer
    }
}

struct Peer {
    stream: StreamInner,
    _connection: Connection,
}

impl Peer {
    async fn say(&mut self, name: &str, message: &impl Message) {
        let value = message.write_to_bytes().unwrap();
        let any = Any { type_url: name.into(), value, ..Default::default() };
        self.stream.send(any.write_to_bytes().unwrap()).await.unwrap();
    }

    async fn grant(&mut self, update: i32) {
        self.say(WINDOW_TYPE, &WindowUpdate { update, ..Default::default() }).await;
    }

    async fn data(&mut self, data: &[u8]) {
        self.say(DATA_TYPE, &Data { data: data.to_vec(), ..Default::default() }).await;
    }

    /// The name and the bytes of the next message.
    async fn next(&mut self) -> ttrpc::Result<(String, Vec<u8>)> {
        let bytes = timeout(LONG, self.stream.recv()).await.expect("nothing comes")?;
        let any = Any::parse_from_bytes(&bytes).unwrap();
        Ok((any.type_url, any.value))
    }

    /// The next bytes of an output; None: its end.
    async fn read(&mut self) -> Option<Vec<u8>> {
        match self.next().await {
            Ok((name, value)) => {
                assert_eq!(name, DATA_TYPE);
                Some(Data::parse_from_bytes(&value).unwrap().data)
            }
            Err(TtrpcError::Eof) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Reads to the end as containerd does: a window more whenever less than one is left.
    async fn read_all(&mut self) -> Vec<u8> {
        let (mut all, mut granted) = (Vec::new(), 0);
        loop {
            if granted < WINDOW {
                self.grant(WINDOW as i32).await;
                granted += WINDOW;
            }
            let Some(bytes) = self.read().await else { return all };
            assert!(bytes.len() <= granted, "more than was asked for");
            granted -= bytes.len();
            all.extend(bytes);
        }
    }

    /// Sends when it may, as containerd does.
    async fn write_all(&mut self, mut bytes: &[u8]) {
        let mut granted = 0;
        while !bytes.is_empty() {
            if granted == 0 {
                let (name, value) = self.next().await.unwrap();
                assert_eq!(name, WINDOW_TYPE);
                granted = WindowUpdate::parse_from_bytes(&value).unwrap().update as usize;
            }
            let (now, later) = bytes.split_at(granted.min(bytes.len()).min(32 << 10));
            self.data(now).await;
            granted -= now.len();
            bytes = later;
        }
    }
}

async fn exit(mut child: Child) -> Option<i32> {
    let exited = async {
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, exited).await.expect("the process does not end")
}

fn numbers(to: u32) -> Vec<u8> {
    (1..=to).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

#[tokio::test]
async fn output_arrives_whole_and_then_its_end() {
    let place = Place::new().await;
    // One is there before the process, the other comes when it has ended.
    let mut out = place.connect("a-stdout").await;
    let (mut stdio, child) = place.run("echo err >&2; seq 1 200000", ["", "a-stdout", "a-stderr"]);
    assert!(out.read_all().await == numbers(200_000));
    assert_eq!(exit(child).await, Some(0));
    stdio.exited();
    assert_eq!(place.connect("a-stderr").await.read_all().await, b"err\n");
    // Who asks again is told again.
    assert_eq!(place.connect("a-stderr").await.read_all().await, b"");
}

#[tokio::test]
async fn nothing_is_sent_that_was_not_asked_for() {
    let place = Place::new().await;
    let (_stdio, child) = place.run("printf 0123456789", ["", "o", ""]);
    let mut out = place.connect("o").await;
    assert_eq!(exit(child).await, Some(0));
    for wanted in [&b"0123"[..], b"4567", b"89"] {
        assert!(timeout(Duration::from_millis(50), out.stream.recv()).await.is_err());
        out.grant(4).await;
        assert_eq!(out.read().await.unwrap(), wanted);
    }
    assert_eq!(out.read().await, None);
}

#[tokio::test]
async fn a_writer_waits_for_the_next_client_and_loses_nothing() {
    let place = Place::new().await;
    let (_stdio, mut child) = place.run("seq 1 100000", ["", "o", ""]);
    let mut first = place.connect("o").await;
    first.grant(1000).await;
    let mut got = Vec::new();
    while got.len() < 1000 {
        got.extend(first.read().await.unwrap());
    }
    drop(first);
    // No EPIPE, and no end: the pipe is full.
    sleep(Duration::from_millis(50)).await;
    assert!(child.try_wait().unwrap().is_none());
    got.extend(place.connect("o").await.read_all().await);
    assert!(got == numbers(100_000));
    assert_eq!(exit(child).await, Some(0));
}

#[tokio::test]
async fn the_newest_client_is_served() {
    let place = Place::new().await;
    let (_stdio, child) = place.run("read x; echo $x", ["i", "o", ""]);
    let mut old = place.connect("o").await;
    old.grant(100).await;
    let mut new = place.connect("o").await;
    assert_eq!(old.read().await, None);
    place.connect("i").await.write_all(b"said\n").await;
    assert_eq!(new.read_all().await, b"said\n");
    assert_eq!(exit(child).await, Some(0));
}

#[tokio::test]
async fn clients_that_follow_each_other_get_each_byte_once() {
    let place = Place::new().await;
    let (_stdio, child) = place.run("seq 1 200000", ["", "o", ""]);
    let mut clients = Vec::new();
    for n in 0..30 {
        let mut client = place.connect("o").await;
        client.grant(30_000 + n).await;
        // Some are followed at once, some after a part of theirs.
        for _ in 0..n % 7 {
            tokio::task::yield_now().await;
        }
        clients.push(client);
    }
    let last = place.connect("o").await.read_all().await;
    let mut got = Vec::new();
    for mut client in clients {
        while let Some(bytes) = client.read().await {
            got.extend(bytes);
        }
    }
    got.extend(last);
    assert!(got == numbers(200_000), "{} bytes", got.len());
    assert_eq!(exit(child).await, Some(0));
}

#[tokio::test]
async fn input_outlives_its_clients_and_ends_with_close_io() {
    let place = Place::new().await;
    let (mut stdio, child) = place.run("cat", ["i", "o", ""]);
    let mut out = place.connect("o").await;
    let (mut sent, part) = (Vec::new(), numbers(60_000));
    let mut second = None;
    let writes = async {
        let mut first = place.connect("i").await;
        first.write_all(&part).await;
        sent.extend_from_slice(&part);
        // Gone without a word, its last bytes perhaps on their way.
        drop(first);
        let mut client = place.connect("i").await;
        client.write_all(&part).await;
        sent.extend_from_slice(&part);
        // CloseIO comes over another connection, and may overtake what is on its way here.
        stdio.close_stdin();
        client.stream.close_send().await.unwrap();
        second = Some(client);
    };
    let (_, got) = tokio::join!(writes, out.read_all());
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    assert_eq!(exit(child).await, Some(0));
}

#[tokio::test]
async fn close_io_ends_an_input_whose_client_does_not_or_is_not_there() {
    let place = Place::new().await;
    for connected in [true, false] {
        let (mut stdio, child) = place.run("cat >/dev/null", ["i", "", ""]);
        let mut client = None;
        if connected {
            client = Some(place.connect("i").await);
        }
        stdio.close_stdin();
        assert_eq!(exit(child).await, Some(0));
        drop(client);
    }
}

#[tokio::test]
async fn an_input_that_nobody_reads_does_not_stall_its_client() {
    let place = Place::new().await;
    let (mut stdio, child) = place.run("exec <&-; read x <&1; sleep 0.2", ["i", "", ""]);
    let mut client = place.connect("i").await;
    timeout(LONG, client.write_all(&numbers(100_000))).await.unwrap();
    exit(child).await;
    stdio.exited();
    while client.next().await.is_ok() {}
}

#[tokio::test]
async fn who_breaks_the_rules_is_told_and_dropped() {
    let place = Place::new().await;
    let (_stdio, child) = place.run("sleep 0.3", ["i", "o", ""]);
    let (_other, other) = place.run("sleep 0.3", ["j", "", ""]);
    let mut no_init = place.silent().await;
    no_init.grant(1).await;
    let mut too_much = place.connect("i").await;
    too_much.data(&vec![0; WINDOW + 1]).await;
    let mut too_long = place.connect("j").await;
    too_long.data(&vec![0; MAX_FRAME + 1]).await;
    let mut data = place.connect("o").await;
    data.data(b"x").await;
    let mut early = place.connect("nobody").await;
    early.data(b"x").await;
    for mut peer in [no_init, too_much, too_long, data, early] {
        let refused = loop {
            match peer.next().await {
                Ok((name, _)) => assert_eq!(name, WINDOW_TYPE),
                Err(error) => break error,
            }
        };
        match refused {
            TtrpcError::RpcStatus(status) => assert_eq!(status.code(), Code::INVALID_ARGUMENT),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((exit(child).await, exit(other).await), (Some(0), Some(0)));
}

#[tokio::test]
async fn a_drain_waits_for_who_reads_and_for_nobody_else() {
    let place = Place::new().await;
    let (stdio, child) = place.run("echo last", ["", "o", ""]);
    assert_eq!(exit(child).await, Some(0));
    let begun = tokio::time::Instant::now();
    stdio.drain(LONG).await;
    assert!(begun.elapsed() < LONG / 2, "it waited for a client that is not there");

    let (mut stdio, child) = place.run("echo last", ["", "o", ""]);
    let mut out = place.connect("o").await;
    assert_eq!(exit(child).await, Some(0));
    stdio.exited();
    assert!(timeout(Duration::from_millis(50), stdio.left()).await.is_err());
    assert_eq!(out.read_all().await, b"last\n");
    // It has all but has not gone: it may not have read what it has.
    assert!(timeout(Duration::from_millis(50), stdio.left()).await.is_err());
    drop(out);
    timeout(LONG, stdio.left()).await.unwrap();

    // A child keeps the pipe; its client is told that this was all.
    let (stdio, child) = place.run("sleep 1 & echo last", ["", "p", ""]);
    let mut out = place.connect("p").await;
    assert_eq!(exit(child).await, Some(0));
    out.grant(100).await;
    assert_eq!(out.read().await.unwrap(), b"last\n");
    stdio.drain(Duration::from_millis(200)).await;
    assert_eq!(out.read().await, None);
}

#[tokio::test]
async fn names_are_taken_once_and_only_of_this_server() {
    let place = Place::new().await;
    let paths = |socket: &str| StdioPaths {
        stdout: format!("ttrpc+unix://{socket}?streaming_id=o"),
        ..StdioPaths::default()
    };
    let open = |streams: &Arc<Streams>, socket| {
        Stdio::open_with(&paths(socket), Kind::Relay, (0, 0), None, streams)
    };
    let held = open(&place.shim.streams, "/s").unwrap();
    let error = open(&place.shim.streams, "/s").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    drop(held);
    open(&place.shim.streams, "/s").unwrap();
    let streams = Arc::new(Streams::new("/run/ours".into()));
    let error = open(&streams, "/run/theirs").unwrap_err();
    let text = "stdout: a stream of another server, \"/run/theirs\", is not supported";
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Unimplemented, text.into()));
    open(&streams, "/run/ours").unwrap();
}

#[tokio::test]
async fn a_stream_is_no_client_that_an_end_waits_for() {
    let place = Place::new().await;
    let _peer = place.connect("nobody").await;
    let mut count = place.shim.clients.subscribe();
    timeout(LONG, count.wait_for(|count| *count == 0)).await.unwrap().unwrap();
}
