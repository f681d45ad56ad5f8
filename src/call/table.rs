//! Every state with every event: the outcome and the notifications.
//!
//! The expectations are in `table.txt`, a line each: state, event, outcome, notifications. A pair without a line, or
//! with another outcome, fails.

use std::fmt::Write as _;

use super::{
    Call, EndReason, Event, Link, MAX_BUSY_DEVICES, Notification, Refusal, Role, State,
    fixtures::{RULES, at, device, node, ringing},
    notifications,
};
use crate::{
    ids::{NodeId, SocketId},
    time::Timestamp,
};

/// The time of the events, in seconds. The call was placed at 0.
const NOW_S: u64 = 5;

fn now() -> Timestamp {
    at(NOW_S)
}

fn after(events: &[Event]) -> Call {
    let step =
        |call: Call, event| RULES.apply(&call, event, node(), at(1)).expect("a possible past");
    events.iter().fold(ringing(), step)
}

fn gone(name: &str) -> Event {
    Event::Gone { device: device(name), may_return: true }
}

fn end(name: &str) -> Event {
    Event::End { by: device(name), reported_duration_s: None }
}

/// `b` has two sockets.
fn busy(name: &str) -> Event {
    Event::Busy { by: device(name), sockets: vec![(node(), 2)] }
}

/// Each state of a call. `a1` called, `b1` answered, `b2` rings too.
fn states() -> Vec<(&'static str, Call)> {
    let answer = || Event::Answer(device("b1"));
    let reject = || Event::Reject { by: device("b1"), reason: None };
    vec![
        ("ringing", ringing()),
        ("ringing, caller lost", after(&[gone("a1")])),
        ("ringing, caller back", after(&[gone("a1"), Event::Joined(device("a1+"))])),
        ("ringing, b2 busy", after(&[busy("b2")])),
        ("ringing, b2 busy and gone", after(&[busy("b2"), gone("b2")])),
        ("active", after(&[answer()])),
        ("active, caller lost", after(&[answer(), gone("a1")])),
        ("active, callee lost", after(&[answer(), gone("b1")])),
        ("active, both lost", after(&[answer(), gone("a1"), gone("b1")])),
        ("active, caller back", after(&[answer(), gone("a1"), Event::Joined(device("a1+"))])),
        ("ended before the answer", after(&[reject()])),
        ("ended after the answer", after(&[answer(), end("a1")])),
        ("ended, caller lost", after(&[answer(), gone("a1"), end("b1")])),
    ]
}

fn events() -> Vec<(String, Event)> {
    let mut events = Vec::new();
    for name in ["a1", "a1+", "a2", "b1", "b2", "x1"] {
        let by = || device(name);
        events.push((format!("answer {name}"), Event::Answer(by())));
        events.push((format!("reject {name}"), Event::Reject { by: by(), reason: None }));
        events.push((format!("busy {name}"), busy(name)));
        events.push((format!("end {name}"), end(name)));
        events.push((format!("gone {name}"), gone(name)));
        let left = Event::Gone { device: by(), may_return: false };
        events.push((format!("left {name}"), left));
        events.push((format!("confirmed {name}"), Event::Confirmed(by())));
        events.push((format!("superseded {name}"), Event::Superseded(by())));
    }
    for name in ["a1+", "a1++", "a2", "a1-", "b1+", "b2", "b2+", "x1"] {
        events.push((format!("joined {name}"), Event::Joined(device(name))));
    }
    for name in ["a1+", "a2", "b1+", "b2"] {
        events.push((format!("stayed {name}"), Event::StillConnected(device(name))));
    }
    events.push(("displaced caller".to_owned(), Event::Displaced(Role::Caller)));
    events.push(("displaced callee".to_owned(), Event::Displaced(Role::Callee)));
    events.push(("terminated".to_owned(), Event::Terminated));
    events.push(("due".to_owned(), Event::Due));
    events
}

fn name_of(socket: SocketId) -> String {
    socket.to_string().trim_end_matches('_').to_owned()
}

fn show_link(link: &Link) -> String {
    match link {
        Link::Open => "-".to_owned(),
        Link::Bound(binding) if binding.confirmed => name_of(binding.socket),
        Link::Bound(binding) => format!("{}?", name_of(binding.socket)),
        Link::Lost { .. } => "lost".to_owned(),
    }
}

fn show(call: &Call) -> String {
    let state = match &call.state {
        State::Ringing { .. } => "ringing".to_owned(),
        State::Active { .. } => "active".to_owned(),
        State::Ended { .. } => call.end_reason().expect("it ended").as_str().to_owned(),
    };
    let busy = call.busy.iter().filter(|_| call.is_ringing()).map(|busy| {
        format!(" busy {}{}", name_of(busy.socket), if busy.is_gone { " gone" } else { "" })
    });
    let busy: String = busy.collect();
    format!("{state} {} {}{busy}", show_link(&call.caller.link), show_link(&call.callee.link))
}

fn show_news(before: &Call, after: &Call) -> String {
    let rung: Vec<_> = ["b1", "b2"].map(|name| device(name).socket).into();
    let mut told: Vec<_> = notifications(before, after, &rung, &[])
        .into_iter()
        .map(|(socket, notification)| {
            let what = match notification {
                Notification::Ringing { .. } => "ringing",
                Notification::Incoming => "incoming",
                Notification::Resumed => "resumed",
                Notification::PeerReconnecting { .. } => "peer-reconnecting",
                Notification::PeerReconnected => "peer-reconnected",
                Notification::Rejected { .. } => "rejected",
                Notification::Busy => "busy",
                Notification::Ended { why, .. } => why.as_str(),
            };
            format!("{} {what}", name_of(socket))
        })
        .collect();
    told.sort();
    told.join(", ")
}

fn show_refusal(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotInCall => "(not in call)",
        Refusal::AlreadyAnswered(_) => "(already answered)",
        Refusal::Over => "(over)",
        Refusal::NothingToDo => "(nothing to do)",
        Refusal::CallInProgress(_) => "(call in progress)",
        Refusal::SelfCall | Refusal::Glare(_) => "(not an event's)",
    }
}

#[test]
fn every_state_with_every_event() {
    let mut table = String::new();
    for (state, call) in states() {
        for (name, event) in events() {
            let result = RULES.apply(&call, &event, node(), now());
            let (outcome, told) = match &result {
                Ok(next) => {
                    assert_eq!(next.version, call.version + 1);
                    assert_eq!(next.updated_at, now());
                    (show(next), show_news(&call, next))
                }
                Err(refusal) => (show_refusal(*refusal).to_owned(), String::new()),
            };
            let line = format!("{state} | {name} | {outcome} | {told}");
            writeln!(table, "{}", line.trim_end_matches([' ', '|'])).expect("a string takes all");
        }
    }
    let expected = include_str!("table.txt");
    for (expected, found) in expected.lines().zip(table.lines()) {
        assert_eq!(expected, found);
    }
    assert_eq!(expected.lines().count(), table.lines().count(), "whole table:\n{table}");
}

#[test]
fn each_time_out_ends_the_call_at_its_time_and_not_before() {
    let answered = after(&[Event::Answer(device("b1"))]);
    let caller_lost = after(&[gone("a1")]);
    let callee_lost = after(&[Event::Answer(device("b1")), gone("b1")]);
    let hours_12_s = 12 * 3_600;
    for (call, deadline_s, reason) in [
        (ringing(), 30, "no_answer"),
        (caller_lost, 1 + 10, "cancelled"),
        (callee_lost, 1 + 10, "connection_lost"),
        (answered, hours_12_s, "max_duration"),
    ] {
        assert_eq!(call.deadline(), at(deadline_s), "{reason}");
        let early = RULES.apply(&call, &Event::Due, node(), at(deadline_s - 1));
        assert_eq!(early, Err(Refusal::NothingToDo), "{reason}");
        let ended = RULES.apply(&call, &Event::Due, node(), at(deadline_s)).unwrap();
        assert_eq!(ended.end_reason().unwrap().as_str(), reason);
    }
}

#[test]
fn a_call_that_nobody_answers_ends_as_busy_if_a_device_was() {
    let told = |call: &Call, name: &str| {
        let ended = RULES.apply(call, &Event::Due, node(), at(30)).unwrap();
        assert_eq!(ended.end_reason().unwrap().as_str(), name);
        show_news(call, &ended)
    };
    assert_eq!(told(&after(&[busy("b1")]), "busy"), "a1 busy, b2 busy");
    assert_eq!(told(&after(&[busy("b1"), gone("b1")]), "busy"), "a1 busy, b2 busy");
    assert_eq!(told(&ringing(), "no_answer"), "a1 no_answer, b1 no_answer, b2 no_answer");
}

#[test]
fn the_last_device_that_rings_ends_the_call_as_busy() {
    let on = |sockets: &[usize], name: &str| {
        let nodes =
            std::iter::once(node()).chain(std::iter::repeat_with(|| NodeId::generate(at(0))));
        let sockets = nodes.zip(sockets.iter().copied()).collect();
        Event::Busy { by: device(name), sockets }
    };
    let says = |call: &Call, event: &Event| RULES.apply(call, event, node(), now()).unwrap();
    // Another rings on this node, or on another one.
    let first = says(&ringing(), &on(&[2], "b1"));
    assert!(first.is_ringing() && says(&ringing(), &on(&[1, 1], "b1")).is_ringing());
    assert_eq!(says(&first, &on(&[2], "b2")).end_reason(), Some(EndReason::Busy));
    assert!(says(&first, &on(&[2, 1], "b2")).is_ringing());
    // One that left counts no more, neither as busy nor as ringing; one that came rings.
    let left = says(&first, &gone("b1"));
    assert_eq!(says(&left, &on(&[1], "b2")).end_reason(), Some(EndReason::Busy));
    assert!(says(&left, &on(&[2], "b2")).is_ringing());
    // No more are remembered than a few dozen.
    let mut many = ringing();
    for number in 0..MAX_BUSY_DEVICES {
        many = says(&many, &on(&[1_000], &format!("b{number}")));
        assert!(many.is_ringing());
    }
    assert_eq!(says(&many, &on(&[1_000], "b-last")).end_reason(), Some(EndReason::Busy));
}

#[test]
fn of_two_time_outs_the_earlier_one_counts() {
    let lost_late = RULES.apply(&ringing(), &gone("a1"), node(), at(25)).unwrap();
    let ended = RULES.apply(&lost_late, &Event::Due, node(), at(60)).unwrap();
    assert_eq!(ended.end_reason().unwrap().as_str(), "no_answer");
}

#[test]
fn a_device_without_an_id_cannot_come_back() {
    let mut call = ringing();
    call.caller.link = device("a1-").bind();
    let ended = RULES.apply(&call, &gone("a1-"), node(), now()).unwrap();
    assert_eq!(ended.end_reason().unwrap().as_str(), "cancelled");
}

#[test]
fn durations_are_measured_from_answer_to_end_and_reported_ones_are_told() {
    let answered = RULES.apply(&ringing(), &Event::Answer(device("b1")), node(), at(2)).unwrap();
    for (reported, told_s) in [(None, 7.0), (Some(6.5), 6.5)] {
        let end = Event::End { by: device("a1"), reported_duration_s: reported };
        let ended = RULES.apply(&answered, &end, node(), at(9)).unwrap();
        assert_eq!(ended.duration_s(), Some(7));
        let told = notifications(&answered, &ended, &[], &[]);
        assert!(
            matches!(told[..], [(socket, Notification::Ended { duration_s, .. })]
                if socket == device("b1").socket && (duration_s - told_s).abs() < 0.001),
            "{told:?}"
        );
    }
}

#[test]
fn whoever_missed_versions_hears_from_the_last_one() {
    let rung = [device("b1").socket, device("b2").socket];
    let answered = after(&[Event::Answer(device("b1"))]);
    let ended = RULES.apply(&answered, &end("a1"), node(), now()).unwrap();
    let told = |before: &Call, after: &Call| {
        notifications(before, after, &rung, &[]).into_iter().map(|(socket, notification)| {
            match notification {
                Notification::Ended { why, .. } => format!("{} {}", name_of(socket), why.as_str()),
                other => panic!("{other:?}"),
            }
        })
    };
    let skipped: Vec<_> = told(&ringing(), &ended).collect();
    assert_eq!(skipped, ["b1 completed", "b2 answered_elsewhere"]);
    let first: Vec<_> = told(&ringing(), &answered).collect();
    assert_eq!(first, ["b2 answered_elsewhere"]);
    // A rollback lost its answer, and the call ended without it.
    let due = RULES.apply(&ringing(), &Event::Due, node(), at(30)).unwrap();
    let skipped: Vec<_> = told(&answered, &due).collect();
    assert_eq!(skipped, ["a1 no_answer", "b1 no_answer"]);
    // It hung up as soon as it had returned: its ack carries the end.
    let lost = after(&[Event::Answer(device("b1")), gone("a1")]);
    let back = RULES.apply(&lost, &Event::Joined(device("a1+")), node(), now()).unwrap();
    let ended = RULES.apply(&back, &end("a1+"), node(), now()).unwrap();
    let skipped: Vec<_> = told(&lost, &ended).collect();
    assert_eq!(skipped, ["b1 completed"]);
}

#[test]
fn an_earlier_connection_of_a_device_does_not_take_the_place_of_a_later_one() {
    let joined = |call: &Call, name| RULES.apply(call, &Event::Joined(device(name)), node(), now());
    let active = after(&[Event::Answer(device("b1"))]);
    let back = joined(&active, "a1++").unwrap();
    assert_eq!(joined(&back, "a1+"), Err(Refusal::NothingToDo), "its node took long to say so");
    assert!(joined(&back, "a1+++").is_ok());
    // A build that does not say when a connection began is believed, as it was.
    let mut unknown = back.clone();
    let Link::Bound(binding) = &mut unknown.caller.link else { panic!("{unknown:?}") };
    binding.since = None;
    assert!(joined(&unknown, "a1+").is_ok());
}

#[test]
fn an_earlier_connection_does_not_take_the_place_of_a_later_one_that_is_lost() {
    let joined = |call: &Call, name| RULES.apply(call, &Event::Joined(device(name)), node(), now());
    let stayed =
        |call: &Call, name| RULES.apply(call, &Event::StillConnected(device(name)), node(), now());
    let active = after(&[Event::Answer(device("b1"))]);
    let back = joined(&active, "a1++").unwrap();
    let lost = RULES.apply(&back, &gone("a1++"), node(), now()).unwrap();
    // Its node has not noticed that it is dead: a device bound to it receives nothing.
    assert_eq!(joined(&lost, "a1+"), Err(Refusal::NothingToDo));
    assert_eq!(stayed(&lost, "a1+"), Err(Refusal::NothingToDo));
    assert!(stayed(&lost, "a1++").is_ok(), "it was only taken for lost");
    assert!(joined(&lost, "a1+++").is_ok());
    let mut unknown = lost.clone();
    let Link::Lost { since, .. } = &mut unknown.caller.link else { panic!("{unknown:?}") };
    *since = None;
    assert!(joined(&unknown, "a1+").is_ok(), "of an earlier build");
}

#[test]
fn an_earlier_connection_does_not_take_the_place_of_a_later_one_that_is_busy() {
    let by = device("b1++");
    let ringing = ringing();
    let sockets = vec![(node(), 2)];
    let busy = RULES.apply(&ringing, &Event::Busy { by, sockets }, node(), now()).unwrap();
    let joined = |call: &Call, name| RULES.apply(call, &Event::Joined(device(name)), node(), now());
    assert_eq!(joined(&busy, "b1+"), Err(Refusal::NothingToDo));
    assert!(busy.is_busy_on(device("b1++").socket));
    let moved = joined(&busy, "b1+++").unwrap();
    assert!(moved.is_busy_on(device("b1+++").socket));
    assert_eq!(joined(&moved, "b1++"), Err(Refusal::NothingToDo));
    let lost = RULES.apply(&moved, &gone("b1+++"), node(), now()).unwrap();
    assert_eq!(joined(&lost, "b1++"), Err(Refusal::NothingToDo));
    assert!(joined(&lost, "b1++++").unwrap().is_busy_on(device("b1++++").socket));
}
