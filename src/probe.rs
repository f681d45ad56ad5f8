//! `switchboard health`: asks a node from outside whether it is ready. Made for a container's `HEALTHCHECK`, where
//! there is neither a shell nor another client.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;

use crate::fetch::{FetchError, Fetcher, Limits};

const LIMITS: Limits =
    Limits { timeout: Duration::from_secs(3), max_bytes: 64 * 1024, max_concurrent: 1 };

/// The reply of a node to `/readyz`. Displays as one line.
#[derive(Debug)]
pub struct Readiness {
    asked: Uri,
    status: StatusCode,
    report: Option<Report>,
}

/// As much of the body of `/readyz` as the line says.
#[derive(Debug, Deserialize)]
struct Report {
    status: String,
    #[serde(default)]
    troubles: Vec<Trouble>,
}

#[derive(Debug, Deserialize)]
struct Trouble {
    part: String,
    what: String,
}

/// No reply of a node.
#[derive(Debug, thiserror::Error)]
#[error("{asked}: no node answers: SWITCHBOARD_ADMIN_LISTEN says where it listens")]
pub struct Unanswered {
    asked: Uri,
    source: FetchError,
}

impl Readiness {
    pub fn is_ready(&self) -> bool {
        self.status.is_success()
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.asked, self.status.as_u16())?;
        let Some(Report { status, troubles }) = &self.report else { return Ok(()) };
        write!(f, " {status}")?;
        for Trouble { part, what } in troubles {
            write!(f, "; {part}: {}", what.replace(char::is_control, " "))?;
        }
        Ok(())
    }
}

/// Asks the admin listener at `listen` for its readiness; one that listens on all addresses, on loopback.
///
/// # Errors
/// No reply within 3 s.
pub async fn ask(listen: SocketAddr) -> Result<Readiness, Unanswered> {
    let asked: Uri = format!("http://{}/readyz", reachable(listen)).parse().expect("an address");
    let unanswered = |source| Unanswered { asked: asked.clone(), source };
    let fetcher = Fetcher::new(&asked, LIMITS).expect("plain HTTP needs no authorities");
    let request = Request::get(&asked).body(Full::new(Bytes::new())).expect("a plain request");
    let (head, body) = fetcher.fetch(request).await.map_err(unanswered)?.into_parts();
    Ok(Readiness { asked, status: head.status, report: serde_json::from_slice(&body).ok() })
}

/// The address under which a listener on this machine is reached.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, listen.port()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:9300", "127.0.0.1:9300"),
            ("[::]:9300", "[::1]:9300"),
            ("10.1.2.3:9300", "10.1.2.3:9300"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
