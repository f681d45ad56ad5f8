//! The connection under an upgraded websocket, with what the library has no public way to do.

use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};
use tracing::info;

/// How long a client may take nothing of what is sent to it.
const WRITE_STALL: Duration = Duration::from_secs(10);

/// Ends one connection. The client sees its transport close and reconnects by itself, which it
/// would not do after a disconnect of the socket.
#[derive(Debug, Clone, Default)]
pub struct Kill(Arc<KillState>);

#[derive(Debug, Default)]
struct KillState {
    killed: AtomicBool,
    reader: AtomicWaker,
}

impl Kill {
    pub fn kill(&self) {
        self.0.killed.store(true, Ordering::Release);
        self.0.reader.wake();
    }

    /// Whether to stop reading; if not, `cx` is woken when it is time to.
    fn poll_killed(&self, cx: &Context<'_>) -> bool {
        self.0.reader.register(cx.waker());
        self.0.killed.load(Ordering::Acquire)
    }
}

/// The kill switches of websockets that began as polling: the library keeps the request of a
/// session's first transport, so theirs cannot travel in it.
#[derive(Debug, Clone, Default)]
pub struct Upgraded(Arc<Mutex<HashMap<Sid, Kill>>>);

/// Keeps a kill switch in [`Upgraded`] while the connection lives.
pub struct Registration {
    sid: Sid,
    upgraded: Upgraded,
}

impl Upgraded {
    fn switches(&self) -> std::sync::MutexGuard<'_, HashMap<Sid, Kill>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn register(&self, sid: Sid, kill: Kill) -> Registration {
        self.switches().insert(sid, kill);
        Registration { sid, upgraded: self.clone() }
    }

    /// The switch of `socket`'s transport. None for polling, which has no connection to close.
    pub fn switch_of(&self, socket: &SocketRef) -> Option<Kill> {
        let own = socket.req_parts().extensions.get::<Kill>().cloned();
        own.or_else(|| self.switches().get(&socket.id).cloned())
    }

    /// Closes the transport of `socket`. A socket on polling is disconnected instead.
    pub fn close_transport(&self, socket: SocketRef) {
        if let Some(kill) = self.switch_of(&socket) {
            return kill.kill();
        }
        let id = socket.id;
        if socket.disconnect().is_err() {
            info!(socket = %id, "a polling client does not fetch: its heartbeat will end it");
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.upgraded.switches().remove(&self.sid);
    }
}

/// A byte stream that ends when it is killed, and that fails when the other side takes nothing for
/// [`WRITE_STALL`]: the library would wait for such a reader for ever.
pub struct Wire<S> {
    stream: S,
    kill: Kill,
    /// Runs while a write waits.
    stall: Option<Pin<Box<Sleep>>>,
    _registration: Option<Registration>,
}

impl<S> Wire<S> {
    pub fn new(stream: S, kill: Kill, registration: Option<Registration>) -> Self {
        Self { stream, kill, stall: None, _registration: registration }
    }

    fn watch_stall<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stall = None;
            return progress;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        if stall.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        info!(stalled_s = WRITE_STALL.as_secs(), "a client that does not read is cut off");
        self.kill.kill();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.kill.poll_killed(cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_stall(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch_stall(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch_stall(cx, progress)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_killed_wire_ends_for_its_reader() {
        let (near, _far) = tokio::io::duplex(64);
        let kill = Kill::default();
        let mut wire = Wire::new(near, kill.clone(), None);
        let reading = tokio::spawn(async move { wire.read(&mut [0; 8]).await });
        tokio::task::yield_now().await;
        kill.kill();
        assert_eq!(reading.await.unwrap().unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_is_cut_off_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(64);
        let kill = Kill::default();
        let mut wire = Wire::new(near, kill.clone(), None);
        let writing = tokio::spawn(async move { wire.write_all(&[0; 256]).await });
        for _ in 0..2 {
            tokio::time::sleep(WRITE_STALL * 9 / 10).await;
            far.read_exact(&mut [0; 64]).await.unwrap();
        }
        assert!(!kill.0.killed.load(Ordering::Acquire));
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(kill.0.killed.load(Ordering::Acquire));
    }
}
