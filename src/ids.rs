//! Ids of users, devices, sockets, nodes and calls. Each is validated once, at its entry.

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{redact::Logged, time::Timestamp};

/// A user id of the platform: 1 to 128 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct UserId(Arc<str>);

/// A device id, chosen by the client: 1 to 64 of `A-Z a-z 0-9 . _ -`. It stays the same across reconnects.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct DeviceId(Arc<str>);

/// One call attempt. A UUID of version 7, so that ids sort by time of creation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(Uuid);

/// One running process of this service. Its text is 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(#[serde(with = "uuid::serde::simple")] Uuid);

/// One connection of one client: the Socket.IO socket id, 16 characters of URL-safe base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketId([u8; 16]);

/// An invalid id. Displays what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct InvalidId {
    expected: &'static str,
}

impl UserId {
    /// Bound in bytes.
    pub const MAX_BYTES: usize = 128;
    /// The expectation, in words.
    pub const EXPECTED: &str = "a string of 1 to 128 bytes without control characters";

    /// The largest whole number that every JSON parser reads exactly: 2^53 - 1.
    pub const MAX_NUMBER: i64 = 9_007_199_254_740_991;
    /// The description of an id, for error texts.
    pub const EXPECTED_JSON: &str = "a string of 1 to 128 bytes without control characters (or a whole number up to 9007199254740991)";

    /// Reads a user id from JSON text: a string, or a whole number, whose decimal text is the id. Many
    /// platforms have numeric ids.
    ///
    /// # Errors
    /// [`InvalidId`] for anything else, and for a number that not every client can hold exactly.
    pub fn from_json(json: &str) -> Result<Self, InvalidId> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Id<'a> {
            Text(#[serde(borrow)] Cow<'a, str>),
            Number(serde_json::Number),
        }
        // Almost all ids are strings, and most of those have nothing escaped.
        match serde_json::from_str(json) {
            Ok(Id::Text(text)) => text.parse(),
            Ok(Id::Number(number)) => Self::from_number(&number),
            Err(_) => Err(InvalidId { expected: Self::EXPECTED_JSON }),
        }
    }

    /// The same from a value that has been read already.
    pub fn from_value(value: &serde_json::Value) -> Result<Self, InvalidId> {
        match value {
            serde_json::Value::String(text) => text.parse(),
            serde_json::Value::Number(number) => Self::from_number(number),
            _ => Err(InvalidId { expected: Self::EXPECTED_JSON }),
        }
    }

    fn from_number(number: &serde_json::Number) -> Result<Self, InvalidId> {
        let exact = |number: &i64| number.unsigned_abs() <= Self::MAX_NUMBER.unsigned_abs();
        let number = number.as_i64().filter(exact).ok_or(InvalidId {
            expected: "a whole number up to 9007199254740991, or the id as a string",
        })?;
        number.to_string().parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form of the user id in the log.
    pub fn logged(&self) -> Logged<'_> {
        Logged(&self.0)
    }
}

impl FromStr for UserId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        if fits && !text.chars().any(char::is_control) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId { expected: Self::EXPECTED })
        }
    }
}

impl DeviceId {
    /// Bound in bytes.
    pub const MAX_BYTES: usize = 64;
}

impl FromStr for DeviceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if fits && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId { expected: "a string of 1 to 64 characters from A-Z a-z 0-9 . _ -" })
        }
    }
}

impl CallId {
    /// A new id for a call made at `now`.
    pub fn generate(now: Timestamp) -> Self {
        Self(uuid_at(now))
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// Time of creation; None for an id that this service did not generate.
    pub fn made_at(self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        let millis = seconds.checked_mul(1_000)?.checked_add(u64::from(nanos / 1_000_000))?;
        Some(Timestamp::from_millis(millis))
    }
}

impl NodeId {
    /// A new id for a node that starts at `now`.
    pub fn generate(now: Timestamp) -> Self {
        Self(uuid_at(now))
    }
}

fn uuid_at(now: Timestamp) -> Uuid {
    let seconds = now.as_millis() / 1_000;
    let nanos = u32::try_from(now.as_millis() % 1_000).expect("below 1,000") * 1_000_000;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let expected = "a node id (32 hexadecimal digits)";
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidId { expected })
    }
}

impl FromStr for CallId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| InvalidId { expected: "a call id as the server gave it (a UUID)" })
    }
}

impl SocketId {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("it was made from a string")
    }
}

impl FromStr for SocketId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.as_bytes()
            .try_into()
            .map(Self)
            .map_err(|_| InvalidId { expected: "a socket id of 16 bytes" })
    }
}

impl TryFrom<String> for UserId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl TryFrom<String> for DeviceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl TryFrom<String> for SocketId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<SocketId> for String {
    fn from(id: SocketId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no `Display`: clients and stores get [`UserId::as_str`], and the log only this and [`UserId::logged`].
impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.logged(), f)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_1_to_128_bytes_without_control_characters() {
        for good in ["a", "anna@example.org", "名前", &"x".repeat(128)] {
            assert_eq!(good.parse::<UserId>().unwrap().as_str(), good);
        }
        for bad in ["", "a\nb", "\u{7f}", &"x".repeat(129), &"é".repeat(65)] {
            assert!(bad.parse::<UserId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_device_id_is_1_to_64_plain_characters() {
        for good in ["a", "Phone_1.b-2", &"x".repeat(64)] {
            assert!(good.parse::<DeviceId>().is_ok(), "{good:?}");
        }
        for bad in ["", "a b", "é", "a/b", &"x".repeat(65)] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn call_ids_sort_by_time() {
        let early = CallId::generate(Timestamp::from_millis(1_700_000_000_000));
        let late = CallId::generate(Timestamp::from_millis(1_700_000_000_001));
        assert!(early < late);
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(early.made_at(), Some(Timestamp::from_millis(1_700_000_000_000)));
    }
}
