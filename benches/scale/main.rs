//! `make bench-scale`: attacks beside calls, a full node in trouble, and many nodes, on real processes.
//! Each part is bounded in time; all that it starts ends with it.
//!
//! | | |
//! |---|---|
//! | `processes.rs`, `proxy.rs` | nodes, Redis, Postgres; a way to them that delays, stands still, or cuts |
//! | `socket.rs`, `innocents.rs` | clients; calls at a steady rate, and calls that last |
//! | `attack.rs`, `overload.rs` | who attacks, a process of its own; what that does to the calls |
//! | `crowd.rs`, `recovery.rs` | tens of thousands of sockets, in processes of their own; faults, and how long they last |
//! | `fleet.rs`, `presence.rs` | what many nodes cost Redis; what contacts cost |
//! | `table.rs` | results, and docs/operations/scale.md |
//!
//! The environment: `ONLY` (`overload`, `recovery`, `nodes`, `marks`, `presence`), `ATTACK` and `FAULT` (a part of a
//! name), `SECONDS` an attack lasts, `SOCKETS`, `WATCHES`, `POSTGRES_SECONDS`, `MARK_NODES`, `BIN` (the
//! build), `BUILD` (its name), `PAGE` and `BEFORE` (files).

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
        // cargo says `--bench`.
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
