//! Tests of a node's recovery with many users: its cost, and that it blocks nothing else.

use std::{sync::Arc, time::Duration};

use crate::{
    cluster::join,
    harness::{Ledger, Node, RULES, RecordingSink, TestCluster, socket},
    redis_server::RedisServer,
};
use switchboard::{
    call::{Device, Event},
    calls::{Calls, SWEEP_INTERVAL},
    cluster::{
        CallRecords, Change, Committed, Inbound, Message, Peers, USERS_AT_ONCE, UserPresence,
    },
    health::Health,
    history,
    ids::{NodeId, UserId},
    protocol::{MAX_WATCHED_USERS, Presence},
    time::{Clock, Timestamp},
};
use tokio::sync::mpsc;

fn users(from: usize, count: usize) -> Vec<UserId> {
    (from..from + count).map(|number| format!("user{number}").parse().unwrap()).collect()
}

/// Joins this many devices to the node.
async fn crowd(calls: &Calls, sink: &RecordingSink, count: usize) -> Vec<Device> {
    let mut devices = Vec::new();
    for number in 0..count {
        let device = Device {
            user: format!("member{number}").parse().unwrap(),
            node: calls.node(),
            socket: socket(&format!("member{number}")),
            id: Some(format!("device{number}").parse().unwrap()),
            connected_at: calls.now(),
        };
        sink.sockets.lock().unwrap().insert(device.socket, device.user.clone());
        calls.join(&device).await.unwrap();
        devices.push(device);
    }
    devices
}

/// Reports to the node that the shared state has forgotten it.
async fn reset(node: &Node) {
    let (resets, inbox) = mpsc::channel(1);
    resets.send(Inbound::Reset).await.unwrap();
    drop(resets);
    node.calls.run_inbox(inbox).await;
}

#[tokio::test]
async fn a_node_that_redis_has_forgotten_is_back_with_a_few_scripts() {
    const WATCHED: usize = 3_000;
    let server = RedisServer::standalone();
    let (redis, mut inbox) = join(&server).await;
    let (recorder, _writer) =
        history::recorder(Arc::new(Ledger::default()), redis.clone(), Health::default());
    let sink = Arc::new(RecordingSink::default());
    let calls = Calls::new(redis.clone(), sink.clone(), recorder, RULES, Clock::System);
    let devices = crowd(&calls, &sink, 300).await;
    for (device, from) in devices.iter().zip((0..WATCHED).step_by(500)) {
        calls.subscribe(device.socket, &users(from, 500)).await.unwrap();
    }
    server.run(&["FLUSHALL"]);
    // The heartbeat detects it.
    let reset = inbox.recv().await.unwrap();
    assert!(matches!(reset, Inbound::Reset));
    let (resets, again) = mpsc::channel(1);
    resets.send(reset).await.unwrap();
    drop(resets);
    calls.run_inbox(again).await;
    server.run(&["CONFIG", "RESETSTAT"]);
    calls.sweep().await.unwrap();
    let stats = server.run(&["INFO", "commandstats"]);
    let scripts = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    let scripts: usize = scripts.unwrap().split(',').next().unwrap().parse().unwrap();
    let marks = (devices.len() + WATCHED) / USERS_AT_ONCE;
    assert!(scripts < 2 * marks + 10, "{scripts} scripts");
    let known = server.run(&["SCARD", &format!("sb:{{test}}:node:{}", redis.node())]);
    assert_eq!(known, (devices.len() + WATCHED).to_string());
    let members: Vec<_> = devices.iter().map(|device| device.user.clone()).collect();
    let presence = redis.presence(&members).await.unwrap();
    assert!(presence.iter().all(|one| one.presence == Presence::Online));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_over_goes_on_where_it_failed_and_says_nothing_twice() {
    let cluster = TestCluster::with(1, &[]).await;
    let node = &cluster.nodes[0];
    let sockets = crowd(&node.calls, &node.sink, 12).await;
    for (number, device) in sockets.iter().enumerate() {
        let watched = users(number * MAX_WATCHED_USERS, MAX_WATCHED_USERS);
        node.calls.subscribe(device.socket, &watched).await.unwrap();
    }
    node.operations();
    reset(node).await;
    node.calls.sweep().await.unwrap();
    let watches = |operations: &[&str]| operations.iter().filter(|name| **name == "watch").count();
    let whole = watches(&node.operations());
    assert_eq!(whole, sockets.len() * MAX_WATCHED_USERS / USERS_AT_ONCE);
    reset(node).await;
    node.fail_after(Some(("watch", whole - 2)));
    node.calls.sweep().await.unwrap_err();
    node.calls.sweep().await.unwrap_err();
    node.fail_after(None);
    node.calls.sweep().await.unwrap();
    let operations = node.operations();
    let watched = watches(&operations);
    assert!(watched < whole + 12, "{watched} times instead of {whole}");
    let attached = operations.iter().filter(|name| **name == "attach_again").count();
    assert_eq!(attached, 1, "what went well is not repeated");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_over_takes_messages_and_ends_calls_meanwhile() {
    let cluster = TestCluster::with(2, &["a1", "b1"]).await;
    let id = cluster.initiate("a1", "b").await.unwrap();
    let node = cluster.node_of("a1");
    node.never_answer("attach_again");
    let sweeper = node.calls.clone();
    let sweeping = tokio::spawn(async move { sweeper.run_sweeper(std::future::pending()).await });
    let (inbound, inbox) = mpsc::channel(10);
    inbound.send(Inbound::Reset).await.unwrap();
    let disconnect = Message::Disconnect("a".parse().unwrap());
    inbound.send(Inbound::Message(cluster.node_of("b1").id, disconnect)).await.unwrap();
    drop(inbound);
    let taken = tokio::time::timeout(Duration::from_secs(5), node.calls.run_inbox(inbox)).await;
    assert_eq!(taken, Ok(()), "starting over holds the inbox up");
    assert!(node.sink.sockets.lock().unwrap().is_empty(), "the operator was heard");
    tokio::time::sleep(RULES.ring_timeout + 2 * SWEEP_INTERVAL).await;
    let row = cluster.row(id, |row| row.ended_at.is_some()).await;
    assert_eq!(row.end_reason.unwrap().as_str(), "no_answer");
    sweeping.abort();
}

#[tokio::test(start_paused = true)]
async fn late_sign_offs_go_many_at_a_time_after_what_is_due() {
    let cluster = TestCluster::with(1, &[]).await;
    let node = &cluster.nodes[0];
    let devices = crowd(&node.calls, &node.sink, 640).await;
    node.fail_after(Some(("detach", 0)));
    for device in &devices {
        node.calls.leave(device, true).await;
    }
    node.operations();
    node.calls.sweep().await.unwrap();
    let operations = node.operations();
    assert_eq!(operations[0], "due");
    let signing_off = operations.iter().filter(|name| name.starts_with("detach")).count();
    assert_eq!(signing_off, 10);
    let (elsewhere, _inbox) = cluster.hub.node(NodeId::generate(Clock::System.now()));
    let members: Vec<_> = devices.iter().map(|device| device.user.clone()).collect();
    let presence = elsewhere.presence(&members).await.unwrap();
    assert!(presence.iter().all(|one| one.presence == Presence::Offline));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_its_node_has_not_stored_is_stored_by_another_within_five_seconds() {
    let (cluster, id) = TestCluster::in_call(1, &["a1", "b1"]).await;
    // A node ends the call, and dies before it has written the row.
    let (dead, _inbox) = cluster.hub.node(NodeId::generate(Clock::System.now()));
    let call = dead.load(id).await.unwrap().unwrap();
    let end = Event::End { by: cluster.device("a1"), reported_duration_s: None };
    let now = Timestamp::from_millis(cluster.calls("a1").now_us() / 1_000);
    let call = RULES.apply(&call, &end, dead.node(), now).unwrap();
    let written = dead.commit(Change { call, claims: Vec::new() }).await.unwrap();
    assert!(matches!(written, Committed::Stored(_)));
    for _ in 0..4 {
        cluster.pass(Duration::from_secs(1)).await;
    }
    let stored = cluster.row(id, |row| row.ended_at.is_some());
    tokio::time::timeout(Duration::from_secs(1), stored).await.expect("it is stored in time");
}
