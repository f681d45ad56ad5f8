//! Tests of the parts through their public interface, without clients and browsers, which the
//! folders beside this one cover. Each module tests one part; `harness.rs`, `redis_server.rs` and
//! `postgres_server.rs` provide what they run on.

mod auth;
mod calls;
mod catalogue;
mod cluster;
mod dependencies;
mod harness;
mod history;
mod keeper;
mod key_set;
mod layers;
mod logs;
mod messages;
mod metrics;
mod moves;
mod postgres;
mod postgres_server;
mod protocol;
mod recovery;
mod redis_server;
mod settings;
mod tokens;
mod unanswered;
