//! Texts that must not be seen, redacted by their type: no log line, error or print shows one.

use std::fmt;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// What a secret looks like to those who must not know it.
pub const REDACTED: &str = "***";

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one who needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// Writes a secret to the one it is for.
pub fn exposed<S: Serializer>(secret: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(Secret(text)) => to.serialize_some(text),
        None => to.serialize_none(),
    }
}

/// Reads a secret from a file. The error does not say what stood there.
pub fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::String(text) => Ok(Some(Secret(text))),
        _ => Err(D::Error::custom("expected a text")),
    }
}

/// Reads secrets from a file: a list of texts, or one text with commas between them.
pub fn optional_list<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<Secret>>, D::Error> {
    let expected = || D::Error::custom("expected a text or a list of texts");
    let text = |value: toml::Value| match value {
        toml::Value::String(text) => Ok(Secret(text)),
        _ => Err(expected()),
    };
    match toml::Value::deserialize(from)? {
        toml::Value::String(texts) => {
            Ok(Some(texts.split(',').map(|text| Secret(text.to_owned())).collect()))
        }
        toml::Value::Array(values) => {
            values.into_iter().map(text).collect::<Result<_, _>>().map(Some)
        }
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::from("hidden".to_owned());
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "*** Some(***)");
        assert_eq!(secret.expose(), "hidden");
    }
}
