//! Gets one small document over HTTPS: no redirects, no proxies, within a time and a size.

use std::{fmt, io, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long fetching may take in all.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest document.
const MAX_BYTES: usize = 256 * 1024;

/// Where a key set is: HTTPS, or plain HTTP on this machine.
#[derive(Clone, PartialEq, Eq)]
pub struct KeySetUrl(Uri);

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("no secure connection")]
    Tls(#[source] io::Error),
    #[error("the exchange broke off")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer broke off, or is longer than {MAX_BYTES} bytes")]
    Body,
}

impl FromStr for KeySetUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str =
            "expected https://…, or http://… on this machine, without a password";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let authority = uri.authority().ok_or(EXPECTED)?;
        let host = host_of(&uri);
        let is_here =
            host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let is_safe = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => ServerName::try_from(host).is_ok(),
            Some(scheme) if *scheme == Scheme::HTTP => is_here,
            _ => false,
        };
        if is_safe && !authority.as_str().contains('@') { Ok(Self(uri)) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for KeySetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for KeySetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The host, without the brackets of an IPv6 address.
fn host_of(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_matches(['[', ']'])
}

/// What TLS trusts: the certificates that this machine trusts.
pub fn trust_of_this_machine() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // Without any, each connection fails and says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

pub async fn fetch(url: &KeySetUrl, tls: &Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    timeout(TIMEOUT, get(&url.0, tls)).await.map_err(|_| FetchError::Timeout)?
}

async fn get(uri: &Uri, tls: &Arc<ClientConfig>) -> Result<Bytes, FetchError> {
    let host = host_of(uri);
    let is_secure = uri.scheme() == Some(&Scheme::HTTPS);
    let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(FetchError::Connect)?;
    if !is_secure {
        return exchange(uri, stream).await;
    }
    let name = ServerName::try_from(host.to_owned()).expect("it was one when it was read");
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
    exchange(uri, stream.map_err(FetchError::Tls)?).await
}

async fn exchange<S>(uri: &Uri, stream: S) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("its parts are those of a URI");
    let answer = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
        Ok(body.map_err(|_| FetchError::Body)?.to_bytes())
    };
    // The connection lives no longer than its one exchange, on the same task.
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
