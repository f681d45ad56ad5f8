//! A socket's session: its identity, and its events, processed one after the other in order of
//! arrival.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use socketioxide::{
    SendError, SocketError,
    adapter::LocalAdapter,
    extract::{AckSender, SocketRef},
    handler::{FromMessageParts, MessageHandler, Value},
    socket::{DisconnectReason, Socket},
};
use tokio::{sync::oneshot, time::Instant};
use tracing::{debug, info, warn};

use super::{
    decode::{about, decode, name_of, size_of},
    inbox::{Inbox, Pushed},
    leases::Leases,
    outlet::room_of,
    reply::{About, Ack, Rejected},
    turns::Turns,
    wire::{MAX_WAITING_BYTES, Upgraded},
};
use crate::{
    auth::Access,
    call::Device,
    calls::{Calls, ClientSink, Failure, Initiate, Subscribed, reported},
    cluster::Unavailable,
    ice::{Ice, Servers},
    ids::{CallId, DeviceId, SocketId, UserId},
    limits::{
        Limits, TooMany, UserPlace, What,
        budget::{Budget, Spent},
        buffers::Charge,
    },
    metrics::{self, Buffer, Closed, Limit, Received, Sent, Slow, label},
    payload::{Delivered, Payload},
    protocol::{Answer, ClientEvent, ErrorBody, SUBSCRIBE, ServerEvent, USER_CONNECTED},
    time::Timestamp,
};

/// The longest time that an ack waits for the delivery of its message.
const ACK_TIME: Duration = Duration::from_secs(5);
/// The most pending acks of one socket.
const MAX_WAITING_ACKS: usize = 1_024;
/// `retryAfterMs` if too many acks are pending.
const RETRY_ACKS: Duration = Duration::from_secs(1);
/// The approximate size of an error as JSON.
const ERROR_BYTES: usize = 256;
/// The expiry of sockets without a token.
pub(super) const NEVER_MS: u64 = u64::MAX;

/// The state that all sessions share.
pub struct Context {
    pub(super) calls: Arc<Calls>,
    pub(super) access: Arc<Access>,
    pub(super) leases: Leases,
    pub(super) outlet: Arc<dyn ClientSink>,
    upgraded: Upgraded,
    ice: Arc<Ice>,
    pub(super) limits: Arc<Limits>,
    /// Set when the whole service stops: then no device can return to a call.
    ends_calls: AtomicBool,
    /// The time at which the latest connection began, in milliseconds.
    latest_ms: AtomicU64,
    /// The sockets that are connected, or gone and not detached yet.
    sessions: Mutex<HashSet<SocketId>>,
    /// The sockets that are being admitted at the moment.
    pub(super) entering: Turns<SocketId>,
}

impl Context {
    pub fn new(
        calls: Arc<Calls>,
        access: Arc<Access>,
        outlet: Arc<dyn ClientSink>,
        upgraded: Upgraded,
        ice: Arc<Ice>,
        limits: Arc<Limits>,
    ) -> Self {
        let (leases, sessions, entering) = (Leases::default(), Mutex::default(), Turns::default());
        let (ends_calls, latest_ms) = (AtomicBool::new(false), AtomicU64::new(0));
        Self {
            calls,
            access,
            leases,
            outlet,
            upgraded,
            ice,
            limits,
            ends_calls,
            latest_ms,
            sessions,
            entering,
        }
    }

    /// From now on a socket that closes ends its call.
    pub fn end_calls(&self) {
        self.ends_calls.store(true, Ordering::Relaxed);
    }

    /// The start time for a new connection: not before earlier ones, even if the machine's clock is
    /// set back.
    fn connected_at(&self) -> Timestamp {
        let now_ms = self.calls.now().as_millis();
        let latest_ms = self.latest_ms.fetch_max(now_ms, Ordering::Relaxed);
        Timestamp::from_millis(now_ms.max(latest_ms))
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, HashSet<SocketId>> {
        self.sessions.lock()
    }

    /// Whether the connection has joined the namespace.
    pub fn has_joined(&self, socket: SocketId) -> bool {
        self.sessions().contains(&socket)
    }

    /// The number of sessions. A session ends when all events of its socket are processed and it is
    /// detached.
    pub fn session_count(&self) -> usize {
        self.sessions().len()
    }
}

pub struct Session {
    pub(super) context: Arc<Context>,
    pub(super) socket: SocketId,
    device_id: Option<DeviceId>,
    connected_at: Timestamp,
    /// The expiry of its token in milliseconds; [`NEVER_MS`] without tokens.
    pub(super) expires_at_ms: AtomicU64,
    /// Set once, when the cluster knows the socket's user.
    pub(super) device: OnceLock<Device>,
    /// Its slot among its user's sockets. Set before the device.
    place: OnceLock<UserPlace>,
    budget: Mutex<Budget>,
    /// Whether the socket has presented an invalid token for a refresh.
    pub(super) has_failed: AtomicBool,
    /// Whether the device was told about its user's call.
    welcomed: AtomicBool,
    /// Whether the socket is being closed for good.
    dismissed: AtomicBool,
    /// Set when its transport is about to be closed.
    relay_paused: AtomicBool,
    /// Pending acks of undelivered messages, in order. A task waits for the first one while there
    /// is one.
    waiting_acks: Mutex<VecDeque<WaitingAck>>,
    /// The approximate number of bytes that wait for a polling client to fetch them.
    unfetched: Charge,
    inbox: Mutex<Inbox<Input>>,
}

/// An ack that waits for the delivery of its message.
struct WaitingAck {
    to: AckTo,
    delivered: Delivered,
    until: Instant,
    answer: Answer,
    event: String,
    about: About,
}

/// The destination of a reply.
struct AckTo {
    socket: Arc<Socket>,
    sender: AckSender<LocalAdapter>,
    /// Whether the client asked for an ack; otherwise it is only told about errors.
    is_wanted: bool,
}

/// Whether an ack is wanted, the delivery that it waits for, and what is sent after it.
struct Waits {
    wanted: bool,
    delivered: Option<Delivered>,
    /// The reply contains presence as of this change.
    presence_as_of: Option<u64>,
}

/// The reason why a socket could not join its user's.
#[derive(Debug)]
pub enum NotJoined {
    TooMany(TooMany),
    Unavailable(Unavailable),
}

/// Input of a session.
enum Input {
    Event { socket: Arc<Socket>, value: Value, ack: Option<i64>, received_us: u64 },
    Gone { may_return: bool, cause: Closed },
}

impl Session {
    /// A session for this socket. `None` while its connection has an earlier one that is not
    /// detached yet: a client may leave the namespace and join again on the same transport.
    pub fn begin(
        context: Arc<Context>,
        socket: SocketId,
        device_id: Option<DeviceId>,
        expires_at: Option<Timestamp>,
    ) -> Option<Arc<Self>> {
        let is_new = context.sessions().insert(socket);
        let buffers = context.limits.buffers().clone();
        is_new.then(|| {
            let connected_at = context.connected_at();
            Arc::new(Self {
                context,
                socket,
                device_id,
                connected_at,
                expires_at_ms: AtomicU64::new(expires_at.map_or(NEVER_MS, Timestamp::as_millis)),
                device: OnceLock::new(),
                place: OnceLock::new(),
                budget: Mutex::default(),
                has_failed: AtomicBool::new(false),
                welcomed: AtomicBool::new(false),
                dismissed: AtomicBool::new(false),
                relay_paused: AtomicBool::new(false),
                waiting_acks: Mutex::default(),
                unfetched: buffers.holder(Buffer::Clients),
                inbox: Mutex::new(Inbox::new(&buffers)),
            })
        })
    }

    pub(super) fn expires_at(&self) -> Timestamp {
        Timestamp::from_millis(self.expires_at_ms.load(Ordering::Relaxed))
    }

    pub fn is_identified(&self) -> bool {
        self.device.get().is_some()
    }

    /// Whether the socket is known to belong to another user than `user`.
    pub fn is_of_another(&self, user: &UserId) -> bool {
        self.device.get().is_some_and(|device| device.user != *user)
    }

    /// From now on messages for this device are buffered until it returns, because they would be
    /// lost with its transport.
    pub fn pause_relay(&self) {
        self.relay_paused.store(true, Ordering::Relaxed);
    }

    pub fn is_relay_paused(&self) -> bool {
        self.relay_paused.load(Ordering::Relaxed)
    }

    /// Records that a polling client is sent this much. Returns false if it lags too far behind.
    pub fn note_unfetched(&self, bytes: usize) -> bool {
        self.unfetched.add(bytes) <= MAX_WAITING_BYTES
    }

    /// A polling client has fetched everything. The recorded sizes are estimates whose errors must
    /// not add up over a session's life.
    pub fn note_all_fetched(&self) {
        self.unfetched.set(0);
    }

    pub fn note_fetched(&self, bytes: usize) {
        self.unfetched.sub(bytes);
    }

    /// The bytes that this session buffers: unprocessed events, and packets that its client has not
    /// fetched.
    pub fn held_bytes(&self) -> usize {
        self.unfetched.bytes() + self.inbox().held_bytes()
    }

    /// Drops unprocessed events and accepts no more, because the transport is being closed to free
    /// memory.
    pub fn drop_inbox(&self) {
        self.inbox().close();
    }

    /// The live call that the device is in, or that rings on it.
    pub fn call(&self) -> Option<CallId> {
        self.context.calls.call_of(self.device.get()?)
    }

    /// Whether the device can return to its call after it has lost its transport.
    pub fn may_come_back(&self) -> bool {
        self.device_id.is_some()
    }

    /// The client has been told that it is connected, so that the library sends its packets. Before
    /// that, no event is processed: the replies would be lost.
    pub fn connected(self: &Arc<Self>) {
        self.begin_lease();
        let pushed = self.inbox().release();
        self.after(pushed, None);
    }

    /// The socket is gone. May be called more than once.
    pub fn disconnected(self: &Arc<Self>, reason: DisconnectReason) {
        let on_purpose = reason == DisconnectReason::ClientNSDisconnect
            || self.dismissed.load(Ordering::Relaxed);
        let may_return = !on_purpose && !self.context.ends_calls.load(Ordering::Relaxed);
        let pushed = self.inbox().push_end(Input::Gone { may_return, cause: cause(reason) });
        self.after(pushed, None);
    }

    /// The socket is about to be closed, which ends its call.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox<Input>> {
        self.inbox.lock()
    }

    fn after(self: &Arc<Self>, pushed: Pushed, socket: Option<Arc<Socket>>) {
        match pushed {
            Pushed::Nothing => {}
            Pushed::Drain => {
                let mut draining = Box::pin(self.clone().drain());
                // Most events wait for nothing: they are processed here, without a task. Other
                // input may arrive while the library holds its locks.
                if socket.is_none() || draining.as_mut().now_or_never().is_none() {
                    tokio::spawn(draining);
                }
            }
            Pushed::Overflow => {
                metrics::LIMITS.of(Limit::Inbox).increment(1);
                warn!(socket = %self.socket, "a client sends faster than it can be served: closed");
                if let Some(socket) = socket {
                    self.close(socket);
                }
            }
        }
    }

    async fn drain(self: Arc<Self>) {
        self.welcome().await;
        loop {
            let Some(input) = self.inbox().pop() else { return };
            // Without anything to wait for, a full inbox must not block the thread.
            tokio::task::consume_budget().await;
            match input {
                Input::Event { socket, value, ack, received_us } => {
                    self.handle(&socket, value, ack, received_us).await;
                }
                Input::Gone { may_return, cause } => {
                    metrics::SOCKETS_CLOSED.of(cause).increment(1);
                    Box::pin(self.leave(may_return)).await;
                    self.context.sessions().remove(&self.socket);
                    self.context.leases.forget(self.socket);
                }
            }
        }
    }

    async fn leave(&self, may_return: bool) {
        if let Some(device) = self.device.get() {
            self.context.calls.leave(device, may_return).await;
        }
    }

    /// Makes the socket one of `user`'s sockets.
    pub async fn join(&self, socket: &Socket, user: UserId) -> Result<(), NotJoined> {
        let place = self.context.limits.enter(&user).map_err(NotJoined::TooMany)?;
        let (node, id) = (self.context.calls.node(), self.device_id.clone());
        let (socket_id, connected_at) = (self.socket, self.connected_at);
        let device = Device { user, node, socket: socket_id, id, connected_at };
        let room = room_of(&device.user);
        // In the room first, so that a call placed from now on finds the socket.
        socket.join(room.clone());
        if let Err(error) = self.context.calls.join(&device).await {
            socket.leave(room);
            return Err(NotJoined::Unavailable(error));
        }
        debug!(user = %device.user.logged(), socket = %self.socket, "joined");
        metrics::SOCKETS_JOINED.increment(1);
        // Set once, because either the middleware or the inbox joins the socket.
        self.place.get_or_init(|| place);
        self.device.set(device).expect("a socket joins once, by its middleware or its inbox");
        Ok(())
    }

    /// Tells the device about its user's call, once.
    async fn welcome(&self) {
        let Some(device) = self.device.get() else { return };
        // A socket that is gone by now must not take the call from the device's next socket.
        if self.inbox().has_ended() {
            return;
        }
        if !self.welcomed.swap(true, Ordering::Relaxed)
            && let Err(error) = Box::pin(self.context.calls.welcome(device)).await
        {
            warn!(%error, user = %device.user.logged(), "a device could not be told of its call");
        }
    }

    async fn handle(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        mut value: Value,
        ack: Option<i64>,
        received_us: u64,
    ) {
        let Ok(sender) = AckSender::<LocalAdapter>::from_message_parts(socket, &mut value, &ack);
        let is_wanted = ack.is_some();
        let mut waits = Waits { wanted: is_wanted, delivered: None, presence_as_of: None };
        let (name, result) = self.carry_out(socket, &value, received_us, &mut waits).await;
        let result = match (result, waits.delivered) {
            (Ok((answer, about)), Some(delivered)) => {
                let (event, until) = (name.into_owned(), Instant::now() + ACK_TIME);
                let to = AckTo { socket: socket.clone(), sender, is_wanted: true };
                return self.wait_to_ack(WaitingAck { to, delivered, until, answer, event, about });
            }
            (Ok((answer, _)), None) => Ok(answer),
            (Err((rejected, about)), _) => Err(rejected.into_body(&name, about)),
        };
        self.answer(AckTo { socket: socket.clone(), sender, is_wanted }, result);
        if let Some(as_of) = waits.presence_as_of {
            self.context.calls.subscribed(self.socket, as_of);
        }
    }

    /// Sends the ack when the message is delivered, or tells the client to send it again.
    fn wait_to_ack(self: &Arc<Self>, waiting: WaitingAck) {
        let mut acks = self.waiting_acks();
        acks.push_back(waiting);
        if acks.len() == 1 {
            tokio::spawn(self.clone().drain_acks());
        }
    }

    fn waiting_acks(&self) -> MutexGuard<'_, VecDeque<WaitingAck>> {
        self.waiting_acks.lock()
    }

    /// Runs while acks are pending. The first one stays in the queue while it is awaited, so that
    /// it counts.
    async fn drain_acks(self: Arc<Self>) {
        loop {
            let (until, delivered) = {
                let mut acks = self.waiting_acks();
                let Some(first) = acks.front_mut() else { return };
                // No other task takes it: one task drains the queue.
                let (_, none) = oneshot::channel();
                (first.until, std::mem::replace(&mut first.delivered, none))
            };
            let delivered = tokio::time::timeout_at(until, delivered).await;
            let is_delivered = matches!(delivered, Ok(Ok(())));
            // An ack that comes after the last one is awaited by a task of its own.
            let (waiting, is_last) = {
                let mut acks = self.waiting_acks();
                let Some(first) = acks.pop_front() else { return };
                (first, acks.is_empty())
            };
            let WaitingAck { to, answer, event, about, .. } = waiting;
            let result = if is_delivered {
                Ok(answer)
            } else {
                metrics::ACKS_UNDELIVERED.increment(1);
                Err(Rejected::Failed(Unavailable.into()).into_body(&event, about))
            };
            self.answer(to, result);
            if is_last {
                return;
            }
        }
    }

    fn answer(&self, to: AckTo, result: Result<Answer, ErrorBody>) {
        let AckTo { socket, sender, is_wanted } = to;
        if let Err(body) = &result {
            metrics::ERRORS.of(body.error_type).increment(1);
            debug!(
                socket = %self.socket,
                event = %body.event,
                error = body.error_type.as_str(),
                field = body.field(),
                reason = %body.message,
                "refused"
            );
        }
        let socket_ref = SocketRef::from(socket.clone());
        if !is_wanted && result.is_ok() {
            return;
        }
        let bytes = result.as_ref().map_or(ERROR_BYTES, Answer::size_bytes);
        let keeps_up = self.context.upgraded.keeps_up(&socket_ref, bytes);
        let sent = match result {
            _ if !keeps_up => Err(SendError::Socket(SocketError::InternalChannelFull)),
            Err(body) if !is_wanted => {
                let error = ServerEvent::Error(body);
                metrics::SENT.of(Sent::Error).increment(1);
                metrics::SENT_BYTES.of(Sent::Error).increment(error.size_bytes() as u64);
                socket.emit(error.name(), &error)
            }
            result => {
                metrics::SENT.of(Sent::Ack).increment(1);
                sender.send(&Ack::from(result))
            }
        };
        if sent.is_err() && socket.connected() {
            metrics::SLOW_CLIENTS.of(Slow::Queue).increment(1);
            metrics::LIMITS.of(Limit::ClientQueue).increment(1);
            warn!(socket = %self.socket, "a client does not read its answers and is cut off");
            self.context.upgraded.close_transport(socket_ref);
        }
    }

    /// The event's name and result. Afterwards `waits` has the delivery that the ack waits for.
    async fn carry_out<'a>(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        value: &'a Value,
        received_us: u64,
        waits: &mut Waits,
    ) -> (Cow<'a, str>, Result<(Answer, About), (Rejected, About)>) {
        if let Some(rejected) = self.refuse_undecoded(socket, value, received_us) {
            return (SUBSCRIBE.into(), Err((rejected, About::default())));
        }
        let (name, event) = decode(value, &self.context.limits.settings().sizes);
        let (received, bytes) = (label(&name, Received::Unknown), size_of(value));
        metrics::RECEIVED.of(received).increment(1);
        metrics::RECEIVED_BYTES.of(received).increment(bytes as u64);
        let ends_own_call = event.as_ref().is_ok_and(|event| self.ends_own_call(event));
        if let Err(rejected) = self.spend(socket, &name, bytes, ends_own_call, received_us) {
            let about = event.as_ref().map(about).unwrap_or_default();
            return (name, Err((rejected, about)));
        }
        if !self.is_identified() && name != USER_CONNECTED {
            return (name, Err((Rejected::Unauthenticated, About::default())));
        }
        let result = match event {
            Ok(event) => {
                let about = about(&event);
                if self.has_expired() && !self.serves_expired(&event) {
                    return (name, Err((Rejected::Expired, about)));
                }
                match self.dispatch(socket, event, received_us, waits).await {
                    Ok(answer) => Ok((answer, about)),
                    Err(rejected) => {
                        self.count_refusal(socket, &rejected, received_us);
                        Err((rejected, about))
                    }
                }
            }
            Err(rejected) => Err((rejected, About::default())),
        };
        (name, result)
    }

    /// Whether the event ends or declines a live call of the socket's user that this node knows,
    /// which needs no look-up.
    fn ends_own_call(&self, event: &ClientEvent) -> bool {
        let (ClientEvent::End { call, .. }
        | ClientEvent::Reject { call, .. }
        | ClientEvent::Busy { call }) = event
        else {
            return false;
        };
        let device = self.device.get();
        device.is_some_and(|device| self.context.calls.has_in_view(device, call))
    }

    /// Counts the event called `name`, of this size, against the socket's limits.
    fn spend(
        &self,
        socket: &Arc<Socket>,
        name: &str,
        bytes: usize,
        ends_own_call: bool,
        received_us: u64,
    ) -> Result<(), Rejected> {
        let limits = &self.context.limits;
        let mut budget = self.budget();
        let spent = budget.spend(limits.settings(), name, bytes, ends_own_call, received_us);
        drop(budget);
        let (kind, retry_after) = match spent {
            Spent::Fine => return Ok(()),
            Spent::Wait(kind, retry_after) => (kind, retry_after),
            Spent::Enough(kind) => {
                self.close_flooding(socket);
                (kind, Duration::ZERO)
            }
        };
        limits.sends_too_much(kind, self.socket);
        Err(Rejected::TooFast { retry_after })
    }

    /// Refuses a request for presence while the ids of its user are used up, without decoding it: it may be long.
    fn refuse_undecoded(
        &self,
        socket: &Arc<Socket>,
        value: &Value,
        received_us: u64,
    ) -> Option<Rejected> {
        let wait = self.budget().no_presence_for(received_us)?;
        if name_of(value) != Some(SUBSCRIBE) {
            return None;
        }
        let (received, bytes) = (label(SUBSCRIBE, Received::Unknown), size_of(value));
        metrics::RECEIVED.of(received).increment(1);
        metrics::RECEIVED_BYTES.of(received).increment(bytes as u64);
        if let Err(rejected) = self.spend(socket, SUBSCRIBE, bytes, false, received_us) {
            return Some(rejected);
        }
        self.context.limits.closed(Limit::PresenceIds, self.socket);
        let rejected = Rejected::TooMany(TooMany { what: What::PresenceIds, retry_after: wait });
        self.count_refusal(socket, &rejected, received_us);
        Some(rejected)
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock()
    }

    /// Closes a socket that continues to send while its user's limits refuse its events.
    fn count_refusal(&self, socket: &Arc<Socket>, rejected: &Rejected, received_us: u64) {
        let (Rejected::TooMany(_) | Rejected::Failed(Failure::PresenceBusy)) = rejected else {
            return;
        };
        let may_go_on = {
            let mut budget = self.budget();
            if let Rejected::TooMany(TooMany { what: What::PresenceIds, retry_after }) = rejected {
                budget.note_no_presence(*retry_after, received_us);
            }
            budget.may_be_refused(received_us)
        };
        if !may_go_on {
            self.close_flooding(socket);
        }
    }

    fn close_flooding(&self, socket: &Arc<Socket>) {
        self.context.limits.closed(Limit::Flood, self.socket);
        self.inbox().close();
        self.close(socket.clone());
    }

    /// Closes the socket: its client does not reconnect by itself.
    fn close(&self, socket: Arc<Socket>) {
        if socket.clone().disconnect().is_err() {
            self.context.upgraded.close_transport(socket.into());
        }
    }

    async fn dispatch(
        &self,
        socket: &Socket,
        event: ClientEvent,
        received_us: u64,
        waits: &mut Waits,
    ) -> Result<Answer, Rejected> {
        // Most events are messages to relay. The futures of others are boxed, so that not every
        // message has room for them.
        let calls = &self.context.calls;
        let device = || self.device.get().ok_or(Rejected::Unauthenticated);
        Ok(match event {
            ClientEvent::Signal { call, signal, payload } => {
                let (payload, delivered) = self.tracked(payload, waits.wanted)?;
                let call_id = calls.signal(device()?, &call, signal, payload, received_us).await?;
                // Most are delivered by now.
                waits.delivered =
                    delivered.and_then(|mut one| one.try_recv().is_err().then_some(one));
                Answer::Relayed { call_id }
            }
            ClientEvent::UserConnected { user } => Box::pin(self.identify(socket, user)).await?,
            ClientEvent::Initiate { to, call_type, caller_info, client_call_id } => {
                self.context.limits.call(&device()?.user)?;
                let initiate = Initiate { to, call_type, caller_info, client_call_id };
                Answer::from(&Box::pin(calls.initiate(device()?, initiate)).await?)
            }
            ClientEvent::Reject { call, reason } => {
                Answer::from(&Box::pin(calls.reject(device()?, &call, reason)).await?)
            }
            ClientEvent::Busy { call } => {
                Answer::from(&Box::pin(calls.busy(device()?, &call)).await?)
            }
            ClientEvent::End { call, duration_s } => {
                Answer::from(&Box::pin(calls.end(device()?, &call, duration_s)).await?)
            }
            ClientEvent::Sync { call_id } => {
                Answer::Sync { call: Box::pin(calls.sync(device()?, call_id)).await? }
            }
            ClientEvent::Stats { call_id, stats } => {
                Box::pin(calls.report(device()?, call_id)).await?;
                reported(&stats);
                Answer::Relayed { call_id }
            }
            ClientEvent::Subscribe { users } => {
                let device = device()?;
                self.context.limits.presence_of(users.len(), &device.user)?;
                let answered = Box::pin(calls.subscribe(device.socket, &users)).await;
                let Subscribed { presence, as_of } = answered.inspect_err(|failure| {
                    if *failure == Failure::PresenceBusy {
                        self.context.limits.closed(Limit::PresenceTurns, self.socket);
                    }
                })?;
                waits.presence_as_of = Some(as_of);
                Answer::Presence { presence }
            }
            ClientEvent::Unsubscribe { users } => {
                Box::pin(calls.unsubscribe(device()?.socket, &users)).await;
                Answer::Done {}
            }
            ClientEvent::IceServers => {
                let Servers { ice_servers, ttl_s } = self.context.ice.servers_for(&device()?.user);
                Answer::IceServers { ice_servers, ttl: ttl_s }
            }
            ClientEvent::AuthRefresh { token } => Box::pin(self.refresh(socket, &token)).await?,
        })
    }

    /// The payload with a receipt, if an ack waits for it.
    fn tracked(
        &self,
        payload: Payload,
        is_wanted: bool,
    ) -> Result<(Payload, Option<Delivered>), Rejected> {
        if !is_wanted {
            return Ok((payload, None));
        }
        if self.waiting_acks().len() >= MAX_WAITING_ACKS {
            metrics::LIMITS.of(Limit::Acks).increment(1);
            return Err(Rejected::TooFast { retry_after: RETRY_ACKS });
        }
        let (payload, delivered) = payload.tracked();
        Ok((payload, Some(delivered)))
    }

    async fn identify(&self, socket: &Socket, user: UserId) -> Result<Answer, Rejected> {
        match self.device.get() {
            Some(device) if device.user != user => return Err(Rejected::AnotherUser),
            Some(_) => {}
            None => {
                self.join(socket, user.clone()).await?;
                self.welcome().await;
            }
        }
        Ok(Answer::Joined { user_id: user })
    }
}

/// Accepts a socket's events on the task that reads them, in order. The library would run a closure
/// handler in a task per event.
///
/// When the library drops it, the socket is gone, even if no disconnect was reported.
pub struct Receiver(pub Arc<Session>);

impl MessageHandler<LocalAdapter, Receiver> for Receiver {
    fn call(&self, socket: Arc<Socket>, value: Value, ack: Option<i64>) {
        let size_bytes = size_of(&value);
        let received_us = self.0.context.calls.now_us();
        let input = Input::Event { socket: socket.clone(), value, ack, received_us };
        let pushed = self.0.inbox().push(input, size_bytes);
        self.0.after(pushed, Some(socket));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Outside the runtime, the whole process is ending.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.0.disconnected(DisconnectReason::TransportClose);
        } else {
            info!("a socket outlived its runtime");
        }
    }
}

fn cause(reason: DisconnectReason) -> Closed {
    match reason {
        DisconnectReason::ClientNSDisconnect => Closed::Client,
        DisconnectReason::HeartbeatTimeout => Closed::Heartbeat,
        DisconnectReason::ServerNSDisconnect | DisconnectReason::ClosingServer => Closed::Server,
        DisconnectReason::TransportClose
        | DisconnectReason::MultipleHttpPollingError
        | DisconnectReason::PacketParsingError
        | DisconnectReason::TransportError => Closed::Transport,
    }
}
