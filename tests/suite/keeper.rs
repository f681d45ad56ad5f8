//! Tests of the schedule of history maintenance. The work itself is tested in `history.rs`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use switchboard::{
    health::Health,
    history::{Keeper, Period, Query, Row, Stats, Store, StoreError},
    ids::{CallId, NodeId, UserId},
    time::{Clock, Timestamp},
};

/// A store that counts its maintenance and its queries for calls without an end.
#[derive(Default)]
struct Counting {
    cannot_tidy: bool,
    cannot_open: bool,
    tidied: AtomicUsize,
    opened: AtomicUsize,
    /// How often calls were removed because of their age.
    removed: AtomicUsize,
    /// The time of the database's clock.
    now: Option<Timestamp>,
}

fn unless<T: Default>(cannot: bool) -> Result<T, StoreError> {
    if cannot { Err(sqlx::Error::RowNotFound.into()) } else { Ok(T::default()) }
}

#[async_trait]
impl Store for Counting {
    async fn open(&self, _: Timestamp, _: u32) -> Result<Vec<Row>, StoreError> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        unless(self.cannot_open)
    }

    async fn beat(&self, _: NodeId, _: Timestamp) -> Result<(), StoreError> {
        unreachable!("a keeper holds no calls")
    }

    async fn beats(&self) -> Result<HashMap<NodeId, Timestamp>, StoreError> {
        unreachable!("there is nothing to end")
    }

    async fn now(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.now)
    }

    async fn tidy(&self, _: Timestamp, keep_from: Option<Timestamp>) -> Result<(), StoreError> {
        self.removed.fetch_add(usize::from(keep_from.is_some()), Ordering::Relaxed);
        self.tidied.fetch_add(1, Ordering::Relaxed);
        unless(self.cannot_tidy)
    }

    async fn save(&self, _: &[Row]) -> Result<(), StoreError> {
        unreachable!("nothing is to be saved")
    }

    async fn list(&self, _: &Query) -> Result<Vec<Row>, StoreError> {
        unreachable!("a keeper lists nothing")
    }

    async fn get(&self, _: CallId, _: &UserId) -> Result<Option<Row>, StoreError> {
        unreachable!("a keeper gets nothing")
    }

    async fn stats(&self, _: &Period) -> Result<Stats, StoreError> {
        unreachable!("a keeper counts nothing")
    }

    async fn close(&self) {}
}

/// The numbers of maintenance runs and of queries for calls without an end in 59 minutes.
async fn in_an_hour(store: Counting, longest_call: Option<Duration>) -> (usize, usize) {
    let store = Arc::new(store);
    let keeper = Keeper {
        store: store.clone(),
        clock: Clock::System,
        retention: None,
        longest_call,
        health: Health::default(),
    };
    keeper.run(tokio::time::sleep(Duration::from_mins(59))).await;
    (store.tidied.load(Ordering::Relaxed), store.opened.load(Ordering::Relaxed))
}

const LONGEST: Option<Duration> = Some(Duration::from_hours(13));

#[tokio::test(start_paused = true)]
async fn each_duty_is_done_at_the_start_though_the_other_fails_and_then_calmly() {
    assert_eq!(in_an_hour(Counting::default(), LONGEST).await, (1, 1));
    let cannot_tidy = Counting { cannot_tidy: true, ..Counting::default() };
    assert_eq!(in_an_hour(cannot_tidy, LONGEST).await, (12, 12));
    let cannot_open = Counting { cannot_open: true, ..Counting::default() };
    assert_eq!(in_an_hour(cannot_open, LONGEST).await, (12, 12));
}

#[tokio::test(start_paused = true)]
async fn no_end_is_assumed_where_it_may_be_written_elsewhere() {
    assert_eq!(in_an_hour(Counting::default(), None).await, (1, 0));
}

/// The numbers of removals by age, of ends by age, and of partition checks in an hour, if the
/// cluster's clock and the database's clock are ahead of the machine's by these amounts.
async fn with_clocks(calls_ahead: Duration, database_ahead: Option<Duration>) -> [usize; 3] {
    let machine = Clock::System.now();
    let now = database_ahead.map(|ahead| machine + ahead);
    let store = Arc::new(Counting { now, ..Counting::default() });
    let clock =
        Clock::Tokio { origin: machine + calls_ahead, started: tokio::time::Instant::now() };
    let keeper = Keeper {
        store: store.clone(),
        clock,
        retention: Some(Duration::from_hours(30 * 24)),
        longest_call: LONGEST,
        health: Health::default(),
    };
    keeper.run(tokio::time::sleep(Duration::from_secs(1))).await;
    [&store.removed, &store.opened, &store.tidied].map(|count| count.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_by_its_age_while_the_clocks_differ_by_more_than_minutes() {
    let (none, year) = (Duration::ZERO, Duration::from_hours(400 * 24));
    assert_eq!(with_clocks(none, None).await, [1, 1, 1]);
    assert_eq!(with_clocks(Duration::from_mins(2), Some(none)).await, [1, 1, 1]);
    assert_eq!(with_clocks(year, None).await, [0, 0, 1]);
    assert_eq!(with_clocks(year, Some(none)).await, [0, 0, 1]);
    assert_eq!(with_clocks(year, Some(year)).await, [0, 0, 1]);
    assert_eq!(with_clocks(none, Some(year)).await, [0, 0, 1]);
}
