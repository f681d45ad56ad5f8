//! The calls that this node knows: those that it takes part in, and, for a while, those that have
//! ended or that it has left.
//!
//! The memory of ended calls answers whether a late message or record is older than what was known
//! here, who knows the end, and what to restore if the shared state loses it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use super::state::CallState;
use crate::{
    call::{Call, ENDED_RETENTION},
    cluster::link,
    ids::{CallId, SocketId, UserId},
    limits::buffers::Buffers,
    time::Timestamp,
};

/// The time for which the record of an ended call, or a retransmitted message about it, may still
/// arrive.
const MEMORY: Duration = ENDED_RETENTION.saturating_add(link::KEEP);
/// The most calls that are remembered, about 2 KB each. With more, the oldest are forgotten.
const MAX_REMEMBERED: usize = 20_000;

/// All calls that this node knows.
#[derive(Default)]
pub struct LiveCalls {
    index: Mutex<Index>,
    buffers: Buffers,
}

#[derive(Default)]
struct Index {
    /// Each call, and when to forget it, if this node takes part in it no longer.
    calls: BTreeMap<CallId, (Arc<LiveCall>, Option<Timestamp>)>,
    /// The live call of each user.
    users: HashMap<UserId, CallId>,
    /// The remembered calls, in the order in which they are forgotten.
    remembered: BTreeSet<(Timestamp, CallId)>,
    /// Calls that were remembered until then, or for a shorter time, are forgotten.
    forgotten_until: Timestamp,
}

/// One call. Its mutex serialises the events that local sockets are sent, so that no socket gets a
/// newer version before an older one.
pub struct LiveCall {
    id: CallId,
    state: Mutex<CallState>,
}

impl LiveCalls {
    /// Counts buffered messages in `buffers`.
    pub fn new(buffers: Buffers) -> Self {
        Self { index: Mutex::default(), buffers }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock()
    }

    fn create(&self, call: &Call) -> Arc<LiveCall> {
        let state = Mutex::new(CallState::new(call.clone(), &self.buffers));
        Arc::new(LiveCall { id: call.id, state })
    }

    /// The state of `call` on this node. A new one is created if there is none, and kept if the call
    /// is live.
    pub fn open(&self, call: &Call) -> Arc<LiveCall> {
        let mut index = self.index();
        if let Some((live, _)) = index.calls.get(&call.id) {
            return live.clone();
        }
        let live = self.create(call);
        if call.is_live() {
            index.calls.insert(call.id, (live.clone(), None));
            index.claim(call);
        }
        live
    }

    pub fn get(&self, id: CallId) -> Option<Arc<LiveCall>> {
        self.index().calls.get(&id).map(|(live, _)| live.clone())
    }

    pub fn of_user(&self, user: &UserId) -> Option<Arc<LiveCall>> {
        let index = self.index();
        index.calls.get(index.users.get(user)?).map(|(live, _)| live.clone())
    }

    /// Records that `call` has ended, or that this node no longer takes part in it. It is remembered
    /// from now on, whenever it changed, and even if it was not known.
    pub fn remember(&self, call: &Call, now: Timestamp) {
        let mut index = self.index();
        for party in [&call.caller, &call.callee] {
            if index.users.get(&party.user) == Some(&call.id) {
                index.users.remove(&party.user);
            }
        }
        let forget_at = now + MEMORY;
        let (_, known_until) =
            index.calls.entry(call.id).or_insert_with(|| (self.create(call), None));
        if let Some(before) = known_until.replace(forget_at) {
            index.remembered.remove(&(before, call.id));
        }
        index.remembered.insert((forget_at, call.id));
        if index.remembered.len() > MAX_REMEMBERED {
            index.forget_first();
        }
    }

    /// Records that this node takes part in a live call, perhaps again.
    pub fn keep(&self, call: &Call) {
        let mut index = self.index();
        let forget_at = index.calls.get_mut(&call.id).and_then(|(_, at)| at.take());
        if let Some(at) = forget_at {
            index.remembered.remove(&(at, call.id));
            index.claim(call);
        }
    }

    /// Forgets the calls whose time is over.
    pub fn forget(&self, now: Timestamp) {
        let mut index = self.index();
        while index.remembered.first().is_some_and(|(at, _)| *at <= now) {
            index.forget_first();
        }
    }

    /// Whether this node may have known a version newer than this one of a call, and have forgotten
    /// it.
    pub fn may_have_forgotten(&self, call: &Call) -> bool {
        let index = self.index();
        call.updated_at + MEMORY <= index.forgotten_until && !index.calls.contains_key(&call.id)
    }

    /// Whether the call has ended, and this socket was told.
    pub fn knows_end(&self, id: CallId, socket: SocketId) -> bool {
        self.get(id).is_some_and(|live| live.state().knows_end(socket))
    }

    /// All calls, by id.
    pub fn all(&self) -> Vec<Arc<LiveCall>> {
        self.after(None, usize::MAX)
    }

    /// The calls after this id, at most `limit`.
    pub fn after(&self, id: Option<CallId>, limit: usize) -> Vec<Arc<LiveCall>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        let index = self.index();
        let after = index.calls.range((from, Bound::Unbounded));
        after.take(limit).map(|(_, (live, _))| live.clone()).collect()
    }
}

impl Index {
    fn claim(&mut self, call: &Call) {
        for party in [&call.caller, &call.callee] {
            self.users.insert(party.user.clone(), call.id);
        }
    }

    fn forget_first(&mut self) {
        if let Some((at, id)) = self.remembered.pop_first() {
            self.calls.remove(&id);
            self.forgotten_until = self.forgotten_until.max(at);
        }
    }
}

impl LiveCall {
    pub(super) fn state(&self) -> MutexGuard<'_, CallState> {
        self.state.lock()
    }

    pub fn id(&self) -> CallId {
        self.id
    }

    /// The newest version seen here.
    pub fn snapshot(&self) -> Call {
        self.state().call().clone()
    }

    /// Whether the predicate holds for the newest version seen here.
    pub fn is(&self, so: impl FnOnce(&Call) -> bool) -> bool {
        so(self.state().call())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::fixtures::ringing;

    #[test]
    fn an_end_that_is_heard_late_is_remembered_as_long_as_any() {
        let (calls, call) = (LiveCalls::default(), ringing());
        calls.open(&call);
        let heard_at = call.updated_at + 6 * MEMORY;
        calls.remember(&call, heard_at);
        calls.forget(heard_at + MEMORY / 2);
        assert!(calls.get(call.id).is_some() && !calls.may_have_forgotten(&call));
        calls.forget(heard_at + MEMORY);
        assert!(calls.get(call.id).is_none() && calls.may_have_forgotten(&call));
    }

    #[test]
    fn a_call_that_came_back_in_between_is_remembered_as_long_from_its_end() {
        let (calls, call) = (LiveCalls::default(), ringing());
        calls.open(&call);
        let left_at = call.updated_at;
        calls.remember(&call, left_at);
        calls.keep(&call);
        let ended_at = left_at + MEMORY;
        calls.remember(&call, ended_at);
        calls.forget(ended_at + MEMORY / 2);
        assert!(calls.get(call.id).is_some());
        calls.forget(ended_at + MEMORY);
        assert!(calls.get(call.id).is_none());
    }

    #[test]
    fn of_too_many_ended_calls_the_oldest_are_forgotten() {
        let (calls, mut call) = (LiveCalls::default(), ringing());
        let first = call.clone();
        for _ in 0..=MAX_REMEMBERED {
            call.updated_at = call.updated_at + Duration::from_millis(1);
            call.id = CallId::generate(call.updated_at);
            calls.remember(&call, call.updated_at);
        }
        assert_eq!(calls.all().len(), MAX_REMEMBERED);
        assert!(calls.may_have_forgotten(&first) && !calls.may_have_forgotten(&call));
    }
}
