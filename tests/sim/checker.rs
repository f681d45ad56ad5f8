//! The invariant checker: it observes all writes and everything that clients receive, and reports
//! the first invariant that does not hold. It never changes the run.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use switchboard::{
    call::{BusyDevice, Call, Cause, Device, EndReason, Link, Role, State as CallState, What},
    cluster::memory::State,
    history::Row,
    ids::{CallId, NodeId, SocketId, UserId},
    payload::Payload,
    protocol::{CallRef, CallView, Presence, ServerEvent},
    time::Timestamp,
};

use super::{node::RULES, simulation::Simulation};

/// The longest time from the end of a call until its parties have the event.
const NEWS_TAKE: Duration = Duration::from_secs(2);
/// The longest time from a presence change until its watchers have the event.
const PRESENCE_TAKES: Duration = Duration::from_secs(3);
/// The cluster's time may pass by so much faster than the true one in the time that a call rings: nodes agree to
/// within a second, follow each other within a second, and an offset decays by 50 ms a second.
const FAST: Duration = Duration::from_secs(3);
/// An upper bound on the time until a node notices that a client has closed its socket.
const NOTICE: Duration = Duration::from_secs(8);
/// A node whose latest heartbeat is less old is alive.
const DEATH: Duration = Duration::from_secs(5);
/// The log keeps this many lines, the latest ones.
const LOG_LINES: usize = 400;

/// An invariant that did not hold, and the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

pub const ONE_CALL: &str = "1: a user has at most one live call";
pub const ONE_END: &str = "2: a call has exactly one end, and its version never goes back";
pub const RUNG_KNOWS: &str = "3: a ringing device receives exactly one end";
pub const DEADLINE: &str = "4: no live call outlives its deadline";
pub const EARLY: &str = "4: no call ends before its deadline";
pub const EVICTED: &str = "no user stays on a dead node";
pub const HISTORY: &str = "5: every ended call is in history once, with its true end";
pub const ORDER: &str = "6: messages of one socket arrive in order, at most once";
pub const OVER: &str = "a device that knows the end of a call receives no more events of it";
pub const PARTIES: &str = "7: only the parties of a call receive its messages";
pub const CONNECTED: &str = "no live call without connected parties";
pub const LEFT_OVER: &str = "no state is left over";
pub const TOLD: &str = "a device that was in a call learns its end";
pub const WATCHED: &str = "at rest, every watcher knows the true presence";
pub const LATER: &str = "an earlier connection of a device never displaces a later one";
pub const ANSWERED: &str = "without faults, no call is refused with a request to retry";
pub const ACKED: &str =
    "an acknowledged message arrives, unless the receiver's connection or node was lost";
pub const ALIVE: &str = "no node is evicted whose heartbeats arrive";
pub const PANIC: &str = "nothing panics";

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that a run allows, by itself")]
pub struct InvariantChecker {
    /// In this run the shared state may lose writes that it had confirmed.
    pub may_forget: bool,
    /// In this run the shared state may lose that a user is in a call, until nodes find that.
    pub may_lose_claims: bool,
    /// In this run a node may, besides, end with rows that it has not written.
    pub may_lose_rows: bool,
    /// In this run messages may be in flight to a node that their device has left, and cannot be
    /// recalled. They are relayed, possibly after later ones.
    pub may_be_late: bool,
    /// All faults have ended, and the cluster has recovered.
    pub all_is_well: bool,
    /// In this run a published message may be lost although it had a receiver. It is published
    /// again as long as its sender lives.
    pub may_lose_messages: bool,
    /// In this run a node may freeze with all the messages that it has received.
    pub may_stand_still: bool,
    pub violation: Option<Violation>,
    acked: Vec<Acked>,
    /// The messages received in each call, with the user who received them.
    got: BTreeSet<(CallId, UserId, String)>,
    log: VecDeque<String>,
    calls: BTreeMap<CallId, Call>,
    /// The true time at which each call was placed, ended, and lost the device of each role.
    placed_at: BTreeMap<CallId, Timestamp>,
    ended_at: BTreeMap<CallId, Timestamp>,
    lost_at: BTreeMap<(CallId, &'static str), Timestamp>,
    /// The number of the latest connection by which each party of a call was bound to it.
    latest: BTreeMap<(CallId, UserId), u64>,
    sockets: BTreeMap<SocketId, SocketView>,
    /// The true time of each node's latest heartbeat.
    beats: BTreeMap<NodeId, Timestamp>,
}

/// A message that a client sent.
pub struct Said {
    call: Option<CallId>,
    socket: SocketId,
    to: Option<UserId>,
    text: String,
    at: Timestamp,
    /// Whether the client was in the call already. A message of a device that only rings is
    /// discarded if another device answers.
    is_in: bool,
}

struct Acked {
    said: Said,
    at: Timestamp,
}

impl Said {
    pub fn new(sim: &Simulation, socket: SocketId, to: &CallRef, payload: &Payload) -> Self {
        let (text, at) = (payload.as_json().trim_matches('"').to_owned(), sim.now());
        let is_in = sim.checker().is_in_some_call(socket);
        Self { call: None, socket, to: to.to.clone(), text, at, is_in }
    }

    /// The same message, attributed to this call.
    pub fn about(self, call: CallId) -> Self {
        Self { call: Some(call), ..self }
    }
}

/// Everything that a client has received on one socket.
struct SocketView {
    user: UserId,
    /// False as soon as the client has closed the socket.
    is_open: bool,
    closed_at: Option<Timestamp>,
    /// The outcome of an end that it sent was reported as unknown: therefore it may also receive
    /// the event.
    is_unsure: bool,
    calls: BTreeMap<CallId, Heard>,
    /// The last message number received for each call, sender and kind of message.
    numbers: BTreeMap<(CallId, String), u64>,
    /// The last status received for each user that the socket watches.
    presence: BTreeMap<UserId, Presence>,
}

#[derive(Debug, Default)]
struct Heard {
    rang: bool,
    /// The client is in the call: it placed it, its answer won, or its device resumed it.
    is_in: bool,
    /// The device resumed the call here, having left another socket.
    came_back: bool,
    ends: usize,
    own_end: Option<OwnEnd>,
}

/// How a client knows that it has ended a call itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnEnd {
    /// By the reply to its event.
    Told,
    /// It began another call, which ended this one.
    MovedOn,
}

impl InvariantChecker {
    pub fn note(&mut self, now: Timestamp, text: impl FnOnce() -> String) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        let line = format!("{:>7} {}", now.as_millis() % 10_000_000, text());
        self.log.push_back(line);
    }

    pub fn log(&self) -> impl Iterator<Item = &String> {
        self.log.iter()
    }

    pub fn violated(&mut self, invariant: &'static str, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, what: what() });
        }
    }

    /// Records that a record was written.
    pub fn wrote(&mut self, now: Timestamp, call: &Call, state: &State) {
        self.note(now, || format!("       wrote {}", brief(call)));
        let known = self.calls.insert(call.id, call.clone());
        self.note_times(now, known.as_ref(), call);
        if let Some(known) = &known {
            self.note_moves(known, call);
        }
        if let Some(known) = known.filter(|_| !self.may_forget) {
            let is_repeated = known == *call;
            // A device that returns after the end is notified: the version is one more, the end is
            // the same.
            let has_another_end = !known.is_live() && known.state != call.state;
            if !is_repeated && (has_another_end || known.version >= call.version) {
                self.violated(ONE_END, || format!("{} after {}", brief(call), brief(&known)));
            }
        }
        self.one_call_each(call, state);
    }

    /// Records when a call was placed, lost a device, and ended, by the true time, and that no time-out has ended it
    /// early.
    fn note_times(&mut self, now: Timestamp, before: Option<&Call>, after: &Call) {
        let placed_at = *self.placed_at.entry(after.id).or_insert(now);
        let mut waited = Vec::new();
        for (role, name) in [(Role::Caller, "caller"), (Role::Callee, "callee")] {
            let until = |call: &Call| call.party(role).link.lost_until();
            if until(after).is_some() && before.and_then(until) != until(after) {
                self.lost_at.insert((after.id, name), now);
            }
            // It was lost, and its time is over.
            let is_over = matches!(&after.state,
                CallState::Ended { cause: Cause::Lost { role: by }, .. } if *by == role);
            if is_over && before.is_some_and(|before| before.is_live() && until(before).is_some()) {
                let lost_at = self.lost_at.get(&(after.id, name)).copied().unwrap_or(placed_at);
                waited.push((now - lost_at, RULES.reconnect_grace));
            }
        }
        if after.is_live() {
            self.ended_at.remove(&after.id);
            return;
        }
        self.ended_at.entry(after.id).or_insert(now);
        if before.is_some_and(Call::is_live) && after.end_reason() == Some(EndReason::NoAnswer) {
            waited.push((now - placed_at, RULES.ring_timeout));
        }
        for (waited, time) in waited {
            if waited + FAST < time && !self.may_forget {
                self.violated(EARLY, || format!("{} after {waited:?}", brief(after)));
            }
        }
    }

    /// Marks a device that has moved from another socket as resumed, whether or not it has the
    /// event already.
    fn note_moves(&mut self, before: &Call, after: &Call) {
        for role in [Role::Caller, Role::Callee] {
            let Some(socket) = after.party(role).link.socket() else { continue };
            let latest = before.party(role).link.socket().map_or(0, number_of);
            let latest = *self
                .latest
                .entry((after.id, after.party(role).user.clone()))
                .and_modify(|known| *known = latest.max(*known))
                .or_insert(latest);
            if number_of(socket) < latest && !self.may_forget {
                let what = || format!("{} after {latest} connections", brief(after));
                self.violated(LATER, what);
            }
            let moved = match &before.party(role).link {
                Link::Open => false,
                link => !link.is_on(socket),
            };
            if let Some(view) = self.sockets.get_mut(&socket).filter(|_| moved) {
                view.calls.entry(after.id).or_default().came_back = true;
            }
        }
        for busy in &after.busy {
            let is_it = |other: &&BusyDevice| other.device == busy.device;
            let was = before.busy.iter().find(is_it).map_or(0, |was| number_of(was.socket));
            if number_of(busy.socket) < was && !self.may_forget {
                self.violated(LATER, || format!("{busy:?} of {} after {was}", brief(after)));
            }
        }
    }

    /// A heartbeat of a node has arrived.
    pub fn beat(&mut self, node: NodeId, now: Timestamp) {
        self.beats.insert(node, now);
    }

    /// Users were removed from a node, or it was removed.
    pub fn evicted(&mut self, node: NodeId, now: Timestamp) {
        self.note(now, || format!("       evicted {node}"));
        let Some(at) = self.beats.get(&node).copied() else { return };
        if now - at < DEATH {
            self.violated(ALIVE, || format!("{node} {:?} after its heartbeat", now - at));
        }
    }

    fn one_call_each(&mut self, call: &Call, state: &State) {
        if call.is_live() && !self.may_lose_claims {
            self.is_in_one_call(call, state);
        }
    }

    fn is_in_one_call(&mut self, call: &Call, state: &State) {
        for role in [Role::Caller, Role::Callee] {
            let user = &call.party(role).user;
            let is_live = |other: &&Call| other.is_live() && other.role_of(user).is_some();
            let others = state.calls.values().map(|record| &record.call).filter(is_live);
            let mut live: Vec<String> = others.map(brief).collect();
            live.sort_unstable();
            if live.len() > 1 {
                self.violated(ONE_CALL, || format!("{} is in {live:?}", user.as_str()));
            }
        }
    }

    pub fn opened(&mut self, socket: SocketId, user: &UserId) {
        let (calls, numbers, is_unsure) = (BTreeMap::new(), BTreeMap::new(), false);
        let (user, closed_at, presence) = (user.clone(), None, BTreeMap::new());
        let view =
            SocketView { user, is_open: true, closed_at, is_unsure, calls, numbers, presence };
        self.sockets.insert(socket, view);
    }

    /// The client has closed this socket and receives nothing more on it.
    pub fn closed(&mut self, socket: SocketId, now: Timestamp) {
        if let Some(view) = self.sockets.get_mut(&socket) {
            view.is_open = false;
            view.closed_at = Some(now);
        }
    }

    fn is_in_some_call(&self, socket: SocketId) -> bool {
        let is_in = |heard: &Heard| heard.is_in && heard.ends == 0 && heard.own_end.is_none();
        self.sockets.get(&socket).is_some_and(|view| view.calls.values().any(is_in))
    }

    /// Whether the socket is in the call. A message of a device that only rings is buffered until
    /// it answers, and discarded if it does not.
    fn is_in_call(&self, socket: SocketId, id: CallId) -> bool {
        let view = self.sockets.get(&socket);
        view.and_then(|view| view.calls.get(&id)).is_some_and(|heard| heard.is_in)
    }

    /// The client's message was acknowledged.
    pub fn acked(&mut self, now: Timestamp, said: Said) {
        self.note(now, || format!("    {} knows that {} is there", said.socket, said.text));
        self.acked.push(Acked { said, at: now });
    }

    /// Whether a socket that matches was closed while the message may have been in flight to it.
    fn was_lost(&self, acked: &Acked, is_it: impl Fn(SocketId, &UserId) -> bool) -> bool {
        let (from, until) = (acked.said.at - NOTICE, acked.at + NOTICE);
        self.sockets.iter().any(|(socket, view)| {
            is_it(*socket, &view.user) && view.closed_at.is_some_and(|at| from <= at && at <= until)
        })
    }

    /// An acknowledged message that was not received, although nothing excuses it.
    fn missing(&self) -> Option<String> {
        let takes = if self.may_stand_still { 10 * NOTICE } else { NEWS_TAKE };
        let is_missing = |acked: &&Acked| {
            let Said { call: Some(id), socket, to: Some(to), text, is_in, .. } = &acked.said else {
                return false;
            };
            let was_heard = self.got.contains(&(*id, to.clone(), text.clone()));
            let is_over = !self.calls.contains_key(id)
                || self.ended_at.get(id).is_some_and(|at| *at <= acked.at + takes);
            let peer_lost = self.was_lost(acked, |_, user| user == to);
            let link_lost =
                self.may_lose_messages && self.was_lost(acked, |other, _| other == *socket);
            let is_in = *is_in && self.is_in_call(*socket, *id);
            is_in && !was_heard && !is_over && !peer_lost && !link_lost
        };
        let missing = self.acked.iter().find(is_missing)?;
        let Said { call, socket, text, to, .. } = &missing.said;
        Some(format!("{text} of {socket} in {call:?} never came to {to:?}"))
    }

    /// A client received an event.
    pub fn heard(&mut self, now: Timestamp, socket: SocketId, event: &ServerEvent) {
        let Some(view) = self.sockets.get_mut(&socket).filter(|view| view.is_open) else { return };
        let user = view.user.clone();
        if let ServerEvent::Presence { user_id, status, .. } = event
            && let Some(known) = view.presence.get_mut(user_id)
        {
            *known = *status;
        }
        let Some(id) = call_of(event) else { return };
        let is_party = self.calls.get(&id).is_some_and(|call| call.role_of(&user).is_some());
        let mut broken = None;
        let heard = view.calls.entry(id).or_default();
        let was_told = heard.ends > 0 && !matches!(event, ServerEvent::Resumed(_));
        let knew_end = was_told || heard.own_end == Some(OwnEnd::Told);
        match event {
            ServerEvent::Incoming { .. } => heard.rang = true,
            // If the other socket of the device had answered, the call had ended for this socket.
            ServerEvent::Resumed(_) => {
                (heard.is_in, heard.came_back, heard.ends) = (true, true, 0);
            }
            ServerEvent::Ended { .. } | ServerEvent::Rejected { .. } | ServerEvent::Busy { .. } => {
                heard.ends += 1;
                if heard.ends > 1 || heard.own_end == Some(OwnEnd::Told) {
                    broken = Some((
                        RUNG_KNOWS,
                        format!("{socket} heard a second end of {id}: {event:?}"),
                    ));
                }
            }
            ServerEvent::Offer { offer: payload, .. }
            | ServerEvent::Answer { answer: payload, .. }
            | ServerEvent::IceCandidate { candidate: payload, .. } => {
                let text = payload.as_json().trim_matches('"');
                self.got.insert((id, user.clone(), text.to_owned()));
                let (from, number) = text.split_once('/').expect("a socket and a number");
                let number: u64 = number.parse().expect("it is a number");
                let is_candidate = matches!(event, ServerEvent::IceCandidate { .. });
                let last = view.numbers.insert((id, format!("{from}{is_candidate}")), number);
                let may_be_late = self.may_be_late && heard.came_back;
                if last.is_some_and(|last| last == number || (last > number && !may_be_late)) {
                    broken = Some((ORDER, format!("{socket} heard {text} after {last:?}")));
                }
            }
            _ => {}
        }
        self.note(now, || format!("    {socket} heard {} {}", event.name(), short(id)));
        if !is_party {
            broken = Some((PARTIES, format!("{socket} of {} heard {event:?}", user.as_str())));
        }
        if knew_end && broken.is_none() {
            broken = Some((OVER, format!("{socket} knew the end of {id} and heard {event:?}")));
        }
        if let Some((invariant, what)) = broken {
            self.violated(invariant, || what);
        }
    }

    /// The client subscribed to these users and received their presence.
    pub fn watches(&mut self, socket: SocketId, presence: BTreeMap<UserId, Presence>) {
        if let Some(view) = self.sockets.get_mut(&socket) {
            view.presence = presence.into_iter().collect();
        }
    }

    /// The client's call was refused with a request to retry.
    pub fn turned_away(&mut self, socket: SocketId) {
        if self.all_is_well {
            self.violated(ANSWERED, || format!("{socket} called"));
        }
    }

    /// The client knows from an event or a reply that it is in this call.
    pub fn is_in(&mut self, socket: SocketId, id: CallId) {
        if let Some(view) = self.sockets.get_mut(&socket) {
            view.calls.entry(id).or_default().is_in = true;
        }
    }

    /// The client placed a call, which ends one that it had abandoned.
    pub fn moved_on(&mut self, device: &Device) {
        let Some(view) = self.sockets.get_mut(&device.socket) else { return };
        for (id, heard) in &mut view.calls {
            let moved_on = self.calls.get(id).is_some_and(|call| {
                let mut ends = call.timeline.iter().filter(|step| step.what == What::Ended);
                ends.any(|step| {
                    step.reason == Some(EndReason::Superseded)
                        && step.by == call.role_of(&device.user)
                        && step.device == device.id
                })
            });
            if moved_on {
                heard.own_end.get_or_insert(OwnEnd::MovedOn);
            }
        }
    }

    /// The outcome of an end that the client sent was reported as unknown.
    pub fn unanswered(&mut self, socket: SocketId) {
        if let Some(view) = self.sockets.get_mut(&socket) {
            view.is_unsure = true;
        }
    }

    /// The reply to the client's event says that the call has ended.
    pub fn ended(&mut self, socket: SocketId, call: &Call) {
        let by_it = matches!(&call.state, CallState::Ended {
            cause: Cause::HangUp { by, .. } | Cause::Reject { by, .. } | Cause::Busy { by }, ..
        } if *by == socket);
        // A busy device stops ringing by its ack, whatever becomes of the call.
        let is_out = by_it || call.is_busy_on(socket);
        let Some(view) = self.sockets.get_mut(&socket) else { return };
        let heard = view.calls.entry(call.id).or_default();
        if !is_out {
            // The call had ended before. The client gets the end in the reply, and may get the
            // event in its turn as well.
            return;
        }
        heard.own_end = Some(OwnEnd::Told);
        if heard.ends > 0 && !view.is_unsure {
            let what = format!("{socket} heard an end of {} and its own", call.id);
            self.violated(RUNG_KNOWS, || what);
        }
    }

    /// Checks the state after all faults have ended and the cluster had time to recover.
    /// `agreed` is the time by the cluster's clock.
    pub fn settled(
        &mut self,
        sim: &Simulation,
        agreed: Timestamp,
        open: &[SocketId],
        alive: &BTreeSet<NodeId>,
    ) {
        let (now, state) = (sim.now(), &*sim.state());
        for (user, entry) in state.users.iter().collect::<BTreeMap<_, _>>() {
            if let Some(dead) = entry.nodes.keys().find(|node| !alive.contains(node)) {
                self.violated(EVICTED, || format!("{} is on {dead}", user.as_str()));
            }
        }
        let calls: BTreeMap<_, _> = state.calls.iter().collect();
        for record in calls.values().filter(|record| record.call.is_live()) {
            let call = &record.call;
            self.is_in_one_call(call, state);
            if call.deadline() + Duration::from_secs(8) < agreed {
                self.violated(DEADLINE, || brief(call));
            }
            for role in [Role::Caller, Role::Callee] {
                let socket = call.party(role).link.socket();
                if socket.is_some_and(|socket| !open.contains(&socket)) {
                    self.violated(CONNECTED, || format!("{} has no {role:?}", brief(call)));
                }
            }
        }
        let mut mistaken = None;
        for (socket, view) in self.sockets.iter().filter(|(_, view)| view.is_open) {
            for (user, heard) in &view.presence {
                let is_old = sim.changed_at(user) + PRESENCE_TAKES < now;
                let presence = state.presence(user);
                if is_old && *heard != presence {
                    mistaken = Some(format!(
                        "{socket} heard that {} is {heard:?}: {presence:?}",
                        user.as_str()
                    ));
                }
            }
        }
        if let Some(what) = mistaken {
            self.violated(WATCHED, || what);
        }
        if let Some(what) = self.missing().filter(|_| !self.may_forget) {
            self.violated(ACKED, || what);
        }
        let mut missed = None;
        for (socket, view) in self.sockets.iter().filter(|(_, view)| view.is_open) {
            for (id, heard) in &view.calls {
                let ended_lately = self.ended_at.get(id).is_some_and(|at| *at + NEWS_TAKE >= now);
                let is_over = state.load(*id).is_none_or(|call| !call.is_live() && !ended_lately);
                let knows = heard.ends > 0 || heard.own_end.is_some();
                if is_over && !knows && (heard.rang || heard.is_in) {
                    let what = format!("{socket} does not know the end of {id}: {heard:?}");
                    missed = Some((if heard.rang { RUNG_KNOWS } else { TOLD }, what));
                }
            }
        }
        if let Some((invariant, what)) = missed {
            self.violated(invariant, || what);
        }
    }

    /// Whether some client has received an event of the call.
    fn is_known(&self, id: CallId) -> bool {
        self.sockets.values().any(|view| view.calls.contains_key(&id))
    }

    /// Checks the state after all clients have left and everything had time to expire.
    pub fn over(&mut self, state: &State, rows: &[Row]) {
        let State { calls, users, watchers, deadlines, unstored, stored, evictions, .. } = state;
        let is_over = calls.is_empty() && users.is_empty() && evictions.is_empty();
        let is_over = is_over && watchers.is_empty();
        let queues = [deadlines, unstored, stored];
        if !(is_over && queues.iter().all(|queue| queue.is_empty())) {
            let calls: Vec<String> = calls.values().map(|record| brief(&record.call)).collect();
            let what = format!("{calls:?} {users:?} {watchers:?} {queues:?} {evictions:?}");
            self.violated(LEFT_OVER, || what);
        }
        let rows: BTreeMap<CallId, &Row> = rows.iter().map(|row| (row.id, row)).collect();
        let mut wrong = None;
        for call in self.calls.values() {
            let is_right = |row: &&Row| {
                row.ended_at.is_some() && (self.may_forget || **row == Row::from(call))
            };
            // An attempt that was lost before it rang counts as failed, which is what its caller
            // was told.
            let never_was = self.may_forget && call.version == 1 && !self.is_known(call.id);
            if self.may_lose_rows || never_was {
                continue;
            }
            if call.is_live() && !self.may_forget {
                wrong = Some(format!("{} never ended", brief(call)));
            } else if !rows.get(&call.id).is_some_and(is_right) {
                wrong = Some(format!("{}: {:?}", brief(call), rows.get(&call.id)));
            }
        }
        if let Some(what) = wrong {
            self.violated(HISTORY, || what);
        }
    }
}

/// The number of connections that the device has had, this one included.
fn number_of(socket: SocketId) -> u64 {
    let name = socket.to_string();
    let number = name.trim_end_matches('_').split_once('s').map(|(_, number)| number.parse());
    number.expect("a device and a number").expect("a number")
}

fn call_of(event: &ServerEvent) -> Option<CallId> {
    match event {
        ServerEvent::Incoming { call_id, .. }
        | ServerEvent::Ringing { call_id, .. }
        | ServerEvent::Offer { call_id, .. }
        | ServerEvent::Answer { call_id, .. }
        | ServerEvent::IceCandidate { call_id, .. }
        | ServerEvent::Rejected { call_id, .. }
        | ServerEvent::Busy { call_id, .. }
        | ServerEvent::Ended { call_id, .. }
        | ServerEvent::PeerReconnecting { call_id, .. }
        | ServerEvent::PeerReconnected { call_id, .. } => Some(*call_id),
        ServerEvent::Resumed(view) => seen(view)[0].parse().ok(),
        _ => None,
    }
}

/// The id and the users of a call, as clients see them.
pub fn seen(view: &CallView) -> [String; 3] {
    let json = serde_json::to_value(view).expect("it is plain data");
    ["callId", "caller", "receiver"]
        .map(|field| json[field].as_str().unwrap_or_default().to_owned())
}

pub fn short(id: CallId) -> String {
    let text = id.to_string();
    text[text.len() - 6..].to_owned()
}

pub fn brief(call: &Call) -> String {
    let end = call.end_reason().map(EndReason::as_str);
    let link = |role| match &call.party(role).link {
        Link::Open => "-".to_owned(),
        Link::Bound(binding) => binding.socket.to_string(),
        Link::Lost { .. } => "lost".to_owned(),
    };
    format!(
        "{} v{} {}->{} {:?} {end:?} [{} {}]",
        short(call.id),
        call.version,
        call.caller.user.as_str(),
        call.callee.user.as_str(),
        call.status(),
        link(Role::Caller),
        link(Role::Callee),
    )
}
