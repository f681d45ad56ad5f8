//! When the keeper does its duties. What it does is in `history.rs`.

use std::{
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
    ids::{CallId, UserId},
    time::{Clock, Timestamp},
};

/// A store that counts how often it is tidied and asked for calls without an end.
#[derive(Default)]
struct Counting {
    cannot_tidy: bool,
    cannot_open: bool,
    tidied: AtomicUsize,
    opened: AtomicUsize,
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

    async fn tidy(&self, _: Timestamp, _: Option<Timestamp>) -> Result<(), StoreError> {
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

/// How often a keeper tidies and looks for calls without an end in 59 minutes.
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
