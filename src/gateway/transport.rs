//! The routes of `/socket.io/`: websockets on the project's own [`Wire`], polling by the library.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use engineioxide::service::NotFoundService;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socketioxide::{SocketIo, adapter::LocalAdapter, service::SocketIoService, socket::Sid};
use tokio::runtime::Handle;
use tower_service::Service;
use tracing::debug;
use tungstenite::handshake::derive_accept_key;

use super::{
    body::Timed,
    frames::{MAX_UNJOINED_BYTES, Meter},
    outlet::socket_id,
    session::Context,
    session_of,
    turns::Turns,
    wire::{Kill, Upgraded, Wire},
};
use crate::{
    auth::bearer,
    limits::{Limits, Said, Seat, TooMany, What, address::Source, table::Buckets},
    metrics::{self, Buffer, Limit, Refused},
    secret::Secret,
};

/// Engine.IO's packet that closes a session.
const CLOSE_PACKET: &str = "1";
/// The separator of packets in a polling request.
const PACKET_SEPARATOR: u8 = 0x1e;
/// The time-out for the body of a polling request.
const BODY_TIME: Duration = Duration::from_secs(10);

pub type Engine = SocketIoService<NotFoundService, LocalAdapter>;

#[derive(Clone)]
struct Transport {
    engine: Engine,
    io: SocketIo,
    upgraded: Upgraded,
    /// The sessions with a POST in progress. A client sends one request after the other.
    posting: Turns<Sid>,
    /// The rate of requests and packets of sessions on polling.
    packets: Arc<Buckets<Sid>>,
    /// The rate of the bytes in those requests.
    bytes: Arc<Buckets<Sid>>,
    doors: Arc<Doors>,
    context: Arc<Context>,
    limits: Arc<Limits>,
    /// Whether tokens are verified here.
    takes_tokens: bool,
}

/// The kinds of requests that a stopping node no longer accepts.
#[derive(Debug, Default)]
pub struct Doors {
    /// Set when no new connection is accepted.
    closed_to_new: AtomicBool,
    /// Set when polling clients are sent to other nodes, too.
    closed_to_polling: AtomicBool,
}

impl Doors {
    pub fn close_to_new(&self) {
        self.closed_to_new.store(true, Ordering::Relaxed);
    }

    /// Whether no new connection is accepted.
    pub fn are_closed(&self) -> bool {
        self.closed_to_new.load(Ordering::Relaxed)
    }

    pub fn close_to_polling(&self) {
        self.closed_to_polling.store(true, Ordering::Relaxed);
    }
}

/// The token in the head of a connection's first request. The library keeps that request for as
/// long as the connection lives; the token is removed when it is verified.
#[derive(Debug, Clone)]
pub struct Bearer(Arc<Mutex<Option<Secret>>>);

impl Bearer {
    pub fn take(&self) -> Option<Secret> {
        self.0.lock().take()
    }
}

/// The paths of clients; some omit the slash (`addTrailingSlash: false`).
pub const PATHS: [&str; 2] = ["/socket.io/", "/socket.io"];
/// `Retry-After` on a stopping node: others accept its connections at once.
const RETRY_ELSEWHERE_S: u16 = 1;

/// The routes of the transport.
pub fn routes(
    engine: Engine,
    io: SocketIo,
    upgraded: Upgraded,
    doors: Arc<Doors>,
    context: Arc<Context>,
    takes_tokens: bool,
) -> Router {
    let (posting, limits) = (Turns::default(), context.limits.clone());
    let packets = Arc::new(Buckets::new(limits.settings().frames));
    let bytes = Arc::new(Buckets::new(limits.settings().bytes()));
    let transport = Transport {
        engine,
        io,
        upgraded,
        posting,
        packets,
        bytes,
        doors,
        context,
        limits,
        takes_tokens,
    };
    let routes = PATHS.into_iter();
    routes.fold(Router::new(), |router, path| router.route(path, any(serve))).with_state(transport)
}

async fn serve(State(transport): State<Transport>, request: Request) -> Response {
    let (limits, doors) = (transport.limits.clone(), transport.doors.clone());
    let source = limits.source_of(request.extensions(), request.headers());
    let suspect = suspect(request.uri());
    let response = answer(transport, request).await;
    if response.status() == StatusCode::BAD_REQUEST
        && !doors.are_closed()
        && let Some(reason) = suspect
    {
        limits.refuse(reason, source, Said::default());
    }
    response
}

/// The reason to refuse a request with this address, if there is one.
fn suspect(uri: &Uri) -> Option<Refused> {
    let is_websocket = match query_value(uri, "transport") {
        Some("websocket") => true,
        Some("polling") => false,
        _ => return Some(Refused::Transport),
    };
    match (query_value(uri, "EIO"), query_value(uri, "sid")) {
        (Some("4"), None) if is_websocket => Some(Refused::Websocket),
        (Some("4"), None) => None,
        (Some("4"), Some(_)) => Some(Refused::Session),
        _ => Some(Refused::Protocol),
    }
}

async fn answer(transport: Transport, request: Request) -> Response {
    let is_new = query_value(request.uri(), "sid").is_none();
    if is_new && transport.doors.are_closed() {
        let retry_after = HeaderValue::from(RETRY_ELSEWHERE_S);
        let why = "this node is stopping";
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, retry_after)], why)
            .into_response();
    }
    let is_websocket = is_websocket(request.uri());
    let seat = match transport.seat(&request, is_new, is_websocket) {
        Ok(seat) => seat,
        Err(too_many) => return turn_away(&too_many),
    };
    if is_websocket {
        let Some(accept) = websocket_accept(&request) else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        if !is_new && let Some(refusal) = transport.refusal(sid_of(request.uri())).await {
            return refusal;
        }
        return transport.upgrade(request, accept, seat);
    }
    if request.headers().contains_key(header::UPGRADE) {
        // The library would upgrade the request without the guards of [`Wire`].
        return StatusCode::BAD_REQUEST.into_response();
    }
    if transport.doors.closed_to_polling.load(Ordering::Relaxed) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    if is_new {
        let request = transport.detached(&request, seat);
        return transport.pass_on(request).await;
    }
    let sid = sid_of(request.uri());
    if let Some(sid) = sid
        && !transport.takes_packets(1, sid, transport.source(&request))
    {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    }
    match sid {
        Some(sid) if request.method() == Method::GET => transport.fetch(sid, request).await,
        Some(sid) if request.method() == Method::POST => transport.post(sid, request).await,
        _ => transport.pass_on(request).await,
    }
}

fn sid_of(uri: &Uri) -> Option<Sid> {
    query_value(uri, "sid")?.parse().ok()
}

/// The client's library retries by itself, with growing delays.
fn turn_away(too_many: &TooMany) -> Response {
    let status = match too_many.what {
        What::Sockets => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::TOO_MANY_REQUESTS,
    };
    let retry_after = HeaderValue::from(too_many.retry_after_s());
    (status, [(header::RETRY_AFTER, retry_after)], too_many.to_string()).into_response()
}

/// Whether a request asks for a websocket of Engine.IO 4.
fn is_websocket(uri: &Uri) -> bool {
    query_value(uri, "transport") == Some("websocket") && query_value(uri, "EIO") == Some("4")
}

/// The `Sec-WebSocket-Accept` of a handshake (RFC 6455, 4.2); `None` if the request is not one.
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
    async fn pass_on(self, request: Request) -> Response {
        pass_on(self.engine, request).await
    }

    /// The GET of a polling client, which fetches packets.
    async fn fetch(self, sid: Sid, request: Request) -> Response {
        let session = || self.io.get_socket(sid).as_ref().and_then(session_of);
        let mut fetching = pin!(pass_on(self.engine, request));
        let response = match fetching.as_mut().now_or_never() {
            Some(response) => response,
            None => {
                // There was nothing to fetch.
                if let Some(session) = session() {
                    session.note_all_fetched();
                }
                fetching.await
            }
        };
        let bytes = response.body().size_hint().lower();
        if let Some(session) = session() {
            session.note_fetched(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        response
    }

    /// The POST of a polling client. A body that is too large is refused before it is read, and one
    /// that is too slow ends the session.
    async fn post(self, sid: Sid, request: Request) -> Response {
        let mut bound = self.limits.settings().message_bytes;
        let has_joined = self.context.has_joined(socket_id(sid));
        if !has_joined {
            bound = bound.min(MAX_UNJOINED_BYTES);
        }
        if request.body().size_hint().lower() > bound as u64 {
            if !has_joined {
                self.limits.closed(Limit::Unjoined, self.source(&request));
            }
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        let Some(_post) = self.posting.take(sid) else {
            metrics::LIMITS.of(Limit::Posts).increment(1);
            return StatusCode::BAD_REQUEST.into_response();
        };
        let check = self.clone().checks(sid, self.source(&request), bound, has_joined);
        let come = self.limits.buffers().holder(Buffer::Frames);
        let request = request.map(|body| Body::new(Timed::new(body, BODY_TIME, come, check)));
        pass_on(self.engine, request).await
    }

    fn source(&self, request: &Request) -> Source {
        self.limits.source_of(request.extensions(), request.headers())
    }

    /// Counts packets of a session on polling, and each request as one. Returns false if there are
    /// too many, and then the session ends.
    fn takes_packets(&self, count: u32, sid: Sid, source: Source) -> bool {
        let is_fine = self.limits.polled(&self.packets, count, sid);
        self.ends_unless(is_fine, Limit::Frames, sid, source)
    }

    /// Counts bytes of a session on polling. Returns false if there are too many, and then the
    /// session ends.
    fn takes_bytes(&self, bytes: usize, sid: Sid, source: Source) -> bool {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        let is_fine = self.limits.polled(&self.bytes, count, sid);
        self.ends_unless(is_fine, Limit::Bytes, sid, source)
    }

    /// Ends a session that exceeds a limit. Returns whether it does not.
    fn ends_unless(&self, is_fine: bool, limit: Limit, sid: Sid, source: Source) -> bool {
        if !is_fine {
            self.limits.flooded(limit, source);
            end_polling(self.engine.clone(), sid);
        }
        is_fine
    }

    /// Checks the body of a request as it arrives: its length must not exceed `bound`, whatever its
    /// head says, nor its packets their limit.
    fn checks(
        self,
        sid: Sid,
        source: Source,
        bound: usize,
        has_joined: bool,
    ) -> impl FnMut(&[u8]) -> bool + Send {
        let mut bytes = 0_usize;
        move |data| {
            bytes = bytes.saturating_add(data.len());
            if bytes > bound {
                if !has_joined {
                    self.limits.closed(Limit::Unjoined, source);
                }
                return false;
            }
            let more_packets = data.split(|byte| *byte == PACKET_SEPARATOR).skip(1).count();
            let more_packets = u32::try_from(more_packets).unwrap_or(u32::MAX);
            self.takes_bytes(data.len(), sid, source)
                && self.takes_packets(more_packets, sid, source)
        }
    }

    /// The seat of the connection that a request opens; a request of an open session needs none.
    fn seat(
        &self,
        request: &Request,
        is_new: bool,
        is_websocket: bool,
    ) -> Result<Option<Seat>, TooMany> {
        match (is_new, is_websocket) {
            (true, _) => self.limits.open(self.source(request)).map(Some),
            (false, true) => self.limits.handshake(self.source(request)).map(|()| None),
            (false, false) => Ok(None),
        }
    }

    /// The refusal of a websocket for the session `sid`, if it is not one that is on polling. The library would take
    /// the handshake and then close the connection without a word.
    async fn refusal(&self, sid: Option<Sid>) -> Option<Response> {
        let Some(sid) = sid else { return Some(StatusCode::BAD_REQUEST.into_response()) };
        // A POST without packets: it only shows whether the library knows the session.
        let uri = polling_uri(sid);
        let Ok(post) = http::Request::post(uri).body(Body::empty()) else { return None };
        let response = pass_on(self.engine.clone(), post).await;
        (!response.status().is_success()).then_some(response)
    }

    fn upgrade(self, mut request: Request, accept: HeaderValue, seat: Option<Seat>) -> Response {
        let sid = sid_of(request.uri());
        let kill = Kill::new(self.limits.buffers());
        let registration = sid.map(|sid| {
            let engine = self.engine.clone();
            self.upgraded.register(sid, kill.clone(), move || end_polling(engine, sid))
        });
        if let Some(None) = registration {
            return StatusCode::BAD_REQUEST.into_response();
        }
        if sid.is_some_and(|sid| self.context.has_joined(socket_id(sid))) {
            kill.note_joined();
        }
        let meter = Meter::new(self.source(&request), self.limits.clone());
        let mut head = self.detached(&request, seat).map(|_| ());
        head.extensions_mut().insert(kill.clone());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let stream = match upgrade.await {
                Ok(stream) => TokioIo::new(stream),
                Err(error) => return debug!(%error, "websocket handshake broken off"),
            };
            // Boxed, because the library moves it through several futures, each with room for it.
            let wire = Box::new(Wire::new(stream, kill, meter, registration.flatten()));
            let mut engine = self.engine;
            let served =
                Service::<(Box<Wire<_>>, http::Request<()>)>::call(&mut engine, (wire, head));
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

    /// A request that shares no memory with the received one. The library keeps the head of a
    /// session's first request for as long as the session lives, and each part of it is a slice of
    /// the 16 KiB read buffer. The seat moves along, and is freed with the session.
    fn detached(&self, request: &Request, seat: Option<Seat>) -> Request {
        let mut detached = Request::new(Body::empty());
        *detached.method_mut() = request.method().clone();
        *detached.uri_mut() = request.uri().to_string().parse().expect("it was a URI before");
        if let Some(token) = bearer(request.headers()).filter(|_| self.takes_tokens) {
            let token = Some(Secret::from(token.to_owned()));
            detached.extensions_mut().insert(Bearer(Arc::new(Mutex::new(token))));
        }
        if let Some(seat) = seat {
            detached.extensions_mut().insert(seat);
        }
        detached
    }
}

async fn pass_on(mut engine: Engine, request: Request) -> Response {
    match engine.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

/// Ends a session on polling, or between two transports: if an upgrade breaks off, the library
/// would keep the session and its user online forever. If the upgrade is complete or the session
/// gone, the library refuses this.
pub fn end_polling(engine: Engine, sid: Sid) {
    let close = http::Request::post(polling_uri(sid)).body(Body::from(CLOSE_PACKET));
    if let (Ok(close), Ok(runtime)) = (close, Handle::try_current()) {
        runtime.spawn(pass_on(engine, close));
    }
}

fn polling_uri(sid: Sid) -> String {
    format!("/socket.io/?EIO=4&transport=polling&sid={sid}")
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
