//! Tests of commits whose reply is lost: the operation was applied, and the client was asked to
//! retry.

use std::time::Duration;

use switchboard::{
    call::{Event, Refusal, Signal},
    calls::{Failure, PRESENCE_INTERVAL, SWEEP_INTERVAL as A_SWEEP},
    cluster::{CallRecords, Change, Peers, Unavailable},
    ids::NodeId,
    time::Clock,
};

use crate::harness::{NODE_COUNTS, RULES, TestCluster, socket};

const REFUSED: Failure = Failure::Unavailable(Unavailable);
/// Longer than a sweep needs to find an applied call, and shorter than it waits for the caller's
/// retry.
const A_SECOND: Duration = Duration::from_secs(1);
const TOO_LATE: Duration = Duration::from_secs(4);

/// `a1` has initiated a call to `b` with the `clientCallId` `x`, and was told that it failed.
async fn a_call_that_was_written(count: usize) -> TestCluster {
    let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
    cluster.node_of("a1").lose_answer_of("commit");
    assert_eq!(cluster.initiate_named("a1", "b", Some("x")).await, Err(REFUSED));
    cluster.pass(A_SECOND).await;
    for name in ["a1", "b1", "b2"] {
        assert_eq!(cluster.heard(name), [""; 0]);
    }
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_call_rings_when_its_caller_tries_again() {
    for count in NODE_COUNTS {
        let cluster = a_call_that_was_written(count).await;
        let id = cluster.initiate_named("a1", "b", Some("x")).await.unwrap();
        assert_eq!(cluster.heard("a1"), ["ringing"]);
        assert_eq!(cluster.heard("b1"), ["incoming"]);
        cluster.pass(TOO_LATE).await;
        cluster.answer("b2", "a").await.unwrap();
        assert_eq!(cluster.heard("a1"), ["answer answer"]);
        cluster.end("a1", "b").await.unwrap();
        let row = cluster.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!(row.end_reason.unwrap().as_str(), "completed");
        assert_eq!(cluster.ledger.all().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_makes_room_when_its_caller_tries_something_else() {
    for count in NODE_COUNTS {
        for name in [None, Some("y")] {
            let cluster = a_call_that_was_written(count).await;
            cluster.initiate_named("a1", "b", name).await.unwrap();
            assert_eq!(cluster.heard("a1").last().unwrap(), "ringing");
            assert_eq!(cluster.heard("b1"), ["incoming"]);
            cluster.pass(TOO_LATE).await;
            assert_eq!(cluster.heard("b1"), [""; 0]);
            cluster.answer("b1", "a").await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_caller_has_given_up_ends() {
    for count in NODE_COUNTS {
        let cluster = a_call_that_was_written(count).await;
        cluster.pass(TOO_LATE).await;
        assert_eq!(cluster.heard("b1"), [""; 0]);
        cluster.initiate("b1", "a").await.unwrap();
        assert_eq!(cluster.heard("a1").last().unwrap(), "incoming");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_won_is_passed_on_when_it_is_given_again() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.heard("a1");
        cluster.signal("b1", "a", Signal::Candidate, "early").await.unwrap();
        cluster.node_of("b1").lose_answer_of("commit");
        assert_eq!(cluster.answer("b1", "a").await, Err(REFUSED));
        assert_eq!(cluster.heard("a1"), [""; 0]);
        cluster.pass(A_SECOND).await;
        cluster.answer("b1", "a").await.unwrap();
        assert_eq!(cluster.heard("a1"), ["answer answer", "ice-candidate early"]);
        assert_eq!(cluster.heard("b1"), ["incoming"]);
        cluster.signal("a1", "b", Signal::Candidate, "c").await.unwrap();
        assert_eq!(cluster.heard("b1"), ["ice-candidate c"]);
        let other = cluster.answer("b2", "a").await;
        assert!(matches!(other, Err(Failure::Refused(Refusal::AlreadyAnswered(_)))), "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_given_again_is_known_to_all_nodes() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.node_of("b1").lose_answer_of("commit");
        assert_eq!(cluster.answer("b1", "a").await, Err(REFUSED));
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("b2"), ["incoming", "ended answered_elsewhere"]);
        cluster.answer("b1", "a").await.unwrap();
        assert_eq!(cluster.heard("a1"), ["ringing", "answer answer"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_not_answered_is_told_to_all() {
    for count in NODE_COUNTS {
        let (cluster, id) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.node_of("a1").lose_answer_of("commit");
        assert_eq!(cluster.end("a1", "b").await, Err(REFUSED));
        tokio::time::advance(A_SWEEP).await;
        assert_eq!(cluster.heard("b1"), [""; 0]);
        assert_eq!(cluster.end("a1", "b").await.unwrap().id, id);
        assert_eq!(cluster.heard("b1"), ["ended completed"]);
        cluster.pass(A_SWEEP).await;
        for name in ["a1", "b1"] {
            assert_eq!(cluster.heard(name), [""; 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_of_a_node_that_died_is_told_by_the_one_that_is_asked_again() {
    for count in NODE_COUNTS {
        for asks in ["a1", "a3"] {
            let (cluster, id) = TestCluster::in_call(count, &["a1", "b1", "a3"]).await;
            let is_elsewhere = |name| cluster.node_of(name).id != cluster.node_of(asks).id;
            if asks == "a3" && !(is_elsewhere("a1") && is_elsewhere("b1")) {
                // Its node must not know the call.
                continue;
            }
            let (dead, _inbox) = cluster.hub.node(NodeId::generate(Clock::System.now()));
            let call = dead.load(id).await.unwrap().unwrap();
            let end = Event::End { by: cluster.device("a1"), reported_duration_s: None };
            let ended = RULES.apply(&call, &end, dead.node(), call.updated_at).unwrap();
            dead.commit(Change { call: ended, claims: Vec::new() }).await.unwrap();
            assert_eq!(cluster.heard("b1"), [""; 0]);
            assert_eq!(cluster.end(asks, "b").await.unwrap().id, id);
            assert_eq!(cluster.heard("b1"), ["ended completed"]);
            assert_eq!(cluster.heard("a1"), [""; 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_ends_a_call_at_the_second_try_hears_of_it_by_the_answer_alone() {
    for count in NODE_COUNTS {
        for fails in 0..2 {
            let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
            cluster.initiate("a1", "b").await.unwrap();
            cluster.node_of("b1").fail_next(fails);
            assert_eq!(cluster.reject("b1", "a").await.is_err(), fails > 0);
            cluster.reject("b1", "a").await.unwrap();
            cluster.pass(A_SWEEP).await;
            assert_eq!(cluster.heard("b1"), ["incoming"]);
            assert_eq!(cluster.heard("b2"), ["incoming", "ended declined_elsewhere"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_hears_of_its_own_end_once_and_as_its_own() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
        let id = cluster.initiate("a1", "b").await.unwrap();
        cluster.node_of("b1").lose_answer_of("commit");
        assert_eq!(cluster.reject("b1", "a").await, Err(REFUSED));
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("a1"), ["ringing", "rejected"]);
        assert_eq!(cluster.heard("b1"), ["incoming", "ended declined"]);
        assert_eq!(cluster.heard("b2"), ["incoming", "ended declined_elsewhere"]);
        assert_eq!(cluster.reject("b1", "a").await.unwrap().id, id);
        cluster.pass(A_SECOND).await;
        for name in ["a1", "b1", "b2"] {
            assert_eq!(cluster.heard(name), [""; 0]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_could_not_be_told_of_its_call_when_it_joined_is_told_by_the_next_sweep() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.leave("b1", true).await;
        let (node, device) = (cluster.node_of("b1+"), cluster.device("b1+"));
        node.sink.sockets.lock().unwrap().insert(device.socket, device.user.clone());
        node.calls.join(&device).await.unwrap();
        node.lose_answer_of("latest");
        assert_eq!(node.calls.welcome(&device).await, Err(Unavailable));
        assert_eq!(cluster.heard("b1+"), [""; 0]);
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("b1+"), ["resumed"]);
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("b1+"), [""; 0]);
    }
}

/// `c1` watches `a` and `b`; if `in_call`, those are in a call with each other.
async fn watched(count: usize, in_call: bool) -> TestCluster {
    let names = ["a1", "b1", "c1"];
    let cluster = if in_call {
        TestCluster::in_call(count, &names).await.0
    } else {
        TestCluster::with(count, &["a1", "c1"]).await
    };
    let users = ["a", "b"].map(|user| user.parse().unwrap());
    cluster.calls("c1").subscribe(socket("c1"), &users).await.unwrap();
    cluster
}

#[tokio::test(start_paused = true)]
async fn presence_after_an_end_is_told_to_those_who_watch() {
    for count in NODE_COUNTS {
        let cluster = watched(count, true).await;
        cluster.node_of("a1").lose_answer_of("commit");
        assert_eq!(cluster.end("a1", "b").await.unwrap_err(), REFUSED);
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("c1"), ["presence:update online", "presence:update online"]);
        cluster.pass(TOO_LATE).await;
        assert_eq!(cluster.heard("c1"), [""; 0], "once");
    }
}

#[tokio::test(start_paused = true)]
async fn presence_after_a_connect_or_a_disconnect_is_told_to_those_who_watch() {
    for count in NODE_COUNTS {
        let cluster = watched(count, false).await;
        let (node, device) = (cluster.node_of("b1"), cluster.device("b1"));
        node.lose_answer_of("attach");
        assert_eq!(node.calls.join(&device).await, Err(Unavailable));
        // The client tries again and finds itself online.
        cluster.join("b1").await;
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("c1"), ["presence:update online"]);
        cluster.pass(PRESENCE_INTERVAL).await;
        node.lose_answer_of("detach");
        cluster.leave("b1", false).await;
        cluster.pass(A_SWEEP).await;
        assert_eq!(cluster.heard("c1"), ["presence:update offline"]);
    }
}
