//! switchboard: signaling for 1:1 WebRTC calls.

pub mod app;
pub mod call;
pub mod calls;
pub mod cluster;
pub mod config;
pub mod gateway;
pub mod history;
pub mod http;
pub mod ids;
pub mod payload;
pub mod protocol;
pub mod shutdown;
pub mod time;
