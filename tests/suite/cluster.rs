//! Tests that every cluster backend must pass: the embedded one and Redis (standalone, Cluster,
//! Sentinel).

use std::{sync::Arc, time::Duration};

use crate::redis_server::{RedisServer, wait_until};
use tokio::sync::mpsc;

use switchboard::{
    call::{Attempt, Call, CallType, Device, ENDED_RETENTION, Event, Lobby, Placement, Rules},
    cluster::{
        CallRecords, Change, Claim, Cluster, Committed, Due, Hub, Inbound, Peers, Redis,
        Unavailable, UserPresence,
    },
    health::Health,
    ids::{CallId, NodeId, SocketId, UserId},
    limits::buffers::Buffers,
    protocol::Presence,
    time::{Clock, SharedClock, Timestamp},
};

const RULES: Rules = Rules {
    ring_timeout: Duration::from_secs(30),
    reconnect_grace: Duration::from_secs(10),
    max_call_duration: Duration::from_hours(12),
};
pub const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

fn shared_clock() -> Arc<SharedClock> {
    SharedClock::starting_at(Clock::System.now())
}

fn socket(name: &str) -> SocketId {
    format!("{name:_<16}").parse().unwrap()
}

fn ringing(from: &str, to: &str) -> Call {
    let attempt = Attempt {
        id: CallId::generate(START),
        from: Device {
            user: user(from),
            node: NodeId::generate(START),
            socket: socket(from),
            id: None,
            connected_at: START,
        },
        to: user(to),
        call_type: CallType::Audio,
        caller_info: None,
        client_call_id: None,
    };
    let lobby = Lobby { callee_sockets: 1, ..Lobby::default() };
    match RULES.place(&attempt, &lobby, START) {
        Ok(Placement::New(call)) => call,
        other => panic!("{other:?}"),
    }
}

fn ended(call: &Call, at: Timestamp) -> Call {
    RULES.apply(call, &Event::Due, NodeId::generate(START), at).unwrap()
}

fn new_call(call: &Call) -> Change {
    let claim = |user: &UserId| Claim { user: user.clone(), was: None };
    let claims = vec![claim(&call.caller.user), claim(&call.callee.user)];
    Change { call: call.clone(), claims }
}

fn update(call: &Call) -> Change {
    Change { call: call.clone(), claims: Vec::new() }
}

async fn stored(cluster: &dyn Cluster, change: Change) -> Vec<(String, Presence)> {
    match cluster.commit(change).await.unwrap() {
        Committed::Stored(stored) => stored
            .edges
            .into_iter()
            .map(|edge| (edge.user.as_str().to_owned(), edge.presence))
            .collect(),
        Committed::Conflict(current) => panic!("conflict with {current:?}"),
    }
}

async fn presence_of(cluster: &dyn Cluster, users: &[UserId]) -> Vec<Presence> {
    cluster.presence(users).await.unwrap().into_iter().map(|edge| edge.presence).collect()
}

/// A backend and the server that it needs.
struct Backend {
    cluster: Arc<dyn Cluster>,
    _server: Option<RedisServer>,
}

pub async fn join(server: &RedisServer) -> (Arc<Redis>, mpsc::Receiver<Inbound>) {
    join_within(server, &Buffers::default()).await
}

pub async fn join_within(
    server: &RedisServer,
    buffers: &Buffers,
) -> (Arc<Redis>, mpsc::Receiver<Inbound>) {
    let node = NodeId::generate(Clock::System.now());
    let (clock, health) = (shared_clock(), Health::default());
    Redis::join(server.url(), "test", node, clock, health, buffers).await.unwrap()
}

async fn backends() -> Vec<Backend> {
    let (memory, _) = Hub::default().node(NodeId::generate(START));
    let mut backends = vec![Backend { cluster: memory, _server: None }];
    for server in [RedisServer::standalone(), RedisServer::cluster(), RedisServer::sentinel()] {
        let (cluster, _) = join(&server).await;
        backends.push(Backend { cluster, _server: Some(server) });
    }
    backends
}

#[tokio::test]
async fn a_user_is_online_from_the_first_socket_to_the_last() {
    for Backend { cluster, _server } in backends().await {
        let anna = user("anna");
        let presence = async || cluster.watch(&[user("anna")], 0).await.unwrap()[0].presence;
        assert_eq!(presence().await, Presence::Offline);
        let first = cluster.attach(&anna, socket("1")).await.unwrap().unwrap();
        assert_eq!(first.presence, Presence::Online);
        assert_eq!(cluster.attach(&anna, socket("2")).await.unwrap(), None);
        assert_eq!(cluster.attach(&anna, socket("2")).await.unwrap(), None);
        assert_eq!(cluster.detach(&anna, socket("1")).await.unwrap().edge, None);
        assert_eq!(presence().await, Presence::Online);
        let last = cluster.detach(&anna, socket("2")).await.unwrap().edge.unwrap();
        assert_eq!(last.presence, Presence::Offline);
        assert!(last.order > first.order);
        assert_eq!(presence().await, Presence::Offline);
    }
}

#[tokio::test]
async fn presence_that_is_watched_anew_is_later_than_what_the_watcher_knows() {
    for Backend { cluster, _server } in backends().await {
        let anna = user("anna");
        let known = cluster.watch(std::slice::from_ref(&anna), 0).await.unwrap()[0].order;
        let after = known + 3_600_000_000;
        let again = cluster.watch(std::slice::from_ref(&anna), after).await.unwrap();
        assert!(again[0].order > after);
        let online = cluster.attach(&anna, socket("1")).await.unwrap().unwrap();
        assert!(online.order > again[0].order, "and so is each change that follows");
    }
}

#[tokio::test]
async fn presence_is_later_than_what_redis_has_forgotten() {
    let server = RedisServer::standalone();
    let (cluster, _inbox) = join(&server).await;
    let (anna, ben) = (user("anna"), user("ben"));
    let key = "sb:{test}:user:anna";
    let order = || server.run(&["HGET", key, "order"]).parse::<u64>().unwrap();
    let mut latest = 0;
    let mut later = |order: u64| {
        assert!(order > latest, "{order} after {latest}");
        latest = order;
    };
    for turn in 0..2 {
        cluster.attach(&anna, socket("1")).await.unwrap();
        cluster.attach(&ben, socket("2")).await.unwrap();
        later(order());
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        later(order());
        stored(&*cluster, update(&ended(&call, call.deadline()))).await;
        later(order());
        cluster.detach(&anna, socket("1")).await.unwrap();
        later(order());
        if turn == 0 {
            server.run(&["FLUSHALL"]);
        }
    }
    // Redis' clock has jumped back, or Redis moved to another machine.
    let ahead = latest + 3_600_000_000;
    server.run(&["HSET", key, "order", &ahead.to_string()]);
    cluster.attach(&anna, socket("1")).await.unwrap();
    assert_eq!(order(), ahead + 1);
}

#[tokio::test]
async fn a_live_call_makes_both_users_busy() {
    for Backend { cluster, _server } in backends().await {
        for name in ["anna", "ben"] {
            cluster.attach(&user(name), socket(name)).await.unwrap();
        }
        let call = ringing("anna", "ben");
        let both = |presence| vec![("anna".to_owned(), presence), ("ben".to_owned(), presence)];
        assert_eq!(stored(&*cluster, new_call(&call)).await, both(Presence::Busy));
        let ended = ended(&call, call.deadline());
        assert_eq!(stored(&*cluster, update(&ended)).await, both(Presence::Online));
    }
}

#[tokio::test]
async fn presence_can_be_asked_for_without_watching() {
    for Backend { cluster, _server } in backends().await {
        let users = ["anna", "ben", "carl", "nobody", "carl"].map(user);
        let presence = async || presence_of(&*cluster, &users).await;
        assert_eq!(presence().await, [Presence::Offline; 5]);
        for name in ["anna", "ben", "carl"] {
            let edge = cluster.attach(&user(name), socket(name)).await.unwrap().unwrap();
            assert_eq!(edge.watchers, [], "who only asks is told of no change");
        }
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let (busy, online, offline) = (Presence::Busy, Presence::Online, Presence::Offline);
        assert_eq!(presence().await, [busy, busy, online, offline, online]);
        stored(&*cluster, update(&ended(&call, call.deadline()))).await;
        assert_eq!(presence().await, [online, online, online, offline, online]);
        assert_eq!(cluster.presence(&[]).await.unwrap(), []);
    }
}

#[tokio::test]
async fn presence_is_not_made_up_when_redis_is_away() {
    let mut server = RedisServer::standalone();
    let (cluster, _inbox) = join(&server).await;
    server.kill_first();
    assert_eq!(cluster.presence(&[user("anna")]).await, Err(Unavailable));
}

#[tokio::test]
async fn of_two_changes_of_one_version_one_wins() {
    for Backend { cluster, _server } in backends().await {
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let next = ended(&call, call.deadline());
        stored(&*cluster, update(&next)).await;
        let other = ended(&call, call.deadline());
        let again = cluster.commit(update(&other)).await.unwrap();
        assert!(matches!(again, Committed::Conflict(Some(current)) if *current == next));
    }
}

#[tokio::test]
async fn many_writers_at_once_have_one_winner_a_version() {
    for Backend { cluster, _server } in backends().await {
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let writers: Vec<_> = (0..8)
            .map(|_| {
                let (cluster, change) = (cluster.clone(), update(&ended(&call, call.deadline())));
                tokio::spawn(async move { cluster.commit(change).await.unwrap() })
            })
            .collect();
        let mut winners = 0;
        for writer in writers {
            winners += usize::from(matches!(writer.await.unwrap(), Committed::Stored(_)));
        }
        assert_eq!(winners, 1);
    }
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_stored_once_and_said_so_again() {
    for Backend { cluster, _server } in backends().await {
        cluster.attach(&user("ben"), socket("1")).await.unwrap();
        let call = ringing("anna", "ben");
        let busy = [("anna".to_owned(), Presence::Busy), ("ben".to_owned(), Presence::Busy)];
        for _ in 0..2 {
            assert_eq!(stored(&*cluster, new_call(&call)).await, busy);
        }
        let ended = ended(&call, call.deadline());
        for _ in 0..2 {
            stored(&*cluster, update(&ended)).await;
        }
        assert_eq!(cluster.load(call.id).await.unwrap(), Some(ended));
    }
}

#[tokio::test]
async fn a_record_that_has_gone_back_is_put_back_and_a_newer_one_is_not() {
    for Backend { cluster, _server } in backends().await {
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let device = Device {
            user: user("ben"),
            node: NodeId::generate(START),
            socket: socket("1"),
            id: None,
            connected_at: START,
        };
        let node = NodeId::generate(START);
        let answered = RULES.apply(&call, &Event::Answer(device), node, START).unwrap();
        let put_back = async |call: &Call, over| {
            let change = Change { call: call.clone(), claims: Vec::new() };
            cluster.restore(change, over).await.unwrap().is_some()
        };
        assert!(put_back(&answered, Some(1)).await);
        assert_eq!(cluster.load(call.id).await.unwrap(), Some(answered.clone()));
        assert!(!put_back(&call, Some(1)).await);
        assert!(!put_back(&call, None).await);
        assert_eq!(cluster.load(call.id).await.unwrap(), Some(answered));
    }
}

#[tokio::test]
async fn a_record_that_is_gone_is_put_back_over_the_claims_that_it_was_decided_on() {
    for Backend { cluster, _server } in backends().await {
        let earlier = ringing("anna", "ben");
        stored(&*cluster, new_call(&earlier)).await;
        let forgotten = ringing("anna", "ben");
        let put_back = async |was| {
            let claims = ["anna", "ben"].map(|name| Claim { user: user(name), was }).into();
            let change = Change { call: forgotten.clone(), claims };
            cluster.restore(change, None).await.unwrap().is_some()
        };
        assert!(!put_back(None).await, "the users have claims");
        assert_eq!(cluster.load(forgotten.id).await.unwrap(), None);
        assert!(put_back(Some(earlier.id)).await);
        assert_eq!(cluster.latest(&user("ben")).await.unwrap(), Some(forgotten.clone()));
    }
}

#[tokio::test]
async fn who_left_before_redis_went_back_is_taken_off_the_node() {
    let server = RedisServer::standalone();
    let (cluster, _inbox) = join(&server).await;
    let node = cluster.node();
    cluster.attach(&user("anna"), socket("1")).await.unwrap();
    server.run(&["hset", "sb:{test}:user:ben", &format!("node:{node}"), "1"]);
    server.run(&["sadd", &format!("sb:{{test}}:node:{node}"), "ben"]);
    let users = [user("anna"), user("ben")];
    let presence = async || presence_of(&*cluster, &users).await;
    assert_eq!(presence().await, [Presence::Online, Presence::Online]);
    let (taken_off, next) = cluster.tidy(None).await.unwrap();
    assert_eq!((taken_off.len(), next), (1, None));
    assert_eq!(taken_off[0].1.edge.as_ref().map(|edge| &edge.user), Some(&users[1]));
    assert_eq!(presence().await, [Presence::Online, Presence::Offline]);
    assert!(cluster.tidy(None).await.unwrap().0.is_empty());
}

/// A numeric field of the server's `INFO`.
fn stat(server: &RedisServer, section: &str, name: &str) -> usize {
    let info = server.run(&["INFO", section]);
    let line = info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    let line = line.unwrap_or("0");
    let number = line.strip_prefix("calls=").map_or(line, |line| line.split(',').next().unwrap());
    number.parse().unwrap()
}

#[tokio::test]
async fn many_users_are_marked_by_few_scripts_in_their_order() {
    let server = RedisServer::standalone();
    let (redis, _inbox) = join(&server).await;
    let users: Vec<UserId> = (0..1_000).map(|number| user(&format!("user{number}"))).collect();
    for number in [7, 421, 999] {
        redis.attach(&users[number], socket("1")).await.unwrap();
    }
    server.run(&["CONFIG", "RESETSTAT"]);
    let edges = redis.watch(&users, 0).await.unwrap();
    redis.unwatch(&users[..500]).await.unwrap();
    let scripts = stat(&server, "commandstats", "cmdstat_evalsha");
    assert!((8..30).contains(&scripts), "{scripts} scripts");
    let watched = edges.iter().map(|edge| edge.user.clone()).collect::<Vec<_>>();
    assert_eq!(watched, users);
    let is_online = |at: &usize| edges[*at].presence == Presence::Online;
    assert_eq!((0..users.len()).filter(is_online).collect::<Vec<_>>(), [7, 421, 999]);
    let left = server.run(&["SCARD", &format!("sb:{{test}}:node:{}", redis.node())]);
    assert_eq!(left, "502", "500 are watched and three are here, of whom one is both");
}

#[tokio::test]
async fn what_changes_nothing_costs_the_same_however_many_nodes_watch() {
    let server = RedisServer::standalone();
    let (redis, _inbox) = join(&server).await;
    let anna = user("anna");
    redis.attach(&anna, socket("1")).await.unwrap();
    let (other, _other_inbox) = join(&server).await;
    let nodes: Vec<NodeId> = (0..100).map(|_| NodeId::generate(START)).collect();
    let mut costs = Vec::new();
    for watching in [0, 100] {
        for node in &nodes[..watching] {
            server.run(&["HSET", "sb:{test}:watchers:anna", &node.to_string(), "1"]);
        }
        server.run(&["CONFIG", "RESETSTAT"]);
        for number in 0..10 {
            let another = socket(&format!("more{number}"));
            assert_eq!(redis.attach(&anna, another).await.unwrap(), None);
            assert_eq!(redis.detach(&anna, another).await.unwrap().edge, None);
            assert_eq!(other.attach(&anna, another).await.unwrap(), None);
            assert_eq!(other.detach(&anna, another).await.unwrap().edge, None);
            assert_eq!(other.latest(&anna).await.unwrap(), None);
        }
        costs.push(stat(&server, "stats", "total_net_output_bytes"));
    }
    assert!(costs[1] < costs[0] + 10_000, "{costs:?} bytes");
    let last = redis.detach(&anna, socket("1")).await.unwrap().edge.unwrap();
    assert_eq!(last.watchers.len(), 100, "all of them hear of a change");
}

#[tokio::test]
async fn a_user_claimed_meanwhile_is_a_conflict() {
    for Backend { cluster, _server } in backends().await {
        stored(&*cluster, new_call(&ringing("anna", "ben"))).await;
        let other = cluster.commit(new_call(&ringing("carl", "ben"))).await.unwrap();
        assert!(matches!(other, Committed::Conflict(None)));
        let carls = cluster.latest(&user("carl")).await.unwrap();
        assert_eq!(carls, None, "nothing of a refused change is written");
    }
}

#[tokio::test]
async fn a_claim_whose_record_is_gone_is_free() {
    let server = RedisServer::standalone();
    let (cluster, _inbox) = join(&server).await;
    let lost = ringing("anna", "ben");
    let claims = || {
        ["anna", "ben"]
            .map(|name| server.run(&["HGET", &format!("sb:{{test}}:user:{name}"), "call"]))
    };
    stored(&*cluster, new_call(&lost)).await;
    // The record has expired or was evicted.
    server.run(&["DEL", &format!("sb:{{test}}:call:{}", lost.id)]);
    assert_eq!(cluster.latest(&user("anna")).await.unwrap(), None);
    let busy = [("anna".to_owned(), Presence::Busy), ("ben".to_owned(), Presence::Busy)];
    let next = ringing("anna", "ben");
    assert_eq!(stored(&*cluster, new_call(&next)).await, busy, "they can call each other");
    assert_eq!(claims(), [next.id.to_string(), next.id.to_string()]);

    // Nobody calls: a sweep finds that the record is gone, and which users have claims on it.
    server.run(&["DEL", &format!("sb:{{test}}:call:{}", next.id)]);
    cluster.due(next.deadline(), 10).await.unwrap();
    assert_eq!(claims(), ["", ""]);
    assert_eq!(server.run(&["KEYS", "sb:{test}:user:*"]), "", "and nothing is left of them");
}

/// Lets the sweep run until it has found what it repairs, and the node has been told to start over.
async fn mended(
    cluster: &dyn Cluster,
    inbox: &mut mpsc::Receiver<Inbound>,
    is_done: impl Fn(&Due) -> bool,
) -> Due {
    let mut all = Due::default();
    let sweeps = async {
        while !is_done(&all) {
            let due = cluster.due(START, 10).await.unwrap();
            all.mended.extend(due.mended);
            all.displaced.extend(due.displaced);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while !matches!(inbox.recv().await, Some(Inbound::Reset)) {}
    };
    tokio::time::timeout(Duration::from_secs(15), sweeps).await.expect("heartbeats find it");
    all
}

#[tokio::test]
async fn users_and_deadlines_that_redis_has_evicted_are_put_back() {
    let server = RedisServer::standalone();
    let (cluster, mut inbox) = join(&server).await;
    let call = ringing("anna", "ben");
    stored(&*cluster, new_call(&call)).await;
    server.evict(&["sb:{test}:user:anna", "sb:{test}:user:ben", "sb:{test}:deadlines"]);
    assert_eq!(cluster.latest(&user("anna")).await.unwrap(), None);
    let due = mended(&*cluster, &mut inbox, |due| due.mended.len() == 2).await;
    assert_eq!(due.displaced, []);
    for name in ["anna", "ben"] {
        assert_eq!(cluster.latest(&user(name)).await.unwrap(), Some(call.clone()));
    }
    let presence = cluster.presence(&[user("anna")]).await.unwrap();
    assert_eq!(presence[0].presence, Presence::Busy);
    assert_eq!(cluster.due(call.deadline(), 10).await.unwrap().calls, [call]);
}

#[tokio::test]
async fn a_call_whose_user_was_evicted_and_is_in_another_one_is_found() {
    let server = RedisServer::standalone();
    let (cluster, mut inbox) = join(&server).await;
    let first = ringing("anna", "ben");
    stored(&*cluster, new_call(&first)).await;
    server.evict(&["sb:{test}:user:anna"]);
    let second = ringing("carl", "anna");
    stored(&*cluster, new_call(&second)).await;
    let due = mended(&*cluster, &mut inbox, |due| !due.displaced.is_empty()).await;
    assert!(due.displaced.iter().all(|call| *call == first), "{due:?}");
    assert_eq!(cluster.latest(&user("anna")).await.unwrap(), Some(second));
}

#[tokio::test]
async fn the_sets_of_nodes_and_of_ended_calls_that_redis_has_evicted_are_put_back() {
    let server = RedisServer::standalone();
    let (cluster, mut inbox) = join(&server).await;
    let (dead, call) = (NodeId::generate(START), ringing("anna", "ben"));
    stored(&*cluster, new_call(&call)).await;
    let over = ended(&call, call.deadline());
    stored(&*cluster, update(&over)).await;
    server.run(&["HSET", "sb:{test}:user:carl", &format!("node:{dead}"), "1", "order", "1"]);
    cluster.attach(&user("dora"), socket("1")).await.unwrap();
    let own = format!("sb:{{test}}:node:{}", cluster.node());
    server.evict(&["sb:{test}:unstored", "sb:{test}:nodes", &own]);
    let set = format!("sb:{{test}}:node:{dead}");
    mended(&*cluster, &mut inbox, |_| server.run(&["EXISTS", &set, &own]) == "2").await;
    assert_eq!(server.run(&["SMEMBERS", &set]), "carl");
    assert_eq!(server.run(&["SMEMBERS", &own]), "dora");
    assert_ne!(server.run(&["ZSCORE", "sb:{test}:nodes", &dead.to_string()]), "");
    let unstored = cluster.unstored(START + Duration::from_hours(1), 10).await.unwrap();
    assert_eq!(unstored.calls, [over]);
}

#[tokio::test]
async fn whoever_comes_loses_a_claim_whose_record_is_gone() {
    let server = RedisServer::standalone();
    let (cluster, _inbox) = join(&server).await;
    let lost = ringing("anna", "ben");
    stored(&*cluster, new_call(&lost)).await;
    server.run(&["DEL", &format!("sb:{{test}}:call:{}", lost.id), "sb:{test}:deadlines"]);
    cluster.attach(&user("ben"), socket("1")).await.unwrap();
    assert_eq!(server.run(&["HGET", "sb:{test}:user:ben", "call"]), "");
    cluster.detach(&user("ben"), socket("1")).await.unwrap();
    assert_eq!(server.run(&["EXISTS", "sb:{test}:user:ben"]), "0");
}

#[test]
fn a_heartbeat_that_was_held_up_does_not_confirm_the_time() {
    let server = RedisServer::standalone();
    let node = NodeId::generate(START).to_string();
    let time = server.run(&["TIME"]);
    let now_ms = time.lines().next().unwrap().parse::<u64>().unwrap() * 1_000;
    let confirmed_after = |at: u64| {
        let script = include_str!("../../src/cluster/redis/beat.lua");
        let keys = ["EVAL", script, "2", "sb:{test}:nodes", "sb:{test}:clock"];
        let at = at.to_string();
        server.run(&[&keys[..], &[&node, &at, "", "8000"]].concat());
        server.run(&["HGET", "sb:{test}:clock", "s"])
    };
    assert_eq!(confirmed_after(now_ms - 15_000), "", "Redis' clock may have been set since");
    assert_eq!(confirmed_after(now_ms + 120_000), "", "it was set back since");
    assert_eq!(confirmed_after(now_ms), now_ms.to_string());
    assert_eq!(confirmed_after(now_ms - 15_000), now_ms.to_string());
}

#[tokio::test]
async fn a_node_whose_clock_is_wrong_goes_by_that_of_redis() {
    let server = RedisServer::standalone();
    for wrong in [Timestamp::from_millis(0), START + Duration::from_hours(100_000)] {
        let clock = SharedClock::starting_at(wrong);
        let node = NodeId::generate(START);
        let _joined = Redis::join(
            server.url(),
            "test",
            node,
            clock.clone(),
            Health::default(),
            &Buffers::default(),
        )
        .await
        .unwrap();
        let (shared, right) = (Clock::Shared(clock).now(), Clock::System.now());
        let off = (shared - right).max(right - shared);
        assert!(off < Duration::from_secs(5), "it is {off:?} off");
    }
}

#[tokio::test]
async fn users_of_a_dead_node_are_heard_of_until_they_are_seen_off() {
    let server = RedisServer::standalone();
    let (redis, mut inbox) = join(&server).await;
    // A node that has attached a user and then went silent.
    let dead = NodeId::generate(START);
    server.run(&["HSET", "sb:{test}:user:anna", &format!("node:{dead}"), "1", "order", "1"]);
    // The dead node only watched ben and carl, and ben is online elsewhere: neither has a presence
    // change.
    let elsewhere = format!("node:{}", NodeId::generate(START));
    server.run(&["HSET", "sb:{test}:user:ben", &elsewhere, "1"]);
    server.run(&["HSET", "sb:{test}:user:carl", "order", "1"]);
    for name in ["ben", "carl"] {
        server.run(&["HSET", &format!("sb:{{test}}:watchers:{name}"), &dead.to_string(), "1"]);
    }
    server.run(&["SADD", &format!("sb:{{test}}:node:{dead}"), "anna", "ben", "carl"]);
    server.run(&["ZADD", "sb:{test}:nodes", "1", &dead.to_string()]);
    let mut told = async || match inbox.recv().await {
        Some(Inbound::Departed(from, users)) => {
            assert_eq!(from, dead);
            let [departed] = &users[..] else { panic!("{users:?}") };
            assert_eq!(
                (departed.edge.user.as_str(), departed.edge.presence),
                ("anna", Presence::Offline)
            );
        }
        other => panic!("{other:?}"),
    };
    told().await;
    assert_eq!(server.run(&["EXISTS", "sb:{test}:user:anna"]), "0", "she is offline at once");
    wait_until("nothing of the dead node is left", || {
        server.run(&["HKEYS", "sb:{test}:user:ben"]) == elsewhere
            && server.run(&["EXISTS", "sb:{test}:user:carl"]) == "0"
            && server.run(&["KEYS", "sb:{test}:watchers:*"]).is_empty()
    });
    // Nobody has confirmed that her calls were handled, so they are reported again.
    told().await;
    redis.acknowledge_eviction(dead, &[user("anna")]).await.unwrap();
    assert_eq!(server.run(&["ZCARD", "sb:{test}:departed"]), "0");
    assert_eq!(server.run(&["ZSCORE", "sb:{test}:nodes", &dead.to_string()]), "");
}

#[tokio::test]
async fn users_of_a_dead_node_that_is_back_are_not_heard_of() {
    let server = RedisServer::standalone();
    let (_redis, mut inbox) = join(&server).await;
    // A node that was evicted has since attached anna again, but not ben.
    let back = NodeId::generate(START);
    server.run(&["HSET", "sb:{test}:user:anna", &format!("node:{back}"), "1", "order", "1"]);
    for name in ["anna", "ben"] {
        server.run(&["ZADD", "sb:{test}:departed", "1", &format!("{back}:{name}")]);
    }
    match inbox.recv().await {
        Some(Inbound::Departed(from, users)) => {
            let users: Vec<_> = users.iter().map(|departed| departed.edge.user.as_str()).collect();
            assert_eq!((from, &users[..]), (back, &["ben"][..]));
        }
        other => panic!("{other:?}"),
    }
    wait_until("only ben is to be seen off", || {
        server.run(&["ZRANGE", "sb:{test}:departed", "0", "-1"]) == format!("{back}:ben")
    });
}

#[tokio::test]
async fn a_node_with_users_that_has_not_been_heard_of_since_redis_was_empty_can_be_buried() {
    let server = RedisServer::standalone();
    let (redis, mut inbox) = join(&server).await;
    let last_beat = || server.run(&["ZSCORE", "sb:{test}:nodes", &redis.node().to_string()]);
    assert!(last_beat().parse::<u64>().is_ok());
    let mut presumed = None;
    for _ in 0..5 {
        server.run(&["FLUSHALL"]);
        redis.attach(&user("anna"), socket("1")).await.unwrap();
        // Unless a heartbeat came in between.
        presumed = last_beat().strip_suffix(".5").map(|presumed| presumed.parse::<u64>().unwrap());
        if presumed.is_some() {
            break;
        }
    }
    let presumed = presumed.expect("a node with users is known");
    let now = Clock::System.now().as_millis();
    assert!((now - 5_000..=now).contains(&presumed), "{presumed}");
    // Its heartbeat nevertheless detects that the node was forgotten.
    assert!(matches!(inbox.recv().await, Some(Inbound::Reset)));
    wait_until("its heartbeat is known", || last_beat().parse::<u64>().is_ok());
}

#[tokio::test]
async fn of_sockets_that_join_at_once_one_brings_the_edge() {
    for Backend { cluster, _server } in backends().await {
        for number in 0..10 {
            let user = user(&format!("user{number}"));
            let (one, other) = tokio::join!(
                cluster.attach(&user, socket("1")),
                cluster.attach(&user, socket("2"))
            );
            let edges = [one.unwrap(), other.unwrap()];
            let told = edges.iter().flatten().any(|edge| edge.presence == Presence::Online);
            assert!(told, "{edges:?}");
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_holds_up_no_other() {
    let server = RedisServer::standalone();
    let node = NodeId::generate(Clock::System.now());
    let joined = Redis::join(
        server.url(),
        "test",
        node,
        shared_clock(),
        Health::default(),
        &Buffers::default(),
    )
    .await;
    let (redis, _inbox) = joined.unwrap();
    let (good, bad) = (ringing("anna", "ben"), ringing("carl", "dora"));
    for call in [&good, &bad] {
        stored(&*redis, new_call(call)).await;
    }
    server.run(&["HSET", &format!("sb:{{test}}:call:{}", bad.id), "r", "9{}"]);
    let due = redis.due(good.deadline(), 10).await.unwrap();
    assert_eq!(due.calls, std::slice::from_ref(&good));
    let (live, _) = redis.live(None, 10).await.unwrap();
    assert_eq!(live, [good]);
}

#[tokio::test]
async fn the_lobby_shows_both_users() {
    for Backend { cluster, _server } in backends().await {
        cluster.attach(&user("ben"), socket("1")).await.unwrap();
        cluster.attach(&user("ben"), socket("2")).await.unwrap();
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let lobby = cluster.lobby(&user("carl"), &user("ben")).await.unwrap();
        assert_eq!(lobby.caller_call, None);
        assert_eq!(lobby.callee_call.map(|call| call.id), Some(call.id));
        assert_eq!(lobby.callee_sockets, 2);
    }
}

#[tokio::test]
async fn what_is_due_is_given_out_once_and_again_if_nobody_attends_to_it() {
    for Backend { cluster, _server } in backends().await {
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let due = async |now| cluster.due(now, 10).await.unwrap().calls.len();
        let deadline = call.deadline();
        assert_eq!(due(Timestamp::from_millis(deadline.as_millis() - 1)).await, 0);
        assert_eq!(due(deadline).await, 1);
        assert_eq!(due(deadline).await, 0, "it is attended to by who asked first");
        assert_eq!(due(deadline + Duration::from_secs(5)).await, 1);
    }
}

#[tokio::test]
async fn a_live_call_is_due_first_however_many_ended_ones_wait() {
    for Backend { cluster, _server } in backends().await {
        let mut last = None;
        for number in 0..300 {
            let call = ringing(&format!("anna{number}"), &format!("ben{number}"));
            stored(&*cluster, new_call(&call)).await;
            stored(&*cluster, update(&ended(&call, call.deadline()))).await;
            last = Some(call);
        }
        let live = ringing("carl", "dora");
        stored(&*cluster, new_call(&live)).await;
        let later = last.unwrap().deadline() + ENDED_RETENTION;
        let due = cluster.due(later, 256).await.unwrap();
        assert_eq!((due.calls, due.has_more), (vec![live], false));
        let unstored = cluster.unstored(later, 256).await.unwrap();
        assert_eq!((unstored.calls.len(), unstored.waiting), (256, 300));
        assert!(unstored.has_more);
        let again = cluster.unstored(later, 256).await.unwrap();
        assert_eq!(again.calls.len(), 44, "each is left to who has asked");
        let soon = later + ENDED_RETENTION / 2;
        let again = cluster.unstored(soon, 256).await.unwrap();
        assert_eq!(again.calls.len(), 0, "the longer it waits, the more seldom");
    }
}

#[tokio::test]
async fn ended_calls_that_an_earlier_build_left_among_the_deadlines_move_on() {
    let server = RedisServer::standalone();
    let (redis, _inbox) = join(&server).await;
    for (caller, callee, is_stored) in [("anna", "ben", false), ("carl", "dora", true)] {
        let call = ringing(caller, callee);
        stored(&*redis, new_call(&call)).await;
        let ended = ended(&call, call.deadline());
        stored(&*redis, update(&ended)).await;
        // The key as earlier builds wrote it, before ended records had a sorted set of their own.
        let (id, due) = (call.id.to_string(), ended.deadline().as_millis().to_string());
        server.run(&["ZREM", "sb:{test}:unstored", &id]);
        server.run(&["HDEL", &format!("sb:{{test}}:call:{id}"), "d"]);
        server.run(&["ZADD", "sb:{test}:deadlines", &due, &id]);
        if is_stored {
            redis.mark_persisted(&[(call.id, ended.version)]).await.unwrap();
        }
    }
    let over = ringing("anna", "ben").deadline() + ENDED_RETENTION;
    assert_eq!(redis.due(over, 10).await.unwrap().calls, []);
    let unstored = redis.unstored(over, 10).await.unwrap();
    let callers: Vec<_> = unstored.calls.iter().map(|call| call.caller.user.as_str()).collect();
    assert_eq!(callers, ["anna"], "history has the other one");
    redis.mark_persisted(&[(unstored.calls[0].id, unstored.calls[0].version)]).await.unwrap();
    redis.unstored(over, 10).await.unwrap();
    let left = server.run(&["KEYS", "sb:{test}:[cuds]*"]);
    assert_eq!(left, "sb:{test}:clock", "nothing is left of either");
}

#[tokio::test]
async fn the_order_of_a_watched_user_outlives_the_latest_call() {
    for Backend { cluster, _server } in backends().await {
        let (call, ben) = (ringing("anna", "ben"), user("ben"));
        cluster.watch(std::slice::from_ref(&ben), 0).await.unwrap();
        stored(&*cluster, new_call(&call)).await;
        let ended = ended(&call, call.deadline());
        stored(&*cluster, update(&ended)).await;
        cluster.mark_persisted(&[(call.id, ended.version)]).await.unwrap();
        let before = cluster.presence(std::slice::from_ref(&ben)).await.unwrap()[0].order;
        let over = call.deadline() + ENDED_RETENTION;
        cluster.unstored(over, 10).await.unwrap();
        assert_eq!(cluster.latest(&ben).await.unwrap(), None, "the call is forgotten");
        let after = cluster.presence(std::slice::from_ref(&ben)).await.unwrap()[0].order;
        assert!(before > 0 && after == before, "{after} after {before}");
    }
}

#[tokio::test]
async fn an_ended_call_stays_until_history_has_it_and_then_nothing_is_left() {
    for Backend { cluster, _server } in backends().await {
        let call = ringing("anna", "ben");
        stored(&*cluster, new_call(&call)).await;
        let ended = ended(&call, call.deadline());
        stored(&*cluster, update(&ended)).await;
        let over = ended.ended_at().unwrap() + ENDED_RETENTION;
        let version = ended.version;

        cluster.mark_persisted(&[(call.id, version - 1)]).await.unwrap();
        assert_eq!(cluster.latest(&user("anna")).await.unwrap(), Some(ended.clone()));
        let unsaved = cluster.unstored(over, 10).await.unwrap();
        assert_eq!(unsaved.calls, [ended], "it waits to be saved: an earlier version of it was");
        assert_eq!(unsaved.waiting, 1);

        cluster.mark_persisted(&[(call.id, version)]).await.unwrap();
        let later = over + Duration::from_mins(1);
        let stored = cluster.unstored(later, 10).await.unwrap();
        assert_eq!((stored.calls.len(), stored.waiting, stored.lost), (0, 0, 0));
        assert_eq!(cluster.load(call.id).await.unwrap(), None);
        assert_eq!(cluster.latest(&user("anna")).await.unwrap(), None);
        assert_eq!(cluster.latest(&user("ben")).await.unwrap(), None);
    }
}
