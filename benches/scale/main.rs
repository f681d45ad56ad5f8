//! `make bench-scale`: attacks beside measured calls, faults of a full node, and many nodes, on
//! real processes. Each part is bounded in time and ends all processes that it has started.
//!
//! | | |
//! |---|---|
//! | `processes.rs`, `proxy.rs` | nodes, Redis, Postgres; a proxy in front of them that delays, freezes or cuts connections |
//! | `socket.rs`, `innocents.rs` | clients; the measured calls |
//! | `attack.rs`, `overload.rs` | the attackers, in a process of their own; their effect on the measured calls |
//! | `crowd.rs`, `recovery.rs` | tens of thousands of sockets, in processes of their own; faults and the time to recover |
//! | `fleet.rs`, `presence.rs` | the cost of many nodes for Redis; the cost of contacts |
//! | `table.rs` | results, and docs/operations/scale.md |
//!
//! Environment: `ONLY` (`overload`, `recovery`, `nodes`, `marks`, `presence`), `ATTACK` and `FAULT`
//! (a part of a name), `SECONDS` of an attack, `SOCKETS`, `WATCHES`, `POSTGRES_SECONDS`,
//! `MARK_NODES`, `BIN` (the build), `BUILD` (its name), `PAGE` and `BEFORE` (files).

mod attack;
mod crowd;
mod fleet;
mod innocents;
mod overload;
#[expect(dead_code, reason = "what only tests need of it")]
#[path = "../../tests/suite/postgres_server.rs"]
mod postgres_server;
mod presence;
mod processes;
mod proxy;
mod recovery;
#[expect(dead_code, reason = "what only tests need of it")]
#[path = "../../tests/suite/redis_server.rs"]
mod redis_server;
mod socket;
mod table;

use anyhow::Result;
use table::Results;

const TABLES: [(&str, &str); 5] = [
    (overload::TABLE, "Attacks beside calls, with default limits"),
    (recovery::TABLE, "A full node, and what happens to it"),
    (fleet::NODES, "Nodes that idle, each with a call with every other one"),
    (fleet::MARKS, "A user's second socket comes and goes"),
    (presence::TABLE, "What contacts cost"),
];

fn names(table: &str) -> Vec<String> {
    match table {
        overload::TABLE => overload::names(),
        recovery::TABLE => recovery::names(),
        presence::TABLE => presence::names(),
        _ => fleet::names(table),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((mode, rest)) if mode == "attack" => attack::run(rest).await,
        Some((mode, rest)) if mode == "crowd" => crowd::run(rest).await,
        // cargo passes `--bench`.
        _ => measure().await,
    }
}

async fn measure() -> Result<()> {
    let mut results = Results::open();
    let only = std::env::var("ONLY").unwrap_or_default();
    let attack = std::env::var("ATTACK").unwrap_or_default();
    let is_wanted = |table: &str| only.is_empty() || only.split(',').any(|name| name == table);
    for (table, title) in TABLES {
        if !is_wanted(table) {
            continue;
        }
        eprintln!("{title}");
        match table {
            overload::TABLE => overload::run(&mut results, &attack).await?,
            recovery::TABLE => recovery::run(&mut results).await?,
            presence::TABLE => presence::run(&mut results).await?,
            fleet::NODES => fleet::idle(&mut results).await?,
            _ => fleet::marks(&mut results).await?,
        }
    }
    results.publish(&TABLES, names)
}
