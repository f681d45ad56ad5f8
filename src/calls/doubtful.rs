//! New calls of which it is not known whether they were written. Their callers were told that they failed, and
//! nobody was rung.

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

/// Most of them that are looked after. What is beyond ends with its ringing time.
const MAX_DOUBTFUL: usize = 1_000;
/// How long one that was written after all waits for its caller, who was told to try again a second later: an
/// attempt that is on its way just then may fail once more. It may also be written so late.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(3);

/// Those of this node.
#[derive(Default)]
pub struct Doubtful {
    calls: Mutex<Vec<Doubt>>,
}

#[derive(Clone)]
struct Doubt {
    id: CallId,
    caller: Device,
    /// When the shared state was asked about it.
    asked_at: Option<Timestamp>,
}

impl Doubtful {
    fn calls(&self) -> MutexGuard<'_, Vec<Doubt>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it is not known whether `call` was written.
    pub fn note(&self, call: &Call, caller: &Device) {
        let mut calls = self.calls();
        if calls.len() < MAX_DOUBTFUL {
            calls.push(Doubt { id: call.id, caller: caller.clone(), asked_at: None });
        } else {
            warn!(call = %call.id, "a new call may ring for nobody until its time is over");
        }
    }

    /// Notes that it is known what came of the call.
    pub fn settle(&self, id: CallId) {
        self.calls().retain(|doubt| doubt.id != id);
    }

    /// Whether the call is doubtful, and was begun by `socket`.
    pub fn is_of(&self, id: CallId, socket: SocketId) -> bool {
        self.calls().iter().any(|doubt| doubt.id == id && doubt.caller.socket == socket)
    }

    /// Those to look at: that were not asked about yet, or whose callers did not try again in time.
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
    /// Ends the calls that were written although their callers were told that they failed, unless they try
    /// again meanwhile: then these calls ring.
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
            // Its end is on the record, or its caller has tried again.
            Some(call) if !call.is_live() || self.live.get(*id).is_some() => {
                self.doubtful.settle(*id);
            }
            _ if asked_at.is_none() => self.doubtful.asked(*id, now),
            Some(call) => self.give_up(call, caller.clone()).await?,
            None => self.doubtful.settle(*id),
        }
        Ok(())
    }

    /// Ends a doubtful call, since its caller has begun another.
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
