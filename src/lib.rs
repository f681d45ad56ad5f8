//! switchboard: signaling for 1:1 WebRTC calls, spoken over Socket.IO.
//!
//! # One event, end to end
//!
//! ```text
//!  client ── websocket or polling ──► gateway ──► calls ──► call        the rules: pure
//!                                        ▲          │  └──► cluster     the records: compare, write
//!                                        └── news ──┤
//!                                                   └─────► history     the rows, written behind
//! ```
//!
//! 1. [`gateway`] takes the event on the task that reads the socket, puts it into the socket's
//!    bounded inbox, and decodes it in its turn ([`protocol::ClientEvent`]). What is only passed on
//!    stays JSON text ([`payload::Payload`]).
//! 2. [`calls`] finds the call and asks [`call`] what the event means: a transition
//!    ([`call::Rules::apply`]), a new call ([`call::Rules::place`]) or a message to pass on
//!    ([`call::Call::route`]).
//! 3. A transition is committed to the [`cluster`]: written if the record's version is unchanged.
//!    If somebody was faster, it is decided again on the newer record.
//! 4. What the new version means for each local socket follows from the two versions alone
//!    ([`call::news`]) and is told in order, under the call's own lock.
//! 5. The row goes to [`history`], which signaling never waits for.
//!
//! Deadlines (ring time-out, grace, longest call) are part of the record; a sweeper in [`calls`]
//! attends to those that have passed.
//!
//! # Invariants
//!
//! 1. A user has at most one live call.
//! 2. A call has exactly one end, with one reason; its version never goes back.
//! 3. Every socket that got `call:incoming` later gets exactly one of: the call connected here, or
//!    `call:ended`, or its own reject or busy acknowledged.
//! 4. No live call outlives its deadline by more than two sweeps.
//! 5. Every ended call is in history exactly once, with its true end.
//! 6. What one socket sends about a call arrives in that order, at most once.
//! 7. Nobody gets a message of a call that they are not in.
//!
//! `call/properties.rs` checks the rules' part of 1 to 5 and 7 over random interleavings, `tests/sim`
//! all of them over whole clusters that are simulated, the other suites in `tests/` on real ones.
//!
//! # To add an event
//!
//! 1. Give it a variant and its fields in `protocol/client.rs`, and describe it in
//!    `protocol/catalogue.rs`; `tests/suite/` wants a good example of it.
//! 2. If it changes calls, give it a variant in `call/transition.rs`. The match there has no
//!    catch-all: the compiler asks what the event means in each state, and `call/table.txt` wants a
//!    line for each.
//! 3. If somebody must hear of it, derive that in `call/news.rs` and name it in
//!    `protocol/server.rs`.
//! 4. Dispatch it in `gateway/session.rs`.
//!
//! `/asyncapi.json` follows from 1 and 3; `make types` writes `web/protocol.d.ts` from it.

pub mod app;
pub mod auth;
pub mod authorize;
pub mod bench;
pub mod call;
pub mod calls;
pub mod cluster;
pub mod config;
pub mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gateway;
pub mod health;
pub mod history;
pub mod http;
pub mod ice;
pub mod ids;
pub mod limits;
pub mod logs;
pub mod metrics;
pub mod payload;
pub mod protocol;
pub mod redact;
pub mod secret;
pub mod shutdown;
pub mod telemetry;
pub mod time;
pub mod trace;
