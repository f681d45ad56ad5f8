//! The `switchboard` command.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, error::ErrorKind};
use switchboard::{
    app,
    auth::mint,
    bench,
    config::{Cli, Config, Task},
    time::Clock,
};
use tokio::runtime::Runtime;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            // There is nowhere to report that it could not be printed.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", one_line(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is wrong, without the advice that follows after an empty line.
fn one_line(report: &str) -> String {
    let what = report.split("\n\n").next().unwrap_or(report);
    what.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.task()? {
        Task::PrintConfig(config) => print(&config.to_toml()),
        Task::Serve(config) => serve(config),
        Task::Migrate(config) => migrate(config),
        Task::Bench(what) => print(&start()?.block_on(bench::run(what))?),
        Task::MintToken(trust, wish) => {
            let token = mint(&trust, &wish, Clock::System.now())?;
            print(&format!("{token}\n"))
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = start()?;
    let ready = |address| {
        // Whoever started the service may have closed its output: it serves all the same.
        let _ = print(&format!("switchboard is ready: open http://{address}/\n"));
    };
    Ok(runtime.block_on(app::serve(config, ready))?)
}

fn migrate(config: Config) -> anyhow::Result<()> {
    Ok(start()?.block_on(app::migrate(&config))?)
}

/// Begins to log, and answers what tasks run on.
fn start() -> anyhow::Result<Runtime> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env()
        .context("RUST_LOG cannot be read")?
        // It logs whole messages, and tokens are in them.
        .add_directive("tungstenite=info".parse().expect("it is a directive"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start worker threads")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
