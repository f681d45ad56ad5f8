//! The text format of messages on the nodes' channels.
//!
//! Nodes of different builds run side by side during an upgrade: a build reads the format of
//! earlier builds, and ignores additions of later ones.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::warn;

use crate::{
    cluster::{
        AROUND_BYTES, Message,
        link::{Content, Frame},
    },
    ids::NodeId,
};

/// The version of this format. A build must not try to read a higher one.
const FORMAT: u8 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope<M = Message> {
    v: u8,
    pub from: NodeId,
    pub content: Content<M>,
}

/// The reason why a published text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("it has format {0}, and this build knows {FORMAT}")]
    Later(u8),
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
}

impl Envelope {
    pub fn new(from: NodeId, content: Content) -> Self {
        Self { v: FORMAT, from, content }
    }

    pub fn write(&self) -> String {
        let mut text = Vec::with_capacity(self.about_bytes());
        serde_json::to_writer(&mut text, self).expect("an envelope is plain data");
        String::from_utf8(text).expect("JSON is text")
    }

    /// The length of the text, or somewhat less.
    fn about_bytes(&self) -> usize {
        let Content::Frame(frame) = &self.content else { return AROUND_BYTES };
        AROUND_BYTES + frame.messages.iter().map(Message::about_bytes).sum::<usize>()
    }

    /// Messages of a kind that this build does not know become [`Message::Void`]: they are
    /// numbered, too, and would otherwise be requested again and again.
    pub fn read(text: &str) -> Result<Self, Unreadable> {
        let envelope = match serde_json::from_str(text) {
            Ok(envelope) => envelope,
            Err(_) => serde_json::from_str::<Envelope<Box<RawValue>>>(text)?.into_known(),
        };
        if envelope.v > FORMAT { Err(Unreadable::Later(envelope.v)) } else { Ok(envelope) }
    }
}

impl Envelope<Box<RawValue>> {
    fn into_known(self) -> Envelope {
        let Self { v, from, content } = self;
        let known = |raw: Box<RawValue>| {
            serde_json::from_str(raw.get()).unwrap_or_else(|error| {
                warn!(peer = %from, %error, "a message of a later build is ignored");
                Message::Void
            })
        };
        let content = match content {
            Content::Frame(Frame { link, first, oldest, messages, wants_receipt }) => {
                let messages = messages.into_iter().map(known).collect();
                Content::Frame(Frame { link, first, oldest, messages, wants_receipt })
            }
            Content::Again(number) => Content::Again(number),
            Content::Receipt(receipt) => Content::Receipt(receipt),
            Content::Canary => Content::Canary,
        };
        Envelope { v, from, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::link::Receiver;

    /// Messages of other builds: each kind of content and of message, one per line.
    const GOLDEN: &str = include_str!("../../tests/golden/messages_1.txt");

    fn kind(envelope: &Envelope) -> &'static str {
        match &envelope.content {
            Content::Again(_) => "again",
            Content::Receipt(_) => "receipt",
            Content::Canary => "canary",
            Content::Frame(frame) => match frame.messages.first() {
                None => "progress",
                Some(Message::Call(_)) => "call",
                Some(Message::Rings { .. }) => "rings",
                Some(Message::Kept { .. }) => "kept",
                Some(Message::Relay(_)) => "relay",
                Some(Message::Flush { .. }) => "flush",
                Some(Message::Flushing { .. }) => "flushing",
                Some(Message::Flushed { .. }) => "flushed",
                Some(Message::Presence(_)) => "presence",
                Some(Message::Disconnect(_)) => "disconnect",
                Some(Message::Void) => "void",
                Some(Message::Dropped { .. }) => "dropped",
            },
        }
    }

    #[test]
    fn the_format_of_messages_is_what_other_versions_write_and_read() {
        let mut kinds = Vec::new();
        for line in GOLDEN.lines() {
            // Parsed strictly, without the tolerance for unknown kinds.
            let envelope: Envelope = serde_json::from_str(line).unwrap();
            assert_eq!(envelope.write(), line);
            assert_eq!(Envelope::read(line).unwrap(), envelope);
            kinds.push(kind(&envelope));
        }
        let messages = [
            "call",
            "rings",
            "kept",
            "relay",
            "flush",
            "flushing",
            "flushed",
            "presence",
            "disconnect",
            "void",
            "dropped",
        ];
        let others = ["progress", "again", "canary", "progress", "receipt"];
        assert_eq!(kinds, [&messages[..], &others].concat());
    }

    #[test]
    fn fields_of_a_later_build_are_passed_over() {
        let places =
            ["v", "link\":1", "id", "call\":\"", "user", "count", "device", "node", "since"];
        for line in GOLDEN.lines() {
            for place in places {
                let later =
                    line.replace(&format!("{{\"{place}"), &format!("{{\"mood\":[{{}}],\"{place}"));
                let read = serde_json::from_str::<Envelope>(&later);
                assert_eq!(read.unwrap().write(), line, "{later}");
            }
        }
    }

    #[test]
    fn what_an_earlier_build_did_not_write_has_its_default() {
        for (field, default) in
            [(r#","have":3"#, r#","have":0"#), (r#","given_back":true"#, r#","given_back":false"#)]
        {
            let line = GOLDEN.lines().find(|line| line.contains(field)).unwrap();
            let earlier = Envelope::read(&line.replace(field, "")).unwrap();
            assert_eq!(earlier.write(), line.replace(field, default));
        }
    }

    #[test]
    fn when_a_message_came_in_travels_with_it_and_need_not() {
        let line = GOLDEN.lines().find(|line| line.contains("given_back")).unwrap();
        let later = line.replace("\"given_back\":true", "\"given_back\":true,\"received_us\":7");
        let envelope: Envelope = serde_json::from_str(&later).unwrap();
        assert_eq!(envelope.write(), later);
        let received = |line: &str| match Envelope::read(line).unwrap().content {
            Content::Frame(frame) => match &frame.messages[..] {
                [Message::Relay(relay)] => relay.received_us,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!((received(line), received(&later)), (None, Some(7)));
    }

    #[test]
    fn the_trace_of_a_message_travels_with_it_and_need_not() {
        let text = "00-01a3185c50007472af72f10178c2693e-00f067aa0ba902b7-01";
        let line = GOLDEN.lines().find(|line| line.contains("given_back")).unwrap();
        let with = |trace: &str| {
            line.replace(
                "\"given_back\":true",
                &format!("\"given_back\":true,\"traceparent\":{trace}"),
            )
        };
        let traced = with(&format!("\"{text}\""));
        let envelope: Envelope = serde_json::from_str(&traced).unwrap();
        assert_eq!(envelope.write(), traced);
        let trace = |line: &str| match Envelope::read(line).unwrap().content {
            Content::Frame(frame) => match &frame.messages[..] {
                [Message::Relay(relay)] => relay.traceparent,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!((trace(line), trace(&traced)), (None, text.parse().ok()));
        // A message whose trace cannot be parsed is delivered without it.
        assert_eq!(trace(&with("\"mood\"")), None);
        assert_eq!(trace(&with("{\"mood\":1}")), None);
    }

    #[test]
    fn messages_of_a_later_build_are_passed_over_and_the_numbers_go_on() {
        let known = r#"{"rings":{"call":"01a3185c-5000-7472-af72-f10178c2693e","have":3}}"#;
        let unknown = [
            r#"{"mood":{"good":true}}"#,
            r#""mood""#,
            // A known kind with an unknown value.
            r#"{"presence":{"user":"anna","presence":"asleep","order":7}}"#,
        ];
        let mut receiver = Receiver::default();
        for (first, unknown) in (0..).step_by(3).zip(unknown) {
            let later = format!(
                r#"{{"v":1,"from":"01a3185c50007fefa936ca0fe4c1d02e","content":{{"frame":
                {{"link":1,"first":{first},"oldest":0,"messages":[{known},{unknown},{known}]}}}}}}"#
            );
            let Content::Frame(frame) = Envelope::read(&later).unwrap().content else {
                panic!("{later}");
            };
            let delivery = receiver.receive(frame);
            assert_eq!(delivery.messages.len(), 3);
            assert_eq!(delivery.messages[1], Message::Void);
            assert_eq!(delivery.messages[0], delivery.messages[2]);
            assert_eq!((delivery.ask_from, delivery.lost), (None, 0));
        }
    }

    #[test]
    fn what_cannot_be_read_at_all_is_an_error() {
        let line = GOLDEN.lines().next().unwrap();
        let later = line.replacen(r#""v":1"#, r#""v":2"#, 1);
        assert!(matches!(Envelope::read(&later), Err(Unreadable::Later(2))));
        let unknown = line.replacen(r#""frame""#, r#""picture""#, 1);
        for text in ["", "{", "null", &unknown] {
            assert!(matches!(Envelope::read(text), Err(Unreadable::Malformed(_))), "{text}");
        }
    }
}
