//! The trace context that nodes exchange with a call: W3C's `traceparent`.
//!
//! The trace id is the call id, and the id of the root span is the second half of it, so a call id is enough to find the
//! trace. A call that is not sampled has no context.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, IgnoredAny},
};

use crate::ids::CallId;

/// A span of a sampled call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
}

/// A text that is not the context of a sampled span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the traceparent of something sampled")]
pub struct InvalidContext;

impl TraceContext {
    /// The root span of this call.
    pub fn of(call: CallId) -> Self {
        Self { trace: call.to_bytes(), span: [0; 8] }.root()
    }

    /// The root span of this call's trace.
    #[must_use]
    pub fn root(self) -> Self {
        self.step(*self.trace.last_chunk().expect("it has 16 bytes"))
    }

    /// A new span of the same call.
    #[must_use]
    pub fn step(self, span: [u8; 8]) -> Self {
        Self { span, ..self }
    }

    pub fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    pub fn span_id(&self) -> [u8; 8] {
        self.span
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-01")
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidContext;

    /// Later versions of the format may append fields.
    fn from_str(text: &str) -> Result<Self, InvalidContext> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            part.bytes().all(is_hex).then(|| u128::from_str_radix(part, 16).ok())?
        };
        let all = (|| Some((hex(2)?, hex(32)?, hex(16)?, hex(2)?)))();
        let (version, trace, span, flags) = all.ok_or(InvalidContext)?;
        let is_known = version < 0xff && (version > 0 || parts.next().is_none());
        let span = u64::try_from(span).map_err(|_| InvalidContext)?;
        if !is_known || trace == 0 || span == 0 || flags & 1 == 0 {
            return Err(InvalidContext);
        }
        Ok(Self { trace: trace.to_be_bytes(), span: span.to_be_bytes() })
    }
}

impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads an optional context. An invalid one counts as absent, so that it does not invalidate its record.
pub fn lenient<'de, D: Deserializer<'de>>(from: D) -> Result<Option<TraceContext>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Text(String),
        Other(IgnoredAny),
    }
    Ok(match Any::deserialize(from).map_err(D::Error::custom)? {
        Any::Text(text) => text.parse().ok(),
        Any::Other(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-01a3185c50007472af72f10178c2693e-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_a_traceparent() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.to_string(), TEXT);
        let call: CallId =
            serde_json::from_str("\"01a3185c-5000-7472-af72-f10178c2693e\"").unwrap();
        let root = TraceContext::of(call);
        assert_eq!(root.to_string(), "00-01a3185c50007472af72f10178c2693e-af72f10178c2693e-01");
        assert_eq!(context.root(), root);
        assert_eq!(root.step(context.span_id()), context);
    }

    #[test]
    fn what_is_not_sampled_or_not_understood_is_none() {
        for good in [TEXT, &TEXT.replacen("00-", "01-", 1), &format!("cc{}-more", &TEXT[2..])] {
            assert!(good.parse::<TraceContext>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "00",
            &TEXT.replace("-01", "-00"),
            &TEXT.replacen("00-", "ff-", 1),
            &format!("{TEXT}-more"),
            &TEXT.to_uppercase(),
            &TEXT.replace("00f067aa0ba902b7", "0000000000000000"),
            &TEXT.replace("01a3185c50007472af72f10178c2693e", &"0".repeat(32)),
            &TEXT.replace("00f067aa0ba902b7", "+0f067aa0ba902b7"),
        ] {
            assert!(bad.parse::<TraceContext>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_holds_a_context_is_read_whatever_stands_there() {
        #[derive(Deserialize)]
        struct Holder {
            #[serde(default, deserialize_with = "lenient")]
            trace: Option<TraceContext>,
        }
        let read = |json: &str| serde_json::from_str::<Holder>(json).unwrap().trace;
        assert_eq!(read(&format!(r#"{{"trace":"{TEXT}"}}"#)), TEXT.parse().ok());
        for none in ["{}", r#"{"trace":null}"#, r#"{"trace":{"x":[1]}}"#, r#"{"trace":"mood"}"#] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
