//! What of the settings may be shown: everything but passwords.

/// Where in the file the error is, and what it is, in one line.
pub fn place_in(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let number = text.get(..start).map_or(0, |before| before.matches('\n').count());
    let line = without_secret(text.lines().nth(number).unwrap_or_default().trim());
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    format!("line {}: {line}{message}", number + 1)
}

/// A line of a file as it may be shown: as it is if it surely sets something that is no secret, by its
/// name alone if it may set one, not at all if it may be in the middle of one.
fn without_secret(line: &str) -> String {
    let name = line.split('=').next().unwrap_or_default().trim();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
        return String::new();
    }
    let is_secret = ["secret", "token", "password", "key", "url"].iter().any(|w| name.contains(w));
    if is_secret { format!("`{name}`: ") } else { format!("`{line}`: ") }
}

/// `url` with `***` for its password, wherever it stands.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    // A password that should have been escaped may hold any sign: all before the last `@` is hidden.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => {
            (format!("{}:***@", user.split(':').next().unwrap_or_default()), rest)
        }
        None => (String::new(), rest),
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    let redacted = |parameter: &str| match parameter.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=***"),
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
    fn no_password_is_printed() {
        for url in [
            "postgres://anna:secret@db:5432/calls?sslmode=require",
            "postgres://anna:se?cr@secret@db/calls",
            "postgres://db/calls?user=anna&password=secret&sslmode=require",
            "redis-sentinel://s:26379?sentinelServiceName=m&sentinelPassword=secret",
        ] {
            let shown = without_password(url);
            assert!(!shown.contains("secret") && !shown.contains("se?cr"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
        let plain = "postgres://db/calls?sslmode=require";
        assert_eq!(without_password(plain), plain);
    }

    #[test]
    fn an_error_in_a_file_shows_no_secret() {
        for text in [
            "turn_secret = 'hidden",
            "turn_secret = ['hidden",
            "turn_secret = [\n'hidden=', 5]\n",
            "database_url = 'postgres://anna:hidden@db\n",
            "turn_secret = hidden",
        ] {
            let error = toml::from_str::<toml::Table>(text)
                .and_then(|_| toml::from_str::<std::collections::BTreeMap<String, String>>(text));
            let shown = place_in(text, &error.unwrap_err());
            assert!(!shown.contains("hidden"), "{shown}");
        }
        let text = "ring_timeout = 'soon'\nlisten = 5\n";
        let error = toml::from_str::<std::collections::BTreeMap<String, String>>(text).unwrap_err();
        assert!(place_in(text, &error).starts_with("line 2: `listen = 5`: "));
    }
}
