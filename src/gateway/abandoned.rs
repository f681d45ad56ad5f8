//! Abandoned connections: their socket has left the namespace and does not return. The library
//! would keep them for as long as they answer pings.

use std::sync::Arc;

use socketioxide::socket::{DisconnectReason, Sid};

use super::{
    CONNECT_TIMEOUT,
    outlet::socket_id,
    session::Context,
    transport::{Engine, end_polling},
    wire::{Kill, Upgraded},
};

/// Whether a connection may outlive a socket that went away for this reason.
pub fn is_possible(reason: DisconnectReason) -> bool {
    use DisconnectReason::{ClientNSDisconnect, ServerNSDisconnect};
    matches!(reason, ClientNSDisconnect | ServerNSDisconnect)
}

/// Closes the connection if no socket has joined again in time.
pub async fn close(
    context: Arc<Context>,
    own: Option<Kill>,
    upgraded: Upgraded,
    engine: Engine,
    sid: Sid,
) {
    tokio::time::sleep(CONNECT_TIMEOUT).await;
    if context.sessions().contains(&socket_id(sid)) {
        return;
    }
    match own.or_else(|| upgraded.switch_at(sid)) {
        Some(switch) => switch.kill(),
        None => end_polling(engine, sid),
    }
}
