//! Operations for operators, which work whichever node has the call or the user; live calls across
//! a restart of the only node; gauges.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use super::{Calls, Failure, as_gauge};
use crate::{
    call::{Call, Event, Refusal, Role},
    cluster::{Change, Claim, Message, Unavailable},
    ids::{CallId, UserId},
    metrics::{self, Label, Live, Work as Kind},
    time::Timestamp,
};

/// The most parts of all calls that are read for one page.
const MAX_PARTS: usize = 16;
/// How many live calls are looked through at a time when the process stops.
const PART: usize = 256;

impl Calls {
    /// A page of about `limit` live calls of all nodes, and the position to continue at; `None` at
    /// the end.
    pub async fn live_calls(
        &self,
        mut from: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Call>, Option<String>), Unavailable> {
        let mut calls = Vec::new();
        for _ in 0..MAX_PARTS {
            let (part, next) = self.cluster.live(from.as_deref(), limit).await?;
            calls.extend(part);
            match next {
                None => return Ok((calls, None)),
                Some(next) if calls.len() < limit => from = Some(next),
                Some(next) => return Ok((calls, Some(next))),
            }
        }
        Ok((calls, from))
    }

    /// The live call of `user`.
    pub async fn live_call_of(&self, user: &UserId) -> Result<Option<Call>, Unavailable> {
        Ok(self.cluster.latest(user).await?.filter(Call::is_live))
    }

    /// Ends a call. Returns the ended call, also if it had ended before.
    pub async fn terminate(&self, id: CallId) -> Result<Call, Failure> {
        let call = self.cluster.load(id).await?.ok_or(Refusal::NotInCall)?;
        match self.transition(call, &Event::Terminated).await {
            Err(Failure::Refused(Refusal::Over)) => {
                self.cluster.load(id).await?.ok_or(Refusal::NotInCall.into())
            }
            ended => {
                info!(call = %id, "an operator ended a call");
                ended
            }
        }
    }

    /// Closes the sockets of `user` on all nodes. Returns the number of nodes that had any.
    pub async fn disconnect(&self, user: &UserId) -> Result<usize, Unavailable> {
        let nodes = self.cluster.nodes_of(user).await?;
        info!(user = %user.logged(), nodes = nodes.len(), "an operator disconnects a user");
        for node in &nodes {
            if *node == self.node() {
                self.sink.disconnect(user);
            } else {
                self.cluster.send(*node, Message::Disconnect(user.clone()));
            }
        }
        Ok(nodes.len())
    }

    /// Sets the gauges of this node's calls.
    pub fn sample(&self) {
        metrics::USERS.set(as_gauge(self.sessions.count_users()));
        let mut live = [0; Live::ALL.len()];
        for call in self.live.all() {
            if let Some(state) = self.counts_here(call.state().call()) {
                live[state.index()] += 1;
            }
        }
        for state in Live::ALL {
            metrics::CALLS.of(*state).set(as_gauge(live[state.index()]));
        }
        for kind in Kind::ALL {
            metrics::PENDING_WORK.of(*kind).set(as_gauge(self.pending.len(*kind)));
        }
        metrics::NODE_QUEUE.set(as_gauge(self.cluster.queued()));
    }

    /// A call is counted on the node of the caller's device, or of its last device if it is lost.
    fn counts_here(&self, call: &Call) -> Option<Live> {
        if !call.is_live() || call.caller.link.node() != Some(self.node()) {
            return None;
        }
        let is_lost = |role| call.party(role).link.lost_until().is_some();
        Some(if call.is_ringing() {
            Live::Ringing
        } else if is_lost(Role::Caller) || is_lost(Role::Callee) {
            Live::Reconnecting
        } else {
            Live::Active
        })
    }

    /// Resumes those of `left` that can continue, each given with the time at which it was last known to be live, and
    /// returns their ids. Must be called before any client is admitted.
    pub async fn resume(
        &self,
        left: &[(Call, Timestamp)],
    ) -> Result<BTreeSet<CallId>, Unavailable> {
        let now = self.clock.now();
        let mut resumed = BTreeSet::new();
        for (call, last_alive_at) in left {
            let Some(next) = self.rules.resume(call, *last_alive_at, self.node(), now) else {
                debug!(call = %call.id, "a call of the last run cannot be resumed");
                continue;
            };
            let claim = |role| Claim { user: next.party(role).user.clone(), was: None };
            let claims = [Role::Caller, Role::Callee].map(claim).into();
            let change = Change { call: next.clone(), claims };
            if self.cluster.restore(change, None).await?.is_some() {
                self.recorder.record(&next);
                resumed.insert(next.id);
            }
        }
        if !resumed.is_empty() {
            info!(calls = resumed.len(), "live calls of the last run wait for their devices");
        }
        Ok(resumed)
    }

    /// Ends the live calls that the next process could not resume: those that ring, because nothing keeps the
    /// caller's messages, and those of a device without an id. Their parties are notified while they are connected.
    pub async fn end_unresumable(&self) {
        let (mut from, mut ended) = (None, 0);
        loop {
            let Ok((calls, next)) = self.cluster.live(from.as_deref(), PART).await else { return };
            for call in calls {
                let (id, now) = (call.id, self.clock.now());
                if self.rules.resume(&call, now, self.node(), now).is_some() {
                    continue;
                }
                match self.attempt_transition(call, &Event::Terminated).await {
                    Ok(Some(_)) => ended += 1,
                    Ok(None) => {}
                    Err(error) => warn!(%error, call = %id, "a call could not be ended"),
                }
            }
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        if ended > 0 {
            info!(calls = ended, "calls that cannot be resumed have ended with this process");
        }
    }
}
