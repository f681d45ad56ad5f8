//! Decodes the frames of a socket into events, as far as they can be read. No state, no I/O.

use std::borrow::Cow;

use serde_json::value::RawValue;
use socketioxide::handler::Value;

use super::reply::{About, Frame, Rejected};
use crate::protocol::{ClientEvent, Malformed, Sizes};

/// The call or user that an event refers to.
pub fn about(event: &ClientEvent) -> About {
    match event {
        ClientEvent::Initiate { to, .. } => About { to: Some(to.clone()), call_id: None },
        ClientEvent::Signal { call, .. }
        | ClientEvent::Reject { call, .. }
        | ClientEvent::Busy { call }
        | ClientEvent::End { call, .. } => About { to: call.to.clone(), call_id: call.call_id },
        ClientEvent::Stats { call_id, .. } => About { to: None, call_id: Some(*call_id) },
        ClientEvent::UserConnected { .. }
        | ClientEvent::Sync { .. }
        | ClientEvent::Subscribe { .. }
        | ClientEvent::Unsubscribe { .. }
        | ClientEvent::IceServers
        | ClientEvent::AuthRefresh { .. } => About::default(),
    }
}

/// The event's name, if it can be read, and the event.
pub fn decode<'a>(
    value: &'a Value,
    sizes: &Sizes,
) -> (Cow<'a, str>, Result<ClientEvent, Rejected>) {
    let Value::Str(text, attachments) = value else {
        return (Cow::default(), Err(Rejected::Binary));
    };
    let has_attachments = attachments.as_ref().is_some_and(|all| !all.is_empty());
    if !has_attachments
        && let Some((name, payload)) = plain(text)
        && let Ok(event) = ClientEvent::decode(name, Some(payload), sizes)
    {
        return (name.into(), Ok(event));
    }
    let frame: Frame = match serde_json::from_str(text) {
        Ok(frame) => frame,
        Err(error) => return (Cow::default(), Err(Malformed::unreadable(error).into())),
    };
    let event = if has_attachments {
        Err(Rejected::Binary)
    } else {
        let payload = frame.payload.map(RawValue::get);
        ClientEvent::decode(&frame.name, payload, sizes).map_err(Rejected::from)
    };
    (frame.name.into(), event)
}

/// Name and payload of a frame of the usual form `["name",{…}]`, which saves one pass over the
/// text. If the text between turns out to be more than one object, it is no payload, and the frame
/// is decoded in full.
fn plain(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix("[\"")?;
    let (name, rest) = rest.split_at(rest.find(['"', '\\'])?);
    let payload = rest.strip_prefix("\",")?.strip_suffix(']')?;
    payload.starts_with('{').then_some((name, payload))
}

/// The name of an event of the usual form, without decoding it.
pub fn name_of(value: &Value) -> Option<&str> {
    let Value::Str(text, _) = value else { return None };
    plain(text).map(|(name, _)| name)
}

/// The length of a received value, in bytes.
pub fn size_of(value: &Value) -> usize {
    match value {
        Value::Str(text, attachments) => {
            let attached = attachments.iter().flatten().map(bytes::Bytes::len).sum::<usize>();
            text.len() + attached
        }
        Value::Bytes(bytes) => bytes.len(),
    }
}
