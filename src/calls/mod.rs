//! Carries calls out: takes a snapshot, asks the rules, commits what they decide, and tells those
//! concerned. There is no rule about calls here.

mod departures;
mod devices;
mod doubtful;
mod ending;
mod flush;
mod gate;
mod held;
mod live;
mod nodes;
mod operator;
mod place;
mod recovery;
mod resume;
mod sweeper;
mod tally;
mod traced;
mod unannounced;
mod unanswered;
mod unsure;
mod view;
mod watchers;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tracing::debug;

use departures::Departures;
use devices::Present;
use doubtful::Doubtful;
use flush::Overdue;
pub use gate::{Gate, Verdict};
use held::Full;
pub use held::{MAX_REPLAY_BYTES, MAX_REPLAY_MESSAGES, MAX_WAITING_BYTES, MAX_WAITING_MESSAGES};
use live::{LiveCall, LiveCalls};
pub use place::Initiate;
use recovery::Recovery;
pub use sweeper::SWEEP_INTERVAL;
pub use tally::{as_gauge, reported};
use unannounced::Unannounced;
use unanswered::Unanswered;
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

/// How often a decision is made again because the record changed meanwhile.
const MAX_DECISIONS: usize = 4;

/// When to try again what the node's byte budget has no room for.
const RETRY_BUDGET: Duration = Duration::from_secs(1);

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
    presence_turns: PresenceTurns,
    /// The devices on this node.
    devices: Mutex<BTreeMap<SocketId, Present>>,
    /// The sockets that are being signed off right now.
    leaving: Mutex<HashSet<SocketId>>,
    departures: Departures,
    /// Those that joined, and could not be told of their users' calls yet, and when none was found.
    unwelcomed: Mutex<BTreeMap<SocketId, (Device, Option<Timestamp>)>>,
    overdue: Overdue,
    recovery: Recovery,
    doubtful: Doubtful,
    unanswered: Unanswered,
    unannounced: Unannounced,
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
    /// Too many ask for presence at this moment.
    #[error("too many ask for presence")]
    PresenceBusy,
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
            presence_turns: PresenceTurns::default(),
            devices: Mutex::default(),
            leaving: Mutex::default(),
            departures: Departures::default(),
            unwelcomed: Mutex::default(),
            overdue: Overdue::default(),
            recovery: Recovery::default(),
            doubtful: Doubtful::default(),
            unanswered: Unanswered::default(),
            unannounced: Unannounced::default(),
        }
    }

    /// Counts what waits for devices in `buffers`.
    #[must_use]
    pub fn buffered_in(mut self, buffers: Buffers) -> Self {
        self.live = LiveCalls::new(buffers);
        self
    }

    /// Has new calls named by `name`: a simulation repeats itself.
    #[must_use]
    pub fn named_by(mut self, name: impl Fn(Timestamp) -> CallId + Send + Sync + 'static) -> Self {
        self.name = Box::new(name);
        self
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What time it is, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// The node that this is.
    pub fn node(&self) -> NodeId {
        self.cluster.node()
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
                match relay(&live, self.trace_answer(&live)) {
                    Ok(_) => live.release_early(device, &self.reach()),
                    // It has to be sent again: its device is in the call by now.
                    Err(full @ Failure::Full { .. }) => return Err(full),
                    Err(_) => payload.settle(),
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

    /// Whether the live call that `target` means is known here, so that nothing has to be looked up.
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

    /// The call that `target` means: the one with its id, else the latest one of the device's user,
    /// if it is with the user named. It may have ended.
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
            if matches!(event, Event::Stayed(device) if self.knows_end_of(&call, device)) {
                return Err(Refusal::NothingToDo.into());
            }
            let mut next = self.rules.apply(&call, event, self.node(), self.clock.now())?;
            self.trace_change(&mut span, event, &mut next);
            let change = Change { call: next.clone(), claims: Vec::new() };
            let committed = self.commit(change, &mut span).await;
            match committed.inspect_err(|_| self.unanswered.note(&call))? {
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
        let (clock, overdue) = (&self.clock, &self.overdue);
        Reach { outlet, cluster, now, clock, overdue, origin: None, trace: None }
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
    /// When what waits for a device has room again: when the device is back, or its grace over.
    fn full(full: Full, now: Timestamp) -> Self {
        let retry_after = match full {
            Full::Until(until) => until - now,
            Full::Budget => RETRY_BUDGET,
        };
        Self::Full { retry_after }
    }
}
