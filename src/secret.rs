//! Values that mask themselves in logs, errors and printed settings.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serializer, de::Error};

const HIDDEN: &str = "***";

/// How the secrets of examples begin. Everybody knows them.
const EXAMPLE: &str = "change-me";

/// A key or a token. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The URL of a service. Prints with `***` for its password, wherever that stands.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceUrl(String);

impl Secret {
    /// The plain text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this stood in an example.
    pub fn is_of_example(&self) -> bool {
        self.0.starts_with(EXAMPLE)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl ServiceUrl {
    /// The whole URL.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a part of it that may be a secret stood in an example.
    pub fn is_of_example(&self) -> bool {
        self.0.split([':', '=', '/', '@']).any(|part| part.starts_with(EXAMPLE))
    }
}

impl FromStr for ServiceUrl {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.0))
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text of the settings file. Its error does not echo the value.
fn read<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::String(text) => Ok(text),
        _ => Err(D::Error::custom("expected a text")),
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from).map(Self)
    }
}

impl<'de> Deserialize<'de> for ServiceUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from).map(Self)
    }
}

/// Reads secrets from the settings file: an array of texts, or one text with commas.
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

/// Serialises a secret in plain text.
pub fn exposed<S: Serializer>(secret: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(Secret(text)) => to.serialize_some(text),
        None => to.serialize_none(),
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return HIDDEN.to_owned() };
    // An unescaped password may contain anything: everything before the last `@` is masked.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => {
            (format!("{}:{HIDDEN}@", user.split(':').next().unwrap_or_default()), rest)
        }
        None => (String::new(), rest),
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    let redacted = |parameter: &str| match parameter.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => {
            format!("{name}={HIDDEN}")
        }
        _ => parameter.to_owned(),
    };
    let query = query.map(|query| query.split('&').map(redacted).collect::<Vec<_>>().join("&"));
    let query = query.map_or(String::new(), |query| format!("?{query}"));
    format!("{scheme}://{user}{place}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn an_address_shows_no_password() {
        for url in [
            "postgres://anna:secret@db:5432/calls?sslmode=require",
            "postgres://anna:se?cr@secret@db/calls",
            "postgres://db/calls?user=anna&password=secret&sslmode=require",
            "redis-sentinel://s:26379?sentinelServiceName=m&sentinelPassword=secret",
        ] {
            let url: ServiceUrl = url.parse().unwrap();
            let shown = format!("{url} {url:?}");
            assert!(!shown.contains("secret") && !shown.contains("se?cr"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
        let plain = "postgres://db/calls?sslmode=require";
        assert_eq!(plain.parse::<ServiceUrl>().unwrap().to_string(), plain);
    }
}
