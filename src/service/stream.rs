//! `containerd.services.streaming.v1.Streaming/Stream`: one end of a process' stdio for a client.
//!
//! Served from the bare connection, which has this one stream alone, as containerd makes them:
//! ttrpc's server has a task for every frame however many come, and does not tell a stream that its
//! client has gone. What is held is bounded: one window from a client, one chunk to it. It must
//! never keep a client that breaks the rules, nor one that has been replaced.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::protobuf::{CodedOutputStream, Message, rt::WireType};
use containerd_shim_protos::ttrpc::{self, Code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::consume_budget;
use tokio::time::timeout;

use super::frame::{DATA, Frame, HEADER, NO_DATA, REMOTE_CLOSED, RESPONSE};
use super::proto::streaming::{Any, Data, StreamInit, WindowUpdate};
use crate::stdio::{Client, End, Life, Streams, Way};

/// What a client may send before it is granted more; containerd's own size.
const WINDOW: usize = 64 << 10;
/// Larger than a window in its envelope.
const MAX_FRAME: usize = WINDOW + 1024;
/// How long after a CloseIO a client that does not end its input is listened to.
const QUIET: Duration = Duration::from_secs(2);
/// For the last frame; a client may have stopped to read.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

const DATA_TYPE: &str = "containerd.types.transfer.Data";
const WINDOW_TYPE: &str = "containerd.types.transfer.WindowUpdate";
const INIT_TYPE: &str = "containerd.services.streaming.v1.StreamInit";
/// What containerd's own service sends as its acknowledgement.
const EMPTY_TYPE: &str = "google.protobuf.Empty";

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Init(String),
    Data(Vec<u8>),
    /// It takes so many bytes more.
    Credit(usize),
    /// It has ended its side, or is gone.
    End,
}

/// Serves the stream `number`, for which `stream` was opened, until its client or its end is gone.
pub(super) async fn serve(stream: UnixStream, number: u32, streams: Arc<Streams>) {
    let mut wire = Wire { stream, number, read: Vec::new() };
    match attend(&mut wire, &streams).await {
        Ok(()) => drop(timeout(CLOSE_LIMIT, wire.close()).await),
        Err(error) => {
            log::debug!("a stream ended: {error}");
            if error.kind() == io::ErrorKind::InvalidData {
                drop(timeout(CLOSE_LIMIT, wire.refuse(&error.to_string())).await);
            }
        }
    }
}

async fn attend(wire: &mut Wire, streams: &Streams) -> io::Result<()> {
    let id = match wire.next().await? {
        Said::Init(id) if !id.is_empty() => id,
        _ => return Err(invalid("a stream that does not begin with its id")),
    };
    // Connected before it can know: whoever asks for a state next finds it connected.
    let found = streams.find(&id).map(End::connect);
    wire.send(EMPTY_TYPE, &[]).await?;
    let mut credit = 0;
    let client = match found {
        Some(client) => client,
        None => match wait(wire, streams.end(&id), &mut credit).await? {
            Some(end) => end.connect(),
            None => return Ok(()),
        },
    };
    log::debug!("stream {id:?}: connected");
    let done = match client.end.way {
        Way::Out => give(wire, &client, credit).await,
        Way::In => take(wire, &client).await,
    };
    log::debug!("stream {id:?}: disconnected");
    done
}

/// A container may be started long after its streams were opened, or never. None: the client has
/// gone.
async fn wait(
    wire: &mut Wire,
    end: impl Future<Output = Arc<End>>,
    credit: &mut usize,
) -> io::Result<Option<Arc<End>>> {
    let mut end = pin!(end);
    loop {
        tokio::select! {
            end = &mut end => return Ok(Some(end)),
            said = wire.next() => match said? {
                Said::Credit(more) => *credit = credit.saturating_add(more),
                Said::End => return Ok(None),
                _ => return Err(invalid("data that was not asked for")),
            },
        }
    }
}

/// From the process to the client. What did not get into the connection stays with the end.
async fn give(wire: &mut Wire, client: &Client, mut credit: usize) -> io::Result<()> {
    loop {
        consume_budget().await;
        let waits = !client.end.unsent().is_empty();
        tokio::select! {
            // First of all, or it would take what its successor is about to give on.
            biased;
            () = client.dismissed() => return Ok(()),
            said = wire.next() => match said? {
                Said::Credit(more) => credit = credit.saturating_add(more),
                Said::End => return Ok(()),
                _ => return Err(invalid("data for an output")),
            },
            more = client.end.fill(credit), if !waits && credit > 0 => if more.is_none() {
                break;
            },
            () = std::future::ready(()), if waits && credit > 0 => {
                let data: Vec<u8> = client.end.unsent().iter().copied().take(credit).collect();
                tokio::select! {
                    biased;
                    () = client.dismissed() => return Err(gone()),
                    sent = wire.send(DATA_TYPE, &data) => sent?,
                }
                credit -= data.len();
                client.end.given(data.len());
            }
        }
    }
    // Connected until the client has read all and says so, for containerd throws away what it has
    // not read when it hears of the exit.
    let read = async {
        wire.close().await?;
        while wire.next().await? != Said::End {}
        Err(gone())
    };
    tokio::select! {
        () = client.dismissed() => Err(gone()),
        end = read => end,
    }
}

/// From the client to the process.
async fn take(wire: &mut Wire, client: &Client) -> io::Result<()> {
    let end = &client.end;
    let (mut granted, mut ended, mut broken) = (0, false, false);
    loop {
        consume_budget().await;
        let waiting = end.unsent().len();
        let closing = end.life() != Life::Open;
        if waiting == 0 && (ended || (broken && closing)) {
            return Ok(());
        }
        let room = WINDOW.saturating_sub(granted + waiting);
        if room >= WINDOW / 2 && !ended {
            granted += room;
            ended = wire.grant(room).await.is_err();
        }
        tokio::select! {
            biased;
            () = client.dismissed() => return Ok(()),
            said = wire.next(), if !ended => match said {
                Ok(Said::Data(data)) if data.len() <= granted => {
                    granted -= data.len();
                    if !broken {
                        end.unsent().extend_from_slice(&data);
                    }
                }
                Ok(Said::Data(_)) => return Err(invalid("more data than was asked for")),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
                // Its last words are given on all the same.
                Ok(Said::End) | Err(_) => ended = true,
                Ok(_) => return Err(invalid("a grant for an input")),
            },
            more = end.flush(), if waiting > 0 => if more.is_none() {
                // Nobody reads any more. The client is not told, but must not stall.
                broken = true;
                *end.unsent() = Vec::new();
            },
            () = client.closing(), if !closing => {}
            () = tokio::time::sleep(QUIET), if closing && waiting == 0 => return Ok(()),
        }
    }
}

/// A connection with one stream, in ttrpc's frames.
#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    number: u32,
    /// The beginning of the next frame.
    read: Vec<u8>,
}

impl Wire {
    /// What the client says next. Dropped half-way, nothing is lost.
    async fn next(&mut self) -> io::Result<Said> {
        loop {
            if let Some(frame) = Frame::parse(&self.read, MAX_FRAME)? {
                let said = self.said(&frame);
                let length = HEADER + frame.payload.len();
                match self.read.len() == length {
                    true => self.read = Vec::new(),
                    false => drop(self.read.drain(..length)),
                }
                return said;
            }
            // No buffer while there is nothing to read.
            self.stream.readable().await?;
            self.read.reserve(512);
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(Said::End);
            }
        }
    }

    fn said(&self, frame: &Frame<'_>) -> io::Result<Said> {
        if frame.kind != DATA || frame.stream != self.number {
            return Err(invalid("a second request on a stream's connection"));
        }
        if frame.flags & REMOTE_CLOSED != 0 {
            return Ok(Said::End);
        }
        let any = Any::parse_from_bytes(frame.payload)?;
        Ok(match any.type_url.rsplit('/').next().unwrap_or_default() {
            INIT_TYPE => Said::Init(StreamInit::parse_from_bytes(&any.value)?.id),
            DATA_TYPE => Said::Data(Data::parse_from_bytes(&any.value)?.data),
            WINDOW_TYPE => {
                let update = WindowUpdate::parse_from_bytes(&any.value)?.update;
                Said::Credit(usize::try_from(update).unwrap_or(0))
            }
            other => return Err(invalid(&format!("{other:?} on a stream"))),
        })
    }

    /// A message; of one with data its bytes.
    async fn send(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write(DATA, 0, &envelope(name, bytes)?).await
    }

    async fn grant(&mut self, more: usize) -> io::Result<()> {
        let update = i32::try_from(more).unwrap_or(i32::MAX);
        let update = WindowUpdate { update, ..Default::default() }.write_to_bytes()?;
        self.send(WINDOW_TYPE, &update).await
    }

    /// The end of our side, and so of the stream.
    async fn close(&mut self) -> io::Result<()> {
        self.write(DATA, REMOTE_CLOSED | NO_DATA, &[]).await
    }

    async fn refuse(&mut self, text: &str) -> io::Result<()> {
        let mut response = ttrpc::Response::new();
        response.set_status(ttrpc::get_status(Code::INVALID_ARGUMENT, text));
        self.write(RESPONSE, 0, &response.write_to_bytes()?).await
    }

    async fn write(&mut self, kind: u8, flags: u8, payload: &[u8]) -> io::Result<()> {
        let frame = Frame { stream: self.number, kind, flags, payload };
        self.stream.write_all(&frame.bytes()).await
    }
}

/// An Any, made with one copy of the bytes.
fn envelope(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut any = Vec::with_capacity(bytes.len() + 64);
    let mut out = CodedOutputStream::vec(&mut any);
    out.write_string(1, name)?;
    if name == DATA_TYPE {
        out.write_tag(2, WireType::LengthDelimited)?;
        out.write_raw_varint64((1 + varint(bytes.len()) + bytes.len()) as u64)?;
        out.write_bytes(1, bytes)?;
    } else {
        out.write_bytes(2, bytes)?;
    }
    out.flush()?;
    drop(out);
    Ok(any)
}

/// How many bytes a length takes.
fn varint(n: usize) -> usize {
    (usize::BITS - n.leading_zeros()).div_ceil(7).max(1) as usize
}

/// The connection is not to be used any more.
fn gone() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_string())
}

#[cfg(test)]
mod tests;
