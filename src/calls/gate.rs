//! Whether somebody may call somebody: a question that the rules cannot answer.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Calls, Failure};
use crate::{
    call::{Attempt, Placement},
    cluster::Unavailable,
    telemetry::{Span, SpanKind},
};

/// Says who may call whom.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// May take its time, which is bounded: the events of one socket wait for it, nobody else does.
    async fn may_call(&self, attempt: &Attempt) -> Verdict;
}

/// What a [`Gate`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Not allowed, for this reason, in words for the caller.
    Refused(Arc<str>),
    /// It cannot be told now.
    Unknown,
}

impl Calls {
    /// Has each new call pass `gate` first.
    #[must_use]
    pub fn guarded_by(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Asks the gate, if there is one, unless the attempt is refused by the rules or was made before.
    /// What it is decided on is looked up anew after that: the gate may have taken its time.
    pub(super) async fn pass_gate(&self, attempt: &Attempt, span: &Span) -> Result<(), Failure> {
        let Some(gate) = &self.gate else { return Ok(()) };
        let lobby = self.cluster.lobby(&attempt.from.user, &attempt.to).await?;
        match self.rules.place(attempt, &lobby, self.clock.now())? {
            Placement::Repeated(_) => return Ok(()),
            Placement::New(_) | Placement::Supersede(_) => {}
        }
        let _asking = span.part("authorize", SpanKind::Client);
        match gate.may_call(attempt).await {
            Verdict::Allowed => Ok(()),
            Verdict::Refused(reason) => Err(Failure::Forbidden(reason)),
            Verdict::Unknown => Err(Unavailable.into()),
        }
    }
}
