//! JSON that is passed on as it came.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// A piece of JSON that this service carries and never looks into: an offer, an answer, a
/// candidate, `callerInfo`. Unknown fields, key order and number formats arrive as they were sent.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Payload(Arc<RawValue>);

impl Payload {
    /// Length of the JSON text in bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.get().len()
    }

    pub fn as_json(&self) -> &str {
        self.0.get()
    }
}

impl From<&RawValue> for Payload {
    fn from(raw: &RawValue) -> Self {
        Self(raw.to_owned().into())
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
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(raw.into()))
    }
}
