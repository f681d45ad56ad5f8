//! Tests of behaviour that only Postgres has: partitions, locks, plans, versions, TLS.

use std::{path::Path, pin::pin, process::Command, sync::Arc, time::Duration};

use futures_util::future::join_all;
use sqlx::{Connection, Executor, PgConnection};
use switchboard::{
    call::{CallType, EndReason, Status},
    history::{
        OpenError, Postgres, Query, Row, Store,
        page::{self, Pages},
    },
    ids::{CallId, UserId},
    time::Timestamp,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use crate::postgres_server::{Database, PostgresServer};

/// 2027-01-31T23:59:59.999Z
const END_OF_JANUARY: Timestamp = Timestamp::from_millis(1_801_439_999_999);

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn cancelled_at(at: Timestamp) -> Row {
    Row {
        id: CallId::generate(at),
        caller: user("anna"),
        receiver: user("ben"),
        call_type: CallType::Audio,
        status: Status::Missed,
        end_reason: Some(EndReason::Cancelled),
        duration_s: None,
        started_at: None,
        ended_at: Some(at),
        created_at: at,
        updated_at: at,
        version: 2,
        timeline: Vec::new(),
        record: None,
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
        limit: 50,
    }
}

async fn migrated() -> (Postgres, Database) {
    let database = Database::new();
    Postgres::migrate(&database.url).await.unwrap();
    (Postgres::open(&database.url).await.unwrap(), database)
}

#[tokio::test]
async fn many_nodes_may_migrate_at_once() {
    let database = Database::new();
    let all = join_all((0..5).map(|_| Postgres::migrate(&database.url))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    Postgres::migrate(&database.url).await.expect("a second time changes nothing");
    Postgres::open(&database.url).await.unwrap();
}

#[tokio::test]
async fn a_schema_that_is_behind_is_refused_and_one_that_is_ahead_is_not() {
    let database = Database::new();
    let behind = Postgres::open(&database.url).await.unwrap_err();
    assert_eq!(behind.to_string(), "its schema is behind this version: run `switchboard migrate`");
    Postgres::migrate(&database.url).await.unwrap();
    let newest = database.ask("SELECT max(version) FROM _sqlx_migrations");
    database.ask(&format!(
        "INSERT INTO _sqlx_migrations SELECT version + 1, 'later', installed_on, success, \
         checksum, execution_time FROM _sqlx_migrations WHERE version = {newest}"
    ));
    Postgres::open(&database.url).await.unwrap();
    Postgres::migrate(&database.url).await.unwrap();
    database.ask("DELETE FROM _sqlx_migrations WHERE version = 1");
    let behind = Postgres::open(&database.url).await.unwrap_err();
    assert!(matches!(behind, OpenError::Behind), "{behind}");
}

#[tokio::test]
async fn what_waiting_cannot_mend_is_said_and_what_it_can_is_waited_for() {
    let database = Database::new();
    let missing = Postgres::open(&format!("{}_not", database.url)).await.unwrap_err();
    assert!(matches!(missing, OpenError::Refused(_)), "{missing}");
    assert!(missing.to_string().ends_with("does not exist"), "{missing}");

    let nobody = Postgres::open("postgres://postgres@127.0.0.1:1/calls").await.unwrap();
    let away = nobody.list(&all_of("anna")).await.unwrap_err();
    assert_eq!(away.to_string(), "it does not answer");
}

/// Listens, and answers each connection with these bytes and closes it, one reply per request of
/// the client.
async fn answering(answers: &'static [&'static [u8]]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            for answer in answers {
                let _ = connection.read(&mut [0; 1_024]).await;
                let _ = connection.write_all(answer).await;
            }
        }
    });
    format!("postgres://postgres@127.0.0.1:{port}/calls")
}

#[tokio::test]
async fn a_database_that_dies_while_it_is_greeted_is_waited_for() {
    const NO_TLS: &[u8] = b"N";
    const ADMITTED: &[u8] = b"R\0\0\0\x08\0\0\0\0";
    let cases: [(&str, &[&[u8]]); 8] = [
        ("closes at once", &[]),
        ("closes when it is asked for TLS", &[b""]),
        ("closes after the first word", &[NO_TLS]),
        ("closes in the middle of a word", &[NO_TLS, b"R\0\0\0"]),
        ("closes before it is ready", &[NO_TLS, ADMITTED]),
        ("is shut down", &[NO_TLS, b"E\0\0\0\x16SFATAL\0C57P01\0M.\0\0"]),
        ("crashes", &[NO_TLS, b"E\0\0\0\x16SFATAL\0C57P02\0M.\0\0"]),
        ("cannot read its files", &[NO_TLS, b"E\0\0\0\x16SFATAL\0C58030\0M.\0\0"]),
    ];
    for (what, answers) in cases {
        let opened = Postgres::open(&answering(answers).await).await;
        assert!(opened.is_ok(), "one that {what}: {opened:?}");
    }
    let wrong_password: &[&[u8]] = &[NO_TLS, b"E\0\0\0\x16SFATAL\0C28P01\0M.\0\0"];
    let refused = Postgres::open(&answering(wrong_password).await).await.unwrap_err();
    assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
}

#[tokio::test]
async fn a_database_that_is_shutting_down_is_waited_for() {
    let server = PostgresServer::start(&[]);
    let url = server.url("postgres");
    let _session = PgConnection::connect(&url).await.unwrap();
    server.shut_down();
    let opened = Postgres::open(&url).await;
    assert!(opened.is_ok(), "{opened:?}");
}

#[tokio::test]
async fn each_month_has_its_partition_made_ahead_or_when_it_is_needed() {
    let (postgres, database) = migrated().await;
    let partitions = || {
        database.ask(
            "SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY 1) FROM pg_inherits \
             WHERE inhparent = 'calls'::regclass",
        )
    };
    postgres.tidy(END_OF_JANUARY, None).await.unwrap();
    assert_eq!(partitions(), "calls_2027_01 calls_2027_02 calls_2027_03");
    let millisecond = Duration::from_millis(1);
    let april = END_OF_JANUARY + Duration::from_hours(24 * 70);
    let rows = [END_OF_JANUARY, END_OF_JANUARY + millisecond, april].map(cancelled_at);
    postgres.save(&rows).await.unwrap();
    assert_eq!(partitions(), "calls_2027_01 calls_2027_02 calls_2027_03 calls_2027_04");
    for (month, count) in [("01", "1"), ("02", "1"), ("03", "0"), ("04", "1")] {
        let found = database.ask(&format!("SELECT count(*) FROM calls_2027_{month}"));
        assert_eq!(found, count, "{month}");
    }
    for row in &rows {
        let found = postgres.get(row.id, &user("ben")).await.unwrap();
        assert_eq!(found.as_ref(), Some(row));
    }

    let kept = END_OF_JANUARY + millisecond;
    postgres.tidy(april, Some(kept)).await.unwrap();
    assert_eq!(
        partitions(),
        "calls_2027_02 calls_2027_03 calls_2027_04 calls_2027_05 calls_2027_06"
    );
    // A late row of a month whose partition is gone.
    postgres.save(&rows).await.unwrap();
    assert_eq!(postgres.list(&all_of("anna")).await.unwrap().len(), 3);
}

#[tokio::test]
async fn no_run_drops_more_than_one_month_and_the_oldest_goes_first() {
    let (postgres, database) = migrated().await;
    let month = Duration::from_hours(31 * 24);
    let rows = [0, 1, 2].map(|months| cancelled_at(END_OF_JANUARY + month * months));
    postgres.save(&rows).await.unwrap();
    let later = END_OF_JANUARY + month * 13;
    for left in [2, 1, 0] {
        postgres.tidy(later, Some(later)).await.unwrap();
        assert_eq!(database.ask("SELECT count(*) FROM calls"), left.to_string());
        let found = postgres.list(&all_of("anna")).await.unwrap();
        assert!(found.iter().all(|row| row.created_at > rows[2 - left].created_at), "{found:?}");
    }
}

#[tokio::test]
async fn many_nodes_may_make_partitions_at_once() {
    let (_, database) = migrated().await;
    let nodes = join_all((0..5).map(|_| Postgres::open(&database.url))).await;
    let row = cancelled_at(END_OF_JANUARY);
    let saves = nodes.iter().map(|node| node.as_ref().unwrap().save(std::slice::from_ref(&row)));
    for saved in join_all(saves).await {
        saved.unwrap();
    }
    assert_eq!(database.ask("SELECT count(*) FROM calls"), "1");
}

/// Another session of the database, with this statement executed.
async fn somebody(database: &Database, did: &'static str) -> PgConnection {
    let mut session = PgConnection::connect(&database.url).await.unwrap();
    session.execute(did).await.unwrap();
    session
}

#[tokio::test]
async fn a_drop_that_would_wait_holds_up_no_page_and_is_done_later() {
    let (postgres, database) = migrated().await;
    postgres.save(&[cancelled_at(END_OF_JANUARY)]).await.unwrap();
    let later = END_OF_JANUARY + Duration::from_hours(24 * 70);
    let calls = async || postgres.list(&all_of("anna")).await.unwrap().len();

    let mut reader = somebody(&database, "BEGIN; SELECT count(*) FROM calls").await;
    let mut tidying = pin!(postgres.tidy(later, Some(later)));
    let waited = loop {
        tokio::select! {
            tidied = &mut tidying => break tidied.unwrap_err(),
            page = timeout(Duration::from_secs(1), calls()) => {
                assert_eq!(page.expect("no page waits for the drop"), 1);
            }
        }
    };
    assert!(waited.to_string().contains("lock timeout"), "{waited}");
    reader.execute("COMMIT").await.unwrap();

    let mut other = somebody(
        &database,
        "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('switchboard calls partitions', 0))",
    )
    .await;
    postgres.tidy(later, Some(later)).await.expect("another node is at it");
    assert_eq!(calls().await, 1);
    other.execute("COMMIT").await.unwrap();

    postgres.tidy(later, Some(later)).await.unwrap();
    assert_eq!(calls().await, 0);
}

#[tokio::test]
async fn partitions_that_somebody_else_made_are_used_and_left_alone() {
    let (postgres, database) = migrated().await;
    // The default partition has a row of February, so the month's partition cannot be created.
    database.ask(
        "CREATE TABLE calls_default PARTITION OF calls DEFAULT; \
         CREATE TABLE calls_2026_q3 PARTITION OF calls \
             FOR VALUES FROM ('2026-07-01Z') TO ('2026-10-01Z'); \
         INSERT INTO calls SELECT gen_random_uuid(), 'anna', 'ben', 'audio', 'missed', 'no_answer', \
             NULL, NULL, at, at, at, 2 FROM (SELECT timestamptz '2027-02-10Z' AS at) AS made",
    );
    let day = Duration::from_hours(24);
    let february = cancelled_at(END_OF_JANUARY + day);
    let september = cancelled_at(END_OF_JANUARY - day * 140);
    postgres.save(&[february, cancelled_at(END_OF_JANUARY), september]).await.unwrap();
    let later = END_OF_JANUARY + day * 70;
    postgres.tidy(later, Some(later)).await.unwrap();
    let found = database.ask(
        "SELECT string_agg(name, ' ' ORDER BY name) FROM \
         (SELECT tableoid::regclass || ':' || count(*) AS name FROM calls GROUP BY tableoid) AS parts",
    );
    assert_eq!(found, "calls_2026_q3:1 calls_default:2");
}

#[tokio::test]
async fn readers_that_wait_hold_up_no_writer_and_do_not_go_on_when_nobody_waits_for_them() {
    let (postgres, database) = migrated().await;
    let postgres = Arc::new(postgres);
    postgres.save(&[cancelled_at(END_OF_JANUARY)]).await.unwrap();
    let _locked = somebody(&database, "BEGIN; LOCK TABLE calls_2027_01").await;
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let postgres = postgres.clone();
            tokio::spawn(async move { postgres.list(&all_of("anna")).await })
        })
        .collect();
    let waiting = async || -> usize {
        // While this statement waits for its lock, readers would wait behind it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let count = "SELECT count(*) FROM pg_stat_activity \
                     WHERE datname = current_database() AND wait_event_type = 'Lock'";
        database.ask(count).parse().unwrap()
    };
    let waits = timeout(Duration::from_secs(5), async { while waiting().await < 6 {} }).await;
    waits.expect("all connections for readers wait");

    let march = cancelled_at(END_OF_JANUARY + Duration::from_hours(24 * 35));
    let saved = timeout(Duration::from_secs(3), postgres.save(&[march])).await;
    saved.expect("a writer waits for no reader").unwrap();

    for reader in &readers {
        reader.abort();
    }
    let ended = timeout(Duration::from_secs(15), async { while waiting().await > 0 {} }).await;
    ended.expect("Postgres ends what they asked");
}

#[tokio::test]
async fn nonsense_is_refused_by_the_schema_itself() {
    let (postgres, database) = migrated().await;
    postgres.save(&[cancelled_at(END_OF_JANUARY)]).await.unwrap();
    for nonsense in [
        "status = 'lost'",
        "end_reason = 'whatever'",
        "end_reason = NULL",
        "call_type = 'fax'",
        "receiver = caller",
        "duration = -1, started_at = created_at",
        "version = 0",
        "timeline = '{}'",
    ] {
        let refused = database.is_refused(&format!("UPDATE calls SET {nonsense}"));
        assert!(refused, "{nonsense}");
    }
}

/// A million calls of 1,000 users in a year; user 7 is a party of many.
const A_MILLION_CALLS: &str = "
    SELECT calls_make_partition(timestamptz '2027-01-01Z' + n * interval '1 month')
    FROM generate_series(0, 12) AS n;
    INSERT INTO calls
    SELECT gen_random_uuid(), 'u' || caller, 'u' || receiver, 'audio', 'missed', 'no_answer',
           NULL, NULL, at, at, at, 2
    FROM (
        SELECT CASE WHEN n % 5 = 0 THEN 7 ELSE n % 1000 END AS caller,
               CASE WHEN n % 5 = 1 THEN 7 ELSE 1000 + n % 997 END AS receiver,
               timestamptz '2027-01-01Z' + n * interval '31 seconds' AS at
        FROM generate_series(1, 1000000) AS n
    ) AS made;
    ANALYZE calls;";

#[tokio::test]
async fn a_page_among_a_million_calls_is_read_along_an_index() {
    let (_postgres, database) = migrated().await;
    database.ask(A_MILLION_CALLS);
    let Pages { of_user: list, between } = page::POSTGRES;
    let (all, noon) = ("253402300799999", "1810000000000");
    for (what, sql, user, after, other) in [
        ("first page", list, "u7", all, None),
        ("a page in the middle", list, "u7", noon, None),
        ("somebody with few calls", list, "u9", all, None),
        ("calls with somebody", between, "u7", all, Some("u1500")),
        ("nobody", list, "x", all, None),
    ] {
        let mut values = format!(
            "'{user}', NULL, NULL, 0, {all}, {after}, 'ffffffff-ffff-ffff-ffff-ffffffffffff', 51"
        );
        let mut types = "text, text, text, bigint, bigint, bigint, text, bigint".to_owned();
        if let Some(other) = other {
            values = format!("{values}, '{other}'");
            types += ", text";
        }
        // As the service runs it: prepared, with a generic plan.
        let plan = database.ask(&format!(
            "SET plan_cache_mode = force_generic_plan; PREPARE page ({types}) AS {sql}; \
             EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) \
             EXECUTE page ({values})"
        ));
        assert!(!plan.contains("Seq Scan"), "{what}: {plan}");
        let index = if other.is_some() { "caller_receiver" } else { "caller_created_at" };
        assert!(plan.contains(index), "{what}: {plan}");
        let blocks: usize = plan
            .lines()
            .find_map(|line| line.trim().strip_prefix("Buffers: shared ")?.split_once('='))
            .map_or("0", |(_, rest)| rest.split(' ').next().unwrap_or_default())
            .parse()
            .unwrap();
        // 102 rows and a path through a few indexes. The user has 200,000 rows in 20,000 blocks.
        assert!(blocks < 1_000, "{what} read {blocks} blocks: {plan}");
    }
}

/// Creates a certificate authority, and a certificate for 127.0.0.1.
fn make_certificates(folder: &Path) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 \
            -subj /CN=test-authority -keyout ca.key -out ca.crt
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
            -subj /CN=127.0.0.1 -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1' > names
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 \
            -extfile names -out server.crt
        chmod 600 server.key";
    let made = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test]
async fn connections_are_encrypted_and_checked_as_the_address_says() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (authority, other) = (file("ca.crt"), file("server.crt"));
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", file("server.crt")),
        format!("ssl_key_file={}", file("server.key")),
    ];
    let server = PostgresServer::start_in(folder, &settings.each_ref().map(String::as_str));
    let url = server.url("postgres");
    let works = async |parameters: &str| {
        let opened = Postgres::open(&format!("{url}?{parameters}")).await;
        match opened {
            // The connection worked as far as the check of the schema.
            Err(OpenError::Behind) => true,
            Err(OpenError::Refused(_)) => false,
            other => panic!("{parameters}: {other:?}"),
        }
    };
    assert!(works("sslmode=disable").await);
    assert!(works("sslmode=require").await);
    assert!(works(&format!("sslmode=verify-full&sslrootcert={authority}")).await);
    assert!(!works("sslmode=verify-full").await, "nobody trusts this authority");
    assert!(!works(&format!("sslmode=verify-ca&sslrootcert={other}")).await);

    let plain = Database::new();
    let refused = Postgres::open(&format!("{}?sslmode=require", plain.url)).await.unwrap_err();
    assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
}
