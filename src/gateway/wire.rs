//! The byte stream below an upgraded websocket: buffering bounds, rate limits and a kill switch,
//! for which the library has no public interface.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use socketioxide::{extract::SocketRef, socket::Sid};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
    time::Sleep,
};
use tracing::info;

use super::{frames::Meter, session_of};
use crate::{
    limits::buffers::{Buffers, Charge},
    metrics::{self, Buffer, Slow},
};

/// The most bytes that wait for a client to read them.
pub const MAX_WAITING_BYTES: usize = 2 * 1024 * 1024;
/// The number of low bits that count sent bytes. The bits above count pieces.
const COUNT_BITS: u32 = 40;
/// The largest difference between a piece's real and noted length.
const PIECE_ERROR_BYTES: u64 = 256;
/// A connection ends if its client accepts no data for this long.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// The size of a read. One buffer per thread is enough: only data that does not fit into a
/// connection's own small buffer is kept for it.
const READ_AHEAD_BYTES: usize = 16 * 1024;

thread_local! {
    static READ_AHEAD: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_AHEAD_BYTES].into());
}

/// Closes one connection. The client sees its transport close and reconnects by itself, which it
/// would not do after a disconnect of the socket.
#[derive(Debug, Clone)]
pub struct Kill(Arc<KillState>);

#[derive(Debug)]
struct KillState {
    killed: AtomicBool,
    /// Whether the socket has joined the namespace. Until then its messages must be short.
    joined: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// Bytes received of a message that is not complete.
    unfinished: Charge,
    /// Bytes sent to the client that its connection has not accepted yet, approximately.
    waiting: Charge,
    /// Those of them since the last flush; the bits above [`COUNT_BITS`] count their pieces.
    unflushed: AtomicU64,
    /// Bytes that the connection has accepted since the last flush.
    written_bytes: AtomicUsize,
}

impl Kill {
    pub fn new(buffers: &Buffers) -> Self {
        Self(Arc::new(KillState {
            killed: AtomicBool::new(false),
            joined: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            unfinished: buffers.holder(Buffer::Frames),
            waiting: buffers.holder(Buffer::Clients),
            unflushed: AtomicU64::new(0),
            written_bytes: AtomicUsize::new(0),
        }))
    }

    /// The bytes that are buffered for and from the client.
    pub fn held_bytes(&self) -> usize {
        self.0.unfinished.bytes() + self.0.waiting.bytes()
    }

    /// Only a change is written: most messages come whole.
    fn note_unfinished(&self, bytes: usize) {
        if self.0.unfinished.bytes() != bytes {
            self.0.unfinished.set(bytes);
        }
    }

    pub fn kill(&self) {
        self.0.killed.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }

    /// Records that the socket has joined the namespace.
    pub fn note_joined(&self) {
        self.0.joined.store(true, Ordering::Relaxed);
    }

    fn has_joined(&self) -> bool {
        self.0.joined.load(Ordering::Relaxed)
    }

    /// Records that this much is sent to the client. Returns false if the client lags too far
    /// behind.
    pub fn note_sent(&self, bytes: usize) -> bool {
        self.0.unflushed.fetch_add((1 << COUNT_BITS) + bytes as u64, Ordering::Relaxed);
        self.0.waiting.add(bytes) <= MAX_WAITING_BYTES
    }

    fn note_written(&self, bytes: usize) {
        self.0.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.waiting.sub(bytes);
    }

    /// Everything that was sent before the previous flush has left: the library writes all pending
    /// data, then flushes. Sizes are estimates whose errors would add up over a long life. If
    /// everything sent since may have been written, the count returns to 0: an idle client holds
    /// nothing.
    fn note_flushed(&self) {
        let unflushed = self.0.unflushed.swap(0, Ordering::Relaxed);
        let written = self.0.written_bytes.swap(0, Ordering::Relaxed) as u64;
        let (pieces, bytes) = (unflushed >> COUNT_BITS, unflushed & ((1 << COUNT_BITS) - 1));
        let left = bytes.saturating_sub(written);
        let left = if left <= pieces * PIECE_ERROR_BYTES { 0 } else { left };
        self.0.waiting.set(usize::try_from(left).unwrap_or(usize::MAX));
    }

    /// Whether the connection was killed; if not, `waker` is woken when it is.
    fn poll_killed(&self, waker: &AtomicWaker, cx: &Context<'_>) -> bool {
        waker.register(cx.waker());
        self.is_killed()
    }

    pub fn is_killed(&self) -> bool {
        self.0.killed.load(Ordering::Acquire)
    }
}

/// The kill switches of websockets that began as polling: the library keeps the request of a
/// session's first transport, so their switches cannot travel in it.
#[derive(Debug, Clone, Default)]
pub struct Upgraded(Arc<Mutex<HashMap<Sid, Kill>>>);

/// Keeps a kill switch in [`Upgraded`] while the connection lives, and reports its end.
pub struct Registration {
    sid: Sid,
    upgraded: Upgraded,
    kill: Kill,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Upgraded {
    fn switches(&self) -> MutexGuard<'_, HashMap<Sid, Kill>> {
        self.0.lock()
    }

    /// A session has one upgraded connection: a second one is neither registered nor served.
    pub fn register(
        &self,
        sid: Sid,
        kill: Kill,
        ended: impl FnOnce() + Send + Sync + 'static,
    ) -> Option<Registration> {
        match self.switches().entry(sid) {
            Entry::Occupied(_) => None,
            Entry::Vacant(entry) => {
                entry.insert(kill.clone());
                let (upgraded, ended) = (self.clone(), Some(Box::new(ended) as _));
                Some(Registration { sid, upgraded, kill, ended })
            }
        }
    }

    /// The kill switch of `socket`'s transport. `None` for polling, which has no connection to
    /// close.
    pub fn switch_of(&self, socket: &SocketRef) -> Option<Kill> {
        let own = socket.req_parts().extensions.get::<Kill>().cloned();
        own.or_else(|| self.switch_at(socket.id))
    }

    /// The kill switch of a session that began as polling and is now on a websocket.
    pub fn switch_at(&self, sid: Sid) -> Option<Kill> {
        self.switches().get(&sid).cloned()
    }

    /// Records that `socket` is sent this much. Returns false if its client lags too far behind.
    pub fn keeps_up(&self, socket: &SocketRef, bytes: usize) -> bool {
        match self.switch_of(socket) {
            Some(switch) => switch.note_sent(bytes),
            None => session_of(socket).is_none_or(|session| session.note_unfetched(bytes)),
        }
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
        // Holders of the switch must not wait for this connection.
        self.kill.kill();
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

/// A byte stream that ends when it is killed or its client exceeds its limits, and that fails if
/// the client accepts nothing for [`WRITE_STALL`], for which the library has no time-out.
pub struct Wire<S> {
    stream: S,
    kill: Kill,
    meter: Meter,
    /// Data that was read ahead, from `taken` on.
    ahead: Vec<u8>,
    taken: usize,
    /// Runs while a write is pending.
    stall: Option<Pin<Box<Sleep>>>,
    _registration: Option<Registration>,
}

impl<S> Wire<S> {
    pub fn new(stream: S, kill: Kill, meter: Meter, registration: Option<Registration>) -> Self {
        let (ahead, taken) = (Vec::new(), 0);
        Self { stream, kill, meter, ahead, taken, stall: None, _registration: registration }
    }

    /// Copies data that was read ahead.
    fn take_ahead(&mut self, buffer: &mut ReadBuf<'_>) {
        let waiting = &self.ahead[self.taken..];
        let count = waiting.len().min(buffer.remaining());
        buffer.put_slice(&waiting[..count]);
        self.taken += count;
        if self.taken == self.ahead.len() {
            (self.ahead, self.taken) = (Vec::new(), 0);
        }
    }

    /// Passes on the progress of a write, unless the connection is killed or stalls.
    fn guard<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.kill.poll_killed(&self.kill.0.writer, cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if progress.is_ready() {
            self.stall = None;
            return progress;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        if stall.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        metrics::SLOW_CLIENTS.of(Slow::Stalled).increment(1);
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
        if !self.ahead.is_empty() && !self.kill.is_killed() {
            // As for any other read: other tasks get their turn.
            ready!(coop::poll_proceed(cx)).made_progress();
            self.take_ahead(buffer);
            return Poll::Ready(Ok(()));
        }
        if self.kill.poll_killed(&self.kill.0.reader, cx) {
            return Poll::Ready(Ok(()));
        }
        READ_AHEAD.with_borrow_mut(|bytes| {
            let mut read = ReadBuf::new(bytes);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            let Self { kill, meter, .. } = &mut *self;
            if !meter.take(read.filled(), || kill.has_joined()) {
                kill.kill();
                return Poll::Ready(Ok(()));
            }
            kill.note_unfinished(meter.unfinished_bytes());
            let (now, later) = read.filled().split_at(read.filled().len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.ahead.extend_from_slice(later);
            Poll::Ready(Ok(()))
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Data in flight is dropped, too: a client that reads why it is refused does not reconnect
        // by itself.
        if self.kill.poll_killed(&self.kill.0.writer, cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = progress {
            self.kill.note_written(written);
        }
        self.guard(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(progress, Poll::Ready(Ok(()))) {
            self.kill.note_flushed();
        }
        self.guard(cx, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.guard(cx, progress)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        limits::{Limits, Refusals, Settings, address::Proxies},
        time::Clock,
    };

    /// The meter of a joined client that sends bytes without frames: bytes alone are not limited.
    fn meter() -> Meter {
        let settings = Settings::with(&["off".to_owned()]).unwrap();
        let refusals = Arc::new(Refusals::new(Clock::System));
        let limits = Limits::new(settings, Proxies::default(), Clock::System, refusals);
        Meter::new(IpAddr::from(Ipv4Addr::LOCALHOST).into(), Arc::new(limits))
    }

    fn kill() -> Kill {
        Kill::new(&Buffers::default())
    }

    #[tokio::test]
    async fn a_killed_wire_ends_for_its_reader() {
        let (near, _far) = tokio::io::duplex(64);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
        let reading = tokio::spawn(async move { wire.read(&mut [0; 8]).await });
        tokio::task::yield_now().await;
        kill.kill();
        assert_eq!(reading.await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_killed_wire_takes_nothing_more() {
        let (near, _far) = tokio::io::duplex(64);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
        let writing = tokio::spawn(async move { wire.write_all(&[0; 256]).await });
        tokio::task::yield_now().await;
        kill.kill();
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_is_written_to_a_killed_wire_does_not_arrive() {
        let (near, mut far) = tokio::io::duplex(64);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
        kill.kill();
        let written = wire.write(b"too late").await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(wire);
        let mut arrived = Vec::new();
        far.read_to_end(&mut arrived).await.unwrap();
        assert_eq!(arrived, b"");
    }

    #[tokio::test]
    async fn what_waits_for_a_client_is_bounded_in_bytes() {
        let (near, mut far) = tokio::io::duplex(MAX_WAITING_BYTES);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
        assert!(kill.note_sent(MAX_WAITING_BYTES));
        wire.write_all(&[0; 100]).await.unwrap();
        far.read_exact(&mut [0; 100]).await.unwrap();
        assert!(kill.note_sent(100), "what was written has made room");
        assert!(!kill.note_sent(1));
    }

    #[tokio::test]
    async fn what_is_read_ahead_comes_in_order_and_is_not_kept() {
        let (mut near, far) = tokio::io::duplex(MAX_WAITING_BYTES);
        let kill = kill();
        kill.note_joined();
        let mut wire = Wire::new(far, kill, meter(), None);
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(3 * READ_AHEAD_BYTES + 7).collect();
        near.write_all(&sent).await.unwrap();
        let (mut read, mut chunk) = (Vec::new(), [0; 1000]);
        while read.len() < sent.len() {
            let count = wire.read(&mut chunk).await.unwrap();
            read.extend_from_slice(&chunk[..count]);
        }
        assert!(read == sent);
        assert_eq!(wire.ahead.capacity(), 0);
    }

    #[tokio::test]
    async fn what_was_sent_is_counted_roughly_and_errors_do_not_add_up() {
        let (near, mut far) = tokio::io::duplex(64);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
        for _ in 0..10 {
            // Noted as much, and is little.
            assert!(kill.note_sent(MAX_WAITING_BYTES / 4));
            wire.write_all(&[0; 8]).await.unwrap();
            wire.flush().await.unwrap();
            far.read_exact(&mut [0; 8]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_has_read_all_holds_nothing() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
        for bytes in [60_000, 100] {
            assert!(kill.note_sent(bytes + 256));
            wire.write_all(&vec![0; bytes + 40]).await.unwrap();
            wire.flush().await.unwrap();
            far.read_exact(&mut vec![0; bytes + 40]).await.unwrap();
            assert_eq!(kill.held_bytes(), 0);
        }
        assert!(kill.note_sent(60_000));
        wire.flush().await.unwrap();
        assert_eq!(kill.held_bytes(), 60_000, "it was sent while the flush was under way");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_is_cut_off_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(64);
        let kill = kill();
        let mut wire = Wire::new(near, kill.clone(), meter(), None);
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
