//! One conversation with systemd over D-Bus: connect, authenticate, call, wait for a job.
//!
//! The wire format is zvariant's. Every step has the same deadline, and none blocks: a bus that does not
//! answer, or whose queue is full, costs its caller time and nobody else. It must never outlive the
//! request that it was made for: a connection that is kept costs memory, and dies with the bus.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use zvariant::serialized::{Context, Data};
use zvariant::{DynamicType, NATIVE_ENDIAN, ObjectPath, Type, Value, to_bytes};

use super::Places;
use crate::error::{Doing, Error, Kind, Result};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// What of the bus' signals is to reach us.
const JOBS: &str = "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// Far more than any answer that is asked for.
const LONGEST: usize = 1 << 20;
/// Between two attempts.
pub(super) const AGAIN: Duration = Duration::from_millis(20);

// Types of messages and of header fields (D-Bus specification, "Message Format").
const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;
/// A header up to its fields; the last word says how long those are.
const FIXED: usize = 16;

type Header<'a> = (u8, u8, u8, u8, u32, u32, Vec<(u8, Value<'a>)>);

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// systemd says no: by the last part of the error's name, and in words.
    Refused { name: String, text: String },
    /// The connection is gone; whether the call was carried out is not known.
    Lost(Error),
    /// The deadline, or an answer that makes no sense.
    Broken(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Refused { name, text } => {
                let kind = match name.rsplit(' ').next().unwrap_or_default() {
                    "NoSuchUnit" => Kind::NotFound,
                    "InvalidArgs" | "InvalidSignature" | "PropertyReadOnly" => {
                        Kind::InvalidArgument
                    }
                    _ => Kind::Unknown,
                };
                Error::new(kind, format!("{name}: {text}"))
            }
            Failure::Lost(error) | Failure::Broken(error) => error,
        }
    }
}

/// A connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    end: Instant,
    /// There is no bus between us and systemd.
    direct: bool,
    /// Who has answered the last call; empty without a bus.
    peer: String,
    /// Jobs that have ended.
    removed: Vec<Removed>,
}

#[derive(Debug)]
struct Removed {
    sender: String,
    job: String,
    result: String,
}

#[derive(Debug)]
struct Message {
    kind: u8,
    reply_to: u32,
    error: String,
    member: String,
    /// The bus puts it there.
    sender: String,
    body: Vec<u8>,
}

/// A socket that is being connected; it belongs to the network namespace that this is called in.
pub fn socket_to(path: &Path) -> Result<StdStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(StdStream::from(fd))
}

impl Bus {
    /// Connects to systemd itself, and where that cannot be had to the system bus.
    pub async fn connect(
        places: &Places,
        open: &(impl Fn(&Path) -> Result<StdStream, Errno> + Sync),
        end: Instant,
    ) -> Result<Bus, Failure> {
        loop {
            let mut errors = Vec::new();
            for (path, direct) in [(&places.private, true), (&places.bus, false)] {
                match open(path) {
                    Ok(stream) => {
                        let stream = UnixStream::from_std(stream);
                        let stream = stream.doing(|| "epoll_ctl(bus)").map_err(Failure::Broken)?;
                        let (peer, removed) = (String::new(), Vec::new());
                        let mut bus = Bus { stream, serial: 0, end, direct, peer, removed };
                        bus.greet().await?;
                        return Ok(bus);
                    }
                    // Its queue is full: that may pass.
                    Err(errno) => errors.push(Error::sys(format!("connect({path:?})"), errno)),
                }
            }
            if Instant::now() + AGAIN > end {
                let error = Error::join(errors).err();
                let error = error.unwrap_or_else(|| Error::new(Kind::Unknown, "no bus"));
                return Err(Failure::Broken(error.with_kind(Kind::DeadlineExceeded)));
            }
            sleep(AGAIN).await;
        }
    }

    async fn greet(&mut self) -> Result<(), Failure> {
        // The uid in decimal, each digit in hexadecimal.
        let uid = nix::unistd::geteuid().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:x}")).collect();
        // BEGIN at once, as sd-bus has it: whoever sends it with the first call behind it may find systemd
        // asleep over both. It takes what one read gave it for the handshake, and does not look
        // for a message in there until more comes.
        let hello = format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n");
        self.send("authenticate", hello.as_bytes()).await?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.receive("authenticate", &mut byte).await?;
            line.extend(byte);
            if line.len() > 512 {
                break;
            }
        }
        if !line.starts_with(b"OK ") {
            let text = format!("authenticate: {:?}", String::from_utf8_lossy(&line).trim_end());
            return Err(Failure::Broken(Error::new(Kind::FailedPrecondition, text)));
        }
        if !self.direct {
            self.request(BUS, BUS_PATH, BUS, "Hello", &()).await?;
            self.request(BUS, BUS_PATH, BUS, "AddMatch", &(JOBS,)).await?;
        }
        Ok(())
    }

    fn late(what: &str) -> Failure {
        let text = format!("{what}: no answer in time");
        Failure::Broken(Error::new(Kind::DeadlineExceeded, text))
    }

    fn lost(what: &str, error: &std::io::Error) -> Failure {
        Failure::Lost(Error::io(what, error).with_kind(Kind::Unavailable))
    }

    async fn send(&mut self, what: &str, bytes: &[u8]) -> Result<(), Failure> {
        let sent = timeout_at(self.end, self.stream.write_all(bytes)).await;
        sent.map_err(|_| Bus::late(what))?.map_err(|error| Bus::lost(what, &error))
    }

    async fn receive(&mut self, what: &str, bytes: &mut [u8]) -> Result<(), Failure> {
        let received = timeout_at(self.end, self.stream.read_exact(bytes)).await;
        received.map_err(|_| Bus::late(what))?.map_err(|error| Bus::lost(what, &error))?;
        Ok(())
    }

    /// A method of systemd's manager.
    pub async fn call<R: DeserializeOwned + Type>(
        &mut self,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<R, Failure> {
        self.call_at(MANAGER, member, body).await
    }

    /// A method of another interface of the same object.
    pub async fn call_at<R: DeserializeOwned + Type>(
        &mut self,
        interface: &str,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<R, Failure> {
        let body = self.request(SYSTEMD, SYSTEMD_PATH, interface, member, body).await?;
        decode(&body).map_err(|error| Failure::Broken(error.doing(member)))
    }

    async fn request(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<Vec<u8>, Failure> {
        self.serial += 1;
        let fields = [(PATH, path), (INTERFACE, interface), (MEMBER, member)];
        let mut fields: Vec<_> = fields.to_vec();
        if !self.direct {
            fields.push((DESTINATION, destination));
        }
        let bytes = encode(self.serial, &fields, body).map_err(Failure::Broken)?;
        self.send(member, &bytes).await?;
        loop {
            let message = self.next(member).await?;
            if message.reply_to == self.serial && message.kind == REPLY {
                self.peer = message.sender;
                return Ok(message.body);
            }
            if message.reply_to == self.serial && message.kind == ERROR {
                let name = message.error.rsplit('.').next().unwrap_or_default().to_owned();
                let text =
                    decode::<(String,)>(&message.body).map_or_else(|_| String::new(), |t| t.0);
                // systemd is not on the bus: it will be again.
                if ["NoReply", "ServiceUnknown", "NameHasNoOwner", "Disconnected"]
                    .contains(&name.as_str())
                {
                    let error = Error::new(Kind::Unavailable, format!("{member}: {name}: {text}"));
                    return Err(Failure::Lost(error));
                }
                return Err(Failure::Refused { name, text });
            }
        }
    }

    /// How a job ends. It may have ended before its call was answered. A bus lets every user send
    /// signals to us, whatever we listen for, but answers only those who were asked.
    pub async fn job(&mut self, job: &str) -> Result<String, Failure> {
        loop {
            let ours = |removed: &&Removed| removed.job == job && removed.sender == self.peer;
            if let Some(removed) = self.removed.iter().find(ours) {
                return Ok(removed.result.clone());
            }
            self.next("JobRemoved").await?;
        }
    }

    async fn next(&mut self, what: &str) -> Result<Message, Failure> {
        let mut bytes = vec![0; FIXED];
        self.receive(what, &mut bytes).await?;
        let number = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_ne_bytes) as usize
        };
        let (body, fields) = (number(4), number(12));
        let header = FIXED.saturating_add(fields).next_multiple_of(8);
        let whole = header.saturating_add(body);
        let foreign = bytes.first() != Some(&endian_mark());
        if foreign || fields > LONGEST || whole > LONGEST {
            let text = format!("{what}: a message that is none");
            return Err(Failure::Broken(Error::new(Kind::Unknown, text)));
        }
        bytes.resize(whole, 0);
        self.receive(what, &mut bytes[FIXED..]).await?;
        let message = Message::read(bytes, header).doing(|| what);
        let message = message.map_err(Failure::Broken)?;
        if message.kind == SIGNAL && message.member == "JobRemoved" {
            type Body<'a> = (u32, ObjectPath<'a>, String, String);
            let data = Data::new(&message.body[..], context());
            if let Ok(((_, job, _, result), _)) = data.deserialize::<Body<'_>>() {
                let (sender, job) = (message.sender.clone(), job.to_string());
                self.removed.push(Removed { sender, job, result });
            }
        }
        Ok(message)
    }
}

impl Message {
    fn read(mut bytes: Vec<u8>, header: usize) -> Result<Message> {
        let body = bytes.split_off(header.min(bytes.len()));
        let data = Data::new(&bytes[..], context());
        let (fixed, _): (Header<'_>, _) = data.deserialize().map_err(|error| {
            Error::new(Kind::Unknown, format!("a message that is none: {error}"))
        })?;
        let mut message = Message {
            kind: fixed.1,
            reply_to: 0,
            error: String::new(),
            member: String::new(),
            sender: String::new(),
            body,
        };
        for (field, value) in fixed.6 {
            match (field, value) {
                (REPLY_SERIAL, Value::U32(serial)) => message.reply_to = serial,
                (ERROR_NAME, Value::Str(name)) => message.error = name.to_string(),
                (MEMBER, Value::Str(name)) => message.member = name.to_string(),
                (SENDER, Value::Str(name)) => message.sender = name.to_string(),
                _ => {}
            }
        }
        Ok(message)
    }
}

fn context() -> Context {
    Context::new_dbus(NATIVE_ENDIAN, 0)
}

fn endian_mark() -> u8 {
    if cfg!(target_endian = "little") { b'l' } else { b'B' }
}

fn decode<R: DeserializeOwned + Type>(body: &[u8]) -> Result<R> {
    let data = Data::new(body, context());
    let decoded = data.deserialize().map(|(value, _)| value);
    decoded.map_err(|error| Error::new(Kind::Unknown, format!("an answer that is none: {error}")))
}

/// A call as bytes: the header, filled up to 8, and the body.
fn encode(
    serial: u32,
    fields: &[(u8, &str)],
    body: &(impl Serialize + DynamicType),
) -> Result<Vec<u8>> {
    let failed = |error: zvariant::Error| Error::invalid(format!("encode a call: {error}"));
    let signature = body.signature();
    let body = to_bytes(context(), body).map_err(failed)?;
    let mut values = Vec::new();
    for (field, text) in fields {
        let value = match *field {
            PATH => Value::from(ObjectPath::try_from(*text).map_err(failed)?),
            _ => Value::from(*text),
        };
        values.push((*field, value));
    }
    let length = body.bytes().len() as u32;
    let header: Header<'_> = (endian_mark(), CALL, 0, 1, length, serial, values);
    let mut bytes = to_bytes(context(), &header).map_err(failed)?.bytes().to_vec();
    // zvariant writes the types of several arguments as one structure, which is another type.
    let signature = signature.to_string_no_parens();
    if !signature.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend([SIGNATURE, 1, b'g', 0, signature.len() as u8]);
        bytes.extend(signature.as_bytes());
        bytes.push(0);
        let fields = (bytes.len() - FIXED) as u32;
        bytes[FIXED - 4..FIXED].copy_from_slice(&fields.to_ne_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body.bytes());
    Ok(bytes)
}

impl Default for Places {
    fn default() -> Places {
        Places {
            booted: PathBuf::from("/run/systemd/system"),
            private: PathBuf::from("/run/systemd/private"),
            bus: PathBuf::from("/run/dbus/system_bus_socket"),
        }
    }
}
