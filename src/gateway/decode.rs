//! From what a socket sent to an event, as far as it can be read.

use socketioxide::handler::Value;

use super::reply::{About, Frame, Rejected};
use crate::protocol::{ClientEvent, Malformed, Sizes};

/// What an event is about.
pub fn about(event: &ClientEvent) -> About {
    match event {
        ClientEvent::Initiate { to, .. } => About { to: Some(to.clone()), call_id: None },
        ClientEvent::Signal { call, .. }
        | ClientEvent::Reject { call, .. }
        | ClientEvent::Busy { call }
        | ClientEvent::End { call, .. } => {
            About { to: Some(call.to.clone()), call_id: call.call_id }
        }
        ClientEvent::Stats { call_id, .. } => About { to: None, call_id: Some(*call_id) },
        ClientEvent::UserConnected { .. }
        | ClientEvent::Sync { .. }
        | ClientEvent::Subscribe { .. }
        | ClientEvent::Unsubscribe { .. }
        | ClientEvent::IceServers
        | ClientEvent::AuthRefresh { .. } => About::default(),
    }
}

/// The event's name, as far as it can be read, and the event.
pub fn decode(value: &Value, sizes: &Sizes) -> (String, Result<ClientEvent, Rejected>) {
    let Value::Str(text, attachments) = value else {
        return (String::new(), Err(Rejected::Binary));
    };
    let frame: Frame = match serde_json::from_str(text) {
        Ok(frame) => frame,
        Err(error) => return (String::new(), Err(Malformed::unreadable(error).into())),
    };
    let has_attachments = attachments.as_ref().is_some_and(|all| !all.is_empty());
    let event = if has_attachments {
        Err(Rejected::Binary)
    } else {
        ClientEvent::decode(&frame.name, frame.payload, sizes).map_err(Rejected::from)
    };
    (frame.name, event)
}

/// The length of what came, in bytes.
pub fn size_of(value: &Value) -> usize {
    match value {
        Value::Str(text, attachments) => {
            let attached = attachments.iter().flatten().map(bytes::Bytes::len).sum::<usize>();
            text.len() + attached
        }
        Value::Bytes(bytes) => bytes.len(),
    }
}
