//! `switchboard bench`: load on any server that speaks the protocol, and what it costs that server.
//!
//! Own framing on bare websockets, no JSON is parsed on the way in: the generator must cost less than
//! what it measures.

mod calls;
pub mod client;
mod idle;
mod presence;
mod report;
pub mod sample;
pub mod spread;

use std::time::Duration;

use clap::{Args, Subcommand};

pub use report::BenchError;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Whole calls between pairs of clients: ring, offer, answer, candidates both ways, end
    Calls(Calls),
    /// Connections that do nothing: memory and CPU time for each
    Idle(Idle),
    /// Users who come and go before those who watch them
    Presence(Presence),
}

/// What all measurements have in common.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Servers for the callers, such as `ws://127.0.0.1:3000`, taken in turn
    #[arg(long = "url", value_name = "URLS", value_delimiter = ',', required = true)]
    urls: Vec<String>,
    /// Processes whose CPU time and memory are measured: the servers
    #[arg(long = "pid", value_name = "PIDS", value_delimiter = ',')]
    pids: Vec<u32>,
    /// A Redis whose commands, bytes and CPU time are counted, as HOST:PORT
    #[arg(long = "redis", value_name = "ADDRESS")]
    redis: Option<String>,
    /// Prints JSON instead of a table at the end
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Calls {
    #[command(flatten)]
    common: Common,
    /// Servers for the callees, taken in turn: other nodes make every call cross [default: the same]
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    callee_url: Vec<String>,
    /// How many pairs of clients there are: so many calls at once at the most
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pairs: u32,
    /// Calls to begin in a second, whether earlier ones have ended or not; without it each pair begins
    /// its next call when the last one has ended
    #[arg(long, value_name = "CALLS")]
    rate: Option<f64>,
    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to run before the measurement begins
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// ICE candidates that each side sends in a call
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    candidates: u32,
}

#[derive(Debug, Args)]
pub struct Idle {
    #[command(flatten)]
    common: Common,
    /// How many connections
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sockets: u32,
    /// How long to hold them before memory is measured, and what they cost meanwhile: more than the
    /// 25 s between two pings tells what these cost
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    hold: Duration,
}

#[derive(Debug, Args)]
pub struct Presence {
    #[command(flatten)]
    common: Common,
    /// How many clients watch
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers: u32,
    /// How many users come and go, watched by each
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    users: u32,
    /// How many users come and go in a second
    #[arg(long, value_name = "USERS", default_value_t = 50.0)]
    rate: f64,
    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
}

/// Measures and prints the result.
pub async fn run(bench: Bench) -> Result<String, BenchError> {
    let (report, json) = match bench {
        Bench::Calls(options) => {
            let json = options.common.json;
            (calls::run(options).await?, json)
        }
        Bench::Idle(options) => {
            let json = options.common.json;
            (idle::run(options).await?, json)
        }
        Bench::Presence(options) => {
            let json = options.common.json;
            (presence::run(options).await?, json)
        }
    };
    Ok(if json { report.json() } else { report.table() })
}
