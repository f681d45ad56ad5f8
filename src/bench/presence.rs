//! Users who connect and disconnect, and how soon their watchers are notified.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{
    Presence,
    client::{Client, event_name},
    report::{BenchError, Report},
    sample::Used,
    spread::Spread,
};

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on the delay of the last notification.
const LAST_NEWS: Duration = Duration::from_secs(2);

/// The last scheduled connection of each user.
type Coming = Arc<Mutex<HashMap<String, Instant>>>;

pub async fn run(options: Presence) -> Result<Report, BenchError> {
    let url = |number: u32| {
        let urls = &options.common.urls;
        urls[number as usize % urls.len()].clone()
    };
    let name = |number: u32| format!("bench-{}-{number}", std::process::id());
    let users: Vec<String> = (0..options.users).map(name).collect();
    let coming = Coming::default();
    let mut watching = JoinSet::new();
    for number in 0..options.watchers {
        let watcher = format!("bench-{}-watcher-{number}", std::process::id());
        let mut client = Client::connect(&url(number), &watcher).await?;
        let ids = users.iter().map(|user| format!(r#""{user}""#)).collect::<Vec<_>>().join(",");
        client.send(format!(r#"421["presence:subscribe",{{"userIds":[{ids}]}}]"#)).await?;
        let subscribed = async {
            while !client.packet().await?.starts_with("431") {}
            Ok::<(), BenchError>(())
        };
        tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribed).await.map_err(|_| {
            BenchError::Late("no answer to presence:subscribe", SUBSCRIBE_TIMEOUT.as_secs())
        })??;
        watching.spawn(watch(client, coming.clone(), options.duration + LAST_NEWS));
    }

    let before = Used::now(&options.common).await?;
    let began = Instant::now();
    let (mut changes, mut said_s) = (0_u32, 0);
    let mut visits = JoinSet::new();
    while began.elapsed() < options.duration {
        let at = began + Duration::from_secs_f64(f64::from(changes) / options.rate.max(0.001));
        tokio::time::sleep_until(at.into()).await;
        let user = users[changes as usize % users.len()].clone();
        coming.lock().insert(user.clone(), at);
        // Not on the server of most of its watchers.
        visits.spawn(visit(url(changes + 1), user));
        changes += 1;
        while let Some(visit) = visits.try_join_next() {
            visit.unwrap_or(Ok(()))?;
        }
        if began.elapsed().as_secs() > said_s {
            said_s = began.elapsed().as_secs();
            eprintln!("{changes} users came and went");
        }
    }
    while let Some(visit) = visits.join_next().await {
        visit.unwrap_or(Ok(()))?;
    }
    let after = Used::now(&options.common).await?;
    let mut delays = Spread::default();
    while let Some(watched) = watching.join_next().await {
        if let Ok(watched) = watched {
            delays.merge(watched?);
        }
    }
    let mut report = Report::default();
    report.count("changes", "users who came and went", u64::from(changes));
    report.count("news", "news that they came", delays.count() as u64);
    let expected = u64::from(changes) * u64::from(options.watchers);
    report.count("news_expected", "news expected", expected);
    report.spread("news", "when the user should have come to news", &mut delays);
    report.cost("change", f64::from(changes).max(1.0), &before, &after);
    Ok(report)
}

/// Connects and disconnects.
async fn visit(url: String, user: String) -> Result<(), BenchError> {
    Client::connect(&url, &user).await?.close().await
}

/// Records the delay from a user's scheduled connection to this client's notification.
async fn watch(mut client: Client, coming: Coming, time: Duration) -> Result<Spread, BenchError> {
    let mut delays = Spread::default();
    let until = tokio::time::Instant::now() + time;
    while let Ok(packet) = tokio::time::timeout_at(until, client.packet()).await {
        let packet = packet?;
        if event_name(&packet) != Some("presence:update") || !packet.contains(r#""online""#) {
            continue;
        }
        let user = packet.split_once(r#""userId":""#).and_then(|(_, rest)| rest.split('"').next());
        let coming = coming.lock();
        if let Some(began) = user.and_then(|user| coming.get(user)) {
            delays.add(began.elapsed());
        }
    }
    Ok(delays)
}
