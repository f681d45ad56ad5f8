//! What this node keeps of each call that concerns one of its sockets: the newest record it has
//! seen, who rings, and messages that wait.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{Failure, Outlet};
use crate::{
    call::{Call, Device, News, Refusal, Role, Route, Signal, news},
    ids::{CallId, SocketId, UserId},
    payload::Payload,
    protocol::ServerEvent,
    time::Timestamp,
};

/// Most messages that wait for a device that is lost.
pub const MAX_WAITING_MESSAGES: usize = 64;
/// Most bytes of messages that wait for a device that is lost.
pub const MAX_WAITING_BYTES: usize = 256 * 1024;
/// Most messages of a caller that are kept for devices that join while it rings, and most of a
/// ringing device that wait for its answer.
pub const MAX_REPLAY_MESSAGES: usize = 1_024;
/// Most bytes of the same.
pub const MAX_REPLAY_BYTES: usize = 1024 * 1024;
/// How long an ended call is remembered, so that a late older version is known to be old.
const ENDED_MEMORY: Duration = Duration::from_secs(10);

/// All calls that this node knows.
#[derive(Default)]
pub struct LiveCalls {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    calls: HashMap<CallId, Arc<LiveCall>>,
    /// The live call of each user.
    users: HashMap<UserId, CallId>,
    /// Ended calls and when to forget them, in that order.
    ended: VecDeque<(Timestamp, CallId)>,
}

/// One call, as this node knows it. What is told to local sockets about a call is told under its
/// lock, so that nobody hears of a newer version before an older one.
pub struct LiveCall {
    id: CallId,
    view: Mutex<View>,
}

struct View {
    call: Call,
    /// The local sockets that ring, or rang.
    rung: Vec<SocketId>,
    /// What the caller sent so far, for devices that join while it rings.
    replay: Held,
    /// Candidates of ringing devices, which wait for their answer.
    early: HashMap<SocketId, Held>,
    /// What waits for a party that lost its device: caller, callee.
    waiting: [Held; 2],
}

/// Messages that wait, within limits.
#[derive(Default)]
struct Held {
    messages: VecDeque<(Signal, Payload)>,
    size_bytes: usize,
}

/// No room for another message until then.
pub struct Full {
    pub until: Timestamp,
}

impl LiveCalls {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's view of `call`; a new one if there is none yet, which is kept while it lives.
    pub fn open(&self, call: &Call) -> Arc<LiveCall> {
        let mut index = self.index();
        if let Some(live) = index.calls.get(&call.id) {
            return live.clone();
        }
        let live = Arc::new(LiveCall::new(call.clone()));
        if call.is_live() {
            index.calls.insert(call.id, live.clone());
            for party in [&call.caller, &call.callee] {
                index.users.insert(party.user.clone(), call.id);
            }
        }
        live
    }

    pub fn get(&self, id: CallId) -> Option<Arc<LiveCall>> {
        self.index().calls.get(&id).cloned()
    }

    pub fn of_user(&self, user: &UserId) -> Option<Arc<LiveCall>> {
        let index = self.index();
        index.calls.get(index.users.get(user)?).cloned()
    }

    /// Notes that `call` has ended.
    pub fn retire(&self, call: &Call) {
        let mut index = self.index();
        for party in [&call.caller, &call.callee] {
            if index.users.get(&party.user) == Some(&call.id) {
                index.users.remove(&party.user);
            }
        }
        index.ended.push_back((call.updated_at + ENDED_MEMORY, call.id));
    }

    /// Drops what ended calls leave behind.
    pub fn forget_ended(&self, now: Timestamp) {
        let mut index = self.index();
        while let Some((_, id)) = index.ended.pop_front_if(|(at, _)| *at <= now) {
            index.calls.remove(&id);
        }
    }
}

impl LiveCall {
    fn new(call: Call) -> Self {
        Self {
            id: call.id,
            view: Mutex::new(View {
                call,
                rung: Vec::new(),
                replay: Held::default(),
                early: HashMap::new(),
                waiting: [Held::default(), Held::default()],
            }),
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn id(&self) -> CallId {
        self.id
    }

    pub fn snapshot(&self) -> Call {
        self.view().call.clone()
    }

    /// Rings those of `sockets` that do not ring yet, and gives them what the caller sent so far.
    /// Nothing if it does not ring any more.
    pub fn ring(&self, sockets: &[SocketId], outlet: &dyn Outlet, now: Timestamp) {
        let mut view = self.view();
        if !view.call.is_ringing() {
            return;
        }
        for socket in sockets {
            if !view.rung.contains(socket) {
                view.rung.push(*socket);
                view.tell(*socket, News::Incoming, Role::Callee, outlet, now);
                for (signal, payload) in &view.replay.messages {
                    view.pass_on(*signal, payload.clone(), Role::Caller, *socket, outlet, now);
                }
            }
        }
    }

    /// Takes a newer version in and tells the local sockets what it means. An older one is dropped.
    pub fn observe(&self, newer: &Call, outlet: &dyn Outlet, now: Timestamp) {
        let mut view = self.view();
        if newer.version <= view.call.version {
            return;
        }
        let before = std::mem::replace(&mut view.call, newer.clone());
        for (socket, news) in news(&before, newer, &view.rung) {
            let is_callers = [&before, newer].iter().any(|call| call.caller.link.is_on(socket));
            let role = if is_callers { Role::Caller } else { Role::Callee };
            view.tell(socket, news, role, outlet, now);
        }
        if !newer.is_ringing() {
            view.rung.clear();
            view.replay = Held::default();
        }
        if !newer.is_live() {
            view.early.clear();
            view.waiting = Default::default();
        }
        for role in [Role::Caller, Role::Callee] {
            if let Some(socket) = newer.party(role).link.socket() {
                let waiting = std::mem::take(view.waiting_for(role));
                for (signal, payload) in waiting.messages {
                    view.pass_on(signal, payload, role.other(), socket, outlet, now);
                }
            }
        }
    }

    /// Passes a message on, or keeps it for later, as the rules say. A first answer is not passed
    /// on yet: the caller of this must win the call first.
    pub fn relay(
        &self,
        device: &Device,
        signal: Signal,
        payload: &Payload,
        outlet: &dyn Outlet,
        now: Timestamp,
    ) -> Result<Route, Failure> {
        let mut view = self.view();
        let route = match view.call.route(device, signal) {
            Err(Refusal::Over) => return Err(Refusal::NotInCall.into()),
            other => other?,
        };
        let full = |full| Failure::full(full, now);
        let until = view.call.deadline();
        match route {
            Route::Ringing => {
                view.replay.keep_for_replay(signal, payload, until).map_err(full)?;
                for socket in &view.rung {
                    view.pass_on(signal, payload.clone(), Role::Caller, *socket, outlet, now);
                }
            }
            Route::AfterAnswer(_) => {
                let early = view.early.entry(device.socket).or_default();
                early.keep_for_replay(signal, payload, until).map_err(full)?;
            }
            Route::Bound(to, socket) => {
                view.pass_on(signal, payload.clone(), to.other(), socket, outlet, now);
            }
            Route::WhenBack(to) => {
                view.waiting_for(to).keep_for_lost(signal, payload, until).map_err(full)?;
            }
            Route::Answers(_) => {}
        }
        Ok(route)
    }

    /// Lets the candidates go that waited for the answer of `device`, and drops those of devices
    /// whose answer came too late.
    pub fn release_early(&self, device: &Device, outlet: &dyn Outlet, now: Timestamp) {
        let mut view = self.view();
        let own = view.early.remove(&device.socket).unwrap_or_default();
        view.early.clear();
        match view.call.to_party(Role::Caller) {
            Route::Bound(_, socket) => {
                for (signal, payload) in own.messages {
                    view.pass_on(signal, payload, Role::Callee, socket, outlet, now);
                }
            }
            _ => view.waiting_for(Role::Caller).append(own),
        }
    }
}

impl View {
    fn waiting_for(&mut self, role: Role) -> &mut Held {
        match role {
            Role::Caller => &mut self.waiting[0],
            Role::Callee => &mut self.waiting[1],
        }
    }

    fn tell(&self, socket: SocketId, news: News, to: Role, outlet: &dyn Outlet, now: Timestamp) {
        let devices = self.rung.len();
        outlet.emit(socket, &ServerEvent::from_news(news, &self.call, to, devices, now));
    }

    fn pass_on(
        &self,
        signal: Signal,
        payload: Payload,
        from: Role,
        socket: SocketId,
        outlet: &dyn Outlet,
        now: Timestamp,
    ) {
        outlet.emit(socket, &ServerEvent::relayed(signal, payload, &self.call, from, now));
    }
}

impl Held {
    fn keep_for_replay(
        &mut self,
        signal: Signal,
        payload: &Payload,
        until: Timestamp,
    ) -> Result<(), Full> {
        self.keep(signal, payload, MAX_REPLAY_MESSAGES, MAX_REPLAY_BYTES, until)
    }

    fn keep_for_lost(
        &mut self,
        signal: Signal,
        payload: &Payload,
        until: Timestamp,
    ) -> Result<(), Full> {
        self.keep(signal, payload, MAX_WAITING_MESSAGES, MAX_WAITING_BYTES, until)
    }

    fn keep(
        &mut self,
        signal: Signal,
        payload: &Payload,
        max_messages: usize,
        max_bytes: usize,
        until: Timestamp,
    ) -> Result<(), Full> {
        let size_bytes = self.size_bytes + payload.len_bytes();
        if self.messages.len() >= max_messages || size_bytes > max_bytes {
            return Err(Full { until });
        }
        self.messages.push_back((signal, payload.clone()));
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Adds what was kept within limits elsewhere.
    fn append(&mut self, other: Self) {
        self.messages.extend(other.messages);
        self.size_bytes += other.size_bytes;
    }
}
