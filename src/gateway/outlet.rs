//! From a call's news to the sockets of this node.

use socketioxide::{SendError, SocketError, SocketIo, extract::SocketRef, socket::Sid};
use tracing::{debug, error, warn};

use super::{session_of, wire::Upgraded};
use crate::{
    calls::Outlet,
    ids::{SocketId, UserId},
    protocol::ServerEvent,
};

/// The sockets that the library holds, in their rooms `user:<userId>`.
pub struct SocketOutlet {
    io: SocketIo,
    upgraded: Upgraded,
}

impl SocketOutlet {
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
    format!("user:{user}")
}

pub fn socket_id(sid: Sid) -> SocketId {
    sid.as_str().parse().expect("a socket id has 16 bytes")
}

pub fn sid_of(socket: SocketId) -> Sid {
    socket.as_str().parse().expect("it was a socket id of the library before")
}

impl Outlet for SocketOutlet {
    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let sockets = self.io.within(room_of(user)).sockets();
        // One that is not connected yet would lose what it is sent. It is welcomed when it is.
        let connected = sockets.into_iter().filter(|socket| socket.connected());
        connected.map(|socket| socket_id(socket.id)).collect()
    }

    fn emit(&self, socket: SocketId, event: &ServerEvent) -> bool {
        let sid = sid_of(socket);
        let Some(socket) = self.io.get_socket(sid) else { return false };
        if event.is_relayed() && session_of(&socket).is_some_and(|session| session.is_hushed()) {
            return false;
        }
        let kept_up = self
            .upgraded
            .switch_of(&socket)
            .is_none_or(|switch| switch.note_sent(event.size_bytes()));
        let sent = if kept_up {
            socket.emit(event.name(), event)
        } else {
            Err(SendError::Socket(SocketError::InternalChannelFull))
        };
        match sent {
            Ok(()) => return true,
            Err(SendError::Socket(SocketError::InternalChannelFull)) => {
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
        // Those too that are not connected yet.
        for socket in self.io.within(room_of(user)).sockets() {
            self.dismiss(socket);
        }
    }
}
