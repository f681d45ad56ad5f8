//! Tests of the driver: whole calls, each on one and on several nodes.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use switchboard::{
    call::{Refusal, Signal},
    calls::{
        Failure, MAX_REPLAY_MESSAGES, MAX_WAITING_MESSAGES, PRESENCE_INTERVAL, SWEEP_INTERVAL,
    },
    cluster::{CallRecords, Edge, Inbound, Message, Peers, Unavailable, UserPresence},
    ids::{NodeId, UserId},
    protocol::{CallRef, Presence},
    time::Clock,
};

use crate::harness::{NODE_COUNTS, RULES, TestCluster, payload, refused, socket, to};

#[tokio::test(start_paused = true)]
async fn a_call_from_ring_to_end() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
        let id = cluster.initiate("a1", "b").await.unwrap();
        assert_eq!(cluster.heard("a1"), ["ringing"]);
        cluster.signal("a1", "b", Signal::Offer, "o").await.unwrap();
        cluster.signal("a1", "b", Signal::Candidate, "c").await.unwrap();
        for name in ["b1", "b2"] {
            assert_eq!(cluster.heard(name), ["incoming", "offer o", "ice-candidate c"]);
        }
        cluster.answer("b1", "a").await.unwrap();
        assert_eq!(cluster.heard("a1"), ["answer answer"]);
        assert_eq!(cluster.heard("b2"), ["ended answered_elsewhere"]);
        assert_eq!(cluster.answer("b2", "a").await, refused(Refusal::AlreadyAnswered(id)));

        cluster.signal("a1", "b", Signal::Candidate, "only b1").await.unwrap();
        assert_eq!(cluster.heard("b1"), ["ice-candidate only b1"]);
        assert_eq!(cluster.heard("b2"), [""; 0]);

        tokio::time::advance(Duration::from_secs(7)).await;
        cluster.end("a1", "b").await.unwrap();
        assert_eq!(cluster.heard("b1"), ["ended completed"]);
        let row = cluster.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!((row.status.as_str(), row.duration_s), ("ended", Some(7)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_of_a_ringing_device_waits_for_its_answer() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.heard("a1");
        cluster.signal("b1", "a", Signal::Candidate, "b1 early").await.unwrap();
        cluster.signal("b2", "a", Signal::Candidate, "b2 early").await.unwrap();
        assert_eq!(cluster.heard("a1"), [""; 0]);
        cluster.answer("b2", "a").await.unwrap();
        cluster.signal("b2", "a", Signal::Candidate, "b2 late").await.unwrap();
        assert_eq!(
            cluster.heard("a1"),
            ["answer answer", "ice-candidate b2 early", "ice-candidate b2 late"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_answers_at_once_one_wins() {
    for count in NODE_COUNTS {
        for _ in 0..20 {
            let names = ["b1", "b2", "b3", "b4"];
            let cluster = TestCluster::with(count, &["a1", "b1", "b2", "b3", "b4"]).await;
            cluster.initiate("a1", "b").await.unwrap();
            cluster.heard("a1");
            let results =
                futures_util::future::join_all(names.map(|name| cluster.answer(name, "a"))).await;
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
            assert_eq!(cluster.heard("a1"), ["answer answer"]);
            let told = names.map(|name| cluster.heard(name).last().cloned().unwrap());
            assert_eq!(told.iter().filter(|last| *last == "incoming").count(), 1, "{told:?}");
            assert_eq!(told.iter().filter(|last| *last == "ended answered_elsewhere").count(), 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_and_a_cancel_at_the_same_instant_end_once_for_everybody() {
    for count in NODE_COUNTS {
        for head_start in 0..40 {
            let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
            cluster.initiate("a1", "b").await.unwrap();
            let cancelling = async {
                for _ in 0..head_start {
                    tokio::task::yield_now().await;
                }
                cluster.end("a1", "b").await
            };
            let (answered, ended) = tokio::join!(cluster.answer("b1", "a"), cancelling);
            let reason = ended.unwrap().end_reason().unwrap().as_str();
            let (winner, other) = match answered {
                Ok(()) => (format!("ended {reason}"), "ended answered_elsewhere".to_owned()),
                Err(_) => ("ended cancelled".to_owned(), "ended cancelled".to_owned()),
            };
            assert_eq!(cluster.heard("b1"), ["incoming".to_owned(), winner]);
            assert_eq!(cluster.heard("b2"), ["incoming".to_owned(), other]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn news_that_come_late_change_nothing() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "b2"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        let (elsewhere, _inbox) = cluster.hub.node(NodeId::generate(Clock::System.now()));
        let ringing = elsewhere.latest(&"a".parse().unwrap()).await.unwrap().unwrap();
        cluster.answer("b1", "a").await.unwrap();
        for name in ["a1", "b1", "b2"] {
            cluster.heard(name);
        }
        for node in &cluster.nodes {
            elsewhere.send(node.id, Message::Call(Box::new(ringing.clone())));
        }
        cluster.settle().await;
        cluster.signal("a1", "b", Signal::Candidate, "for b1").await.unwrap();
        assert_eq!(cluster.heard("b1"), ["ice-candidate for b1"]);
        assert_eq!(cluster.heard("b2"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_joins_while_it_rings_gets_the_call_so_far() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.signal("a1", "b", Signal::Offer, "o").await.unwrap();
        cluster.signal("a1", "b", Signal::Candidate, "1").await.unwrap();
        cluster.join("b2").await;
        cluster.signal("a1", "b", Signal::Candidate, "2").await.unwrap();
        let expected = ["incoming", "offer o", "ice-candidate 1", "ice-candidate 2"];
        assert_eq!(cluster.heard("b2"), expected);
        cluster.answer("b2", "a").await.unwrap();
        assert_eq!(cluster.heard("b1").last().unwrap(), "ended answered_elsewhere");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_device_of_the_callee_may_go_and_come_back_while_it_rings() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.leave("b1", true).await;
        cluster.pass(Duration::from_secs(20)).await;
        cluster.join("b1+").await;
        assert_eq!(cluster.heard("b1+"), ["incoming"]);
        cluster.answer("b1+", "a").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_answers() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        let id = cluster.initiate("a1", "b").await.unwrap();
        cluster.pass(Duration::from_millis(29_999)).await;
        assert_eq!(cluster.heard("b1"), ["incoming"]);
        cluster.pass(Duration::from_millis(1)).await;
        assert_eq!(cluster.heard("a1"), ["ringing", "ended no_answer"]);
        assert_eq!(cluster.heard("b1"), ["ended no_answer"]);
        let row = cluster.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!((row.status.as_str(), row.duration_s), ("missed", None));
    }
}

#[tokio::test(start_paused = true)]
async fn the_sweeper_attends_by_itself() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        let two_sweeps = RULES.ring_timeout + 2 * SWEEP_INTERVAL;
        cluster.calls("b1").run_sweeper(tokio::time::sleep(two_sweeps)).await;
        assert_eq!(cluster.heard("a1"), ["ringing", "ended no_answer"]);
    }
}

#[tokio::test(start_paused = true)]
async fn busy_offline_and_glare() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "c1"]).await;
        let first = cluster.initiate("a1", "b").await.unwrap();
        let busy = cluster.initiate("c1", "b").await.unwrap();
        assert_eq!(cluster.heard("c1"), ["busy"]);
        let row = cluster.row(busy, |_| true).await;
        assert_eq!((row.status.as_str(), row.end_reason.unwrap().as_str()), ("missed", "busy"));

        let glare = cluster.initiate("b1", "a").await;
        assert_eq!(glare, Err(Failure::Refused(Refusal::Glare(first))));
        let second = cluster.initiate("b1", "c").await;
        assert_eq!(second, Err(Failure::Refused(Refusal::CallInProgress(first))));

        let Err(Failure::Offline(offline)) = cluster.initiate("c1", "d").await else { panic!() };
        let row = cluster.row(offline, |_| true).await;
        assert_eq!((row.status.as_str(), row.end_reason.unwrap().as_str()), ("missed", "offline"));
    }
}

#[tokio::test(start_paused = true)]
async fn both_dial_each_other_at_the_same_instant() {
    for count in NODE_COUNTS {
        for _ in 0..20 {
            let cluster = TestCluster::with(count, &["a1", "b1"]).await;
            let (one, other) =
                tokio::join!(cluster.initiate("a1", "b"), cluster.initiate("b1", "a"));
            let (survivor, glare) = match (one, other) {
                (Ok(id), Err(error)) | (Err(error), Ok(id)) => (id, error),
                both => panic!("{both:?}"),
            };
            assert_eq!(glare, Failure::Refused(Refusal::Glare(survivor)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_attempt_is_the_same_call() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        let first = cluster.initiate_named("a1", "b", Some("try 1")).await.unwrap();
        assert_eq!(cluster.initiate_named("a1", "b", Some("try 1")).await, Ok(first));
        assert_eq!(cluster.heard("b1"), ["incoming"]);
        cluster.reject("b1", "a").await.unwrap();
        assert_eq!(
            cluster.initiate_named("a1", "b", Some("try 1")).await,
            Ok(first),
            "also once it ended"
        );
        assert_ne!(cluster.initiate_named("a1", "b", Some("try 2")).await, Ok(first));
    }
}

#[tokio::test(start_paused = true)]
async fn ending_twice_changes_nothing() {
    for count in NODE_COUNTS {
        let (cluster, id) = TestCluster::in_call(count, &["a1", "b1"]).await;
        let first = cluster.end("a1", "b").await.unwrap();
        let again =
            cluster.calls("a1").end(&cluster.device("a1"), &to("b"), Some(99.0)).await.unwrap();
        assert_eq!(first, again);
        let by_peer = CallRef { call_id: Some(id), ..to("a") };
        assert_eq!(cluster.busy("b1", &by_peer).await.unwrap(), first);
        assert_eq!(cluster.heard("b1"), ["ended completed"]);
        assert_eq!(cluster.heard("a1"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_device_comes_back_and_gets_what_it_missed_in_order() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.leave("a1", true).await;
        assert_eq!(cluster.heard("b1"), ["peer-reconnecting"]);
        for text in ["1", "2", "3"] {
            cluster.signal("b1", "a", Signal::Candidate, text).await.unwrap();
        }
        cluster.pass(Duration::from_millis(9_999)).await;
        cluster.join("a1+").await;
        let missed = ["ice-candidate 1", "ice-candidate 2", "ice-candidate 3"];
        let heard = cluster.heard("a1+");
        assert_eq!((&*heard[0], &heard[1..]), ("resumed", &missed.map(str::to_owned)[..]));
        assert_eq!(cluster.heard("b1"), ["peer-reconnected"]);
        cluster.signal("a1+", "b", Signal::Offer, "restart").await.unwrap();
        assert_eq!(cluster.heard("b1"), ["offer restart"]);
        cluster.pass(Duration::from_mins(1)).await;
        assert_eq!(cluster.heard("b1"), [""; 0], "the grace is over and the call is not");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_socket_of_a_device_takes_over_from_one_that_is_not_known_to_be_dead() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.join("a1+").await;
        assert_eq!(cluster.heard("a1+"), ["resumed"]);
        assert_eq!(cluster.heard("a1"), ["ended resumed_elsewhere"]);
        cluster.leave("a1", true).await;
        assert_eq!(cluster.heard("b1"), [""; 0], "the peer notices nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_lost_device_is_bounded_and_says_so() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.leave("a1", true).await;
        for _ in 0..MAX_WAITING_MESSAGES {
            cluster.signal("b1", "a", Signal::Candidate, "x").await.unwrap();
        }
        let full = cluster.signal("b1", "a", Signal::Candidate, "x").await;
        assert_eq!(full, Err(Failure::Full { retry_after: RULES.reconnect_grace }));
        cluster.join("a1+").await;
        assert_eq!(cluster.heard("a1+").len(), 1 + MAX_WAITING_MESSAGES);
    }
}

#[tokio::test(start_paused = true)]
async fn the_candidates_of_all_ringing_devices_share_their_room() {
    for count in NODE_COUNTS {
        let names: Vec<_> = (1..=count + 1).map(|number| format!("b{number}")).collect();
        let mut all = vec!["a1"];
        all.extend(names.iter().map(String::as_str));
        let cluster = TestCluster::with(count, &all).await;
        cluster.initiate("a1", "b").await.unwrap();
        let sent = MAX_REPLAY_MESSAGES / 2;
        for _ in 0..sent {
            cluster.signal("b1", "a", Signal::Candidate, "x").await.unwrap();
        }
        // The device whose number is higher by the number of nodes is on the same node.
        let other = format!("b{}", count + 1);
        for _ in sent..MAX_REPLAY_MESSAGES {
            cluster.signal(&other, "a", Signal::Candidate, "x").await.unwrap();
        }
        let full = cluster.signal(&other, "a", Signal::Candidate, "x").await;
        assert_eq!(full, Err(Failure::Full { retry_after: RULES.ring_timeout }));
        cluster.leave(&other, true).await;
        cluster.signal("b1", "a", Signal::Candidate, "x").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_ringing_call_is_bounded_and_says_so() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        for _ in 0..MAX_REPLAY_MESSAGES {
            cluster.signal("a1", "b", Signal::Candidate, "x").await.unwrap();
        }
        let full = cluster.signal("a1", "b", Signal::Candidate, "x").await;
        assert_eq!(full, Err(Failure::Full { retry_after: RULES.ring_timeout }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_stays_away_loses_its_call() {
    for count in NODE_COUNTS {
        let (cluster, id) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.leave("a1", true).await;
        cluster.pass(RULES.reconnect_grace).await;
        assert_eq!(cluster.heard("b1"), ["peer-reconnecting", "ended connection_lost"]);
        cluster.row(id, |row| row.ended_at.is_some()).await;
        cluster.join("a1+").await;
        assert_eq!(
            cluster.heard("a1+"),
            ["ended connection_lost"],
            "it hears of it when it is back"
        );
        cluster.leave("a1+", true).await;
        cluster.join("a1++").await;
        assert_eq!(cluster.heard("a1++"), [""; 0], "once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_on_purpose_ends_its_call_at_once() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.leave("a1", false).await;
        assert_eq!(cluster.heard("b1"), ["ended connection_lost"]);
        cluster.join("a1+").await;
        assert_eq!(cluster.heard("a1+"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_reaches_a_caller_who_was_away_when_it_came() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        cluster.initiate("a1", "b").await.unwrap();
        cluster.leave("a1", true).await;
        cluster.signal("b1", "a", Signal::Candidate, "early").await.unwrap();
        cluster.answer("b1", "a").await.unwrap();
        cluster.join("a1+").await;
        assert_eq!(cluster.heard("a1+"), ["resumed", "answer answer", "ice-candidate early"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_came_back_and_does_not_know_its_call_may_begin_another() {
    for count in NODE_COUNTS {
        let (cluster, first) = TestCluster::in_call(count, &["a1", "b1", "c1"]).await;
        cluster.leave("a1", true).await;
        cluster.join("a1+").await;
        let second = cluster.initiate("a1+", "c").await.unwrap();
        assert_ne!(first, second);
        assert_eq!(cluster.heard("b1").last().unwrap(), "ended superseded");
        assert_eq!(cluster.heard("a1+"), ["resumed", "ringing"]);

        let (cluster, first) = TestCluster::in_call(count, &["a1", "b1", "c1"]).await;
        cluster.leave("a1", true).await;
        cluster.join("a1+").await;
        cluster.signal("a1+", "b", Signal::Candidate, "it knows").await.unwrap();
        let refused = cluster.initiate("a1+", "c").await;
        assert_eq!(refused, Err(Failure::Refused(Refusal::CallInProgress(first))));
    }
}

#[tokio::test(start_paused = true)]
async fn redialling_the_same_peer_after_a_reload_rings_them_again() {
    for count in NODE_COUNTS {
        let (cluster, _) = TestCluster::in_call(count, &["a1", "b1"]).await;
        cluster.leave("a1", true).await;
        cluster.join("a2").await;
        cluster.initiate("a2", "b").await.unwrap();
        assert_eq!(cluster.heard("b1"), ["peer-reconnecting", "ended superseded", "incoming"]);
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_cannot_reach_a_call() {
    for count in NODE_COUNTS {
        let (cluster, id) = TestCluster::in_call(count, &["a1", "b1", "c1"]).await;
        let aimed = CallRef { to: Some("b".parse().unwrap()), call_id: Some(id) };
        let stranger = cluster.device("c1");
        let ended = cluster.calls("c1").end(&stranger, &aimed, None).await;
        assert_eq!(ended, Err(Failure::Refused(Refusal::NotInCall)));
        let offered =
            cluster.calls("c1").signal(&stranger, &aimed, Signal::Offer, payload("x"), 0).await;
        assert_eq!(offered, Err(Failure::Refused(Refusal::NotInCall)));
        assert_eq!(cluster.calls("c1").sync(&stranger, Some(id)).await, Ok(None));
        assert_eq!(cluster.calls("c1").report(&stranger, id).await, refused(Refusal::NotInCall));
        assert_eq!(cluster.heard("b1"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn sync_shows_the_live_call_and_an_ended_one_for_a_minute() {
    for count in NODE_COUNTS {
        let (cluster, id) = TestCluster::in_call(count, &["a1", "b1"]).await;
        let device = cluster.device("a1");
        let view = async |id| {
            let view = cluster.calls("a1").sync(&device, id).await.unwrap();
            serde_json::to_value(view).unwrap()["status"].clone()
        };
        assert_eq!(view(None).await, "answered");
        cluster.calls("a1").end(&device, &to("b"), None).await.unwrap();
        cluster.row(id, |row| row.ended_at.is_some()).await;
        assert_eq!(view(None).await, Value::Null);
        assert_eq!(view(Some(id)).await, "ended");
        cluster.pass(Duration::from_secs(59)).await;
        assert_eq!(view(Some(id)).await, "ended");
        cluster.pass(Duration::from_secs(1)).await;
        assert_eq!(view(Some(id)).await, Value::Null);
    }
}

#[tokio::test(start_paused = true)]
async fn presence_is_told_on_every_edge_to_those_who_watch() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "c1"]).await;
        let watched = ["a".parse().unwrap(), "b".parse().unwrap()];
        let watcher = socket("c1");
        let now = cluster.calls("c1").subscribe(watcher, &watched).await.unwrap();
        assert_eq!(
            now.presence.into_values().collect::<Vec<_>>(),
            [Presence::Online, Presence::Offline]
        );
        cluster.join("b1").await;
        cluster.join("b2").await;
        cluster.leave("b2", true).await;
        assert_eq!(cluster.heard("c1"), ["presence:update online"]);
        cluster.pass(PRESENCE_INTERVAL).await;
        cluster.initiate("a1", "b").await.unwrap();
        assert_eq!(cluster.heard("c1"), ["presence:update busy", "presence:update busy"]);
        cluster.pass(PRESENCE_INTERVAL).await;
        cluster.end("a1", "b").await.unwrap();
        assert_eq!(cluster.heard("c1"), ["presence:update online", "presence:update online"]);
        cluster.pass(PRESENCE_INTERVAL).await;
        cluster.calls("c1").unsubscribe(watcher, &watched[..1]).await;
        cluster.leave("a1", true).await;
        cluster.leave("b1", true).await;
        assert_eq!(cluster.heard("c1"), ["presence:update offline"]);
    }
}

/// However often presence changes, a watcher gets one update per interval, and the last one is
/// true; also a watcher that subscribed in between.
#[tokio::test(start_paused = true)]
async fn presence_that_changes_often_is_told_as_its_latest() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1", "c1", "d1"]).await;
        let watched = ["a".parse().unwrap()];
        cluster.calls("c1").subscribe(socket("c1"), &watched).await.unwrap();
        for _ in 0..20 {
            cluster.initiate("a1", "b").await.unwrap();
            cluster.end("a1", "b").await.unwrap();
        }
        assert_eq!(cluster.heard("c1"), ["presence:update busy"], "the first at once");
        cluster.initiate("a1", "b").await.unwrap();
        let now = cluster.calls("d1").subscribe(socket("d1"), &watched).await.unwrap();
        assert_eq!(now.presence, BTreeMap::from([(watched[0].clone(), Presence::Busy)]));
        cluster.end("a1", "b").await.unwrap();
        cluster.settle().await;
        cluster.pass(Duration::from_millis(999)).await;
        let quiet: [&str; 0] = [];
        assert_eq!(cluster.heard("c1"), quiet);
        cluster.pass(Duration::from_millis(1)).await;
        cluster.pass(PRESENCE_INTERVAL).await;
        for watcher in ["c1", "d1"] {
            assert_eq!(cluster.heard(watcher), ["presence:update online"], "{watcher} on {count}");
        }
        // The status is again the one that was announced: watchers get no update.
        cluster.initiate("a1", "b").await.unwrap();
        cluster.end("a1", "b").await.unwrap();
        cluster.initiate("a1", "b").await.unwrap();
        cluster.settle().await;
        cluster.pass(PRESENCE_INTERVAL).await;
        cluster.pass(PRESENCE_INTERVAL).await;
        assert_eq!(cluster.heard("c1"), ["presence:update busy"]);
    }
}

#[tokio::test(start_paused = true)]
async fn presence_reaches_each_of_many_watchers_once() {
    let names: Vec<String> = (0..200).map(|number| format!("c{number}")).collect();
    let all: Vec<&str> = ["a1", "b1"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let cluster = TestCluster::with(1, &all).await;
    let watched = ["a".parse().unwrap()];
    for name in &names {
        cluster.calls(name).subscribe(socket(name), &watched).await.unwrap();
    }
    cluster.initiate("a1", "b").await.unwrap();
    let told = names.iter().filter(|name| cluster.heard(name) == ["presence:update busy"]).count();
    assert!((1..100).contains(&told), "{told} in one go");
    cluster.calls("c199").unsubscribe(socket("c199"), &watched).await;
    cluster.pass(Duration::ZERO).await;
    let late = names.iter().filter(|name| cluster.heard(name) == ["presence:update busy"]).count();
    assert_eq!(told + late, 199, "all but the one that no longer watches");
    cluster.pass(PRESENCE_INTERVAL).await;
    cluster.end("a1", "b").await.unwrap();
    cluster.settle().await;
    let mut outdated = Vec::new();
    for name in &names[..199] {
        let heard = cluster.heard(name);
        assert!(heard.len() <= 1, "{name}: {heard:?}");
        if !heard.is_empty() {
            outdated.push(name);
        }
    }
    assert!((1..100).contains(&outdated.len()), "{outdated:?}");
    // It changes before all have been told: nobody is told of the old status.
    cluster.initiate("a1", "b").await.unwrap();
    cluster.pass(PRESENCE_INTERVAL).await;
    for name in &names[..199] {
        let heard = cluster.heard(name);
        assert!(heard.is_empty() || heard == ["presence:update busy"], "{name}: {heard:?}");
        assert!(!heard.is_empty() || !outdated.contains(&name), "{name} has the old status");
    }
}

/// Subscribing to a user whom this node already watches needs no operation on the shared state.
#[tokio::test(start_paused = true)]
async fn presence_of_the_watched_is_known_here() {
    let cluster = TestCluster::with(1, &["a1", "c1", "d1"]).await;
    let calls = cluster.calls("c1");
    let ids: Vec<UserId> = ["a", "x", "a"].map(|id| id.parse().unwrap()).to_vec();
    let expected = BTreeMap::from(
        [("a", Presence::Online), ("x", Presence::Offline)]
            .map(|(id, presence)| (id.parse::<UserId>().unwrap(), presence)),
    );
    assert_eq!(calls.subscribe(socket("c1"), &ids).await.unwrap().presence, expected);
    // From here on the shared state is unavailable.
    cluster.nodes[0].fail_next(usize::MAX);
    assert_eq!(calls.subscribe(socket("c1"), &ids).await.unwrap().presence, expected);
    assert_eq!(calls.subscribe(socket("d1"), &ids).await.unwrap().presence, expected);
    let new = ["y".parse().unwrap()];
    assert_eq!(calls.subscribe(socket("d1"), &new).await, Err(Failure::Unavailable(Unavailable)));
    // A user whose presence could not be read is not cached as known.
    assert_eq!(calls.subscribe(socket("c1"), &new).await, Err(Failure::Unavailable(Unavailable)));
}

#[tokio::test(start_paused = true)]
async fn a_second_watcher_does_not_take_the_news_from_the_first() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "c1", "c2"]).await;
        let watched = ["a".parse().unwrap()];
        for watcher in ["c1", "c2"] {
            let leaving = async {
                if watcher == "c2" {
                    cluster.leave("a1", true).await;
                }
            };
            let subscribing = cluster.calls(watcher).subscribe(socket(watcher), &watched);
            let (answer, ()) = tokio::join!(subscribing, leaving);
            answer.unwrap();
        }
        cluster.settle().await;
        assert_eq!(cluster.heard("c1"), ["presence:update offline"]);
    }
}

/// A client keeps the last word that it gets, and the ack of its subscription comes after all that was sent meanwhile.
#[tokio::test(start_paused = true)]
async fn the_answer_to_a_watcher_is_never_older_than_what_it_was_told() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "c1"]).await;
        let (a, y): (UserId, UserId) = ("a".parse().unwrap(), "y".parse().unwrap());
        let calls = cluster.calls("c1");
        calls.subscribe(socket("c1"), std::slice::from_ref(&a)).await.unwrap();
        // One user is known here, the shared state is asked for the other, and a change comes before its answer.
        let both = [a.clone(), y];
        let leaving = cluster.leave("a1", true);
        let (answer, ()) = tokio::join!(calls.subscribe(socket("c1"), &both), leaving);
        let answer = answer.unwrap();
        cluster.settle().await;
        assert_eq!(cluster.heard("c1"), ["presence:update offline"]);
        // The ack may say that, or else the change is sent again after it.
        calls.subscribed(socket("c1"), answer.as_of);
        let again = cluster.heard("c1");
        let is_told =
            answer.presence[&a] == Presence::Offline || again == ["presence:update offline"];
        assert!(is_told, "{count} nodes: {:?}, then {again:?}", answer.presence);
        // All that there is was in the ack.
        let answer = calls.subscribe(socket("c1"), &both).await.unwrap();
        calls.subscribed(socket("c1"), answer.as_of);
        let quiet: [&str; 0] = [];
        assert_eq!(cluster.heard("c1"), quiet);
        // A change after the answer was made, and before its ack was sent.
        cluster.join("a2").await;
        cluster.pass(PRESENCE_INTERVAL).await;
        assert_eq!(cluster.heard("c1"), ["presence:update online"]);
        calls.subscribed(socket("c1"), answer.as_of);
        assert_eq!(cluster.heard("c1"), ["presence:update online"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_watches_no_more_users_than_it_may() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["c1"]).await;
        let watcher = socket("c1");
        let users = |from: u32, to: u32| {
            (from..to).map(|n| format!("u{n}").parse().unwrap()).collect::<Vec<UserId>>()
        };
        cluster.calls("c1").subscribe(watcher, &users(0, 500)).await.unwrap();
        cluster.calls("c1").subscribe(watcher, &users(0, 500)).await.unwrap();
        let more = cluster.calls("c1").subscribe(watcher, &users(500, 501)).await;
        assert_eq!(more, Err(Failure::TooManyWatched));
        cluster.calls("c1").unsubscribe(watcher, &users(0, 1)).await;
        cluster.calls("c1").subscribe(watcher, &users(500, 501)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_has_one_row_with_its_end() {
    for count in NODE_COUNTS {
        let cluster = TestCluster::with(count, &["a1", "b1"]).await;
        let mut expected = Vec::new();
        for round in 0..30 {
            let id = cluster.initiate("a1", "b").await.unwrap();
            match round % 3 {
                0 => drop(cluster.reject("b1", "a").await.unwrap()),
                1 => drop(cluster.busy("b1", &to("a")).await.unwrap()),
                _ => {
                    cluster.answer("b1", "a").await.unwrap();
                    drop(cluster.end("b1", "a").await.unwrap());
                }
            }
            expected.push((id, ["declined", "busy", "completed"][round % 3]));
            cluster.pass(Duration::from_millis(5)).await;
        }
        let (last, _) = expected[29];
        cluster.row(last, |row| row.ended_at.is_some()).await;
        let rows = cluster.ledger.all();
        let found: Vec<_> =
            rows.iter().map(|row| (row.id, row.end_reason.unwrap().as_str())).collect();
        assert_eq!(found, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_fails_is_done_with_a_later_sweep() {
    let (cluster, _) = TestCluster::in_call(1, &["a1", "b1"]).await;
    let node = &cluster.nodes[0];
    // The shared state has forgotten the node, and becomes unavailable at once.
    let (elsewhere, _inbox) = cluster.hub.node(NodeId::generate(Clock::System.now()));
    for user in cluster.hub.state().users.values_mut() {
        user.nodes.clear();
    }
    // These two fail: the read of due calls, and the first part of the recovery.
    node.fail_next(2);
    let (resets, inbox) = tokio::sync::mpsc::channel(1);
    resets.send(Inbound::Reset).await.unwrap();
    drop(resets);
    node.calls.run_inbox(inbox).await;
    node.calls.sweep().await.unwrap_err();
    let users = ["a", "b"].map(|user| user.parse().unwrap());
    let online = |all: Vec<Edge>| all.iter().all(|one| one.presence != Presence::Offline);
    cluster.end("a1", "b").await.unwrap();
    assert!(!online(elsewhere.presence(&users).await.unwrap()));
    node.calls.sweep().await.unwrap();
    assert!(online(elsewhere.presence(&users).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn devices_that_leave_during_a_reset_stay_gone() {
    let names = ["a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1"];
    let cluster = TestCluster::with(1, &names).await;
    let node = &cluster.nodes[0];
    let (resets, inbox) = tokio::sync::mpsc::channel(1);
    resets.send(Inbound::Reset).await.unwrap();
    drop(resets);
    let leaving = async {
        for name in names {
            cluster.leave(name, true).await;
        }
    };
    let starting_over = async {
        node.calls.run_inbox(inbox).await;
        node.calls.sweep().await.unwrap();
    };
    tokio::join!(starting_over, leaving);
    cluster.settle().await;
    let users = names.map(|name| name[..1].parse().unwrap());
    let (elsewhere, _inbox) = cluster.hub.node(NodeId::generate(Clock::System.now()));
    let presence = elsewhere.presence(&users).await.unwrap();
    assert!(presence.iter().all(|one| one.presence == Presence::Offline), "{presence:?}");
}
