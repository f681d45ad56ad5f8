//! The client sink: emits the events of calls to the sockets of this node.

use socketioxide::{SendError, SocketError, SocketIo, extract::SocketRef, socket::Sid};
use tracing::{debug, error, warn};

use super::{session_of, wire::Upgraded};
use crate::{
    calls::ClientSink,
    ids::{SocketId, UserId},
    metrics::{self, Invariant, Limit, Sent, Slow, label},
    protocol::ServerEvent,
};

/// The sockets that the library holds, in rooms named `user:<userId>`.
pub struct SocketSink {
    io: SocketIo,
    upgraded: Upgraded,
}

impl SocketSink {
    pub fn new(io: SocketIo, upgraded: Upgraded) -> Self {
        Self { io, upgraded }
    }

    fn dismiss(&self, socket: SocketRef) {
        if let Some(session) = session_of(&socket) {
            session.dismiss();
        }
        if socket.clone().disconnect().is_err() {
            self.upgraded.close_transport(socket);
        }
    }
}

/// The room of a user's sockets.
pub fn room_of(user: &UserId) -> String {
    format!("user:{}", user.as_str())
}

pub fn socket_id(sid: Sid) -> SocketId {
    sid.as_str().parse().expect("a socket id has 16 bytes")
}

pub fn sid_of(socket: SocketId) -> Sid {
    socket.as_str().parse().expect("it was a socket id of the library before")
}

impl ClientSink for SocketSink {
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let sockets = self.io.within(room_of(user)).sockets();
        // A socket that is not connected yet would lose the event. It is welcomed when it is.
        let connected = sockets.into_iter().filter(|socket| socket.connected());
        connected.map(|socket| socket_id(socket.id)).collect()
    }

    fn emit(&self, socket: SocketId, event: &ServerEvent, for_user: Option<&UserId>) -> bool {
        let sid = sid_of(socket);
        let Some(socket) = self.io.get_socket(sid) else { return false };
        if let Some(session) = session_of(&socket) {
            if event.is_relayed() && session.is_relay_paused() {
                return false;
            }
            if for_user.is_some_and(|user| session.is_of_another(user)) {
                metrics::violated(Invariant::NotAParty);
                error!(socket = %sid, event = event.name(), "an event is not for this socket: it is not sent");
                return false;
            }
        }
        let (label, bytes) = (label(event.name(), Sent::Other), event.size_bytes());
        let sent = if self.upgraded.keeps_up(&socket, bytes) {
            socket.emit(event.name(), event)
        } else {
            Err(SendError::Socket(SocketError::InternalChannelFull))
        };
        match sent {
            Ok(()) => {
                metrics::SENT.of(label).increment(1);
                metrics::SENT_BYTES.of(label).increment(bytes as u64);
                return true;
            }
            Err(SendError::Socket(SocketError::InternalChannelFull)) => {
                metrics::SLOW_CLIENTS.of(Slow::Queue).increment(1);
                metrics::LIMITS.of(Limit::ClientQueue).increment(1);
                warn!(socket = %sid, event = event.name(), "a client reads too slowly: cut off");
                self.upgraded.close_transport(socket);
            }
            Err(SendError::Socket(SocketError::Closed)) => {
                debug!(socket = %sid, event = event.name(), "a socket closed before it was told");
            }
            Err(SendError::Serialize(error)) => {
                error!(%error, event = event.name(), "an event could not be written as JSON");
            }
        }
        false
    }

    fn close(&self, socket: SocketId) {
        if let Some(socket) = self.io.get_socket(sid_of(socket)) {
            self.dismiss(socket);
        }
    }

    fn disconnect(&self, user: &UserId) {
        // Includes sockets that are not connected yet.
        for socket in self.io.within(room_of(user)).sockets() {
            self.dismiss(socket);
        }
    }
}
