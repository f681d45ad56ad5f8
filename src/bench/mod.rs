//! `switchboard bench`: load on any server that speaks the protocol, and its cost there.
//!
//! Own framing on bare websockets, and no JSON parsing of received messages: the generator must cost less than the
//! server.

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

/// The measurements.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Whole calls between pairs of clients: ring, offer, answer, candidates both ways, end
    Calls(Calls),
    /// Idle connections: memory and CPU time of each
    Idle(Idle),
    /// Users who connect and disconnect while others watch them
    Presence(Presence),
}

/// Options of all measurements.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Servers of the callers, such as `ws://127.0.0.1:3000`, used in turn
    #[arg(long = "url", value_name = "URLS", value_delimiter = ',', required = true)]
    urls: Vec<String>,
    /// Server processes whose CPU time and memory are measured
    #[arg(long = "pid", value_name = "PIDS", value_delimiter = ',')]
    pids: Vec<u32>,
    /// A Redis whose commands, bytes and CPU time are counted, as HOST:PORT
    #[arg(long = "redis", value_name = "ADDRESS")]
    redis: Option<String>,
    /// Prints JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Calls {
    #[command(flatten)]
    common: Common,
    /// Servers of the callees, used in turn: other nodes make every call cross-node [default: the same]
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    callee_url: Vec<String>,
    /// Number of pairs of clients, which bounds the concurrent calls
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pairs: u32,
    /// Calls per second, on schedule; without it each pair starts its next call when the last one has ended
    #[arg(long, value_name = "CALLS")]
    rate: Option<f64>,
    /// Duration of the measurement
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Duration of the warm-up before it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// ICE candidates of each side per call
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    candidates: u32,
}

#[derive(Debug, Args)]
pub struct Idle {
    #[command(flatten)]
    common: Common,
    /// Number of connections
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sockets: u32,
    /// Time to hold the connections before memory is read; more than 25 s includes the cost of a ping
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    hold: Duration,
}

#[derive(Debug, Args)]
pub struct Presence {
    #[command(flatten)]
    common: Common,
    /// Number of watching clients
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers: u32,
    /// Number of watched users
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    users: u32,
    /// Users that connect and disconnect per second
    #[arg(long, value_name = "USERS", default_value_t = 50.0)]
    rate: f64,
    /// Duration of the measurement
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
