//! Accepts clients on the shim's socket, those of our own user only.
//!
//! It must never hand on a stranger, and never spin when the kernel refuses to accept.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch::Sender;
use tokio::time::{Sleep, sleep};

/// How long to leave the kernel alone after a failed accept: it fails again at once while there
/// are no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// A listener that takes clients with the user id `uid` from `listener`.
///
/// `count` follows how many are connected.
pub(super) fn listener(
    listener: std::os::unix::net::UnixListener,
    uid: u32,
    count: Arc<Sender<usize>>,
) -> io::Result<Listener> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    Ok(Listener::new(Clients { listener, uid, count, rest: None }))
}

/// A client's connection, counted for as long as it is open.
struct Client {
    stream: UnixStream,
    count: Arc<Sender<usize>>,
}

impl Client {
    fn new(stream: UnixStream, count: &Arc<Sender<usize>>) -> Client {
        count.send_modify(|count| *count += 1);
        Client { stream, count: Arc::clone(count) }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
        loop {
            if let Some(rest) = &mut self.rest {
                std::task::ready!(rest.as_mut().poll(cx));
                self.rest = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((client, _)) if self.admit(&client) => {
                    return Poll::Ready(Some(Ok(Client::new(client, &self.count))));
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
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::service::tests::socket;

    /// Whether a client of this process is let in where user `uid` is expected.
    async fn admitted(uid: u32) -> bool {
        let (socket, address) = socket();
        let mut listener = listener(socket, uid, Arc::default()).unwrap();
        let client = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut client = UnixStream::from_std(client).unwrap();
        let next = std::future::poll_fn(|cx| Pin::new(&mut listener).poll_next(cx));
        tokio::select! {
            next = next => next.unwrap().is_ok(),
            read = client.read_u8() => {
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
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
