//! Tests that every history store must pass, and tests of the writer in front of it.

use std::{sync::Arc, time::Duration};

use switchboard::{
    call::{
        Attempt, Call, CallType, Cause, Device, EndReason, Lobby, Placement, Role, State, Status,
        Step, What,
    },
    cluster::Hub,
    health::Health,
    history::{
        self, Backlog, MAX_BACKLOG_ROWS, Percentiles, Period, Place, Postgres, Query, Refused, Row,
        Sqlite, Stats, Store, Tally, close_orphans,
    },
    ids::{CallId, NodeId, UserId},
    time::Timestamp,
};

use tokio::time::Instant;

use crate::{harness::RULES, postgres_server::Database};

const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// A store and the database that it needs.
struct Opened {
    store: Arc<dyn Store>,
    _folder: Option<tempfile::TempDir>,
    _database: Option<Database>,
}

/// An empty store of each kind.
async fn stores() -> [Opened; 2] {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("history.db").display());
    let sqlite = Arc::new(Sqlite::open(&url).await.unwrap());
    let (postgres, database) = postgres().await;
    [
        Opened { store: sqlite, _folder: Some(folder), _database: None },
        Opened { store: Arc::new(postgres), _folder: None, _database: Some(database) },
    ]
}

async fn postgres() -> (Postgres, Database) {
    let database = Database::new();
    Postgres::migrate(&database.url).await.unwrap();
    (Postgres::open(&database.url).await.unwrap(), database)
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
        timeline: Vec::new(),
        record: None,
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

/// The row of a call that ended for this cause; if answered, 100 s after the answer.
fn ended_by(cause: Cause, is_answered: bool) -> Row {
    let since = is_answered.then(|| at(5));
    let state = State::Ended { at: at(105), since, cause };
    Row::from(&Call { state, ..ringing("anna", "ben", 0) })
}

#[test]
fn each_end_has_its_status_and_reason_in_history() {
    let by = "0123456789abcdef".parse().unwrap();
    let hang_up = |role| Cause::HangUp { role, by, reported_duration_s: Some(7.0) };
    let (caller, callee) = (Role::Caller, Role::Callee);
    let before_the_answer = [
        (hang_up(caller), Status::Missed, EndReason::Cancelled),
        (hang_up(callee), Status::Rejected, EndReason::Declined),
        (Cause::Reject { by, reason: None }, Status::Rejected, EndReason::Declined),
        (Cause::Busy { by }, Status::Missed, EndReason::Busy),
        (Cause::LineBusy, Status::Missed, EndReason::Busy),
        (Cause::Offline, Status::Missed, EndReason::Offline),
        (Cause::RingTimeout, Status::Missed, EndReason::NoAnswer),
        (Cause::Lost { role: caller }, Status::Missed, EndReason::Cancelled),
        (Cause::Lost { role: callee }, Status::Missed, EndReason::ConnectionLost),
        (Cause::Superseded { role: caller }, Status::Missed, EndReason::Superseded),
        (Cause::Terminated, Status::Missed, EndReason::Terminated),
        (Cause::MaxDuration, Status::Missed, EndReason::MaxDuration),
    ];
    let after_the_answer = [
        (hang_up(caller), EndReason::Completed),
        (hang_up(callee), EndReason::Completed),
        (Cause::Lost { role: caller }, EndReason::ConnectionLost),
        (Cause::Lost { role: callee }, EndReason::ConnectionLost),
        (Cause::Superseded { role: callee }, EndReason::Superseded),
        (Cause::Terminated, EndReason::Terminated),
        (Cause::MaxDuration, EndReason::MaxDuration),
    ];
    for reason in EndReason::ALL {
        let is_in = before_the_answer.iter().any(|(_, _, expected)| *expected == reason)
            || after_the_answer.iter().any(|(_, expected)| *expected == reason);
        assert!(is_in, "{reason:?} has no line in this table");
    }
    for (cause, status, reason) in before_the_answer {
        let row = ended_by(cause.clone(), false);
        let expected = (status, Some(reason), None, None, Some(at(105)));
        let found = (row.status, row.end_reason, row.duration_s, row.started_at, row.ended_at);
        assert_eq!(found, expected, "{cause:?} before the answer");
    }
    for (cause, reason) in after_the_answer {
        let row = ended_by(cause.clone(), true);
        let expected = (Status::Ended, Some(reason), Some(100), Some(at(5)), Some(at(105)));
        let found = (row.status, row.end_reason, row.duration_s, row.started_at, row.ended_at);
        assert_eq!(found, expected, "{cause:?} after the answer");
    }
}

/// A ringing call, as the rules create it.
fn ringing(caller: &str, callee: &str, seconds: u64) -> Call {
    let attempt = Attempt {
        id: CallId::generate(at(seconds)),
        from: Device {
            user: user(caller),
            node: NodeId::generate(START),
            socket: "0123456789abcdef".parse().unwrap(),
            id: None,
            connected_at: at(seconds),
        },
        to: user(callee),
        call_type: CallType::Audio,
        caller_info: None,
        client_call_id: None,
    };
    let lobby = Lobby { callee_sockets: 1, ..Lobby::default() };
    match RULES.place(&attempt, &lobby, at(seconds)) {
        Ok(Placement::New(call)) => call,
        other => panic!("{other:?}"),
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
        // Several calls of the same millisecond, outgoing and incoming.
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
async fn a_call_alone_comes_with_its_timeline() {
    for opened in stores().await {
        let row = missed("anna", "ben", 0);
        let step = |version, what, by, reason| Step {
            version,
            at: at(version),
            what,
            by,
            device: by.map(|_| "phone".parse().unwrap()),
            node: NodeId::generate(at(0)),
            reason,
        };
        let timeline = vec![
            step(1, What::Placed, Some(Role::Caller), None),
            step(2, What::Ended, None, Some(EndReason::NoAnswer)),
        ];
        let row = Row { timeline, ..row };
        opened.store.save(std::slice::from_ref(&row)).await.unwrap();
        let found = opened.store.get(row.id, &user("anna")).await.unwrap();
        assert_eq!(found, Some(row.clone()));
        let listed = opened.store.list(&all_of("anna")).await.unwrap();
        assert_eq!(listed, [Row { timeline: Vec::new(), ..row }]);
    }
}

#[tokio::test]
async fn an_assumed_end_gives_way_to_the_true_one_only() {
    for opened in stores().await {
        let active = answered("anna", "ben", 0);
        opened.store.save(std::slice::from_ref(&active)).await.unwrap();
        close_orphans(&*opened.store, at(60)).await.unwrap();
        let found = async || opened.store.get(active.id, &user("anna")).await.unwrap().unwrap();
        assert_eq!(found().await.end_reason, Some(EndReason::ConnectionLost));
        opened.store.save(std::slice::from_ref(&active)).await.unwrap();
        assert_eq!(found().await.end_reason, Some(EndReason::ConnectionLost), "it is no news");
        let ended = Row {
            version: active.version + 1,
            status: Status::Ended,
            end_reason: Some(EndReason::Completed),
            ended_at: Some(at(50)),
            duration_s: Some(48),
            ..active.clone()
        };
        opened.store.save(std::slice::from_ref(&ended)).await.unwrap();
        assert_eq!(found().await, ended);
    }
}

#[tokio::test]
async fn calls_that_may_still_be_live_are_left_alone() {
    for opened in stores().await {
        let active = answered("anna", "ben", 60);
        opened.store.save(std::slice::from_ref(&active)).await.unwrap();
        close_orphans(&*opened.store, at(60)).await.unwrap();
        assert_eq!(opened.store.list(&all_of("anna")).await.unwrap(), [active]);
    }
}

#[tokio::test]
async fn a_call_in_a_batch_twice_is_written_as_it_was_last() {
    for opened in stores().await {
        let old = answered("anna", "ben", 0);
        let new = Row { call_type: CallType::Audio, ..missed("anna", "ben", 0) };
        let new = Row { id: old.id, version: 3, call_type: old.call_type, ..new };
        opened.store.save(&[new.clone(), old]).await.unwrap();
        assert_eq!(opened.store.list(&all_of("anna")).await.unwrap(), [new]);
    }
}

/// Calls with every outcome in the first two hours, and one in the third.
fn a_busy_morning() -> Vec<Row> {
    let mut rows = Vec::new();
    for n in 0..100 {
        let started = answered("anna", "ben", n * 60);
        let rang = Duration::from_millis(1_000 + n * 37 % 2_000);
        let lasted_s = n * 13 % 101;
        let started_at = started.created_at + rang;
        rows.push(Row {
            status: Status::Ended,
            end_reason: Some(EndReason::Completed),
            started_at: Some(started_at),
            ended_at: Some(started_at + Duration::from_secs(lasted_s)),
            duration_s: Some(lasted_s),
            ..started
        });
        rows.push(missed("anna", "ben", n * 60 + 1));
    }
    rows.push(answered("carl", "dora", 2 * 3_600 + 1));
    rows
}

#[tokio::test]
async fn calls_are_counted_by_how_they_went_and_when() {
    let hour = Duration::from_hours(1);
    for opened in stores().await {
        opened.store.save(&a_busy_morning()).await.unwrap();
        let period = Period { since: START, until: START + hour * 3, bucket: hour };
        let stats = opened.store.stats(&period).await.unwrap();
        let begins: Vec<_> = stats.buckets.iter().map(|(begins, _)| *begins).collect();
        assert_eq!(begins, [START, START + hour, START + hour * 2]);
        let calls = |tally: &Tally, status| -> u64 {
            let counts = tally.counts.iter().filter(|count| count.status == status);
            counts.map(|count| count.calls).sum()
        };
        let [(_, first), (_, second), (_, third)] = &stats.buckets[..] else { unreachable!() };
        assert_eq!([first, second].map(|tally| calls(tally, Status::Ended)), [60, 40]);
        assert_eq!([first, second].map(|tally| calls(tally, Status::Missed)), [60, 40]);
        assert_eq!(calls(third, Status::Answered), 1);
        assert_eq!(third.duration_s, None, "it goes on");
        assert_eq!(third.ring_ms, Some(Percentiles { p50: 2_000, p90: 2_000, p99: 2_000 }));

        let total = &stats.total;
        let all: u64 = total.counts.iter().map(|count| count.calls).sum();
        assert_eq!(all, 201);
        assert_eq!(total.counts.len(), 3, "each kind once: {:?}", total.counts);
        let mut lasted: Vec<u64> =
            a_busy_morning().iter().filter_map(|row| row.duration_s).collect();
        lasted.sort_unstable();
        let of_100 = Percentiles { p50: lasted[49], p90: lasted[89], p99: lasted[98] };
        assert_eq!(total.duration_s, Some(of_100));
    }
}

#[tokio::test]
async fn only_calls_of_the_period_are_counted() {
    for opened in stores().await {
        opened.store.save(&a_busy_morning()).await.unwrap();
        let minute = Duration::from_mins(1);
        let period = Period { since: at(60), until: at(120), bucket: minute };
        let stats = opened.store.stats(&period).await.unwrap();
        assert_eq!(stats.buckets.len(), 1);
        assert_eq!(stats.buckets[0].1.counts, stats.total.counts);
        assert_eq!(stats.total.counts.iter().map(|count| count.calls).sum::<u64>(), 2);
        let none = Period { since: at(0) - minute, until: at(0), bucket: minute };
        assert_eq!(opened.store.stats(&none).await.unwrap(), Stats::default());
    }
}

#[tokio::test]
async fn what_is_kept_long_enough_goes_and_the_rest_stays() {
    for opened in stores().await {
        let days = |n: u64| n * 24 * 3_600;
        let (old, new) = (missed("anna", "ben", 0), missed("anna", "ben", days(90)));
        opened.store.save(&[old, new.clone()]).await.unwrap();
        let now = at(days(91));
        opened.store.tidy(now, None).await.unwrap();
        assert_eq!(opened.store.list(&all_of("anna")).await.unwrap().len(), 2);
        opened.store.tidy(now, Some(at(days(45)))).await.unwrap();
        assert_eq!(opened.store.list(&all_of("anna")).await.unwrap(), [new]);
    }
}

#[tokio::test]
async fn no_run_removes_more_than_a_quarter_of_the_rows_of_a_file_and_the_oldest_go_first() {
    let [opened, _] = stores().await;
    let rows: Vec<Row> = (0..40).map(|n| missed("anna", "ben", n)).collect();
    opened.store.save(&rows).await.unwrap();
    let now = at(400 * 24 * 3_600);
    for left in [30, 23, 18] {
        opened.store.tidy(now, Some(now)).await.unwrap();
        let found = opened.store.list(&all_of("anna")).await.unwrap();
        let kept: Vec<_> = found.iter().rev().map(|row| row.id).collect();
        let newest: Vec<_> = rows[rows.len() - left..].iter().map(|row| row.id).collect();
        assert_eq!(kept, newest);
    }
}

#[tokio::test]
async fn a_call_that_nobody_ended_lasted_as_long_as_its_node_said_that_it_lives() {
    for opened in stores().await {
        let (node, other) = (NodeId::generate(START), NodeId::generate(START));
        let step = |node| Step {
            version: 2,
            at: at(2),
            what: What::Answered,
            by: None,
            device: None,
            node,
            reason: None,
        };
        let live = Row { timeline: vec![step(node)], ..answered("anna", "ben", 0) };
        let silent = Row { timeline: vec![step(other)], ..answered("anna", "carl", 0) };
        opened.store.save(&[live.clone(), silent.clone()]).await.unwrap();
        for seconds in [50, 96] {
            opened.store.beat(node, at(seconds)).await.unwrap();
        }
        close_orphans(&*opened.store, at(200)).await.unwrap();
        for (id, ended_at, duration_s) in [(live.id, at(96), 94), (silent.id, at(2), 0)] {
            let row = opened.store.get(id, &user("anna")).await.unwrap().unwrap();
            assert_eq!((row.ended_at, row.duration_s), (Some(ended_at), Some(duration_s)));
        }
    }
}

#[tokio::test]
async fn a_row_that_the_database_refuses_holds_up_no_other() {
    for opened in stores().await {
        let (cluster, _inbox) = Hub::default().node(NodeId::generate(START));
        let (recorder, writer) =
            history::recorder(opened.store.clone(), cluster, Health::default());
        let mut calls: Vec<Call> = (0..3).map(|n| ringing("anna", "ben", n)).collect();
        calls[1].callee.user = user("anna");
        for call in &calls {
            recorder.record(call);
        }
        writer.run(std::future::ready(())).await;
        let found = ids(&*opened.store, &all_of("anna")).await;
        assert_eq!(found, [calls[2].id, calls[0].id]);
        assert_eq!(recorder.backlog().len(), 0);
    }
}

#[tokio::test]
async fn what_another_node_has_ended_is_not_written_as_it_was_before() {
    let (backlog, gather) = (Backlog::default(), Duration::ZERO);
    let newer = missed("anna", "ben", 1);
    let older = Row { version: 1, ..missed("anna", "carl", 2) };
    for row in [&older, &newer] {
        backlog.push(row.clone()).unwrap();
        backlog.drop_before(row.id, 2);
    }
    assert_eq!(backlog.take(10, gather).await, Some(vec![newer]));
    backlog.push(older.clone()).unwrap();
    backlog.drop_before(older.id, 2);
    let again = Row { version: 3, ..older };
    backlog.push(again.clone()).unwrap();
    assert_eq!(backlog.take(10, gather).await, Some(vec![again]));
    backlog.close();
    assert_eq!(backlog.take(10, gather).await, None);
}

#[tokio::test]
async fn the_backlog_keeps_the_newest_row_of_each_call_within_its_limit() {
    let backlog = Backlog::default();
    let old = answered("anna", "ben", 0);
    let new = Row { version: 3, ..old.clone() };
    for row in [&old, &new, &old] {
        backlog.push(row.clone()).unwrap();
    }
    let gather = Duration::from_millis(1);
    assert_eq!((backlog.len(), backlog.take(10, gather).await), (1, Some(vec![new.clone()])));
    assert_eq!(backlog.len(), 1, "it is in hand, not written");
    for n in 0..MAX_BACKLOG_ROWS {
        backlog.push(missed("anna", "ben", n as u64)).unwrap();
    }
    assert_eq!(backlog.push(missed("anna", "ben", 0)), Err(Refused::Full));
    backlog.close();
    assert_eq!(backlog.push(new), Err(Refused::Closed));
    let mut taken = 0;
    while let Some(rows) = backlog.take(3_000, gather).await {
        taken += rows.len();
    }
    assert_eq!((taken, backlog.len(), backlog.age()), (MAX_BACKLOG_ROWS, 0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn rows_are_gathered_until_there_are_enough_or_it_is_time() {
    let (backlog, gather) = (Arc::new(Backlog::default()), Duration::from_millis(100));
    let taking = |limit| {
        let backlog = backlog.clone();
        tokio::spawn(async move { backlog.take(limit, gather).await.map(|rows| rows.len()) })
    };
    let first = taking(10);
    let began = Instant::now();
    backlog.push(missed("anna", "ben", 1)).unwrap();
    tokio::time::sleep(gather / 2).await;
    backlog.push(missed("anna", "ben", 2)).unwrap();
    assert_eq!((first.await.unwrap(), began.elapsed()), (Some(2), gather));

    let full = taking(2);
    let began = Instant::now();
    backlog.push(missed("anna", "ben", 3)).unwrap();
    tokio::time::sleep(gather / 2).await;
    backlog.push(missed("anna", "ben", 4)).unwrap();
    assert_eq!((full.await.unwrap(), began.elapsed()), (Some(2), gather / 2));

    let last = taking(10);
    backlog.push(missed("anna", "ben", 5)).unwrap();
    tokio::task::yield_now().await;
    let began = Instant::now();
    backlog.close();
    assert_eq!((last.await.unwrap(), began.elapsed()), (Some(1), Duration::ZERO));
    assert_eq!(taking(10).await.unwrap(), None);
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
        close_orphans(&*opened.store, at(60)).await.unwrap();
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
