//! Sockets whose token expires: the events that remain permitted, and the refresh of tokens.

use std::sync::{Arc, atomic::Ordering};

use socketioxide::socket::Socket;
use tracing::debug;

use super::{
    reply::Rejected,
    seat_of,
    session::{NEVER_MS, Session},
};
use crate::{
    auth::bare_token,
    ids::CallId,
    protocol::{Answer, ClientEvent},
    secret::Secret,
};

impl Session {
    /// Starts the lease of the socket's token, so that its client is warned in time. Does nothing
    /// if the socket is gone.
    pub(super) fn begin_lease(&self) {
        let expires_at = self.expires_at();
        if expires_at.as_millis() == NEVER_MS {
            return;
        }
        let context = &self.context;
        let sessions = context.sessions();
        if sessions.contains(&self.socket) {
            context.leases.begin(self.socket, expires_at, context.access.now());
        }
    }

    pub(super) fn has_expired(&self) -> bool {
        // Without tokens, not even the clock is read.
        let expires_at = self.expires_at();
        expires_at.as_millis() != NEVER_MS && expires_at <= self.context.access.now()
    }

    /// Verifies a new token of the same user and renews the lease.
    pub(super) async fn refresh(
        &self,
        socket: &Socket,
        token: &Secret,
    ) -> Result<Answer, Rejected> {
        let context = &self.context;
        let source = seat_of(socket).ok_or(Rejected::Unauthenticated)?.source();
        // A client that connected with a valid token may try once even if others exhausted the
        // limit of its address.
        if self.has_failed.load(Ordering::Relaxed) {
            context.limits.takes_tokens(source)?;
        }
        let (access, token) = (&context.access, Some(bare_token(token.expose())));
        let checked = context.limits.check_token(access, token, source).await;
        self.has_failed.store(checked.is_err(), Ordering::Relaxed);
        let identity = checked?.ok_or(Rejected::NoTokens)?;
        if self.device.get().is_none_or(|device| device.user != identity.user) {
            return Err(Rejected::AnotherUser);
        }
        let expires_at = identity.expires_at;
        self.expires_at_ms.store(expires_at.as_millis(), Ordering::Relaxed);
        context.leases.renew(self.socket, expires_at, context.access.now());
        Ok(Answer::Refreshed { expires_at })
    }

    /// The token has expired: the socket is kept for its current call only, or closed.
    pub(super) fn expired(self: &Arc<Self>) {
        if self.has_expired() && self.kept_call().is_none() {
            debug!(socket = %self.socket, "a token expired: closed");
            self.context.outlet.close(self.socket);
        }
    }

    /// Whether an event is permitted without a valid token.
    pub(super) fn serves_expired(self: &Arc<Self>, event: &ClientEvent) -> bool {
        match event {
            ClientEvent::AuthRefresh { .. } => true,
            ClientEvent::Signal { call, .. }
            | ClientEvent::Reject { call, .. }
            | ClientEvent::Busy { call }
            | ClientEvent::End { call, .. } => self.is_kept_for(call.call_id),
            ClientEvent::Sync { call_id } => self.is_kept_for(*call_id),
            ClientEvent::Stats { call_id, .. } => self.is_kept_for(Some(*call_id)),
            ClientEvent::UserConnected { .. }
            | ClientEvent::Initiate { .. }
            | ClientEvent::Subscribe { .. }
            | ClientEvent::Unsubscribe { .. }
            | ClientEvent::IceServers => false,
        }
    }

    /// Whether the socket is kept for the call that an event names; without a name its live call is
    /// meant.
    fn is_kept_for(self: &Arc<Self>, named: Option<CallId>) -> bool {
        self.kept_call().is_some_and(|kept| named.is_none_or(|named| named == kept))
    }

    /// The call that the socket is kept for: the one that was live when its token expired, no later
    /// one.
    fn kept_call(self: &Arc<Self>) -> Option<CallId> {
        let (context, socket) = (&self.context, self.socket);
        let call = self.device.get().and_then(|device| context.calls.call_of(device))?;
        if let Some(kept) = context.leases.kept(socket) {
            return Some(call).filter(|call| *call == kept);
        }
        context.leases.keep(socket, call);
        debug!(%socket, %call, "a token expired: kept for its call");
        // Events of other calls are no longer sent to it.
        let calls = context.calls.clone();
        tokio::spawn(async move { calls.unsubscribe_all(socket).await });
        Some(call)
    }
}
