//! Periodic work: calls that are due, and pending work.

use std::{fmt::Display, time::Duration};

use futures_util::future::join_all;
use tracing::{debug, error, warn};

use super::{Calls, as_gauge};
use crate::{
    call::{Call, Event},
    cluster::{Due, Unavailable},
    metrics::{self, Found, Label, Limit, Work as Kind},
};

/// The number of calls or devices that are processed concurrently.
pub(super) const AT_ONCE: usize = 64;
/// The most calls that a sweep takes at a time.
const SWEEP_BATCH: usize = 256;
/// The most batches of one sweep.
const MAX_SWEEP_BATCHES: usize = 16;
/// The interval at which due calls are read.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// The interval at which ended calls that wait for the history are read.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
/// The interval at which a node reads the records of its calls.
const LOOK_UP_INTERVAL: Duration = Duration::from_secs(15);

/// The interval at which deferred presence updates are sent.
const PRESENCE_TICK: Duration = Duration::from_millis(100);

impl Calls {
    /// Runs all periodic work once, due calls first.
    pub async fn sweep(&self) -> Result<(), Unavailable> {
        let attended = self.attend().await;
        let mut swept = attended.and(self.recover().await);
        for kind in Kind::ALL {
            swept = swept.and(self.work_off(*kind).await);
        }
        swept.and(self.store_unstored().await)
    }

    /// Handles the calls whose deadline has passed.
    async fn attend(&self) -> Result<(), Unavailable> {
        metrics::SWEEPS.increment(1);
        self.live.forget(self.clock.now());
        self.attend_to_due().await
    }

    async fn attend_to_due(&self) -> Result<(), Unavailable> {
        for _ in 0..MAX_SWEEP_BATCHES {
            let Due { calls, has_more, mended, displaced } =
                self.cluster.due(self.clock.now(), SWEEP_BATCH).await?;
            self.announce_later(&mended);
            for call in displaced {
                Box::pin(self.displace(call)).await?;
            }
            for some in calls.chunks(AT_ONCE) {
                join_all(some.iter().map(|call| self.attend_to(call))).await;
            }
            if !has_more {
                return Ok(());
            }
        }
        metrics::LIMITS.of(Limit::Sweep).increment(1);
        warn!(calls = MAX_SWEEP_BATCHES * SWEEP_BATCH, "more calls are due than one sweep takes");
        Ok(())
    }

    /// Ends a live call one of whose users is in another one: the shared state had lost that the user was in it.
    async fn displace(&self, call: Call) -> Result<(), Unavailable> {
        let lobby = self.cluster.lobby(&call.caller.user, &call.callee.user).await?;
        let Some(end) = call.end_when_forgotten(&lobby, self.clock.now()) else { return Ok(()) };
        self.attempt_transition(call, &end).await.map(drop)
    }

    async fn attend_to(&self, call: &Call) {
        if let Some(live) = self.live.get(call.id)
            && live.snapshot().succeeds(call)
        {
            // The shared state has gone back, and the deadline of the older record means nothing: the newer one is
            // restored.
            if let Err(error) = self.look_up_one(&live).await {
                debug!(%error, call = %call.id, "a record could not be restored");
            }
            return;
        }
        metrics::LATENESS.record(self.clock.now() - call.deadline());
        let id = call.id;
        match self.attempt_transition(call.clone(), &Event::Due).await {
            Ok(Some(_)) => metrics::SWEPT.of(Found::Overdue).increment(1),
            Ok(None) => metrics::SWEPT.of(Found::Nothing).increment(1),
            Err(failure) => warn!(%failure, call = %id, "an overdue call could not be ended"),
        }
    }

    /// Stores ended calls whose node has not stored them, because it is dead or cannot reach the
    /// database.
    async fn store_unstored(&self) -> Result<(), Unavailable> {
        for _ in 0..MAX_SWEEP_BATCHES {
            let limit = self.recorder.room().min(SWEEP_BATCH);
            let unstored = self.cluster.unstored(self.clock.now(), limit).await?;
            metrics::UNSTORED_CALLS.set(as_gauge(unstored.waiting));
            if unstored.lost > 0 {
                metrics::UNSTORED_LOST.increment(unstored.lost as u64);
                error!(
                    calls = unstored.lost,
                    "ended calls are lost to history: it was away for too long"
                );
            }
            for call in &unstored.calls {
                metrics::SWEPT.of(Found::Unstored).increment(1);
                self.recorder.record(call);
            }
            if !unstored.has_more {
                break;
            }
        }
        Ok(())
    }

    /// Runs all periodic work until `shutdown` completes. Each kind has a loop of its own: a late
    /// one must not delay the end of calls.
    pub async fn run_sweeper(&self, shutdown: impl Future<Output = ()>) {
        let all = async {
            tokio::join!(
                every(SWEEP_INTERVAL, "deadlines could not be looked through", || {
                    counted(self.attend())
                }),
                join_all(Kind::ALL.iter().map(|kind| {
                    let failed =
                        format!("pending work of the kind {} could not be done", kind.as_str());
                    every(SWEEP_INTERVAL, failed, || self.work_off(*kind))
                })),
                every(STORE_INTERVAL, "ended calls could not be looked through", || {
                    self.store_unstored()
                }),
                every(LOOK_UP_INTERVAL, "live calls could not be looked up", || {
                    counted(self.look_up())
                }),
                every(PRESENCE_TICK, "presence could not be told", async || {
                    self.tell_presence().await;
                    Ok(())
                }),
            )
        };
        tokio::select! {
            biased;
            () = shutdown => {}
            _ = all => {}
        }
    }
}

/// Counts a failed sweep.
async fn counted(
    attended: impl Future<Output = Result<(), Unavailable>>,
) -> Result<(), Unavailable> {
    attended.await.inspect_err(|_| metrics::SWEEPS_FAILED.increment(1))
}

/// Runs `work` at an interval, without end. Of consecutive failures one is logged.
async fn every<T: Future<Output = Result<(), Unavailable>>>(
    interval: Duration,
    failed: impl Display,
    attend: impl Fn() -> T,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_failing = false;
    loop {
        ticks.tick().await;
        let attended = attend().await;
        let failed_before = std::mem::replace(&mut is_failing, attended.is_err());
        let Err(error) = attended else { continue };
        if failed_before {
            debug!(%error, "{failed}, again");
        } else {
            warn!(%error, "{failed}");
        }
    }
}

/// Processes all items, a few at a time, until one fails. Operations in progress are completed.
pub(super) async fn some_at_a_time<'a, T, F: Future<Output = Result<(), Unavailable>>>(
    all: &'a [T],
    attend: impl Fn(&'a T) -> F,
) -> Result<(), Unavailable> {
    for some in all.chunks(AT_ONCE) {
        let attended = join_all(some.iter().map(&attend)).await;
        attended.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}
