//! New calls whose commit had no reply. Their callers were asked to retry, and no callee device
//! rang.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::warn;

use super::{Calls, Failure, sweeper::some_at_a_time};
use crate::{
    call::{Call, Device, Event},
    cluster::Unavailable,
    ids::{CallId, SocketId},
    time::Timestamp,
};

/// The most such calls of a node. A call beyond it ends when its ringing time ends.
const MAX_DOUBTFUL: usize = 1_000;
/// The time that an applied call waits for its caller's retry. The caller was told to retry after a
/// second, the retry may fail once more, and the commit may be applied late.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(3);

/// The calls of this node.
#[derive(Default)]
pub struct Doubtful {
    calls: Mutex<Vec<Doubt>>,
}

#[derive(Clone)]
struct Doubt {
    id: CallId,
    caller: Device,
    /// The time at which the shared state was first asked about the call.
    asked_at: Option<Timestamp>,
}

impl Doubtful {
    fn calls(&self) -> MutexGuard<'_, Vec<Doubt>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that `call` may or may not have been written.
    pub fn note(&self, call: &Call, caller: &Device) {
        let mut calls = self.calls();
        if calls.len() < MAX_DOUBTFUL {
            calls.push(Doubt { id: call.id, caller: caller.clone(), asked_at: None });
        } else {
            warn!(call = %call.id, "too many new calls of unknown outcome: one may keep its users busy until its ringing time ends");
        }
    }

    /// Records that the outcome of the call is known.
    pub fn settle(&self, id: CallId) {
        self.calls().retain(|doubt| doubt.id != id);
    }

    /// Whether the outcome of the call is unknown and `socket` placed it.
    pub fn is_of(&self, id: CallId, socket: SocketId) -> bool {
        self.calls().iter().any(|doubt| doubt.id == id && doubt.caller.socket == socket)
    }

    /// The calls to check: those that were not read yet, or whose callers did not retry in time.
    fn due(&self, now: Timestamp) -> Vec<Doubt> {
        let is_due = |doubt: &&Doubt| doubt.asked_at.is_none_or(|at| now - at >= TAKEN_UP_WITHIN);
        self.calls().iter().filter(is_due).cloned().collect()
    }

    fn asked(&self, id: CallId, now: Timestamp) {
        for doubt in self.calls().iter_mut().filter(|doubt| doubt.id == id) {
            doubt.asked_at = Some(now);
        }
    }
}

impl Calls {
    /// Ends the calls that were written although their callers were told that they failed, unless
    /// the caller has retried: then the call rings.
    pub(super) async fn undo_doubtful(&self) -> Result<(), Unavailable> {
        let now = self.clock.now();
        let due = self.doubtful.due(now);
        some_at_a_time(&due, |doubt| self.undo_one_doubtful(doubt, now)).await
    }

    async fn undo_one_doubtful(
        &self,
        Doubt { id, caller, asked_at }: &Doubt,
        now: Timestamp,
    ) -> Result<(), Unavailable> {
        let call = self.cluster.load(*id).await?;
        if let Some(call) = &call {
            self.recorder.record(call);
        }
        match call {
            // The record has an end, or the caller has retried.
            Some(call) if !call.is_live() || self.live.get(*id).is_some() => {
                self.doubtful.settle(*id);
            }
            _ if asked_at.is_none() => self.doubtful.asked(*id, now),
            Some(call) => self.give_up(call, caller.clone()).await?,
            None => self.doubtful.settle(*id),
        }
        Ok(())
    }

    /// Ends a call of unknown outcome, because its caller has placed another one.
    pub(super) async fn give_up_doubtful(
        &self,
        id: CallId,
        caller: &Device,
    ) -> Result<(), Unavailable> {
        match self.cluster.load(id).await? {
            Some(call) => self.give_up(call, caller.clone()).await,
            None => Ok(()),
        }
    }

    async fn give_up(&self, call: Call, caller: Device) -> Result<(), Unavailable> {
        let id = call.id;
        match self.transition(call, &Event::Gone { device: caller, may_return: false }).await {
            Ok(_) | Err(Failure::Refused(_)) => self.doubtful.settle(id),
            Err(_) => return Err(Unavailable),
        }
        Ok(())
    }
}
