//! The log: format, filter, and form of user ids. `queue` takes the lines to stderr.

mod queue;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    borrow::Cow,
    fmt,
    io::{self, IsTerminal, Write as _},
    panic::{self, PanicHookInfo},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use clap::ValueEnum;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber, error,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Registry,
    field::RecordFields,
    filter::{FromEnvError, LevelFilter, ParseError, filter_fn},
    fmt::{
        self as lines, FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    prelude::*,
    registry::LookupSpan,
    reload::{self, Handle},
};

use self::queue::Queue;
use crate::{ids::NodeId, redact, telemetry};

/// How long a process that ends waits for the reader of its log.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The format of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines for people
    #[default]
    Pretty,
    /// One JSON object per line
    Json,
}

/// The form of user ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Users {
    /// The ids themselves
    #[default]
    Plain,
    /// A keyed hash of each id
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
    /// Key of the hashes. None: random for each process.
    pub users_key: Option<String>,
}

/// The active filter. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Filter {
    handle: Handle<EnvFilter, Registry>,
    /// The requested directives.
    said: Arc<Mutex<String>>,
}

/// A refused filter. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum BadFilter {
    #[error("expected directives as in RUST_LOG, such as info,switchboard=debug: {0}")]
    Malformed(#[from] ParseError),
    #[error("expected directives as in RUST_LOG, such as info,switchboard=debug")]
    Empty,
    #[error("the log is closed")]
    Closed,
}

/// The log of this process.
#[derive(Debug)]
pub struct Log {
    pub filter: Filter,
    format: Format,
    node: NodeId,
}

/// The writer to stderr, for the code that ends the process.
static TO_STDERR: OnceLock<Queue> = OnceLock::new();

/// Why the log cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("RUST_LOG cannot be read")]
    Filter(#[from] FromEnvError),
    #[error("a thread for the log cannot be started")]
    Thread(#[from] io::Error),
}

/// Starts logging to stderr for this node, with the filter of `RUST_LOG` until it is changed.
/// Logging never waits for stderr: lines beyond the queue are dropped and counted. Panics are
/// logged as lines, too.
pub fn start(settings: &Settings, node: NodeId) -> Result<Log, StartError> {
    if settings.users == Users::Hashed {
        redact::hash_users(settings.users_key.as_deref());
    }
    let filter = builder().from_env()?;
    let said = filter.to_string();
    let queue = TO_STDERR.get_or_init(Queue::default);
    queue.write_to(io::stderr())?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter).with(filter_fn(may_be_logged));
    let lines = lines::layer().with_writer(queue.clone()).with_ansi(io::stderr().is_terminal());
    match settings.format {
        Format::Pretty => registry.with(lines.fmt_fields(WithNode(node))).init(),
        Format::Json => registry.with(lines.event_format(JsonLines(node))).init(),
    }
    let unlogged = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if tracing::enabled!(Level::ERROR) {
            log_panic(panic);
        } else {
            unlogged(panic);
        }
        flush();
    }));
    let filter = Filter { handle, said: Arc::new(Mutex::new(said)) };
    Ok(Log { filter, format: settings.format, node })
}

/// Waits up to a second until all lines are written. Must be called before the process ends.
pub fn flush() {
    if let Some(queue) = TO_STDERR.get() {
        queue.flush(LAST_LINES);
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let what = panic.payload_as_str().unwrap_or("no text");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => {
            error!(%backtrace, "thread {thread} panicked at {location}: {what}");
        }
        _ => error!("thread {thread} panicked at {location}: {what}"),
    }
}

impl Log {
    /// Writes to stdout that the service can be used at this address: one line, in the log's own format.
    pub fn say_ready(&self, url: &str) {
        let message = format!("switchboard is ready: open {url}");
        let line = match self.format {
            Format::Pretty => message,
            Format::Json => {
                let mut line = Map::new();
                line.insert("url".to_owned(), url.into());
                line.insert("message".to_owned(), message.into());
                JsonLines(self.node).finish(line, Level::INFO, module_path!().into()).to_string()
            }
        };
        // The reader of the service's output may have closed it or stopped reading: the service
        // continues.
        thread::spawn(move || {
            let mut stdout = io::stdout().lock();
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        });
    }

    /// Writes why the process ends, as its last line.
    pub fn say_failed(&self, error: &anyhow::Error) {
        match self.format {
            Format::Pretty => {
                flush();
                eprintln!("error: {error:#}");
            }
            Format::Json => {
                error!("{error:#}");
                flush();
            }
        }
    }
}

fn builder() -> tracing_subscriber::filter::Builder {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into())
}

/// The ceiling over every filter. Below info, libraries write what passes through them: tokens in handshakes,
/// relay passwords and session descriptions in messages, users in commands and statements. Only this
/// service's own lines, whose types hide what must be hidden, may go further.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let own = target.strip_prefix(env!("CARGO_CRATE_NAME"));
    let is_own = own.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    is_own || *metadata.level() <= Level::INFO
}

impl Filter {
    /// The active directives.
    pub fn directives(&self) -> String {
        self.said.lock().clone()
    }

    /// Replaces the directives.
    pub fn set(&self, directives: &str) -> Result<(), BadFilter> {
        if directives.is_empty() {
            return Err(BadFilter::Empty);
        }
        let filter = builder().parse(directives)?;
        let said = filter.to_string();
        self.handle.reload(filter).map_err(|_| BadFilter::Closed)?;
        *self.said.lock() = said;
        Ok(())
    }
}

/// Writes each line for people, and ends it with the node that wrote it.
struct WithNode(NodeId);

impl<'w> FormatFields<'w> for WithNode {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut pretty = PrettyFields { writer: writer.by_ref(), is_first: true, result: Ok(()) };
        fields.record(&mut pretty);
        pretty.result?;
        write!(writer, " node={}", self.0)
    }
}

/// The message, then `name=value` with blanks between. A value that could be read as more than one value, or
/// as another field or line, stands in quotes, with its signs escaped: clients and backends choose some.
struct PrettyFields<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl PrettyFields<'_> {
    fn put(&mut self, field: &Field, value: &str) {
        // Those of libraries that log in another way carry their place as fields.
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        let gap = if std::mem::take(&mut self.is_first) { "" } else { " " };
        self.result = match field.name() {
            "message" => write!(self.writer, "{gap}{}", in_one_line(value)),
            name if self.writer.has_ansi_escapes() => {
                write!(
                    self.writer,
                    "{gap}\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{}",
                    as_one_value(value)
                )
            }
            name => write!(self.writer, "{gap}{name}={}", as_one_value(value)),
        };
    }
}

impl Visit for PrettyFields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.put(field, value);
        } else {
            self.put(field, &format!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

/// A sign that a terminal shows as itself, in its place.
fn is_shown(c: char) -> bool {
    c.is_ascii_graphic() || c.is_alphanumeric()
}

fn in_one_line(text: &str) -> Cow<'_, str> {
    let is_fine = |c: char| c == ' ' || is_shown(c) || c.escape_debug().len() == 1;
    if text.chars().all(is_fine) {
        return text.into();
    }
    text.chars()
        .map(|c| if is_fine(c) { c.to_string() } else { c.escape_debug().to_string() })
        .collect()
}

fn as_one_value(text: &str) -> Cow<'_, str> {
    let is_plain =
        !text.is_empty() && text.chars().all(|c| is_shown(c) && !matches!(c, '"' | '\\'));
    if is_plain || is_quoted(text) { text.into() } else { format!("{text:?}").into() }
}

/// Whether the whole is one text in quotes, with all that could end it escaped.
fn is_quoted(text: &str) -> bool {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut is_escaped = false;
    let is_fine = |c: char| {
        let is_fine = is_escaped || c != '"';
        is_escaped = c == '\\' && !is_escaped;
        is_fine && (c == ' ' || is_shown(c) || c.escape_debug().len() == 1)
    };
    inner.is_some_and(|inner| inner.chars().all(is_fine)) && !is_escaped
}

/// Writes each line as JSON: `timestamp`, `level`, `target`, `message`, `node`, and the fields; `trace_id` if it is about a
/// sampled call.
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
        let mut fields = JsonFields::default();
        event.record(&mut fields);
        let JsonFields(mut line) = fields;
        // Libraries that use `log` carry their target as a field.
        let own = || event.metadata().target().into();
        let target = line.remove("log.target").unwrap_or_else(own);
        line.retain(|name, _| !name.starts_with("log."));
        let level = *event.metadata().level();
        writeln!(writer, "{}", self.finish(line, level, target))
    }
}

impl JsonLines {
    /// A line as a JSON object with these fields. A field never overwrites one that every line has.
    fn finish(&self, mut line: Map<String, Value>, level: Level, target: Value) -> Value {
        let mut timestamp = String::new();
        // A string takes all.
        let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
        let trace = line.get("call").and_then(Value::as_str).and_then(telemetry::trace_id);
        if let Some(trace) = trace {
            line.insert("trace_id".to_owned(), trace.into());
        }
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("level".to_owned(), level.as_str().into());
        line.insert("target".to_owned(), target);
        line.insert("node".to_owned(), self.0.to_string().into());
        Value::Object(line)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_be_read_as_another_field_or_line() {
        for plain in
            ["anna", "info,switchboard=debug", "https://a/b?***", "\"a \\\" b\"", "ännä", "[1,2]"]
        {
            assert_eq!(as_one_value(plain), plain);
        }
        for (forged, shown) in [
            ("anna node=0", r#""anna node=0""#),
            ("anna\nINFO fine", r#""anna\nINFO fine""#),
            ("\u{1b}[31mred", r#""\u{1b}[31mred""#),
            ("\u{202e}abc", r#""\u{202e}abc""#),
            ("", r#""""#),
            ("\"", r#""\"""#),
            (r#""a" node="b""#, r#""\"a\" node=\"b\"""#),
            (r#""a\""#, r#""\"a\\\"""#),
            ("a\u{a0}b=c", r#""a\u{a0}b=c""#),
            (r"a\b", r#""a\\b""#),
        ] {
            assert_eq!(as_one_value(forged), shown);
        }
        assert_eq!(in_one_line("a call, \"ended\""), "a call, \"ended\"");
        assert_eq!(in_one_line("a\nb\u{1b}[0m"), "a\\nb\\u{1b}[0m");
    }
}
