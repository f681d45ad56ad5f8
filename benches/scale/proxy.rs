//! A TCP proxy in front of a server that delays, freezes or cuts connections.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{mpsc, watch},
    time::Instant,
};

const CHUNK_BYTES: usize = 64 * 1024;
/// The number of chunks in flight; beyond it, the sender waits.
const CHUNKS: usize = 1_024;

/// Ends with its owner, together with all connections.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

struct State {
    target: String,
    /// The delay in each direction.
    delay_us: AtomicU64,
    is_refusing: AtomicBool,
    is_frozen: watch::Sender<bool>,
    links: Mutex<HashMap<u64, Arc<Link>>>,
}

struct Link {
    /// Whether the connection has subscribed to a channel.
    is_subscriber: AtomicBool,
    is_cut: watch::Sender<bool>,
}

impl Proxy {
    pub async fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            target: target.to_owned(),
            delay_us: AtomicU64::new(0),
            is_refusing: AtomicBool::new(false),
            is_frozen: watch::Sender::new(false),
            links: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Ok(Self { address, state, accepting })
    }

    /// Delays each direction by this much, from the next bytes on.
    pub fn delay(&self, each_way: Duration) {
        let micros = u64::try_from(each_way.as_micros()).unwrap_or(u64::MAX);
        self.state.delay_us.store(micros, Ordering::Relaxed);
    }

    /// While frozen, nothing passes and nothing is lost.
    pub fn freeze(&self, frozen: bool) {
        self.state.is_frozen.send_replace(frozen);
    }

    /// While refusing, connections are cut and new ones closed at once.
    pub fn refuse(&self, refusing: bool) {
        self.state.is_refusing.store(refusing, Ordering::Relaxed);
        if refusing {
            self.cut(|_| true);
        }
    }

    /// Cuts the connections that carry commands, not those with subscriptions. Returns their
    /// number.
    pub fn cut_commands(&self) -> usize {
        self.cut(|link| !link.is_subscriber.load(Ordering::Relaxed))
    }

    fn cut(&self, which: impl Fn(&Link) -> bool) -> usize {
        let links = self.state.links.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for link in links.values().filter(|link| which(link)) {
            link.is_cut.send_replace(true);
            count += 1;
        }
        count
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut(|_| true);
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        if !state.is_refusing.load(Ordering::Relaxed) {
            tokio::spawn(pass(number, stream, state.clone()));
        }
    }
}

async fn pass(number: u64, stream: TcpStream, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(&state.target).await else { return };
    // Without `TCP_NODELAY` the kernel would add delays.
    let _ = (stream.set_nodelay(true), server.set_nodelay(true));
    let link =
        Arc::new(Link { is_subscriber: AtomicBool::new(false), is_cut: watch::Sender::new(false) });
    let mut is_cut = link.is_cut.subscribe();
    let links = || state.links.lock().unwrap_or_else(PoisonError::into_inner);
    links().insert(number, link.clone());
    let (from_client, to_client) = stream.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = one_way(from_client, to_server, &state, Some(&link)) => {}
        () = one_way(from_server, to_client, &state, None) => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
    links().remove(&number);
}

async fn one_way(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    state: &State,
    commands_of: Option<&Link>,
) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let chunk = buffer[..length].to_vec();
            if let Some(link) = commands_of
                && !link.is_subscriber.load(Ordering::Relaxed)
                && contains(&chunk, b"SUBSCRIBE")
            {
                link.is_subscriber.store(true, Ordering::Relaxed);
            }
            let delay = Duration::from_micros(state.delay_us.load(Ordering::Relaxed));
            if sender.send((Instant::now() + delay, chunk)).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        let mut is_frozen = state.is_frozen.subscribe();
        while let Some((at, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(at).await;
            // Fails only if the watched state is gone, which this task keeps alive.
            let _ = is_frozen.wait_for(|frozen| !*frozen).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(read, write);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}
