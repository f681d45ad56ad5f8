//! Authorization of new calls by a port outside of the rules.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Calls, Failure};
use crate::{
    call::{Attempt, Placement},
    cluster::Unavailable,
    telemetry::{Span, SpanKind},
};

/// Decides whether a user may call another one.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// May take a bounded time. Only the events of the caller's socket wait for it.
    async fn may_call(&self, attempt: &Attempt) -> Verdict;
}

/// The decision of a [`Gate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Refused, with a reason for the caller.
    Refused(Arc<str>),
    /// No decision is possible at the moment.
    Unknown,
}

impl Calls {
    /// Lets `gate` decide on each new call.
    #[must_use]
    pub fn guarded_by(mut self, gate: Arc<dyn Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Asks the gate, if there is one, unless the rules refuse the attempt or it is a repetition.
    /// The data of the decision is read again afterwards, because the gate may have taken its time.
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
