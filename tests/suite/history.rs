//! What every store of call history must do, and the writer in front of it.

use std::{sync::Arc, time::Duration};

use switchboard::{
    call::{CallType, EndReason, Status},
    history::{Place, Query, Row, Sqlite, Store, close_orphans},
    ids::{CallId, UserId},
    time::Timestamp,
};

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A store in a folder of its own, which goes with it.
struct Opened {
    store: Arc<dyn Store>,
    _folder: tempfile::TempDir,
}

async fn stores() -> Vec<Opened> {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("history.db").display());
    vec![Opened { store: Arc::new(Sqlite::open(&url).await.unwrap()), _folder: folder }]
}

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    START + Duration::from_secs(seconds)
}

/// A call that rang at `seconds` and was missed.
fn missed(caller: &str, receiver: &str, seconds: u64) -> Row {
    Row {
        id: CallId::generate(at(seconds)),
        caller: user(caller),
        receiver: user(receiver),
        call_type: CallType::Audio,
        status: Status::Missed,
        end_reason: Some(EndReason::NoAnswer),
        duration_s: None,
        started_at: None,
        ended_at: Some(at(seconds + 30)),
        created_at: at(seconds),
        updated_at: at(seconds + 30),
        version: 2,
    }
}

fn answered(caller: &str, receiver: &str, seconds: u64) -> Row {
    Row {
        call_type: CallType::Video,
        status: Status::Answered,
        end_reason: None,
        started_at: Some(at(seconds + 2)),
        ended_at: None,
        updated_at: at(seconds + 2),
        ..missed(caller, receiver, seconds)
    }
}

fn all_of(name: &str) -> Query {
    Query {
        user: user(name),
        with: None,
        status: None,
        call_type: None,
        since: None,
        until: None,
        after: None,
        limit: 100,
    }
}

async fn ids(store: &dyn Store, query: &Query) -> Vec<CallId> {
    store.list(query).await.unwrap().into_iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn rows_come_back_as_they_were_saved() {
    for opened in stores().await {
        let rows = [answered("anna", "ben", 1), missed("名前", "ben", 0)];
        opened.store.save(&rows).await.unwrap();
        assert_eq!(opened.store.list(&all_of("ben")).await.unwrap(), rows);
        assert_eq!(
            opened.store.get(rows[0].id, &user("anna")).await.unwrap(),
            Some(rows[0].clone())
        );
    }
}

#[tokio::test]
async fn the_newer_version_stays_in_whatever_order_they_come() {
    for opened in stores().await {
        let old = answered("anna", "ben", 0);
        let new = Row {
            version: 3,
            status: Status::Ended,
            end_reason: Some(EndReason::Completed),
            ended_at: Some(at(9)),
            duration_s: Some(7),
            ..old.clone()
        };
        for rows in [[&old, &new], [&new, &old], [&new, &new]] {
            for row in rows {
                opened.store.save(std::slice::from_ref(row)).await.unwrap();
            }
            let found = opened.store.list(&all_of("anna")).await.unwrap();
            assert_eq!(found.first(), Some(&new));
            assert_eq!(found.len(), 1);
        }
    }
}

#[tokio::test]
async fn nonsense_is_refused_and_takes_its_whole_batch_along() {
    for opened in stores().await {
        let good = missed("anna", "ben", 0);
        let own_call = missed("anna", "anna", 1);
        let no_end = Row { ended_at: None, ..missed("anna", "ben", 2) };
        for bad in [own_call, no_end] {
            opened.store.save(&[good.clone(), bad]).await.unwrap_err();
            assert_eq!(opened.store.list(&all_of("anna")).await.unwrap(), []);
        }
    }
}

#[tokio::test]
async fn a_user_sees_own_calls_newest_first_and_no_others() {
    for opened in stores().await {
        let made = missed("anna", "ben", 1);
        let got = missed("ben", "anna", 2);
        let other = missed("ben", "carl", 3);
        opened.store.save(&[made.clone(), other.clone(), got.clone()]).await.unwrap();
        assert_eq!(ids(&*opened.store, &all_of("anna")).await, [got.id, made.id]);
        assert_eq!(opened.store.get(other.id, &user("anna")).await.unwrap(), None);
        assert_eq!(ids(&*opened.store, &all_of("nobody")).await, []);
    }
}

#[tokio::test]
async fn each_filter_leaves_what_fits() {
    for opened in stores().await {
        let rows =
            [missed("anna", "ben", 0), answered("anna", "carl", 10), missed("carl", "anna", 20)];
        opened.store.save(&rows).await.unwrap();
        let cases = [
            (Query { with: Some(user("carl")), ..all_of("anna") }, vec![2, 1]),
            (Query { status: Some(Status::Missed), ..all_of("anna") }, vec![2, 0]),
            (Query { call_type: Some(CallType::Video), ..all_of("anna") }, vec![1]),
            (Query { since: Some(at(10)), ..all_of("anna") }, vec![2, 1]),
            (Query { until: Some(at(10)), ..all_of("anna") }, vec![0]),
            (Query { limit: 1, ..all_of("anna") }, vec![2]),
        ];
        for (query, expected) in cases {
            let expected: Vec<_> =
                expected.into_iter().map(|index: usize| rows[index].id).collect();
            assert_eq!(ids(&*opened.store, &query).await, expected, "{query:?}");
        }
    }
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat_while_rows_arrive() {
    for opened in stores().await {
        // Several calls in the same millisecond, made and got.
        let rows: Vec<_> = (0..20)
            .map(|n| {
                if n % 2 == 0 { missed("anna", "ben", n / 4) } else { missed("ben", "anna", n / 4) }
            })
            .collect();
        opened.store.save(&rows).await.unwrap();
        let mut seen = Vec::new();
        let mut after: Option<Place> = None;
        for page in 0.. {
            let query = Query { after, limit: 3, ..all_of("anna") };
            let found = opened.store.list(&query).await.unwrap();
            let Some(last) = found.last() else { break };
            after = Some(last.place());
            seen.extend(found.into_iter().map(|row| row.id));
            opened.store.save(&[missed("anna", "ben", 100 + page)]).await.unwrap();
        }
        let mut expected = rows;
        expected.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.id.to_string())));
        assert_eq!(seen, expected.into_iter().map(|row| row.id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_file_serves_one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("history.db").display());
    let first = Sqlite::open(&url).await.unwrap();
    let second = Sqlite::open(&url).await.unwrap_err();
    assert_eq!(second.to_string(), "another switchboard uses this file");
    drop(first);
    Sqlite::open(&url).await.unwrap();
}

#[tokio::test]
async fn calls_that_a_dead_process_left_open_are_closed() {
    for opened in stores().await {
        let ringing = Row {
            status: Status::Pending,
            end_reason: None,
            ended_at: None,
            updated_at: at(0),
            version: 1,
            ..missed("anna", "ben", 0)
        };
        let active = answered("anna", "carl", 5);
        let over = missed("anna", "ben", 9);
        opened.store.save(&[ringing.clone(), active.clone(), over.clone()]).await.unwrap();
        close_orphans(&*opened.store).await.unwrap();
        let rows = opened.store.list(&all_of("anna")).await.unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.id, row.status, row.end_reason)).collect();
        let lost = Some(EndReason::ConnectionLost);
        assert_eq!(
            told,
            [
                (over.id, Status::Missed, Some(EndReason::NoAnswer)),
                (active.id, Status::Ended, lost),
                (ringing.id, Status::Missed, lost),
            ]
        );
        assert_eq!(rows[1].duration_s, Some(0));
        assert_eq!(rows[2].duration_s, None);
    }
}
