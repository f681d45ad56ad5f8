//! HTTP requests to the platform's servers: only to configured addresses, bounded in time and response size.

use std::{fmt, io, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Lifetime of an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on idle connections.
const MAX_IDLE: usize = 16;
/// Bound on the head of a response.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The URL of a server: `https://`, or `http://` on this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Uri);

impl Endpoint {
    pub fn uri(&self) -> &Uri {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "expected https://…, or http://… to this machine, without a user name or password";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let authority = uri.authority().ok_or(EXPECTED)?;
        let host = authority.host().trim_matches(['[', ']']);
        let is_safe = match uri.scheme_str() {
            Some("https") => ServerName::try_from(host).is_ok(),
            Some("http") => is_here(host),
            _ => false,
        };
        if is_safe && !authority.as_str().contains('@') { Ok(Self(uri)) } else { Err(EXPECTED) }
    }
}

/// Whether this host is the machine itself.
pub fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The URL up to `?`, because a query may hold a key.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        match text.split_once('?') {
            Some((place, _)) => write!(f, "{place}?***"),
            None => f.write_str(&text),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The settings of TLS, with the authorities that this machine trusts, or with none.
fn tls(is_used: bool) -> io::Result<ClientConfig> {
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let tls = if is_used {
        tls.with_native_roots()?
    } else {
        tls.with_root_certificates(RootCertStore::empty())
    };
    Ok(tls.with_no_client_auth())
}

/// TLS on a stream to `host`, whose certificate must be trusted by this machine.
pub async fn secure(stream: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(tls(true)?)).connect(name, stream).await
}

/// A failed request.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("an answer of more than {0} bytes")]
    TooLarge(usize),
    #[error("cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("an answer that broke off")]
    BrokenOff(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The bounds of a request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Includes the wait for a slot.
    pub timeout: Duration,
    /// Bound on the body of a response, in bytes.
    pub max_bytes: usize,
    /// Concurrent requests. Further ones wait for a slot.
    pub max_concurrent: usize,
}

/// A client of one server.
#[derive(Debug)]
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    turns: Semaphore,
    limits: Limits,
}

impl Fetcher {
    /// # Errors
    /// The machine names no authority whose certificates it trusts, and the address needs one.
    pub fn new(uri: &Uri, limits: Limits) -> io::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(uri.scheme() == Some(&Scheme::HTTPS))?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .build(connector);
        Ok(Self { client, turns: Semaphore::new(limits.max_concurrent), limits })
    }

    /// The response, whatever its status. Redirects are not followed.
    pub async fn fetch(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, FetchError> {
        let timeout = self.limits.timeout;
        let in_turn = async {
            let _turn = self.turns.acquire().await.expect("it is never closed");
            self.answer(request).await
        };
        tokio::time::timeout(timeout, in_turn).await.map_err(|_| FetchError::Late(timeout))?
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError> {
        let response = self.client.request(request).await.map_err(FetchError::Unreachable)?;
        let (head, body) = response.into_parts();
        let max_bytes = self.limits.max_bytes;
        let body = Limited::new(body, max_bytes).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                FetchError::TooLarge(max_bytes)
            } else {
                FetchError::BrokenOff(error)
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_safe_to_send_a_secret_to() {
        for good in [
            "https://calls.example.org/may-call",
            "https://calls.example.org:8443",
            "http://127.0.0.1:8080/x",
            "http://127.1.2.3/",
            "http://[::1]:8080/x",
            "http://localhost:8080/x",
        ] {
            assert!(good.parse::<Endpoint>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/may-call",
            "calls.example.org",
            "ftp://calls.example.org/",
            "http://calls.example.org/",
            "http://10.0.0.1/",
            "http://localhost.example.org/",
            "http://127.0.0.1.example.org/",
            "https://anna:hidden@calls.example.org/",
            "http://127.0.0.1@example.org/",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_is_not_shown() {
        let endpoint: Endpoint = "https://calls.example.org/x?key=hidden".parse().unwrap();
        assert_eq!(format!("{endpoint} {endpoint:?}").matches("hidden").count(), 0);
        assert!(endpoint.uri().to_string().contains("hidden"));
    }
}
