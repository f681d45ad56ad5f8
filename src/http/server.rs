//! The listener. The library's own has no time limit for a request's head.

use std::{
    io,
    net::{IpAddr, SocketAddr},
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

/// How long a client may take to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for a request's head; what is longer is refused with 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// How long to wait after a connection could not be accepted, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may acknowledge or take nothing of what is sent to it: it is gone, or does not read.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// A bound address, ready to serve.
pub struct Server {
    listener: TcpListener,
}

impl Server {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// The address in use: the port too if 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts connections until `shutdown` completes. Those accepted go on.
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
    // Signaling is small messages that somebody waits for.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}
