//! The settings of traces, from OpenTelemetry's standard variables.

use std::{env, fmt::Write as _, ops::RangeInclusive, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::Scheme};

use super::{Config, ConfigError};
use crate::telemetry::{Batches, Sampler, Settings};

const TIMEOUT_MS: RangeInclusive<u64> = 1..=60_000;
const DELAY_MS: RangeInclusive<u64> = 1..=60_000;
const QUEUE: RangeInclusive<u64> = 1..=65_536;
/// The infix of variables for traces only.
const FOR_TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_";
const FOR_ALL: &str = "OTEL_EXPORTER_OTLP_";

impl Config {
    /// Adds the settings of traces from the environment.
    pub(super) fn traced(self) -> Result<Self, ConfigError> {
        Ok(Self { traces: traces(&|name| env::var(name).ok())?, ..self })
    }
}

/// The environment. An empty variable counts as unset, as OpenTelemetry requires.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        self.0(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A variable of the exporter, and its value.
    fn exporter(&self, name: &str) -> Option<(String, String)> {
        let named = |prefix: &str| {
            let name = format!("{prefix}{name}");
            self.get(&name).map(|value| (name, value))
        };
        named(FOR_TRACES).or_else(|| named(FOR_ALL))
    }

    fn number(&self, name: &str, range: RangeInclusive<u64>, or: u64) -> Result<u64, ConfigError> {
        self.get(name).map_or(Ok(or), |value| within(name, &value, range))
    }
}

fn wrong(name: &str, expected: &str) -> ConfigError {
    ConfigError(format!("{name}: expected {expected}"))
}

fn within(name: &str, value: &str, range: RangeInclusive<u64>) -> Result<u64, ConfigError> {
    let expected = || wrong(name, &format!("{} to {}", range.start(), range.end()));
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(expected)
}

/// The settings of traces; None without an endpoint, or if traces are disabled.
fn traces(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Settings>, ConfigError> {
    let variables = Variables(variable);
    let is_disabled =
        variables.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let exporter = variables.get("OTEL_TRACES_EXPORTER");
    if is_disabled || exporter.as_deref() == Some("none") {
        return Ok(None);
    }
    let Some(endpoint) = endpoint(&variables)? else { return Ok(None) };
    if exporter.is_some_and(|exporter| exporter != "otlp") {
        return Err(wrong("OTEL_TRACES_EXPORTER", "otlp or none"));
    }
    for (name, only) in [("PROTOCOL", "http/protobuf"), ("COMPRESSION", "none")] {
        if let Some((name, value)) = variables.exporter(name)
            && value != only
        {
            return Err(wrong(&name, &format!("{only}, which is all that is built in")));
        }
    }
    for name in ["CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"] {
        if let Some((name, _)) = variables.exporter(name) {
            let instead = "nothing: the authorities are those of the machine, or of SSL_CERT_FILE";
            return Err(wrong(&name, instead));
        }
    }
    let timeout_ms = match variables.exporter("TIMEOUT") {
        Some((name, value)) => within(&name, &value, TIMEOUT_MS)?,
        None => 10_000,
    };
    let count = |name, or| {
        let number = variables.number(name, QUEUE, or)?;
        Ok(usize::try_from(number).expect("it is within the range"))
    };
    let max_queue = count("OTEL_BSP_MAX_QUEUE_SIZE", 2_048)?;
    let max_batch = count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?.min(max_queue);
    let delay_ms = variables.number("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS, 5_000)?;
    Ok(Some(Settings {
        endpoint,
        headers: headers(&variables)?,
        timeout: Duration::from_millis(timeout_ms),
        sampler: sampler(&variables)?,
        resource: resource(&variables)?,
        batches: Batches { max_queue, max_batch, delay: Duration::from_millis(delay_ms) },
    }))
}

fn endpoint(variables: &Variables) -> Result<Option<Uri>, ConfigError> {
    let Some((name, mut url)) = variables.exporter("ENDPOINT") else { return Ok(None) };
    if !name.starts_with(FOR_TRACES) {
        // The base URL of a collector; the other variable is the whole URL.
        url = format!("{}/v1/traces", url.trim_end_matches('/'));
    }
    let expected = "http://HOST:PORT or https://HOST:PORT of a collector, without a user name";
    let uri: Uri = url.parse().map_err(|_| wrong(&name, expected))?;
    let is_http = [&Scheme::HTTP, &Scheme::HTTPS].map(Some).contains(&uri.scheme());
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if is_http && is_plain { Ok(Some(uri)) } else { Err(wrong(&name, expected)) }
}

/// Errors do not echo the value: it may be a key.
fn headers(variables: &Variables) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    let Some((name, text)) = variables.exporter("HEADERS") else { return Ok(headers) };
    for (key, value) in pairs(&name, &text)? {
        let expected = || wrong(&name, "name=value,name=value, of HTTP headers");
        let key: HeaderName = key.parse().map_err(|_| expected())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| expected())?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

fn resource(variables: &Variables) -> Result<Vec<(String, String)>, ConfigError> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut resource = pairs(NAME, &variables.get(NAME).unwrap_or_default())?;
    let service = "service.name";
    if let Some(name) = variables.get("OTEL_SERVICE_NAME") {
        resource.retain(|(key, _)| key != service);
        resource.push((service.to_owned(), name));
    } else if resource.iter().all(|(key, _)| key != service) {
        resource.push((service.to_owned(), env!("CARGO_PKG_NAME").to_owned()));
    }
    Ok(resource)
}

/// A list of `key=value`, separated by commas, with percent-encoded values.
fn pairs(name: &str, text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        let value = decoded(value.trim())?;
        (!key.trim().is_empty()).then(|| (key.trim().to_owned(), value))
    };
    let filled = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let all: Option<Vec<_>> = filled.map(pair).collect();
    all.ok_or_else(|| wrong(name, "name=value,name=value"))
}

fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// The attempt decides for its call, so `parentbased_` makes no difference.
fn sampler(variables: &Variables) -> Result<Sampler, ConfigError> {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let name = variables.get(NAME).unwrap_or_else(|| "parentbased_always_on".to_owned());
    match name.strip_prefix("parentbased_").unwrap_or(&name) {
        "always_on" => Ok(Sampler::ALL),
        "always_off" => Ok(Sampler::NONE),
        "traceidratio" => {
            let ratio = variables.get(ARGUMENT).map_or(Ok(1.0), |text| text.parse());
            let sampler = ratio.ok().and_then(Sampler::ratio);
            sampler.ok_or_else(|| wrong(ARGUMENT, "a number from 0 to 1"))
        }
        _ => Err(wrong(
            NAME,
            "always_on, always_off or traceidratio, each with or without parentbased_ before it",
        )),
    }
}

/// The settings in force, as comments: they cannot stand in the file.
pub fn comments(traces: &Settings) -> String {
    let Settings { endpoint, headers, timeout, sampler, resource, batches } = traces;
    let mut text = "# From the environment:\n".to_owned();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "# {name} = {value}").expect("a string takes all");
    };
    // A query may hold a key.
    let place = endpoint.to_string();
    line("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &place.split('?').next().unwrap_or_default());
    for name in headers.keys() {
        line("OTEL_EXPORTER_OTLP_TRACES_HEADERS", &format_args!("{name}=***"));
    }
    line("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", &timeout.as_millis());
    line("OTEL_TRACES_SAMPLER", &"parentbased_traceidratio");
    line("OTEL_TRACES_SAMPLER_ARG", sampler);
    for (key, value) in resource {
        line("OTEL_RESOURCE_ATTRIBUTES", &format_args!("{key}={value:?}"));
    }
    line("OTEL_BSP_MAX_QUEUE_SIZE", &batches.max_queue);
    line("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &batches.max_batch);
    line("OTEL_BSP_SCHEDULE_DELAY", &batches.delay.as_millis());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    fn read(all: &[(&str, &str)]) -> Result<Option<Settings>, ConfigError> {
        traces(&|name| {
            all.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn on(more: &[(&str, &str)]) -> Settings {
        read(&[&[ENDPOINT], more].concat()).unwrap().unwrap()
    }

    #[test]
    fn there_are_no_traces_unless_a_collector_is_named() {
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).unwrap().is_none());
        for off in [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(read(&[ENDPOINT, off]).unwrap().is_none(), "{off:?}");
        }
        let settings = on(&[("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp")]);
        assert_eq!(settings.endpoint, "http://collector:4318/v1/traces");
        assert_eq!(settings.timeout, Duration::from_secs(10));
        assert_eq!(settings.sampler, Sampler::ALL);
        assert_eq!(settings.resource, [("service.name".to_owned(), "switchboard".to_owned())]);
        let delay = Duration::from_secs(5);
        assert_eq!(settings.batches, Batches { max_queue: 2_048, max_batch: 512, delay });
    }

    #[test]
    fn what_is_said_for_traces_goes_before_what_is_said_for_all() {
        let settings = on(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces.example.org/here"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Bearer%20hunter2, b=2"),
        ]);
        assert_eq!(settings.endpoint, "https://traces.example.org/here");
        assert_eq!(settings.timeout, Duration::from_millis(250));
        let header = |name| settings.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!((header("authorization"), header("b")), (Some("Bearer hunter2"), Some("2")));
        assert_eq!(header("a"), None);
        let shown = format!("{settings:?} {}", comments(&settings));
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.contains("# OTEL_EXPORTER_OTLP_TRACES_HEADERS = authorization=***"),
            "{shown}"
        );
    }

    #[test]
    fn a_process_is_what_it_is_said_to_be() {
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=calls,zone=eu%2C1");
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let (zone, calls) = (pair("zone", "eu,1"), pair("service.name", "calls"));
        assert_eq!(on(&[attributes]).resource, [calls, zone.clone()]);
        let named = on(&[attributes, ("OTEL_SERVICE_NAME", "ring")]).resource;
        assert_eq!(named, [zone, pair("service.name", "ring")]);
    }

    #[test]
    fn samplers_are_those_of_opentelemetry() {
        let sampler = |name: &str, ratio: &str| {
            on(&[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", ratio)]).sampler
        };
        for prefix in ["", "parentbased_"] {
            let of = |name: &str, ratio: &str| sampler(&format!("{prefix}{name}"), ratio);
            assert_eq!(of("always_on", ""), Sampler::ALL);
            assert_eq!(of("always_off", ""), Sampler::NONE);
            assert_eq!(of("traceidratio", ""), Sampler::ALL);
            assert_eq!(Some(of("traceidratio", "0.25")), Sampler::ratio(0.25));
        }
    }

    #[test]
    fn what_is_not_supported_is_said_in_one_sentence() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/key.pem"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hun ter=2"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0a"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_RESOURCE_ATTRIBUTES", "mood"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://anna:hunter2@collector:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces"),
        ] {
            let error = read(&[ENDPOINT, (name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: expected ")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        let error = read(&[&[ENDPOINT], &ratio[..]].concat()).unwrap_err().to_string();
        assert!(error.starts_with("OTEL_TRACES_SAMPLER_ARG: expected "), "{error}");
    }
}
