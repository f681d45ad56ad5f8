//! What was measured, for people and for programs.

use std::{fmt::Write as _, io};

use serde_json::{Map, Value};
use tokio_tungstenite::tungstenite;

use super::{
    sample::{RedisUsed, Used},
    spread::Spread,
};

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot connect to {url}: {error}")]
    Connect { url: String, error: String },
    #[error("the server closed a connection")]
    Closed,
    #[error("the server refused: {0}")]
    Refused(String),
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
    /// A key for programs, with its unit last.
    key: String,
    /// What it is, for people.
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

    /// What `unit` of something, of which there were `count`, cost the servers, Redis, and this
    /// process.
    #[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
    pub fn cost(&mut self, unit: &str, count: f64, before: &Used, after: &Used) {
        let each_us = |seconds: f64| seconds * 1e6 / count;
        let key = |what: &str| format!("{what}_per_{unit}");
        if after.cpu_s > 0.0 {
            let cpu_us = each_us(after.cpu_s - before.cpu_s);
            self.add(
                &format!("{}_us", key("cpu")),
                &format!("CPU of the servers a {unit}, µs"),
                cpu_us,
            );
        }
        let own_us = each_us(after.own_cpu_s - before.own_cpu_s);
        self.add(
            &format!("{}_us", key("own_cpu")),
            &format!("CPU of this generator a {unit}, µs"),
            own_us,
        );
        if let (Some(before), Some(after)) = (before.redis, after.redis) {
            let RedisUsed { commands, input_bytes, output_bytes, cpu_s } = after;
            let each = |value: u64, before: u64| value.saturating_sub(before) as f64 / count;
            self.add(
                &key("redis_commands"),
                &format!("Redis commands a {unit}"),
                each(commands, before.commands),
            );
            self.add(
                &format!("{}_bytes", key("redis_input")),
                &format!("bytes into Redis a {unit}"),
                each(input_bytes, before.input_bytes),
            );
            self.add(
                &format!("{}_bytes", key("redis_output")),
                &format!("bytes out of Redis a {unit}"),
                each(output_bytes, before.output_bytes),
            );
            self.add(
                &format!("{}_us", key("redis_cpu")),
                &format!("CPU of Redis a {unit}, µs"),
                each_us(cpu_s - before.cpu_s),
            );
        }
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
