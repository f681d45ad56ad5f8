//! JSON that is relayed verbatim.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

/// The deepest nesting of objects and arrays in relayed payloads. Recursive parsers overflow their
/// stack somewhere beyond it.
pub const MAX_DEPTH: usize = 64;

/// JSON text that this service relays without parsing it: an offer, an answer, a candidate, `callerInfo`. Unknown fields,
/// key order and number formats are preserved.
///
/// From a client it is made by [`Payload::checked`] alone: what the receiving end's JSON reader breaks on is not
/// passed on. From other nodes and from Redis it is taken as it is.
///
/// On the node of its sender it may carry a receipt, wherever it is queued or buffered there.
#[derive(Debug, Clone)]
pub struct Payload {
    raw: Arc<RawValue>,
    receipt: Option<Receipt>,
}

/// Tells the sender of a message that it is where it should be. Dropped with the last copy of the message that
/// carries it, it tells that nobody has the message any more.
#[derive(Debug, Clone)]
struct Receipt(Arc<Mutex<Option<oneshot::Sender<()>>>>);

/// Resolves when the message is where it should be. An error: nobody has it any more.
pub type Delivered = oneshot::Receiver<()>;

impl Payload {
    /// A client's JSON, if every receiver can read it.
    pub fn checked(raw: &RawValue) -> Result<Self, Unreadable> {
        check(raw.get())?;
        Ok(Self::unchecked(raw.to_owned()))
    }

    fn unchecked(raw: Box<RawValue>) -> Self {
        Self { raw: raw.into(), receipt: None }
    }

    /// Length of the JSON text in bytes.
    pub fn len_bytes(&self) -> usize {
        self.raw.get().len()
    }

    pub fn as_json(&self) -> &str {
        self.raw.get()
    }

    /// The same with a receipt.
    #[must_use]
    pub fn tracked(mut self) -> (Self, Delivered) {
        let (told, delivered) = oneshot::channel();
        self.receipt = Some(Receipt(Arc::new(Mutex::new(Some(told)))));
        (self, delivered)
    }

    /// A copy whose fate does not matter to the sender.
    #[must_use]
    pub fn untracked(&self) -> Self {
        Self { raw: self.raw.clone(), receipt: None }
    }

    /// A copy is where it should be: with the receiver's connection, on the node that has it, or buffered for a
    /// device that is away. The first one counts.
    pub fn settle(&self) {
        let Some(Receipt(told)) = &self.receipt else { return };
        if let Some(told) = told.lock().take() {
            // The receiver may be gone.
            let _ = told.send(());
        }
    }
}

impl Serialize for Payload {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(serializer)
    }
}

/// Well-formed JSON that common parsers fail on. Displays the expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("JSON that is nested at most {MAX_DEPTH} levels deep")]
    TooDeep,
    #[error("numbers that a 64-bit float can hold")]
    NumberTooLarge,
    #[error("text in which no \\u escape stands for half of a surrogate pair")]
    LoneSurrogate,
}

/// Looks once at each byte, and into no text further than for its end and its escapes: `json` is
/// known to be JSON.
fn check(json: &str) -> Result<(), Unreadable> {
    let bytes = json.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Unreadable::TooDeep);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_text(bytes, at)?,
            b'-' | b'0'..=b'9' => {
                let in_number =
                    |b: &u8| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let rest = &bytes[at..];
                let end = at + rest.iter().position(|b| !in_number(b)).unwrap_or(rest.len());
                let number: Option<f64> = json[at - 1..end].parse().ok();
                if number.is_none_or(f64::is_infinite) {
                    return Err(Unreadable::NumberTooLarge);
                }
                at = end;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The place behind the text that begins at `start`, where each half of a surrogate pair has the other.
fn end_of_text(bytes: &[u8], start: usize) -> Result<usize, Unreadable> {
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = start;
    loop {
        match bytes.get(at) {
            None => return Ok(at),
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => {
                at += match (unit(at), unit(at + 6)) {
                    (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
                    (Some(0xD800..=0xDFFF), _) => return Err(Unreadable::LoneSurrogate),
                    // Of a longer escape the rest is plain text.
                    _ => 2,
                };
            }
            Some(_) => at += 1,
        }
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.as_json() == other.as_json()
    }
}

impl Eq for Payload {}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::unchecked)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tracked() -> (Payload, Delivered) {
        serde_json::from_str::<Payload>("1").unwrap().tracked()
    }

    #[test]
    fn a_receipt_comes_when_the_first_copy_is_where_it_should_be() {
        let (payload, mut delivered) = tracked();
        let copies = [payload.clone(), payload];
        assert!(delivered.try_recv().is_err());
        copies[1].settle();
        assert!(delivered.try_recv().is_ok());
        copies[0].settle();
    }

    #[test]
    fn a_message_that_nobody_has_any_more_is_known_to_be_lost() {
        let (payload, mut delivered) = tracked();
        let copies = [payload.clone(), payload.untracked()];
        drop(payload);
        assert_eq!(delivered.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        copies[1].settle();
        drop(copies);
        assert_eq!(delivered.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn what_readers_break_on_is_told_from_what_they_do_not() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let side_by_side = format!("[{}]", ["[{}]"; 200].join(","));
        let long = "1".repeat(400);
        for (json, expected) in [
            ("null", Ok(())),
            (
                r#"{"a":"[[[[","b":[1e308,-1.5E-400,0,-0],"c":"\ud83d\ude00 \\ud800 \u00e9"}"#,
                Ok(()),
            ),
            (r#""\\\ud83d\ude00""#, Ok(())),
            (&nested(MAX_DEPTH), Ok(())),
            (&objects(MAX_DEPTH), Ok(())),
            (&side_by_side, Ok(())),
            (&nested(MAX_DEPTH + 1), Err(Unreadable::TooDeep)),
            (&objects(MAX_DEPTH + 1), Err(Unreadable::TooDeep)),
            (&nested(60_000), Err(Unreadable::TooDeep)),
            ("1e400", Err(Unreadable::NumberTooLarge)),
            (r#"{"a":[0,-1E+309]}"#, Err(Unreadable::NumberTooLarge)),
            (&long, Err(Unreadable::NumberTooLarge)),
            (r#""\ud800""#, Err(Unreadable::LoneSurrogate)),
            (r#"["\uD83D x"]"#, Err(Unreadable::LoneSurrogate)),
            (r#"["\udc00\ud83d"]"#, Err(Unreadable::LoneSurrogate)),
            (r#"["\ud83d\ud83d\ude00"]"#, Err(Unreadable::LoneSurrogate)),
            (r#"{"\udead":1}"#, Err(Unreadable::LoneSurrogate)),
        ] {
            let start: String = json.chars().take(60).collect();
            assert_eq!(check(json), expected, "{start}");
        }
    }

    proptest! {
        /// A strict reader of whole values agrees about text and numbers, and nothing makes it panic.
        #[test]
        fn a_strict_reader_agrees(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "[", "]", "{", "}", "\"", ",", ":", "\\", "\\u", "d83d", "de00", "\\ud83d", "\\ude00", "1",
                    "e", "-", "309", "\"a\":", " ", "é",
                ]),
                0..24,
            ),
        ) {
            let json = pieces.concat();
            let is_json = serde_json::from_str::<&RawValue>(&json).is_ok();
            let is_strict = serde_json::from_str::<serde_json::Value>(&json).is_ok();
            let is_checked = check(json.trim()).is_ok();
            prop_assert!(!is_json || is_strict == is_checked, "{json}");
        }
    }
}
