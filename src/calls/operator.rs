//! Operations for operators, which work whichever node has the call or the user.

use tracing::info;

use super::{Calls, Failure};
use crate::{
    call::{Call, Event, Refusal},
    cluster::{Message, Unavailable},
    ids::{CallId, UserId},
};

/// The most parts of all calls that are read for one page.
const MAX_PARTS: usize = 16;

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
                self.outlet.disconnect(user);
            } else {
                self.cluster.send(*node, Message::Disconnect(user.clone()));
            }
        }
        Ok(nodes.len())
    }
}
