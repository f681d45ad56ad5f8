//! What is written to the log, and how much of it.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter, Registry,
    filter::{FromEnvError, LevelFilter, ParseError},
    fmt,
    prelude::*,
    reload::{self, Handle},
};

/// The filter in force. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Filter(Handle<EnvFilter, Registry>);

/// Why a filter is not taken. Displays as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum BadFilter {
    #[error("expected directives as in RUST_LOG, such as info,switchboard=debug: {0}")]
    Malformed(#[from] ParseError),
    #[error("expected directives as in RUST_LOG, such as info,switchboard=debug")]
    Empty,
    #[error("the log is closed")]
    Closed,
}

/// Begins to log to stderr. `RUST_LOG` says what, until somebody changes it.
pub fn start() -> Result<Filter, FromEnvError> {
    let (filter, handle) = reload::Layer::new(builder().from_env()?);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(Filter(handle))
}

fn builder() -> tracing_subscriber::filter::Builder {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into())
}

impl Filter {
    /// The directives in force.
    pub fn directives(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Logs what these directives say from now on.
    pub fn set(&self, directives: &str) -> Result<(), BadFilter> {
        if directives.is_empty() {
            return Err(BadFilter::Empty);
        }
        let filter = builder().parse(directives)?;
        self.0.reload(filter).map_err(|_| BadFilter::Closed)
    }
}
