//! The `switchboard` command.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::error::ErrorKind;
use switchboard::{
    app::{self, Process},
    auth::mint,
    bench,
    config::{self, Cli, Config, Task},
    doctor,
    ids::NodeId,
    logs::{self, Log},
    metrics, probe,
    time::Clock,
};
use tokio::runtime::Runtime;

/// The exit code of `migrate --plan` if something is pending.
const PENDING: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            // A failure to print cannot be reported.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", one_line(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The error alone, without the advice after the empty line.
fn one_line(report: &str) -> String {
    let what = report.split("\n\n").next().unwrap_or(report);
    what.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.task()? {
        Task::PrintConfig(config) => print(&config.to_toml()),
        Task::Serve(config) => serve(config),
        Task::Migrate(config) => migrate(config),
        Task::PlanMigration(config) => {
            let plan = runtime()?.block_on(app::plan(&config))?;
            print(&format!("{}: {plan}\n", config.database_url))?;
            Ok(if plan.is_pending() { ExitCode::from(PENDING) } else { ExitCode::SUCCESS })
        }
        Task::PrintDefaults => print(&config::defaults()),
        Task::Doctor(config, front) => {
            let findings = runtime()?.block_on(doctor::examine(config, front));
            print(&findings.to_string())?;
            Ok(if findings.are_wrong() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Task::Health(listen) => {
            let readiness = runtime()?.block_on(probe::ask(listen))?;
            print(&format!("{readiness}\n"))?;
            Ok(if readiness.is_ready() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Bench(what) => print(&runtime()?.block_on(bench::run(what))?),
        Task::MintToken(trust, wish) => {
            let token = mint(&trust, &wish, Clock::System.now())?;
            print(&format!("{token}\n"))
        }
    }
}

fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let node = NodeId::generate(Clock::System.now());
    let log = logs::start(&config.logs, node)?;
    let metrics = metrics::install().context("nothing can be counted")?;
    let process = Process { node, filter: log.filter.clone(), metrics };
    let ready = |address| log.say_ready(&format!("http://{address}/"));
    let served = || Ok(runtime()?.block_on(app::serve(config, process, ready))?);
    Ok(logged(&log, served()))
}

fn migrate(config: Config) -> anyhow::Result<ExitCode> {
    let log = logs::start(&config.logs, NodeId::generate(Clock::System.now()))?;
    let migrated = || {
        let report = runtime()?.block_on(app::migrate(&config))?;
        print(&format!("{report}\n"))?;
        Ok(())
    };
    Ok(logged(&log, migrated()))
}

/// How the process ends, once its log says why.
fn logged(log: &Log, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => {
            logs::flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            log.say_failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start worker threads")
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}
