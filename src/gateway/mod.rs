//! The gateway for Socket.IO: handshake, identity, order of events, acks, and the end of connections.
//! Calls [`crate::calls`] for every decision about calls.

mod abandoned;
mod body;
pub(crate) mod decode;
mod expiry;
mod frames;
mod inbox;
mod leases;
mod outlet;
mod pace;
pub(crate) mod reply;
mod session;
mod shed;
mod transport;
mod turns;
mod wire;

pub use transport::PATHS as SOCKET_PATHS;

use std::{
    fmt,
    future::Future,
    str::FromStr,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::Router;
use serde_json::{Map, Value};
use socketioxide::{
    ParserConfig, SocketIo,
    extract::{SocketRef, TryData},
    handler::ConnectHandler,
    socket::{DisconnectReason, Sid, Socket},
};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use self::{
    leases::Due,
    outlet::{SocketSink, sid_of, socket_id},
    pace::spread,
    session::{Context, NotJoined, Receiver, Session},
    transport::{Bearer, Doors, Engine},
    wire::Upgraded,
};
use crate::{
    auth::{Access, CheckError, Identity, bare_token},
    calls::{Calls, ClientSink, as_gauge},
    health::Health,
    ice::Ice,
    ids::UserId,
    limits::{Denied, Limits, Seat, TooMany},
    metrics::{self, Limit, Sent, Transport},
    protocol::{ErrorType, ServerEvent},
    secret::Secret,
};

/// The time that a connection has to join the namespace.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that connections have to close when the service stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time that packets sent before have to be written before the transport is closed.
const LAST_WRITE_TIME: Duration = Duration::from_millis(50);
const CLOSE_POLL: Duration = Duration::from_millis(20);
/// The time that the shutdown notice has to reach the clients.
const GOODBYE_TIME: Duration = Duration::from_millis(100);
/// The most packets that wait for a client to read them.
const MAX_OUTGOING_PACKETS: usize = 2_048;
/// Binary attachments are refused with an error; a few must be accepted to be refused.
const MAX_ATTACHMENTS: usize = 8;
/// Each connection has a small buffer: data is read ahead into one buffer for all of them (see
/// [`wire`]).
const READ_BUFFER_BYTES: usize = 256;
/// The interval at which leases are checked.
const LEASE_INTERVAL: Duration = Duration::from_millis(200);
/// After so many leases the task yields.
const LEASE_BATCH: usize = 256;

/// The library's server before it accepts sockets.
pub struct Gateway {
    engine: Engine,
    io: SocketIo,
    upgraded: Upgraded,
    limits: Arc<Limits>,
}

/// The gateway in service.
pub struct Serving {
    io: SocketIo,
    upgraded: Upgraded,
    context: Arc<Context>,
    doors: Arc<Doors>,
}

/// Everything that is needed to admit a socket.
#[derive(Clone)]
struct Gate {
    context: Arc<Context>,
    io: SocketIo,
    engine: Engine,
    upgraded: Upgraded,
    doors: Arc<Doors>,
}

/// How a node leaves the cluster.
#[derive(Debug, Clone, Copy)]
pub enum Leaving {
    /// No node takes over: the calls end.
    ForGood,
    /// The next process with the same history resumes the calls, and devices may return to them.
    Resumable,
    /// Other nodes take over the clients, whose transports are closed one by one over this time.
    HandOver { window: Duration },
}

/// The reason for a refused connection. The client's library passes on only a text.
#[derive(Debug)]
struct Refused {
    error_type: ErrorType,
    message: String,
}

impl Gateway {
    pub fn new(limits: Arc<Limits>) -> Self {
        let message_bytes = limits.settings().message_bytes;
        let parser = ParserConfig::common()
            .max_incoming_binaries(MAX_ATTACHMENTS)
            .max_incoming_binary_buf_size(message_bytes);
        let (engine, io) = SocketIo::builder()
            .with_parser(parser)
            .max_payload(message_bytes as u64)
            .ws_max_message_size(message_bytes)
            .ws_max_frame_size(message_bytes)
            .ws_read_buffer_size(READ_BUFFER_BYTES)
            .max_buffer_size(MAX_OUTGOING_PACKETS)
            .connect_timeout(CONNECT_TIMEOUT)
            .build_svc();
        Self { engine, io, upgraded: Upgraded::default(), limits }
    }

    /// The client sink of this node's sockets.
    pub fn outlet(&self) -> Arc<dyn ClientSink> {
        Arc::new(SocketSink::new(self.io.clone(), self.upgraded.clone()))
    }

    /// Accepts sockets from now on, at the returned routes.
    pub fn serve(self, calls: Arc<Calls>, access: Arc<Access>, ice: Arc<Ice>) -> (Serving, Router) {
        let doors = Arc::new(Doors::default());
        let takes_tokens = !access.is_open();
        let (outlet, upgraded, limits) =
            (self.outlet(), self.upgraded.clone(), self.limits.clone());
        let context = Arc::new(Context::new(calls, access, outlet, upgraded, ice, limits));
        let gate = {
            let gate = Gate {
                context: context.clone(),
                io: self.io.clone(),
                engine: self.engine.clone(),
                upgraded: self.upgraded.clone(),
                doors: doors.clone(),
            };
            move |socket: SocketRef, auth: TryData<Map<String, Value>>| {
                count_refused(admit(gate, socket, auth))
            }
        };
        self.io.ns("/", greet.with(gate));
        let Self { engine, io, upgraded, limits: _ } = self;
        let routes = transport::routes(
            engine,
            io.clone(),
            upgraded.clone(),
            doors.clone(),
            context.clone(),
            takes_tokens,
        );
        (Serving { io, upgraded, context, doors }, routes)
    }
}

impl Serving {
    /// Warns clients whose tokens expire soon, and closes sockets whose tokens have expired.
    pub fn run_leases(&self) -> impl Future<Output = ()> + use<> {
        run_leases(self.io.clone(), self.context.clone())
    }

    /// Disconnects the clients that hold the most while the node's byte budget is exhausted, and
    /// reports in `health` if that lasts.
    pub fn run_shedder(&self, health: Health) -> impl Future<Output = ()> + use<> {
        let buffers = self.context.limits.buffers();
        let watching = buffers.clone().watch(health);
        let shedding = shed::run(self.io.clone(), self.upgraded.clone(), buffers.clone());
        async move {
            tokio::join!(shedding, watching);
        }
    }

    /// Accepts no more connections, sends the shutdown notice, and closes all transports. Clients
    /// reconnect by themselves to a node in service.
    pub async fn close(&self, leaving: Leaving) {
        self.doors.close_to_new();
        let window = match leaving {
            Leaving::ForGood => {
                self.context.end_calls();
                Duration::ZERO
            }
            Leaving::Resumable => {
                self.context.calls.end_unresumable().await;
                Duration::ZERO
            }
            Leaving::HandOver { window } => window,
        };
        self.say_goodbye(window).await;
        self.doors.close_to_polling();
        let (websockets, polling): (Vec<_>, Vec<_>) =
            self.io.sockets().into_iter().partition(|one| self.upgraded.switch_of(one).is_some());
        // At once, because a balancer may already send their next request to another node.
        for session in polling.iter().filter_map(session_of) {
            session.disconnected(DisconnectReason::ClosingServer);
        }
        spread(websockets, window, |socket| {
            let upgraded = self.upgraded.clone();
            if window.is_zero() {
                upgraded.close_transport(socket);
                return;
            }
            if let Some(session) = session_of(&socket) {
                session.pause_relay();
            }
            tokio::spawn(async move {
                tokio::time::sleep(LAST_WRITE_TIME).await;
                upgraded.close_transport(socket);
            });
        })
        .await;
        let signed_off = async {
            while self.context.session_count() > 0 {
                // Sockets that were admitted in the last moment.
                for socket in self.io.sockets() {
                    self.upgraded.close_transport(socket);
                }
                tokio::time::sleep(CLOSE_POLL).await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, signed_off).await.is_err() {
            let sessions = self.context.session_count();
            warn!(sessions, "some connections did not end in time");
        }
    }

    /// Sets the gauges of current connections.
    pub fn sample(&self) {
        self.context.limits.buffers().sample();
        let sockets = self.io.sockets();
        let is_websocket = |socket: &&SocketRef| self.upgraded.switch_of(socket).is_some();
        let websockets = sockets.iter().filter(is_websocket).count();
        metrics::SOCKETS.of(Transport::Websocket).set(as_gauge(websockets));
        metrics::SOCKETS.of(Transport::Polling).set(as_gauge(sockets.len() - websockets));
    }

    async fn say_goodbye(&self, window: Duration) {
        let sockets = self.io.sockets();
        if sockets.is_empty() {
            return;
        }
        info!(sockets = sockets.len(), "closing all connections");
        let within = window + CLOSE_TIMEOUT;
        let reconnect_within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let draining = ServerEvent::Draining { reconnect_within_ms };
        for socket in sockets {
            if self.upgraded.switch_of(&socket).is_none()
                && let Some(session) = session_of(&socket)
            {
                session.pause_relay();
            }
            // A socket that is gone or reads too slowly is closed without the notice.
            if socket.emit(draining.name(), &draining).is_ok() {
                metrics::SENT.of(Sent::Draining).increment(1);
                metrics::SENT_BYTES.of(Sent::Draining).increment(draining.size_bytes() as u64);
            }
        }
        tokio::time::sleep(GOODBYE_TIME).await;
    }
}

async fn count_refused(admitted: impl Future<Output = Result<(), Refused>>) -> Result<(), Refused> {
    let refused = |refused: &Refused| {
        metrics::CONNECTIONS_REFUSED.of(refused.error_type).increment(1);
    };
    admitted.await.inspect_err(refused)
}

/// Runs before the client is told that it is connected, so that everything it sends afterwards
/// finds a session, and its user is online.
async fn admit(
    gate: Gate,
    socket: SocketRef,
    TryData(auth): TryData<Map<String, Value>>,
) -> Result<(), Refused> {
    let Gate { context, io, engine, upgraded, doors } = gate;
    // One at a time per socket: repeating the event a thousand times must not have a thousand
    // tokens verified at once.
    let _turn = context.entering.take(socket_id(socket.id)).ok_or_else(Refused::again)?;
    if doors.are_closed() {
        upgraded.close_transport(socket);
        return Err(Refused::again());
    }
    if let Err(too_many) = seat_of(&socket).map_or(Ok(()), |seat| context.limits.join(&seat)) {
        upgraded.close_transport(socket);
        return Err(too_many.into());
    }
    let auth = auth.map_err(|_| Refused::invalid("auth", "expected an object"))?;
    let named = user_of("userId", &auth)?;
    let device = parse("deviceId", &auth)?;
    let identity = match identify(&context, &socket, &auth).await {
        Err(error) if error.may_pass() => {
            upgraded.close_transport(socket);
            return Err(error);
        }
        identity => identity?,
    };
    let (user, expires_at) = match identity {
        None => (named, None),
        Some(Identity { user, expires_at, .. }) => {
            if named.is_some_and(|named| named != user) {
                return Err(Refused::another_user());
            }
            (Some(user), Some(expires_at))
        }
    };
    let session = Session::begin(context.clone(), socket_id(socket.id), device, expires_at);
    let session = session.ok_or_else(Refused::again)?;
    socket.extensions.insert(session.clone());
    let leaving = session.clone();
    let (closing, sid) = ((upgraded.switch_of(&socket), upgraded.clone(), engine), socket.id);
    socket.on_disconnect(async move |reason: DisconnectReason| {
        if abandoned::is_possible(reason) {
            let (own, upgraded, engine) = closing;
            let context = leaving.context.clone();
            tokio::spawn(abandoned::close(context, own, upgraded, engine, sid));
        }
        leaving.disconnected(reason);
    });
    socket.on_fallback(Receiver(session.clone()));
    match user {
        Some(user) => {
            match session.join(&socket, user).await {
                Ok(()) => {}
                // Retrying is useless until other sockets of the user are closed.
                Err(NotJoined::TooMany(too_many)) => return Err(too_many.into()),
                Err(NotJoined::Unavailable(error)) => {
                    // A refused client does not retry by itself; a client whose transport closes
                    // does.
                    upgraded.close_transport(socket);
                    return Err(Refused::unavailable(error));
                }
            }
        }
        None => {
            let limits = context.limits.clone();
            tokio::spawn(expect_identity(io, socket.id, Arc::downgrade(&session), limits));
        }
    }
    // The session began earlier: an upgrade in the meantime finds it.
    if let Some(kill) = upgraded.switch_of(&socket) {
        kill.note_joined();
    }
    Ok(())
}

/// The user of the token that a client presents, in the CONNECT packet or in the head of its
/// handshake. `None` if no token is required.
async fn identify(
    Context { access, limits, .. }: &Context,
    socket: &SocketRef,
    auth: &Map<String, Value>,
) -> Result<Option<Identity>, Refused> {
    if access.is_open() {
        return Ok(None);
    }
    let given: Option<Secret> = parse("token", auth)?;
    let in_head = || socket.req_parts().extensions.get::<Bearer>()?.take();
    let token = given.or_else(in_head);
    let token = token.as_ref().map(|token| bare_token(token.expose()));
    match seat_of(socket) {
        Some(seat) => Ok(limits.admit(access, token, seat.source()).await?),
        None => Err(Refused::again()),
    }
}

/// Runs when the client has been told that it is connected.
async fn greet(socket: SocketRef) {
    if let Some(session) = session_of(&socket) {
        session.connected();
    }
}

/// The seat of a socket's connection. Each connection has one, which the library keeps with its
/// first request.
fn seat_of(socket: &Socket) -> Option<Seat> {
    socket.req_parts().extensions.get::<Seat>().cloned()
}

fn session_of(socket: &SocketRef) -> Option<Arc<Session>> {
    socket.extensions.get::<Arc<Session>>()
}

/// Holds no strong reference meanwhile: most sockets identify themselves or close long before.
async fn expect_identity(io: SocketIo, sid: Sid, session: Weak<Session>, limits: Arc<Limits>) {
    tokio::time::sleep(limits.settings().identify).await;
    let is_unknown = session.upgrade().is_some_and(|session| !session.is_identified());
    if let Some(socket) = io.get_socket(sid).filter(|_| is_unknown) {
        limits.closed(Limit::Identify, sid);
        // The queue is full only if the client reads nothing, and then its transport is closed
        // anyway.
        let _ = socket.disconnect();
    }
}

async fn run_leases(io: SocketIo, context: Arc<Context>) {
    let mut ticks = tokio::time::interval(LEASE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loop {
            let due = context.leases.take_due(context.access.now(), LEASE_BATCH);
            let is_last = due.len() < LEASE_BATCH;
            for (socket, due) in due {
                let session = io.get_socket(sid_of(socket)).as_ref().and_then(session_of);
                match (session, due) {
                    (None, _) => context.leases.forget(socket),
                    (Some(_), Due::Warn(expires_at)) => {
                        let expiring = ServerEvent::Expiring { expires_at };
                        context.outlet.emit(socket, &expiring, None);
                    }
                    (Some(session), Due::Expired) => session.expired(),
                }
            }
            if is_last {
                break;
            }
            // Thousands of tokens may expire together: others get their turn.
            tokio::task::yield_now().await;
        }
    }
}

/// The user whom the client named in the CONNECT packet.
fn user_of(field: &str, auth: &Map<String, Value>) -> Result<Option<UserId>, Refused> {
    let given = auth.get(field).filter(|value| !value.is_null());
    let user = given.map(UserId::from_value).transpose();
    user.map_err(|error| Refused::invalid(field, error))
}

/// A field of the CONNECT packet's payload.
fn parse<T>(field: &str, auth: &Map<String, Value>) -> Result<Option<T>, Refused>
where
    T: FromStr<Err: fmt::Display>,
{
    match auth.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            text.parse().map(Some).map_err(|error| Refused::invalid(field, error))
        }
        Some(_) => Err(Refused::invalid(field, "expected a string")),
    }
}

impl Refused {
    fn invalid(field: &str, error: impl fmt::Display) -> Self {
        Self { error_type: ErrorType::InvalidPayload, message: format!("{field}: {error}") }
    }

    /// The socket's earlier session has not ended yet.
    fn again() -> Self {
        let message = "the earlier connection is still being closed: try again shortly".to_owned();
        Self { error_type: ErrorType::TemporarilyUnavailable, message }
    }

    /// Whether a retry may succeed: then the transport is closed, so that the client retries by
    /// itself.
    fn may_pass(&self) -> bool {
        matches!(self.error_type, ErrorType::TemporarilyUnavailable | ErrorType::RateLimited)
    }

    fn another_user() -> Self {
        let message = "userId: the token is another user's".to_owned();
        Self { error_type: ErrorType::Forbidden, message }
    }

    fn unavailable(error: impl fmt::Display) -> Self {
        let error_type = ErrorType::TemporarilyUnavailable;
        Self { error_type, message: format!("{error}: try again shortly") }
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Token(CheckError::Unauthenticated(why)) => {
                Self { error_type: ErrorType::Unauthenticated, message: why.to_string() }
            }
            Denied::Token(error @ CheckError::NoKeys) => Self::unavailable(error),
            Denied::TooMany(too_many) => too_many.into(),
        }
    }
}

impl From<TooMany> for Refused {
    fn from(too_many: TooMany) -> Self {
        Self { error_type: ErrorType::RateLimited, message: too_many.to_string() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error_type, self.message)
    }
}
