//! Tests of the parts through their public face. Clients and browsers are in the folders beside
//! this one.

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
