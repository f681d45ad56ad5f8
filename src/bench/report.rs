//! Results, as a table or as JSON.

use std::{fmt::Write as _, io};

use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite;

use super::{
    sample::{RedisUsed, Used},
    spread::Spread,
};

/// A failed measurement.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot connect to {url}: {error}")]
    Connect { url: String, error: String },
    #[error("the server closed a connection")]
    Closed,
    #[error("the server refused: {0}")]
    Refused(String),
    #[error(
        "the server takes fewer call attempts of a user than this measurement makes ({0} a minute): start it \
         with `--limits off`, or say a `--rate` and more `--pairs`, at most {1} calls a minute for each pair"
    )]
    Limited(String, u32),
    #[error("a connection broke: {0}")]
    Broken(Box<tungstenite::Error>),
    #[error("cannot read {path}: {error}")]
    Process { path: String, error: io::Error },
    #[error("cannot ask Redis: {0}")]
    Redis(io::Error),
    #[error("{0} within {1} s")]
    Late(&'static str, u64),
}

impl From<tungstenite::Error> for BenchError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Broken(Box::new(error))
    }
}

/// Named figures, in order.
#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

#[derive(Debug)]
struct Figure {
    /// The key in JSON, with its unit last.
    key: String,
    /// The label in the table.
    name: String,
    value: f64,
}

impl Report {
    pub fn add(&mut self, key: &str, name: &str, value: f64) {
        let (key, name) = (key.to_owned(), name.to_owned());
        self.figures.push(Figure { key, name, value });
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
    pub fn count(&mut self, key: &str, name: &str, value: u64) {
        self.add(key, name, value as f64);
    }

    /// The median, the 99th percentile and the longest of some times.
    pub fn spread(&mut self, key: &str, name: &str, times: &mut Spread) {
        if let Some([median, p99, longest]) = times.millis_at([500, 990, 1_000]) {
            self.add(&format!("{key}_p50_ms"), &format!("{name}, median, ms"), median);
            self.add(&format!("{key}_p99_ms"), &format!("{name}, p99, ms"), p99);
            self.add(&format!("{key}_max_ms"), &format!("{name}, longest, ms"), longest);
        }
    }

    /// The cost of one `unit`, of which there were `count`, for the servers, Redis and this process, and the load of
    /// each.
    pub fn cost(&mut self, unit: &str, count: f64, before: &Used, after: &Used) {
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let mut cpu = |who: &str, name: &str, used_s: f64| {
            let each = format!("CPU of {name} a {unit}, µs");
            self.add(&format!("{who}_per_{unit}_us"), &each, used_s * 1e6 / count);
            let share = format!("CPU of {name}, % of a core");
            self.add(&format!("{who}_percent"), &share, used_s * 100.0 / seconds);
        };
        if after.cpu_s > 0.0 {
            cpu("cpu", "the servers", after.cpu_s - before.cpu_s);
        }
        cpu("own_cpu", "this generator", after.own_cpu_s - before.own_cpu_s);
        if let (Some(before), Some(after)) = (before.redis, after.redis) {
            cpu("redis_cpu", "Redis", after.cpu_s - before.cpu_s);
            self.redis(unit, count, before, after);
        }
        if after.memory_bytes > 0 {
            #[expect(clippy::cast_precision_loss, reason = "bytes of one measurement")]
            let mib = after.memory_bytes as f64 / f64::from(1 << 20);
            self.add("memory_mib", "memory of the servers at the end, MiB", mib);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
    fn redis(&mut self, unit: &str, count: f64, before: RedisUsed, after: RedisUsed) {
        let mut each = |key: String, name: &str, after: u64, before: u64| {
            let value = after.saturating_sub(before) as f64 / count;
            self.add(&key, &format!("{name} a {unit}"), value);
        };
        let key = |what: &str| format!("redis_{what}_per_{unit}");
        each(key("commands"), "Redis commands", after.commands, before.commands);
        each(key("publishes"), "publishes among them", after.publishes, before.publishes);
        each(key("scripts"), "scripts among them", after.scripts, before.scripts);
        let bytes = |what: &str| format!("{}_bytes", key(what));
        each(bytes("input"), "bytes into Redis", after.input_bytes, before.input_bytes);
        each(bytes("output"), "bytes out of Redis", after.output_bytes, before.output_bytes);
    }

    pub fn table(&self) -> String {
        let width = self.figures.iter().map(|figure| figure.name.chars().count()).max();
        let width = width.unwrap_or_default();
        let mut table = String::new();
        for Figure { name, value, .. } in &self.figures {
            let digits = if value.fract() == 0.0 { 0 } else { 2 };
            writeln!(table, "{name:width$}  {value:>12.digits$}").expect("a string takes all");
        }
        table
    }

    pub fn json(&self) -> String {
        let figures: Map<String, Value> =
            self.figures.iter().map(|figure| (figure.key.clone(), figure.value.into())).collect();
        format!("{}\n", Value::Object(figures))
    }
}
