//! What is written to the log, how much of it, and in what shape.

use std::{
    fmt,
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError},
};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Registry,
    field::RecordFields,
    filter::{FromEnvError, LevelFilter, ParseError},
    fmt::{
        self as lines, FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Writer},
        time::{FormatTime, SystemTime},
    },
    prelude::*,
    registry::LookupSpan,
    reload::{self, Handle},
};

use crate::{ids::NodeId, redact, telemetry};

/// The shape of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

/// How users appear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Users {
    /// As the platform names them.
    #[default]
    Plain,
    /// As a keyed hash; see [`redact`].
    Hashed,
}

impl Format {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        }
    }
}

impl Users {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hashed => "hashed",
        }
    }
}

/// The settings of the log.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub format: Format,
    pub users: Users,
    /// What users are hashed with. None: with a key of each process's own.
    pub users_key: Option<String>,
}

/// The filter in force. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Filter {
    handle: Handle<EnvFilter, Registry>,
    /// What was asked for.
    said: Arc<Mutex<String>>,
}

/// Why a filter is not taken. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum BadFilter {
    #[error("expected directives as in RUST_LOG, such as info,switchboard=debug: {0}")]
    Malformed(#[from] ParseError),
    #[error("expected directives as in RUST_LOG, such as info,switchboard=debug")]
    Empty,
    #[error("the log is closed")]
    Closed,
}

/// Begins to log to stderr, for this node. `RUST_LOG` says what, until somebody changes it.
pub fn start(settings: &Settings, node: NodeId) -> Result<Filter, FromEnvError> {
    if settings.users == Users::Hashed {
        redact::hash_users(settings.users_key.as_deref());
    }
    let filter = builder().from_env()?;
    let said = filter.to_string();
    let (filter, handle) = reload::Layer::new(capped(filter));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = lines::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match settings.format {
        Format::Pretty => registry.with(lines.fmt_fields(WithNode(node))).init(),
        Format::Json => registry.with(lines.event_format(JsonLines(node))).init(),
    }
    Ok(Filter { handle, said: Arc::new(Mutex::new(said)) })
}

fn builder() -> tracing_subscriber::filter::Builder {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into())
}

/// The websocket library logs whole messages, and tokens are in them: it may not, whoever asks.
fn capped(filter: EnvFilter) -> EnvFilter {
    filter.add_directive("tungstenite=info".parse().expect("it is a directive"))
}

impl Filter {
    /// The directives in force.
    pub fn directives(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs what these directives say from now on.
    pub fn set(&self, directives: &str) -> Result<(), BadFilter> {
        if directives.is_empty() {
            return Err(BadFilter::Empty);
        }
        let filter = builder().parse(directives)?;
        let said = filter.to_string();
        self.handle.reload(capped(filter)).map_err(|_| BadFilter::Closed)?;
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
        Ok(())
    }
}

/// Ends each line with the node that wrote it.
struct WithNode(NodeId);

impl<'w> FormatFields<'w> for WithNode {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        DefaultFields::new().format_fields(writer.by_ref(), fields)?;
        write!(writer, " node={}", self.0)
    }
}

/// Writes each line as JSON: `timestamp`, `level`, `target`, `message`, `node`, and the fields; with
/// `trace_id` if it is about a call that is traced.
struct JsonLines(NodeId);

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut fields = JsonFields::default();
        event.record(&mut fields);
        let JsonFields(mut line) = fields;
        // Those of libraries that log in another way carry their target as a field.
        let own = || event.metadata().target().into();
        let target = line.remove("log.target").unwrap_or_else(own);
        line.retain(|name, _| !name.starts_with("log."));
        let trace = line.get("call").and_then(Value::as_str).and_then(telemetry::trace_id);
        // Whatever a field is called, these are what they say.
        if let Some(trace) = trace {
            line.insert("trace_id".to_owned(), trace.into());
        }
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        line.insert("target".to_owned(), target);
        line.insert("node".to_owned(), self.0.to_string().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

#[derive(Default)]
struct JsonFields(Map<String, Value>);

impl JsonFields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}
