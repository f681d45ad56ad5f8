//! Carries calls out: takes a snapshot, asks the rules, commits what they decide, and tells those
//! concerned. There is no rule about calls here.

mod devices;
mod doubtful;
mod ending;
mod flush;
mod gate;
mod held;
mod live;
mod nodes;
mod operator;
mod sweeper;
mod tally;
mod traced;
mod unanswered;
mod unsure;
mod view;
mod watchers;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use tracing::debug;

use devices::Present;
use doubtful::Doubtful;
use flush::Overdue;
pub use gate::{Gate, Verdict};
use held::Full;
pub use held::{MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES, MAX_WAITING_BYTES, MAX_WAITING_MESSAGES};
use live::{LiveCall, LiveCalls};
pub use sweeper::SWEEP_INTERVAL;
pub use tally::{as_gauge, reported};
use unanswered::Unanswered;
use view::{Origin, Reach};
use watchers::Watchers;

use crate::{
    call::{
        Attempt, Call, CallType, Cause, Device, Event, Placement, Refusal, Role, Route, Rules,
        Signal, State, first_news,
    },
    cluster::{Change, Claim, Cluster, Committed, Edge, Message, Unavailable},
    history::Recorder,
    ids::{CallId, NodeId, SocketId, UserId},
    metrics::{self, Limit, Outcome, Path},
    payload::Payload,
    protocol::{CallRef, CallView, ServerEvent},
    telemetry::{Span, SpanKind, Traces},
    time::{Clock, Timestamp},
};

/// How often a decision is made again because the record changed meanwhile.
const MAX_DECISIONS: usize = 4;

/// The sockets of this node.
pub trait Outlet: Send + Sync + 'static {
    /// The sockets of `user` on this node.
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId>;

    /// Sends `event` to a socket, after all that was sent to it before, and says whether the socket
    /// takes it. Never waits. One that is gone takes nothing; one that does not keep up is closed. What
    /// is meant `for_user` goes to nobody else.
    fn emit(&self, socket: SocketId, event: &ServerEvent, for_user: Option<&UserId>) -> bool;

    /// Closes a socket for good: its client does not come back by itself.
    fn close(&self, socket: SocketId);

    /// Closes all sockets of `user` for good: their clients do not come back by themselves.
    fn disconnect(&self, user: &UserId);
}

/// All calls, as seen from this node.
pub struct Calls {
    cluster: Arc<dyn Cluster>,
    outlet: Arc<dyn Outlet>,
    recorder: Recorder,
    rules: Rules,
    clock: Clock,
    gate: Option<Arc<dyn Gate>>,
    traces: Traces,
    /// Names a call that is made now.
    name: Box<dyn Fn(Timestamp) -> CallId + Send + Sync>,
    live: LiveCalls,
    watchers: Watchers,
    /// The devices on this node.
    devices: Mutex<HashMap<SocketId, Present>>,
    /// The sockets that are being signed off right now.
    leaving: Mutex<HashSet<SocketId>>,
    /// Those that left while the shared state could not be reached, and whether they may return.
    departures: Mutex<Vec<(Device, bool)>>,
    /// Those that joined, and could not be told of their users' calls yet.
    unwelcomed: Mutex<Vec<Device>>,
    overdue: Overdue,
    resets: Resets,
    doubtful: Doubtful,
    unanswered: Unanswered,
}

/// How often the cluster forgot this node, and how often it was told again who is here.
#[derive(Default)]
struct Resets {
    heard: AtomicU64,
    done: AtomicU64,
    /// When the latest one was heard of, Unix milliseconds.
    at_ms: AtomicU64,
}

/// `call:initiate`, checked.
#[derive(Debug, Clone)]
pub struct Initiate {
    pub to: UserId,
    pub call_type: CallType,
    pub caller_info: Option<Payload>,
    pub client_call_id: Option<Arc<str>>,
}

/// Why something a client asked for did not happen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The rules do not allow it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// This user may not call that one, for this reason.
    #[error("not allowed: {0}")]
    Forbidden(Arc<str>),
    /// The callee of this new call has no socket.
    #[error("the callee is offline")]
    Offline(CallId),
    /// What waits for a device that is away fills its room.
    #[error("too much is waiting")]
    Full { retry_after: Duration },
    /// The socket watches as many users as it may.
    #[error("too many users are watched")]
    TooManyWatched,
    /// The shared state cannot be reached, or changes faster than a decision can be made.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Calls {
    pub fn new(
        cluster: Arc<dyn Cluster>,
        outlet: Arc<dyn Outlet>,
        recorder: Recorder,
        rules: Rules,
        clock: Clock,
    ) -> Self {
        let live = LiveCalls::default();
        let watchers = Watchers::default();
        Self {
            cluster,
            outlet,
            recorder,
            rules,
            clock,
            gate: None,
            traces: Traces::default(),
            name: Box::new(CallId::generate),
            live,
            watchers,
            devices: Mutex::default(),
            leaving: Mutex::default(),
            departures: Mutex::default(),
            unwelcomed: Mutex::default(),
            overdue: Overdue::default(),
            resets: Resets::default(),
            doubtful: Doubtful::default(),
            unanswered: Unanswered::default(),
        }
    }

    /// Has new calls named by `name`: a simulation repeats itself.
    #[must_use]
    pub fn named_by(mut self, name: impl Fn(Timestamp) -> CallId + Send + Sync + 'static) -> Self {
        self.name = Box::new(name);
        self
    }

    /// What time it is, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// The node that this is.
    pub fn node(&self) -> NodeId {
        self.cluster.node()
    }

    /// Places a call. Answers the call as it was placed: it rings, or ended at once.
    pub async fn initiate(&self, device: &Device, initiate: Initiate) -> Result<Call, Failure> {
        let attempt = Attempt {
            id: (self.name)(self.clock.now()),
            from: device.clone(),
            to: initiate.to,
            call_type: initiate.call_type,
            caller_info: initiate.caller_info,
            client_call_id: initiate.client_call_id,
        };
        let mut span = self.trace_attempt(&attempt);
        let placed = self.place(device, &attempt, &mut span).await;
        traced::placed(&mut span, &attempt, &placed);
        if let Err(failure) = &placed {
            tally::not_placed(attempt.call_type, failure);
        }
        placed
    }

    async fn place(
        &self,
        device: &Device,
        attempt: &Attempt,
        span: &mut Span,
    ) -> Result<Call, Failure> {
        self.pass_gate(attempt, span).await?;
        for _ in 0..MAX_DECISIONS {
            let looking = span.part("look up", SpanKind::Client);
            let lobby = self.cluster.lobby(&device.user, &attempt.to).await?;
            drop(looking);
            let placement = match self.rules.place(attempt, &lobby, self.clock.now()) {
                // Its caller was told that it failed, and tries something else.
                Err(Refusal::CallInProgress(id)) if self.doubtful.is_of(id, device.socket) => {
                    self.give_up_doubtful(id, device).await?;
                    continue;
                }
                placement => placement?,
            };
            let mut call = match placement {
                Placement::New(call) => call,
                Placement::Repeated(call) => {
                    tally::attempted(call.call_type, Outcome::Repeated);
                    if call.is_ringing() && self.doubtful.is_of(call.id, device.socket) {
                        // Nobody has heard of it yet.
                        let callee_nodes = self.cluster.nodes_of(&attempt.to).await?;
                        self.doubtful.settle(call.id);
                        return placed(self.tell_placed(call, lobby.callee_sockets, &callee_nodes));
                    }
                    self.tell_again(&call).await?;
                    return placed(call);
                }
                Placement::Supersede(earlier) => {
                    match self.transition(earlier, &Event::Superseded(device.clone())).await {
                        Ok(_) | Err(Failure::Refused(_)) => continue,
                        Err(failure) => return Err(failure),
                    }
                }
            };
            let claim = |role: &Role| {
                let latest = match role {
                    Role::Caller => &lobby.caller_call,
                    Role::Callee => &lobby.callee_call,
                };
                let was = latest.as_ref().map(|call| call.id);
                Claim { user: call.party(*role).user.clone(), was }
            };
            let claims = call.claimants().iter().map(claim).collect();
            call.traceparent = span.context();
            let change = Change { call: call.clone(), claims };
            let committed =
                self.commit(change, span).await.inspect_err(|_| self.doubtful.note(&call, device));
            let Committed::Stored(stored) = committed? else {
                metrics::CONFLICTS.increment(1);
                continue;
            };
            tally::placed(&call);
            traced::rings_on(span, &stored.callee_nodes);
            self.recorder.record(&call);
            let call = self.tell_placed(call, lobby.callee_sockets, &stored.callee_nodes);
            self.announce(stored.edges);
            return placed(call);
        }
        metrics::LIMITS.of(Limit::Decisions).increment(1);
        Err(Unavailable.into())
    }

    /// Rings for an attempt that is repeated: the first time may have failed half-way.
    async fn tell_again(&self, call: &Call) -> Result<(), Unavailable> {
        if call.is_ringing() {
            let callee_nodes = self.cluster.nodes_of(&call.callee.user).await?;
            self.live.open(call).rings_on(&callee_nodes, &self.reach());
            self.ring_here(call);
            self.spread(call, call, &callee_nodes);
        }
        Ok(())
    }

    /// The caller hears of its call before this node rings. Answers the call as it was placed, or with its
    /// end: a device that has just joined elsewhere may have been faster.
    fn tell_placed(&self, call: Call, devices: usize, callee_nodes: &[NodeId]) -> Call {
        debug!(call = %call.id, status = call.status().as_str(), "call placed");
        let live = self.live.open(&call);
        if let (Some(news), Some(socket)) = (first_news(&call, devices), call.caller.link.socket())
            && !live.tell_placed(call.version, news, socket, &self.reach())
        {
            let newest = live.snapshot();
            return if newest.is_live() { call } else { newest };
        }
        if call.is_live() {
            live.rings_on(callee_nodes, &self.reach());
            self.ring_here(&call);
            self.spread(&call, &call, callee_nodes);
        }
        call
    }

    /// Passes an offer, an answer or a candidate on, which came in on its socket at `received_us`. The
    /// first answer wins the call. Almost all messages of a call take this way and wait for nothing: what
    /// does not is in a box, so that its room is not taken for each of them.
    pub async fn signal(
        &self,
        device: &Device,
        target: &CallRef,
        signal: Signal,
        payload: Payload,
        received_us: u64,
    ) -> Result<CallId, Failure> {
        let live = self.find(device, target).await?;
        self.reappear(&live, device).await?;
        self.confirm(&live, device).await?;
        let origin = Origin { received_us, path: Path::Local };
        let relay = |live: &LiveCall, span: Span| {
            let reach = Reach { origin: Some(origin), trace: span.context(), ..self.reach() };
            live.relay(device, signal, &payload, &reach).inspect_err(|failure| {
                if let Failure::Full { .. } = failure {
                    metrics::LIMITS.of(Limit::Waiting).increment(1);
                }
            })
        };
        let id = live.id();
        let routed = relay(&live, self.trace_offer(&live, signal));
        match routed.map_err(|failure| self.unless_unsure(failure, &live, device))? {
            Route::Answers(_) => {
                Box::pin(self.win(&live, device)).await?;
                // It has won. If the call ended since, there is nobody to pass it on to.
                if relay(&live, self.trace_answer(&live)).is_ok() {
                    live.release_early(device, &self.reach());
                }
                Ok(id)
            }
            Route::Bound(..) | Route::WhenBack(_) => {
                // It may have won before, when nobody could tell it.
                if signal == Signal::Answer {
                    live.release_early(device, &self.reach());
                }
                Ok(id)
            }
            Route::Ringing | Route::AfterAnswer(_) => Ok(id),
        }
    }

    /// The first answer of a device: it is in the call then, also if it was before and nobody could say so.
    async fn win(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        match self.transition(live.snapshot(), &Event::Answer(device.clone())).await {
            Err(Failure::Refused(Refusal::NothingToDo)) => {
                let call = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
                Ok(self.take_in(&call).await?)
            }
            answered => answered.map(drop),
        }
    }

    /// The live call of the user, or the call with this id, live or ended less than a minute ago.
    pub async fn sync(
        &self,
        device: &Device,
        id: Option<CallId>,
    ) -> Result<Option<CallView>, Failure> {
        let call = match id {
            Some(id) => self.cluster.load(id).await?,
            None => self.cluster.latest(&device.user).await?.filter(Call::is_live),
        };
        if call.is_none() && self.is_unsure() {
            return Err(Unavailable.into());
        }
        let view = |call: Call| Some(CallView::new(&call, call.role_of(&device.user)?));
        Ok(call.and_then(view))
    }

    /// Checks that `device` may report on the media of this call.
    pub async fn report(&self, device: &Device, id: CallId) -> Result<(), Failure> {
        let call = self.cluster.load(id).await?;
        let call = call.filter(|call| call.is_live() && call.is_bound_to(device));
        let live = self.live.open(&call.ok_or(Refusal::NotInCall)?);
        self.confirm(&live, device).await
    }

    /// The live call that this device is in, or that rings for it, as far as this node knows.
    pub fn call_of(&self, device: &Device) -> Option<CallId> {
        let live = self.live.of_user(&device.user)?;
        let concerns = |call: &Call| {
            call.is_live() && (call.is_bound_to(device) || call.rings_for(&device.user))
        };
        live.is(concerns).then(|| live.id())
    }

    /// The call that `target` means: the one with its id, else the latest one of the device's user,
    /// if it is with the user named. It may have ended.
    async fn find(&self, device: &Device, target: &CallRef) -> Result<Arc<LiveCall>, Failure> {
        let between = |call: &Call| call.is_between(&device.user, &target.to);
        let known = match target.call_id {
            Some(id) => self.live.get(id),
            None => self.live.of_user(&device.user),
        };
        if let Some(live) = known.filter(|live| live.is(|call| call.is_live() && between(call))) {
            return Ok(live);
        }
        let call = match target.call_id {
            Some(id) => self.cluster.load(id).await?,
            None => self.cluster.latest(&device.user).await?,
        };
        match call.filter(between) {
            Some(call) => Ok(self.live.open(&call)),
            None if self.is_unsure() => Err(Unavailable.into()),
            None => Err(Refusal::NotInCall.into()),
        }
    }

    /// Notes that `device`, if it came back to this call, has shown by what it sends that it knows
    /// it.
    async fn confirm(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        if !live.is(|call| call.awaits_confirmation(device)) {
            return Ok(());
        }
        match Box::pin(self.transition(live.snapshot(), &Event::Confirmed(device.clone()))).await {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Decides, commits, and tells; again on the newer record when somebody was faster.
    async fn transition(&self, mut call: Call, event: &Event) -> Result<Call, Failure> {
        let mut span = Span::NONE;
        for _ in 0..MAX_DECISIONS {
            let mut next = self.rules.apply(&call, event, self.node(), self.clock.now())?;
            self.trace_change(&mut span, event, &mut next);
            let change = Change { call: next.clone(), claims: Vec::new() };
            let committed = self.commit(change, &mut span).await;
            match committed.inspect_err(|_| self.unanswered.note(&call))? {
                Committed::Stored(stored) => {
                    self.trace_changed(&mut span, &call, &next);
                    self.tell_changed(&call, &next, &stored.callee_nodes);
                    self.announce(stored.edges);
                    return Ok(next);
                }
                Committed::Conflict(found) => {
                    metrics::CONFLICTS.increment(1);
                    let found = self.recovered(call.id, found.map(|found| *found)).await?;
                    call = found.ok_or(Refusal::NotInCall)?;
                }
            }
        }
        metrics::LIMITS.of(Limit::Decisions).increment(1);
        Err(Unavailable.into())
    }

    /// A change is written: history, the sockets here and the other nodes hear of it.
    fn tell_changed(&self, before: &Call, after: &Call, callee_nodes: &[NodeId]) {
        tally::changed(before, after);
        self.recorder.record(after);
        self.observe(before, after);
        if after.is_ringing() && after.caller.link.node() == Some(self.node()) {
            self.live.open(after).rings_on(callee_nodes, &self.reach());
        }
        self.spread(before, after, callee_nodes);
        if let Some(reason) = after.end_reason() {
            debug!(call = %after.id, reason = reason.as_str(), "call ended");
        }
    }

    fn announce(&self, edges: impl IntoIterator<Item = Edge>) {
        let now = self.clock.now();
        for edge in edges {
            self.watchers.announce(&edge, &*self.outlet, now);
            for node in edge.watchers.iter().filter(|node| **node != self.node()) {
                self.cluster.send(*node, Message::Presence(edge.clone()));
            }
        }
    }

    fn reach(&self) -> Reach<'_> {
        let now = self.clock.now();
        let (outlet, cluster) = (&*self.outlet, &*self.cluster);
        let (clock, overdue) = (&self.clock, &self.overdue);
        Reach { outlet, cluster, now, clock, overdue, origin: None, trace: None }
    }
}

/// A call that could not ring because the callee is offline is a failure to its caller.
fn placed(call: Call) -> Result<Call, Failure> {
    match &call.state {
        State::Ended { cause: Cause::Offline, .. } => Err(Failure::Offline(call.id)),
        State::Ringing { .. } | State::Active { .. } | State::Ended { .. } => Ok(call),
    }
}

impl Failure {
    /// When what waits for a device has room again: when the device is back, or its grace over.
    fn full(Full { until }: Full, now: Timestamp) -> Self {
        Self::Full { retry_after: until - now }
    }
}
