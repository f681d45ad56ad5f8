//! The driver: reads a call, lets the rules decide, commits the decision by compare-and-set, and
//! notifies sockets and nodes. Called by the gateway and the HTTP API. Contains no rule about
//! calls.

mod devices;
mod ending;
mod flush;
mod gate;
mod held;
mod live;
mod nodes;
mod operator;
mod pending;
mod place;
mod recovery;
mod resume;
mod sweeper;
mod tally;
mod traced;
mod unsure;
mod view;
mod watchers;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tracing::debug;

use devices::Present;
pub use gate::{Gate, Verdict};
use held::Full;
pub use held::{MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES, MAX_WAITING_BYTES, MAX_WAITING_MESSAGES};
use live::{LiveCall, LiveCalls};
use pending::{Pending, Work};
pub use place::Initiate;
use recovery::Recovery;
pub use sweeper::SWEEP_INTERVAL;
pub use tally::{as_gauge, reported};
use view::{Origin, Reach};
pub use watchers::{PRESENCE_INTERVAL, Subscribed};
use watchers::{PresenceTurns, Watchers};

use crate::{
    call::{Call, Device, Event, Refusal, Route, Rules, Signal},
    cluster::{Change, Cluster, Committed, Edge, Message, Unavailable},
    history::Recorder,
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    metrics::{self, Limit, Path},
    payload::Payload,
    protocol::{CallRef, CallView, ServerEvent},
    telemetry::{Span, Traces},
    time::{Clock, Timestamp},
};

/// The most decisions on one event, if the record changes in between.
const MAX_DECISIONS: usize = 4;

/// `retryAfterMs` if the node's byte budget has no room.
const RETRY_BUDGET: Duration = Duration::from_secs(1);

/// The client sink: the sockets of this node.
pub trait Outlet: Send + Sync + 'static {
    /// The sockets of `user` on this node.
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId>;

    /// Sends `event` to a socket, after all events before it, and returns whether the socket
    /// accepts it. Never blocks. A socket that is gone accepts nothing, and one that does not keep
    /// up is closed. An event `for_user` is sent only if the socket is that user's.
    fn emit(&self, socket: SocketId, event: &ServerEvent, for_user: Option<&UserId>) -> bool;

    /// Closes a socket for good: its client does not reconnect by itself.
    fn close(&self, socket: SocketId);

    /// Closes all sockets of `user` for good: their clients do not reconnect by themselves.
    fn disconnect(&self, user: &UserId);
}

/// The calls, as seen from this node.
pub struct Calls {
    cluster: Arc<dyn Cluster>,
    outlet: Arc<dyn Outlet>,
    recorder: Recorder,
    rules: Rules,
    clock: Clock,
    gate: Option<Arc<dyn Gate>>,
    traces: Traces,
    /// Generates the id of a new call.
    name: Box<dyn Fn(Timestamp) -> CallId + Send + Sync>,
    live: LiveCalls,
    watchers: Watchers,
    presence_turns: PresenceTurns,
    /// The devices on this node.
    devices: Mutex<BTreeMap<SocketId, Present>>,
    /// The sockets that are being detached at the moment.
    leaving: Mutex<HashSet<SocketId>>,
    pending: Pending,
    recovery: Recovery,
}

/// The reason why a request of a client failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The rules refuse it.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// This user may not call that one, for this reason.
    #[error("not allowed: {0}")]
    Forbidden(Arc<str>),
    /// The callee of this new call has no socket.
    #[error("the callee is offline")]
    Offline(CallId),
    /// The buffer for a disconnected device is full.
    #[error("too much is waiting")]
    Full { retry_after: Duration },
    /// The socket watches as many users as it may.
    #[error("too many users are watched")]
    TooManyWatched,
    /// Too many presence requests are in progress.
    #[error("too many ask for presence")]
    PresenceBusy,
    /// The shared state is unavailable, or changes faster than a decision can be made.
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
            presence_turns: PresenceTurns::default(),
            devices: Mutex::default(),
            leaving: Mutex::default(),
            pending: Pending::default(),
            recovery: Recovery::default(),
        }
    }

    /// Counts buffered messages in `buffers`.
    #[must_use]
    pub fn buffered_in(mut self, buffers: Buffers) -> Self {
        self.live = LiveCalls::new(buffers);
        self
    }

    /// Generates call ids by `name`, so that a simulation is repeatable.
    #[must_use]
    pub fn named_by(mut self, name: impl Fn(Timestamp) -> CallId + Send + Sync + 'static) -> Self {
        self.name = Box::new(name);
        self
    }

    /// The present time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The present time in microseconds.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// The id of this node.
    pub fn node(&self) -> NodeId {
        self.cluster.node()
    }

    /// Relays an offer, answer or candidate that arrived on its socket at `received_us`. The first
    /// answer wins the call. Almost all messages of a call take this path and wait for nothing; the
    /// rarer futures are boxed, so that not every message has room for them.
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
                // The answer has won. If the call has ended since, it has no receiver.
                match relay(&live, self.trace_answer(&live)) {
                    Ok(_) => live.release_early(device, &self.reach()),
                    // The client must send it again: its device is in the call by now.
                    Err(full @ Failure::Full { .. }) => return Err(full),
                    Err(_) => payload.settle(),
                }
                Ok(id)
            }
            Route::Bound(..) | Route::WhenBack(_) => {
                // The answer may have won before, while its commit had no reply.
                if signal == Signal::Answer {
                    live.release_early(device, &self.reach());
                }
                Ok(id)
            }
            Route::Ringing | Route::AfterAnswer(_) => Ok(id),
        }
    }

    /// Handles the first answer of a device: the device is in the call now, or already was by a
    /// commit without a reply.
    async fn win(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        match self.transition(live.snapshot(), &Event::Answer(device.clone())).await {
            Err(Failure::Refused(Refusal::NothingToDo)) => {
                let call = self.cluster.load(live.id()).await?.ok_or(Refusal::NotInCall)?;
                Ok(self.take_in(&call).await?)
            }
            answered => answered.map(drop),
        }
    }

    /// The live call of the user, or the call with this id if it is live or ended less than a
    /// minute ago.
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

    /// Checks that `device` may report the media statistics of this call.
    pub async fn report(&self, device: &Device, id: CallId) -> Result<(), Failure> {
        let call = self.cluster.load(id).await?;
        let call = call.filter(|call| call.is_live() && call.is_bound_to(device));
        let live = self.live.open(&call.ok_or(Refusal::NotInCall)?);
        self.confirm(&live, device).await
    }

    /// The live call that this device is in, or that rings on it, as far as this node knows.
    pub fn call_of(&self, device: &Device) -> Option<CallId> {
        let live = self.live.of_user(&device.user)?;
        let concerns = |call: &Call| {
            call.is_live() && (call.is_bound_to(device) || call.rings_for(&device.user))
        };
        live.is(concerns).then(|| live.id())
    }

    /// Whether this node knows the live call that `target` refers to, so that no look-up is needed.
    pub fn has_in_view(&self, device: &Device, target: &CallRef) -> bool {
        self.in_view(device, target).is_some()
    }

    fn in_view(&self, device: &Device, target: &CallRef) -> Option<Arc<LiveCall>> {
        let known = match target.call_id {
            Some(id) => self.live.get(id),
            None => self.live.of_user(&device.user),
        };
        known.filter(|live| live.is(|call| call.is_live() && is_meant(call, device, target)))
    }

    /// The call that `target` refers to: the one with its id, else the latest call of the device's
    /// user, provided that it is with the named user. It may have ended.
    async fn find(&self, device: &Device, target: &CallRef) -> Result<Arc<LiveCall>, Failure> {
        if let Some(live) = self.in_view(device, target) {
            return Ok(live);
        }
        let call = match target.call_id {
            Some(id) => self.cluster.load(id).await?,
            None => self.cluster.latest(&device.user).await?,
        };
        match call.filter(|call| is_meant(call, device, target)) {
            Some(call) => Ok(self.live.open(&call)),
            None if self.is_unsure() => Err(Unavailable.into()),
            None => Err(Refusal::NotInCall.into()),
        }
    }

    /// Confirms that a resumed `device` knows its call, because it has sent a message about it.
    async fn confirm(&self, live: &LiveCall, device: &Device) -> Result<(), Failure> {
        if !live.is(|call| call.awaits_confirmation(device)) {
            return Ok(());
        }
        match Box::pin(self.transition(live.snapshot(), &Event::Confirmed(device.clone()))).await {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Decides, commits and notifies; decides again on the newer record after a conflict.
    async fn transition(&self, mut call: Call, event: &Event) -> Result<Call, Failure> {
        let mut span = Span::NONE;
        for _ in 0..MAX_DECISIONS {
            if matches!(event, Event::Stayed(device) if self.knows_end_of(&call, device)) {
                return Err(Refusal::NothingToDo.into());
            }
            let mut next = self.rules.apply(&call, event, self.node(), self.clock.now())?;
            self.trace_change(&mut span, event, &mut next);
            let change = Change { call: next.clone(), claims: Vec::new() };
            let committed = self.commit(change, &mut span).await;
            match committed.inspect_err(|_| self.add_pending(Work::Commit(call.clone().into())))? {
                Committed::Stored(stored) => {
                    self.trace_changed(&mut span, &call, &next);
                    self.tell_changed(&call, &next, &stored.callee_nodes);
                    self.announce(stored.edges);
                    if let Event::Stayed(device) = event
                        && !next.is_live()
                    {
                        self.told_end_of(&next, device);
                    }
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

    /// Passes a written change to the history, the local sockets and the other nodes.
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
        } else if before.is_ringing() && !after.is_ringing() {
            debug!(call = %after.id, "call answered");
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
        let (clock, pending) = (&self.clock, &self.pending);
        Reach { outlet, cluster, now, clock, pending, origin: None, trace: None }
    }
}

/// Whether the device's user is in the call, with the user that `target` names, if it names one.
fn is_meant(call: &Call, device: &Device, target: &CallRef) -> bool {
    match &target.to {
        Some(to) => call.is_between(&device.user, to),
        None => call.role_of(&device.user).is_some(),
    }
}

impl Failure {
    /// The time at which a full buffer has room again: when the device returns or its grace ends.
    fn full(full: Full, now: Timestamp) -> Self {
        let retry_after = match full {
            Full::Until(until) => until - now,
            Full::Budget => RETRY_BUDGET,
        };
        Self::Full { retry_after }
    }
}
