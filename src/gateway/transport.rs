//! `/socket.io/`: websockets on the project's own [`Wire`], polling as the library has it.

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use engineioxide::service::NotFoundService;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use socketioxide::{adapter::LocalAdapter, service::SocketIoService, socket::Sid};
use tower_service::Service;
use tracing::debug;
use tungstenite::handshake::derive_accept_key;

use super::wire::{Kill, Upgraded, Wire};

pub type Engine = SocketIoService<NotFoundService, LocalAdapter>;

#[derive(Clone)]
struct Transport {
    engine: Engine,
    upgraded: Upgraded,
}

/// The route of the transport.
pub fn routes(engine: Engine, upgraded: Upgraded) -> Router {
    Router::new().route("/socket.io/", any(serve)).with_state(Transport { engine, upgraded })
}

async fn serve(State(mut transport): State<Transport>, request: Request) -> Response {
    if is_websocket(request.uri()) {
        return match websocket_accept(&request) {
            Some(accept) => transport.upgrade(request, accept),
            None => StatusCode::BAD_REQUEST.into_response(),
        };
    }
    match transport.engine.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

/// Whether a request wants a websocket of Engine.IO 4.
fn is_websocket(uri: &Uri) -> bool {
    query_value(uri, "transport") == Some("websocket") && query_value(uri, "EIO") == Some("4")
}

/// What to answer to a websocket handshake (RFC 6455, 4.2); None if the request is not one.
fn websocket_accept(request: &Request) -> Option<HeaderValue> {
    let headers = request.headers();
    let is_handshake = request.method() == Method::GET
        && has_token(headers, header::CONNECTION, "upgrade")
        && has_token(headers, header::UPGRADE, "websocket")
        && has_token(headers, header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()
}

impl Transport {
    fn upgrade(self, mut request: Request, accept: HeaderValue) -> Response {
        let sid: Option<Sid> = query_value(request.uri(), "sid").and_then(|sid| sid.parse().ok());
        let kill = Kill::default();
        let head = detached_head(request.uri(), kill.clone());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let stream = match upgrade.await {
                Ok(stream) => TokioIo::new(stream),
                Err(error) => return debug!(%error, "websocket handshake broken off"),
            };
            let registration = sid.map(|sid| self.upgraded.register(sid, kill.clone()));
            let wire = Wire::new(stream, kill, registration);
            let mut engine = self.engine;
            let served = Service::<(Wire<_>, http::Request<()>)>::call(&mut engine, (wire, head));
            if let Err(error) = served.await {
                debug!(%error, "websocket request refused");
            }
        });
        let headers = [
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (header::CONNECTION, HeaderValue::from_static("Upgrade")),
            (header::SEC_WEBSOCKET_ACCEPT, accept),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

/// A request head that holds on to nothing. The library keeps a session's head for as long as the
/// session lives, and each piece of the one that came is a slice of the 16 KiB read buffer.
fn detached_head(uri: &Uri, kill: Kill) -> http::Request<()> {
    let mut head = http::Request::new(());
    *head.uri_mut() = uri.to_string().parse().expect("it was a URI before");
    head.extensions_mut().insert(kill);
    head
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn query_value<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}
