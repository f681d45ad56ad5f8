//! Load shedding: disconnects clients while the node's byte budget is exhausted, those that hold
//! the most first.
//!
//! Only transports are closed, so that clients reconnect by themselves. Devices that could not
//! return to their call are spared, and devices in a call come last: no call is ended here.

use std::{sync::Arc, time::Duration};

use socketioxide::{SocketIo, extract::SocketRef};
use tracing::warn;

use super::{
    session::Session,
    session_of,
    wire::{Kill, Upgraded},
};
use crate::{
    limits::buffers::{Buffers, FLOOR_BYTES},
    metrics::{self, Limit, Slow},
};

/// The time that transports have to close before more of them are chosen.
const PAUSE: Duration = Duration::from_millis(50);

/// A client, and the bytes that are buffered for it and from it.
struct Holder {
    bytes: usize,
    is_in_call: bool,
    socket: SocketRef,
    session: Option<Arc<Session>>,
}

/// Runs until the gateway stops.
pub async fn run(io: SocketIo, upgraded: Upgraded, buffers: Buffers) {
    loop {
        buffers.pressed().await;
        shed(&io, &upgraded, &buffers);
        tokio::time::sleep(PAUSE).await;
    }
}

fn shed(io: &SocketIo, upgraded: &Upgraded, buffers: &Buffers) {
    let mut freed = 0;
    let excess = buffers.excess_bytes();
    let mut holders = Vec::new();
    for socket in io.sockets() {
        let (session, switch) = (session_of(&socket), upgraded.switch_of(&socket));
        let bytes = session.as_ref().map_or(0, |session| session.held_bytes())
            + switch.as_ref().map_or(0, Kill::held_bytes);
        if switch.as_ref().is_some_and(Kill::is_killed) {
            // Its memory is about to be freed.
            freed += bytes;
        } else if bytes > FLOOR_BYTES {
            let is_in_call = session.as_ref().is_some_and(|session| session.call().is_some());
            // A client on polling is not told to reconnect when its session ends.
            let comes_back =
                switch.is_some() && session.as_ref().is_none_or(|session| session.may_come_back());
            if comes_back || !is_in_call {
                holders.push(Holder { bytes, is_in_call, socket, session });
            }
        }
    }
    holders.sort_unstable_by_key(|holder| (holder.is_in_call, usize::MAX - holder.bytes));
    let mut closed = 0;
    for Holder { bytes, socket, session, .. } in holders {
        if freed >= excess {
            break;
        }
        if let Some(session) = session {
            session.drop_inbox();
        }
        upgraded.close_transport(socket);
        (freed, closed) = (freed + bytes, closed + 1);
        metrics::SLOW_CLIENTS.of(Slow::Budget).increment(1);
    }
    if closed > 0 {
        metrics::LIMITS.of(Limit::Buffers).increment(closed);
        warn!(closed, "the byte budget is used up: the clients that hold the most are cut off");
    }
}
