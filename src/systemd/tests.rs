//! A peer that misbehaves: what no real systemd can be made to do. What systemd does when it is well
//! is tested with systemd itself (`hack/systemd-check.sh`).

use std::fs;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use zvariant::serialized::{Context, Data};
use zvariant::{DynamicType, LE, ObjectPath, Value, to_bytes};

use super::*;

const JOB: &str = "/org/freedesktop/systemd1/job/7";

type Open = fn(&Path) -> Result<StdStream, Errno>;

/// What the peer does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// An empty reply.
    Done,
    /// A job, and then its end.
    Job(&'static str),
    /// The end of the job, and then the job.
    Early,
    /// Somebody on the bus says that the job has failed, and then it is done.
    Forged,
    Refuse(&'static str),
    /// A job that does not end.
    Queued,
    HangUp,
    Silence,
}

struct Peer {
    dir: PathBuf,
    places: Places,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Peer {
    /// Listens as systemd does, or as the bus; answers the calls in turn, the last answer for all others.
    fn new(name: &str, at_bus: bool, answers: &'static [Answer]) -> Peer {
        let dir = std::env::temp_dir().join(format!("shim-systemd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("system")).unwrap();
        let places = Places {
            booted: dir.join("system"),
            private: dir.join("private"),
            bus: dir.join("bus"),
        };
        let listener = UnixListener::bind(if at_bus { &places.bus } else { &places.private });
        let listener = listener.unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&calls);
        tokio::spawn(async move {
            let mut answers = answers.iter().copied().peekable();
            while let Ok((stream, _)) = listener.accept().await {
                // The end of a connection is no end of the peer.
                let _ = serve(stream, &heard, &mut answers).await;
            }
        });
        Peer { dir, places, calls }
    }

    fn systemd(&self) -> Systemd<'_, Open> {
        Systemd::new(&self.places, socket_to as Open, Duration::from_millis(500)).unwrap()
    }

    async fn start(&self, inside: bool) -> Result<()> {
        self.start_inside(|| inside).await
    }

    async fn start_inside(&self, inside: impl Fn() -> bool) -> Result<()> {
        self.start_job(inside, &AtomicU32::new(0)).await
    }

    async fn start_job(&self, inside: impl Fn() -> bool, job: &AtomicU32) -> Result<()> {
        let unit =
            Unit { name: "a-b.scope".into(), slice: "a.slice".into(), path: "/a.slice".into() };
        let properties = [Property::new("MemoryMax", 5u64)];
        self.systemd().start(&unit, 4711, &properties, inside, job).await
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

type Answers<'a> = std::iter::Peekable<std::iter::Copied<std::slice::Iter<'a, Answer>>>;

async fn serve(
    mut stream: UnixStream,
    calls: &Mutex<Vec<String>>,
    answers: &mut Answers<'_>,
) -> std::io::Result<()> {
    let mut hello = vec![0; 128];
    let length = stream.read(&mut hello).await?;
    let hello = String::from_utf8_lossy(&hello[..length]).into_owned();
    let uid: String =
        nix::unistd::geteuid().to_string().bytes().map(|b| format!("{b:x}")).collect();
    // A call behind BEGIN might wait until systemd has more to read.
    assert_eq!(hello, format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n"));
    stream.write_all(b"OK 1234\r\n").await?;
    loop {
        let mut head = vec![0; 16];
        stream.read_exact(&mut head).await?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let (body, serial, fields) = (word(4), word(8), word(12));
        let rest = (16 + fields as usize).next_multiple_of(8) - 16 + body as usize;
        head.resize(16 + rest, 0);
        stream.read_exact(&mut head[16..]).await?;
        let data = Data::new(&head[..], Context::new_dbus(LE, 0));
        type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Value<'a>)>);
        let (header, _): (Header<'_>, _) = data.deserialize().unwrap();
        let mut heard = String::new();
        for (field, value) in header.6 {
            match (field, value) {
                (3, Value::Str(member)) => heard = member.to_string() + &heard,
                (6, Value::Str(destination)) => heard += &format!(" to {destination}"),
                _ => {}
            }
        }
        // As it stands there: zvariant would take `ss` and `(ss)` for the same.
        if let Some(at) = head.windows(4).position(|bytes| bytes == [8, 1, b'g', 0]) {
            let text = &head[at + 5..at + 5 + usize::from(head[at + 4])];
            heard += &format!(" {}", String::from_utf8_lossy(text));
        }
        calls.lock().unwrap().push(heard.clone());
        let bus = ["Hello", "AddMatch"].iter().any(|name| heard.starts_with(name));
        let answer = match answers.peek().copied() {
            _ if bus => Answer::Done,
            Some(answer) => {
                let rest = answers.clone().count();
                if rest > 1 {
                    answers.next();
                }
                answer
            }
            None => Answer::Done,
        };
        let job = ObjectPath::try_from(JOB).unwrap();
        let other = ObjectPath::try_from("/org/freedesktop/systemd1/job/6").unwrap();
        let ended = |job, result| signal(&(7u32, job, "a-b.scope", result));
        let bytes = match answer {
            Answer::HangUp => return Ok(()),
            Answer::Silence => std::future::pending().await,
            Answer::Done => reply(serial, &()),
            Answer::Queued => reply(serial, &(job,)),
            Answer::Refuse(name) => refusal(serial, name),
            Answer::Early => [ended(job.clone(), "done"), reply(serial, &(job,))].concat(),
            Answer::Forged => {
                let body = (7u32, job.clone(), "a-b.scope", "failed");
                let forged = from(":1.66", 4, removed(), &body);
                let answer = from(":1.0", 2, vec![(5, Value::U32(serial))], &(job.clone(),));
                let body = (7u32, job, "a-b.scope", "done");
                [forged, answer, from(":1.0", 4, removed(), &body)].concat()
            }
            Answer::Job(result) => {
                let mut bytes = reply(serial, &(job.clone(),));
                bytes.extend(ended(other, "failed"));
                bytes.extend(ended(job, result));
                bytes
            }
        };
        stream.write_all(&bytes).await?;
    }
}

fn message<B>(kind: u8, mut fields: Vec<(u8, Value<'_>)>, body: &B) -> Vec<u8>
where
    B: serde::Serialize + DynamicType,
{
    let context = Context::new_dbus(LE, 0);
    let signature = body.signature();
    let body = to_bytes(context, body).unwrap();
    if signature != zvariant::Signature::Unit {
        fields.push((8, Value::Signature(signature)));
    }
    let header = (b'l', kind, 1u8, 1u8, body.bytes().len() as u32, 99u32, fields);
    let mut bytes = to_bytes(context, &header).unwrap().bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body.bytes());
    bytes
}

fn reply<B: serde::Serialize + DynamicType>(serial: u32, body: &B) -> Vec<u8> {
    message(2, vec![(5, Value::U32(serial))], body)
}

fn refusal(serial: u32, name: &str) -> Vec<u8> {
    let name = format!("org.freedesktop.systemd1.{name}");
    message(3, vec![(5, Value::U32(serial)), (4, Value::from(name))], &("in words",))
}

fn signal<B: serde::Serialize + DynamicType>(body: &B) -> Vec<u8> {
    message(4, removed(), body)
}

/// What the bus makes of a message: it says who sent it.
fn from<B>(sender: &'static str, kind: u8, mut fields: Vec<(u8, Value<'_>)>, body: &B) -> Vec<u8>
where
    B: serde::Serialize + DynamicType,
{
    fields.push((7, Value::from(sender)));
    message(kind, fields, body)
}

fn removed() -> Vec<(u8, Value<'static>)> {
    let path = ObjectPath::try_from("/org/freedesktop/systemd1").unwrap();
    vec![
        (1, Value::from(path)),
        (2, Value::from("org.freedesktop.systemd1.Manager")),
        (3, Value::from("JobRemoved")),
    ]
}

const START: &str = "StartTransientUnit ssa(sv)a(sa(sv))";

#[tokio::test]
async fn a_scope_starts_when_its_job_is_done() {
    for (name, answers) in
        [("job", &[Answer::Job("done")] as &'static [_]), ("early", &[Answer::Early])]
    {
        let peer = Peer::new(name, false, answers);
        peer.start(false).await.unwrap();
        assert_eq!(peer.calls(), [START]);
    }
    let peer = Peer::new("failed", false, &[Answer::Job("failed"), Answer::Done]);
    let error = peer.start(false).await.unwrap_err().to_string();
    let want = "start unit \"a-b.scope\": StartTransientUnit: the job's result is \"failed\"";
    assert_eq!(error, want);
    assert_eq!(peer.calls(), [START, "ResetFailedUnit s"]);
}

#[tokio::test]
async fn a_bus_that_hangs() {
    let peer = Peer::new("silent", false, &[Answer::Silence]);
    for (request, want) in [
        (peer.start(true).await, "start unit \"a-b.scope\": StartTransientUnit: no answer in time"),
        (
            peer.systemd().stop("a-b.scope").await,
            "stop unit \"a-b.scope\": authenticate: no answer in time",
        ),
    ] {
        let error = request.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(error.to_string(), want);
    }
    // Nobody takes connections, until its queue is full.
    let peer = Peer::new("full", true, &[]);
    let listener = std::os::unix::net::UnixListener::bind(&peer.places.private).unwrap();
    let short = nix::sys::socket::Backlog::new(0).unwrap();
    nix::sys::socket::listen(&listener, short).unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = socket_to(&peer.places.private) {
        queue.push(stream);
    }
    fs::remove_file(&peer.places.bus).unwrap();
    let error = peer.start(false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let error = error.to_string();
    assert!(error.contains("private\"): EAGAIN; connect("), "{error}");
}

#[tokio::test]
async fn a_job_that_nobody_waits_for_any_more() {
    let peer = Peer::new("queued", false, &[Answer::Queued, Answer::Done]);
    let job = AtomicU32::new(0);
    let error = peer.start_job(|| false, &job).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    peer.systemd().cancel(job.into_inner()).await;
    assert_eq!(peer.calls(), [START, "CancelJob u"]);
    // One that has ended is none.
    let peer = Peer::new("ended", false, &[Answer::Job("done")]);
    let job = AtomicU32::new(0);
    peer.start_job(|| false, &job).await.unwrap();
    peer.systemd().cancel(job.into_inner()).await;
    assert_eq!(peer.calls(), [START]);
}

#[tokio::test]
async fn a_connection_that_breaks() {
    // The scope is there all the same.
    let peer = Peer::new("there", false, &[Answer::HangUp]);
    peer.start(true).await.unwrap();
    assert_eq!(peer.calls(), [START]);
    let peer = Peer::new("again", false, &[Answer::HangUp, Answer::HangUp, Answer::Job("done")]);
    peer.start(false).await.unwrap();
    assert_eq!(peer.calls(), [START; 3]);
    // The first call was carried out, but late.
    let peer = Peer::new("late", false, &[Answer::HangUp, Answer::Refuse("UnitExists")]);
    peer.start(true).await.unwrap();
    let peer = Peer::new("set", false, &[Answer::HangUp, Answer::Done]);
    peer.systemd().set("a-b.scope", &[Property::new("TasksMax", 5u64)]).await.unwrap();
    assert_eq!(peer.calls(), ["SetUnitProperties sba(sv)"; 2]);
    let peer = Peer::new("stop", false, &[Answer::HangUp, Answer::Job("done"), Answer::Done]);
    peer.systemd().stop("a-b.scope").await.unwrap();
    assert_eq!(peer.calls(), ["StopUnit ss", "StopUnit ss", "ResetFailedUnit s"]);
}

#[tokio::test]
async fn a_systemd_that_starts_anew_takes_its_time() {
    const GONE: Answer = Answer::HangUp;
    let peer = Peer::new("anew-set", false, &[GONE, GONE, GONE, Answer::Done]);
    peer.systemd().set("a-b.scope", &[Property::new("TasksMax", 5u64)]).await.unwrap();
    assert_eq!(peer.calls().len(), 4);
    let peer =
        Peer::new("anew-stop", false, &[GONE, GONE, GONE, Answer::Job("done"), Answer::Done]);
    peer.systemd().stop("a-b.scope").await.unwrap();
    assert_eq!(peer.calls().len(), 5);
    // It hangs up whenever it is called: a deadline's worth of calls, but not as many as there can be.
    let peer = Peer::new("anew-never", false, &[GONE]);
    for result in [peer.start(false).await, peer.systemd().stop("a-b.scope").await] {
        assert_eq!(result.unwrap_err().kind(), Kind::Unavailable);
    }
    let calls = peer.calls().len();
    assert!((2..=52).contains(&calls), "{calls}");
}

#[tokio::test]
async fn a_unit_that_is_ours_but_not_there_yet() {
    // The first call was carried out; its job was not when systemd was asked again.
    const EXISTS: Answer = Answer::Refuse("UnitExists");
    let peer = Peer::new("coming", false, &[Answer::HangUp, EXISTS, Answer::Done, EXISTS]);
    let looks = std::cell::Cell::new(0);
    let inside = || {
        looks.set(looks.get() + 1);
        looks.get() > 3
    };
    peer.start_inside(inside).await.unwrap();
}

#[tokio::test]
async fn a_unit_that_exists() {
    let exists = Answer::Refuse("UnitExists");
    let peer =
        Peer::new("left", false, Box::leak(Box::new([exists, Answer::Done, Answer::Job("done")])));
    peer.start(false).await.unwrap();
    assert_eq!(peer.calls(), [START, "ResetFailedUnit s", START]);
    let peer = Peer::new("runs", false, Box::leak(Box::new([exists])));
    let error = peer.start(false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert_eq!(error.to_string(), "start unit \"a-b.scope\": it exists, and is not ours");
    // Nothing is done to it.
    assert_eq!(peer.calls(), [START, "ResetFailedUnit s", START]);
}

#[tokio::test]
async fn refusals_have_systemds_words() {
    let peer = Peer::new("no", false, &[Answer::Refuse("PropertyReadOnly")]);
    let error = peer.start(false).await.unwrap_err();
    // Not to be tried again.
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let want = "start unit \"a-b.scope\": StartTransientUnit: PropertyReadOnly: in words";
    assert_eq!(error.to_string(), want);
    let error = peer.systemd().set("x.scope", &[Property::new("X", true)]).await.unwrap_err();
    let want = "set properties of unit \"x.scope\": SetUnitProperties: PropertyReadOnly: in words";
    assert_eq!(error.to_string(), want);
    let peer = Peer::new("gone", false, &[Answer::Refuse("NoSuchUnit")]);
    peer.systemd().stop("a-b.scope").await.unwrap();
    assert_eq!(peer.calls(), ["StopUnit ss"]);
    // It has ended a moment ago: containerd takes no other word for that.
    let error = peer.systemd().set("a-b.scope", &[Property::new("X", true)]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn the_bus_where_systemd_itself_cannot_be_reached() {
    let peer = Peer::new("bus", true, &[Answer::Job("done")]);
    peer.start(false).await.unwrap();
    assert_eq!(
        peer.calls(),
        [
            "Hello to org.freedesktop.DBus",
            "AddMatch to org.freedesktop.DBus s",
            "StartTransientUnit to org.freedesktop.systemd1 ssa(sv)a(sa(sv))"
        ]
    );
}

#[tokio::test]
async fn a_signal_of_somebody_else_ends_no_job() {
    let peer = Peer::new("forged", true, &[Answer::Forged]);
    peer.start(false).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_always_hangs_up_is_not_asked_without_pause() {
    let peer = Peer::new("hangs-up", false, &[Answer::HangUp]);
    peer.start(false).await.unwrap_err();
    let calls = peer.calls().len();
    assert!(calls <= 26, "{calls} calls"); // one in 20 ms
}

#[test]
fn a_host_without_systemd() {
    let places = Places { booted: "/nonexistent".into(), ..Places::default() };
    let error = Systemd::new(&places, socket_to, Duration::ZERO).err().unwrap();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert_eq!(error.to_string(), "systemd does not run here: there is no \"/nonexistent\"");
}
