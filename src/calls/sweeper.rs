//! What happens by the clock: calls fall due, and what could not be done when it came up is done.

use std::time::Duration;

use tracing::warn;

use super::{Calls, Failure};
use crate::{
    call::{Call, Event},
    cluster::Unavailable,
    metrics::{self, Found, Limit},
};

/// Most calls that one sweep takes at a time.
const SWEEP_BATCH: usize = 256;
/// Most of these in one sweep.
const MAX_SWEEP_BATCHES: usize = 16;
/// How often the deadlines are looked through.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(200);
/// How often a node looks up the records of the calls that concern it.
const LOOK_UP_INTERVAL: Duration = Duration::from_secs(15);

impl Calls {
    /// Attends to the calls whose deadline has passed.
    pub async fn sweep(&self) -> Result<(), Unavailable> {
        metrics::SWEEPS.increment(1);
        self.live.forget_retired(self.clock.now());
        while let Some(id) = self.overdue.next(self.clock.now()) {
            if let Some(live) = self.live.get(id) {
                live.give_up_flush(&self.reach());
            }
        }
        // What is late must not keep other calls from their end.
        let late = [
            self.sign_off_late().await,
            self.start_over_late().await,
            self.tell_unanswered().await,
            self.announce_unannounced().await,
            self.undo_doubtful().await,
            self.welcome_late().await,
        ];
        self.attend_to_due().await?;
        late.into_iter().collect()
    }

    async fn attend_to_due(&self) -> Result<(), Unavailable> {
        for _ in 0..MAX_SWEEP_BATCHES {
            let due = self.cluster.due(self.clock.now(), SWEEP_BATCH).await?;
            let is_last = due.len() < SWEEP_BATCH;
            for call in due {
                self.attend(call).await;
            }
            if is_last {
                return Ok(());
            }
        }
        metrics::LIMITS.of(Limit::Sweep).increment(1);
        warn!(calls = MAX_SWEEP_BATCHES * SWEEP_BATCH, "more calls are due than one sweep takes");
        Ok(())
    }

    async fn attend(&self, call: Call) {
        if !call.is_live() {
            metrics::SWEPT.of(Found::Unstored).increment(1);
            // Its row was not stored yet when it was last looked at.
            return self.recorder.record(&call);
        }
        metrics::LATENESS.record(self.clock.now() - call.deadline());
        let id = call.id;
        match self.transition(call, &Event::Due).await {
            Ok(_) => metrics::SWEPT.of(Found::Overdue).increment(1),
            Err(Failure::Refused(_)) => metrics::SWEPT.of(Found::Nothing).increment(1),
            Err(failure) => warn!(%failure, call = %id, "an overdue call could not be ended"),
        }
    }

    /// Sweeps, and now and then looks all calls in view up, until `shutdown` completes.
    pub async fn run_sweeper(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
        let mut look_ups = tokio::time::interval(LOOK_UP_INTERVAL);
        for ticks in [&mut sweeps, &mut look_ups] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            let attended = tokio::select! {
                // The rarest first: while Redis is away, a sweep is due whenever the last one is over.
                biased;
                () = &mut shutdown => return,
                _ = look_ups.tick() => self.look_up().await,
                _ = sweeps.tick() => self.sweep().await,
            };
            if let Err(error) = attended {
                metrics::SWEEPS_FAILED.increment(1);
                warn!(%error, "deadlines could not be looked through");
            }
        }
    }
}
