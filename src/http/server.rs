//! The listener. axum's has no time-out for a request head.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use http::StatusCode;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;
use tracing::{debug, warn};

use super::waiting::{MAX_WAITING, Seat, Waiting};
use crate::limits::address::Peer;

/// Time for a client to send a request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on a request head; a longer one gets 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept, for example without descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for a client to acknowledge sent data (`TCP_USER_TIMEOUT`).
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// The process that listens on a TCP port, such as `redis-server (process 123)`: its socket's inode, from
/// `/proc/net/tcp` (proc(5)), among the open files of all processes that may be looked at. None elsewhere than
/// on Linux, and for a process of another user.
fn listener_on(port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    let inode_in = |table: &str| {
        let table = fs::read_to_string(table).ok()?;
        table.lines().skip(1).find_map(|line| {
            // sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_it = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
            is_it.then(|| fields.get(9).copied().unwrap_or_default().to_owned())
        })
    };
    let inode = inode_in("/proc/net/tcp").or_else(|| inode_in("/proc/net/tcp6"))?;
    let socket = format!("socket:[{inode}]");
    let has_it = |folder: &Path| {
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| to == Path::new(&socket))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbered = processes.filter_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((id, entry.path()))
    });
    let (id, folder) = numbered.find(|(_, folder)| has_it(folder))?;
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    Some(format!("{} (process {id})", name.trim()))
}

/// A bound address, ready to serve.
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// # Errors
    ///
    /// Those of the system. The error for a port in use names the process that has it, if it can be
    /// found.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self { listener }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let user = listener_on(address.port());
                let user = user.unwrap_or_else(|| "another process".to_owned());
                Err(io::Error::new(error.kind(), format!("{error}: {user} listens there")))
            }
            Err(error) => Err(error),
        }
    }

    /// The bound address, with the actual port.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until `shutdown` completes. Accepted ones continue.
    pub async fn run(self, routes: Router, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let waiting = Waiting::new(MAX_WAITING);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = &mut shutdown => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    tokio::spawn(serve(stream, peer.ip(), routes.clone(), waiting.seat()));
                }
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: IpAddr, routes: Router, seat: Seat) {
    if let Err(error) = prepare(&stream) {
        return debug!(%error, "a connection was gone before it was served");
    }
    let seat = Arc::new(seat);
    let answer = service_fn(|mut request: Request<Incoming>| {
        let (mut routes, seat) = (routes.clone(), seat.clone());
        async move {
            seat.is_served();
            request.extensions_mut().insert(Peer(peer));
            let response = routes.call(request.map(Body::new)).await;
            let is_upgraded =
                matches!(&response, Ok(r) if r.status() == StatusCode::SWITCHING_PROTOCOLS);
            if !is_upgraded {
                seat.wait();
            }
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    tokio::select! {
        served = connection => if let Err(error) = served {
            debug!(%error, "a connection ended with an error");
        },
        () = seat.told_to_leave() => debug!("a connection that sent no request made room"),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Signaling is small, latency-sensitive messages.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_a_port_that_is_taken_is_named() {
        let first = Server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let second = Server::bind(first.address().unwrap()).await;
        let error = second.err().expect("the port is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        if cfg!(target_os = "linux") {
            let own = format!("(process {}) listens there", std::process::id());
            assert!(error.to_string().ends_with(&own), "{error}");
        }
    }
}
