//! The database of the call history: reachability, schema, partitions, latency, clock.

use std::time::Duration;

use super::{Finding, compare_clock};
use crate::{
    config::{Config, is_postgres},
    history::{Examined, OpenError, Plan, Postgres, Sqlite},
    secret::ServiceUrl,
    time::Clock,
};

const PART: &str = "history";
/// The oldest supported version of Postgres, as `server_version_num`.
const MIN_VERSION: i64 = 140_000;
/// Duration of a transaction beyond which readers of the history wait noticeably.
const MAX_LATENCY: Duration = Duration::from_millis(100);

pub async fn check(config: &Config) -> Vec<Finding> {
    let url = &config.database_url;
    if is_postgres(url) { postgres(url).await } else { sqlite(config).await }
}

async fn sqlite(config: &Config) -> Vec<Finding> {
    let url = &config.database_url;
    let file = match Sqlite::plan(url.expose()).await {
        Ok(plan) => {
            let what = match plan.version() {
                Some(version) => format!("{url} has the schema {version}"),
                None => format!("{url} is empty"),
            };
            let pending = match plan.pending() {
                0 => String::new(),
                pending => format!("; {pending} migrations are applied at the start"),
            };
            Finding::fine(PART, what + &pending)
        }
        Err(error) => {
            let fix = "let SWITCHBOARD_DATABASE_URL name a file that this user may read and write";
            Finding::wrong(PART, format!("{url}: {error}"), fix)
        }
    };
    let partial = config.redis_url.is_some().then(|| {
        let what = "history is kept in SQLite, so each node has a part of it only";
        Finding::doubtful(PART, what, "set SWITCHBOARD_DATABASE_URL to a Postgres")
    });
    [file].into_iter().chain(partial).collect()
}

async fn postgres(url: &ServiceUrl) -> Vec<Finding> {
    let before = Clock::System.now();
    match Postgres::examine(url.expose(), before).await {
        Ok(examined) => {
            // The clock was read in the last transaction.
            let before = Clock::System.now() - examined.took;
            findings(&examined, compare_clock(PART, examined.now, before))
        }
        Err(error) => {
            let fix = match error {
                OpenError::Unreachable(_) => {
                    "see that Postgres runs, and that this machine may reach the address in SWITCHBOARD_DATABASE_URL"
                }
                _ => "compare SWITCHBOARD_DATABASE_URL with docs/guides/postgres.md",
            };
            vec![Finding::wrong(PART, format!("{url}: {error}"), fix)]
        }
    }
}

fn findings(examined: &Examined, clock: Finding) -> Vec<Finding> {
    let Examined { plan, version: (version, number), is_standby, took, .. } = examined;
    let version = if *number < MIN_VERSION {
        Finding::wrong(PART, format!("Postgres {version}"), "upgrade to 14 or later")
    } else {
        Finding::fine(PART, format!("Postgres {version}"))
    };
    let standby = is_standby.then(|| {
        let fix = "let SWITCHBOARD_DATABASE_URL name the primary";
        Finding::wrong(PART, "it is a standby, which takes no rows", fix)
    });
    let what = format!("a transaction takes {took:.1?}");
    let latency = if *took <= MAX_LATENCY {
        Finding::fine(PART, what)
    } else {
        Finding::doubtful(
            PART,
            what,
            "readers wait for several: see to the network and the load of Postgres",
        )
    };
    let known = [version, schema(plan), latency, clock].into_iter().chain(standby);
    known.chain(partitions(plan)).collect()
}

fn schema(plan: &Plan) -> Finding {
    match (plan.version(), plan.pending()) {
        (Some(version), 0) => Finding::fine(PART, format!("the schema is at version {version}")),
        (Some(version), pending) => Finding::wrong(
            PART,
            format!("the schema is at version {version}, {pending} migrations behind this build"),
            "run `switchboard migrate`",
        ),
        (None, _) => Finding::wrong(PART, "there is no schema", "run `switchboard migrate`"),
    }
}

fn partitions(plan: &Plan) -> Vec<Finding> {
    let missing = plan.partitions().iter().map(|partition| {
        let name = &partition.name;
        if partition.is_taken {
            let what = format!("the table {name} is not a partition of calls");
            Finding::wrong(
                PART,
                what,
                "attach it again, or rename it: rows of that month are refused",
            )
        } else if partition.may_be_made {
            Finding::fine(PART, format!("the partition {name} will be made by the nodes"))
        } else {
            let what = format!("the partition {name} is missing, and this user may not create it");
            Finding::wrong(
                PART,
                what,
                "GRANT CREATE ON SCHEMA to the user of SWITCHBOARD_DATABASE_URL",
            )
        }
    });
    let mut missing: Vec<_> = missing.collect();
    if missing.is_empty() && plan.version().is_some() {
        missing.push(Finding::fine(PART, "the partitions of the coming months are there"));
    }
    missing
}
