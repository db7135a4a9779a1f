//! Accepts clients on the shim's socket, those of our own user only, and tells by its first request
//! whether one came for a stream.
//!
//! It must never hand on a stranger, and never spin when the kernel refuses to accept.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::Request;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::sync::watch::Sender;
use tokio::time::{Sleep, sleep};

use super::frame::{self, Frame, HEADER, REQUEST};
use super::stream;
use crate::stdio::Streams;

/// How long to leave the kernel alone after a failed accept: it fails again at once while there
/// are no descriptors left.
const REST: Duration = Duration::from_millis(100);
/// A first request that is longer is none for a stream.
const MAX_STREAM_REQUEST: usize = 256;
/// What a request for a stream names.
const STREAM: (&str, &str) = ("containerd.services.streaming.v1.Streaming", "Stream");

/// A listener that takes clients with the user id `uid` from `listener`.
///
/// `count` follows how many are connected. Who comes for a stream gets it of `streams`, and is not
/// handed on.
pub(super) fn listener(
    listener: std::os::unix::net::UnixListener,
    uid: u32,
    count: Arc<Sender<usize>>,
    streams: Arc<Streams>,
) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (known, sorted) = mpsc::unbounded_channel();
    Ok(Listener::new(Clients { listener, uid, count, streams, known, sorted, rest: None }))
}

/// A client's connection, counted for as long as it is open.
struct Client {
    stream: UnixStream,
    /// Read already, to tell what it came for.
    read: Vec<u8>,
    counted: Counted,
}

/// Held for as long as a connection is counted.
struct Counted(Arc<Sender<usize>>);

impl Counted {
    fn new(count: &Arc<Sender<usize>>) -> Counted {
        count.send_modify(|count| *count += 1);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Waits for a client's first request, and hands it on or serves its stream.
async fn sort(mut client: Client, known: mpsc::UnboundedSender<Client>, streams: Arc<Streams>) {
    match stream_request(&mut client).await {
        Ok(Some(number)) => {
            // No call whose answer an end would wait for.
            drop(client.counted);
            stream::serve(client.stream, number, streams).await;
        }
        // The listener is gone, and so is the server.
        Ok(None) => drop(known.send(client)),
        Err(_) => {}
    }
}

/// Reads the first request; its number if it asks for a stream.
async fn stream_request(client: &mut Client) -> io::Result<Option<u32>> {
    let mut header = [0; HEADER];
    client.stream.read_exact(&mut header).await?;
    client.read = header.to_vec();
    let Ok((length, kind)) = frame::begin(&header, MAX_STREAM_REQUEST) else { return Ok(None) };
    if kind != REQUEST {
        return Ok(None);
    }
    client.read.resize(HEADER + length, 0);
    client.stream.read_exact(&mut client.read[HEADER..]).await?;
    let Some(frame) = Frame::parse(&client.read, MAX_STREAM_REQUEST)? else { return Ok(None) };
    Ok(Request::parse_from_bytes(frame.payload)
        .is_ok_and(|request| (request.service.as_str(), request.method.as_str()) == STREAM)
        .then_some(frame.stream))
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let n = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read[..n]);
            self.read = self.read.split_off(n);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Clients {
    listener: UnixListener,
    uid: u32,
    count: Arc<Sender<usize>>,
    streams: Arc<Streams>,
    known: mpsc::UnboundedSender<Client>,
    sorted: mpsc::UnboundedReceiver<Client>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Clients {
    fn admit(&self, client: &UnixStream) -> bool {
        match client.peer_cred() {
            Ok(cred) if cred.uid() == self.uid => true,
            Ok(cred) => {
                log::warn!("refused a client: pid {:?}, uid {}", cred.pid(), cred.uid());
                false
            }
            Err(error) => {
                log::warn!("refused a client: getsockopt(SO_PEERCRED): {error}");
                false
            }
        }
    }
}

impl Stream for Clients {
    type Item = io::Result<Client>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(Some(client)) = self.sorted.poll_recv(cx) {
            return Poll::Ready(Some(Ok(client)));
        }
        loop {
            if let Some(rest) = &mut self.rest {
                std::task::ready!(rest.as_mut().poll(cx));
                self.rest = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) if self.admit(&stream) => {
                    let counted = Counted::new(&self.count);
                    let client = Client { stream, read: Vec::new(), counted };
                    tokio::spawn(sort(client, self.known.clone(), self.streams.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    log::warn!("accept: {error}");
                    self.rest = Some(Box::pin(sleep(REST)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::service::tests::socket;

    /// Whether a client of this process is let in where user `uid` is expected.
    async fn admitted(uid: u32) -> bool {
        let (socket, address) = socket();
        let mut listener = listener(socket, uid, Arc::default(), Arc::default()).unwrap();
        let mut client = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
        // Nobody is known before the first header.
        client.write_all(&[0; HEADER]).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = UnixStream::from_std(client).unwrap();
        let next = std::future::poll_fn(|cx| Pin::new(&mut listener).poll_next(cx));
        tokio::select! {
            next = next => next.unwrap().is_ok(),
            read = client.read_u8() => {
                let closed = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
                assert!(closed.contains(&read.unwrap_err().kind()));
                false
            }
        }
    }

    #[tokio::test]
    async fn only_our_own_user_is_admitted() {
        let ours = nix::unistd::geteuid().as_raw();
        assert!(admitted(ours).await);
        assert!(!admitted(ours + 1).await);
    }
}
