//! switchboard: a signaling server for 1:1 WebRTC calls over Socket.IO.
//!
//! # One event, end to end
//!
//! ```text
//!  client ── websocket or polling ──► gateway ──► calls ──► call        the rules: pure
//!                                        ▲          │  └──► cluster     the records: compare, write
//!                                        └─ effects ┤
//!                                                   └─────► history     the rows, written behind
//! ```
//!
//! 1. [`gateway`] takes the event on the task that reads the socket, puts it into the socket's
//!    bounded inbox, and decodes it in its turn ([`protocol::ClientEvent`]). Relayed payloads stay
//!    JSON text ([`payload::Payload`]).
//! 2. [`calls`] finds the call and lets [`call`] decide: a transition ([`call::Rules::apply`]), a new
//!    call ([`call::Rules::place`]) or a message to relay ([`call::Call::route`]).
//! 3. A transition is committed to the [`cluster`]: written if the record's version is unchanged.
//!    On a conflict, the event is decided again on the newer record.
//! 4. The notifications of local sockets are derived from the two versions alone ([`call::notifications`]),
//!    and sent in order, under the call's mutex.
//! 5. The row goes to [`history`], which signaling never waits for.
//!
//! Deadlines (ring time-out, grace period, longest duration) are part of the record; a sweeper in
//! [`calls`] handles the ones that have passed.
//!
//! # Invariants
//!
//! 1. A user has at most one live call.
//! 2. A call has exactly one end, with one reason; its version never goes back.
//! 3. Every socket that got `call:incoming` later gets exactly one of: the call connected here, or
//!    `call:ended`, or its own reject or busy acknowledged.
//! 4. No live call outlives its deadline by more than two sweeps.
//! 5. Every ended call is in history exactly once, with its true end.
//! 6. Messages of one socket about a call arrive in order, at most once.
//! 7. Messages and notifications of a call go to its parties only.
//!
//! `call/properties.rs` checks the rules' part of 1 to 5 and 7 over random interleavings, `tests/sim`
//! all of them on simulated clusters, the other suites in `tests/` on real ones.
//!
//! # To add an event
//!
//! 1. Add a variant with its fields in `protocol/client.rs`, describe it in `protocol/catalogue.rs`,
//!    and add an example in `tests/suite/catalogue.rs`.
//! 2. If it changes calls, add a variant in `call/transition.rs`. The match there has no catch-all:
//!    the compiler demands an arm for each state, and a test a line for each in `call/table.txt`.
//! 3. If others must be notified, derive that in `call/notification.rs` and name the event in
//!    `protocol/server.rs`.
//! 4. Dispatch it in `gateway/session.rs`. The compiler demands an arm in `gateway/decode.rs` (the
//!    call that it refers to), `gateway/expiry.rs` (whether it works without a valid token) and
//!    `fuzz.rs`, too. New fields of its ack go into `protocol/answer.rs`.
//! 5. Add its name to the labels in `metrics.rs` (`Received` or `Sent`), and a valid payload to
//!    `tests/suite/protocol.rs`.
//! 6. Run `make types`, and add it to `docs/reference/protocol.md`.
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
pub mod doctor;
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
pub mod probe;
pub mod protocol;
pub mod redact;
pub mod secret;
pub mod shutdown;
pub mod telemetry;
pub mod time;
pub mod trace;
