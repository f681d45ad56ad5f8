//! The invariants, over random interleavings of everything that can happen to three users with two
//! devices each.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::{
    Call, Device, Event, Lobby, MAX_STEPS, Notification, NotifiedReason, Placement, Refusal, Role,
    Route, Signal, State,
    fixtures::{RULES, at, attempt, device, node},
    notifications,
};
use crate::{
    ids::{CallId, SocketId, UserId},
    time::Timestamp,
};

/// One step. Names are devices, as in the fixtures.
#[derive(Debug, Clone)]
enum Happening {
    Initiate(&'static str, &'static str),
    Answer(&'static str),
    Reject(&'static str),
    Busy(&'static str),
    End(&'static str),
    Signal(&'static str, Signal),
    Gone(&'static str, bool),
    Joined(&'static str),
    /// This many seconds pass, and all deadlines are handled.
    Pass(u64),
}

const DEVICES: [&str; 6] = ["a1", "a2", "b1", "b2", "c1", "c2"];
const USERS: [&str; 3] = ["a", "b", "c"];

fn happening() -> impl Strategy<Value = Happening> {
    let who = || prop::sample::select(&DEVICES[..]);
    let user = || prop::sample::select(&USERS[..]);
    let signal = prop::sample::select(&[Signal::Offer, Signal::Answer, Signal::Candidate][..]);
    prop_oneof![
        4 => (who(), user()).prop_map(|(from, to)| Happening::Initiate(from, to)),
        4 => who().prop_map(Happening::Answer),
        1 => who().prop_map(Happening::Reject),
        1 => who().prop_map(Happening::Busy),
        2 => who().prop_map(Happening::End),
        4 => (who(), signal).prop_map(|(who, signal)| Happening::Signal(who, signal)),
        3 => (who(), any::<bool>()).prop_map(|(who, may_return)| Happening::Gone(who, may_return)),
        3 => who().prop_map(Happening::Joined),
        2 => (1_u64..40).prop_map(Happening::Pass),
    ]
}

/// One node that has nothing but the rules.
#[derive(Default)]
struct Model {
    now_s: u64,
    calls: HashMap<CallId, Call>,
    claims: HashMap<UserId, CallId>,
    /// The socket that each device is on.
    online: HashMap<&'static str, Device>,
    sockets: u64,
    /// The sockets that ring for a call, with the fate of each.
    rung: HashMap<CallId, Vec<SocketId>>,
    fates: HashMap<(CallId, SocketId), Vec<&'static str>>,
}

impl Model {
    fn now(&self) -> Timestamp {
        at(self.now_s)
    }

    fn latest(&self, user: &UserId) -> Option<Call> {
        self.claims.get(user).map(|id| self.calls[id].clone())
    }

    fn sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let devices = self.online.values().filter(|device| device.user == *user);
        devices.map(|device| device.socket).collect()
    }

    fn happen(&mut self, happening: Happening) {
        let by = |model: &Self, name| model.online.get(name).cloned();
        match happening {
            Happening::Initiate(from, to) => {
                if let Some(device) = by(self, from) {
                    self.initiate(&device, to);
                }
            }
            Happening::Answer(name) => {
                if let Some(device) = by(self, name) {
                    self.own_event(&device.clone(), Event::Answer(device), Some("connected"));
                }
            }
            Happening::Reject(name) => {
                if let Some(device) = by(self, name) {
                    let event = Event::Reject { by: device.clone(), reason: None };
                    self.own_event(&device, event, Some("acked"));
                }
            }
            Happening::Busy(name) => {
                if let Some(device) = by(self, name) {
                    let sockets = vec![(device.node, self.sockets_of(&device.user).len())];
                    let busy = Event::Busy { by: device.clone(), sockets };
                    self.own_event(&device, busy, Some("acked"));
                }
            }
            Happening::End(name) => {
                if let Some(device) = by(self, name) {
                    let event = Event::End { by: device.clone(), reported_duration_s: None };
                    self.own_event(&device, event, Some("acked"));
                }
            }
            Happening::Signal(name, signal) => {
                if let Some(device) = by(self, name) {
                    self.signal(&device, signal);
                }
            }
            Happening::Gone(name, may_return) => {
                if let Some(device) = self.online.remove(name) {
                    let event = Event::Gone { device: device.clone(), may_return };
                    self.own_event(&device, event, None);
                }
            }
            Happening::Joined(name) => self.join(name),
            Happening::Pass(seconds) => self.pass(seconds),
        }
    }

    fn initiate(&mut self, device: &Device, to: &str) {
        let mut attempt = attempt("a1", to);
        attempt.from = device.clone();
        attempt.id = CallId::generate(self.now());
        loop {
            let lobby = Lobby {
                caller_call: self.latest(&device.user),
                callee_call: self.latest(&attempt.to),
                callee_sockets: self.sockets_of(&attempt.to).len(),
            };
            match RULES.place(&attempt, &lobby, self.now()) {
                Ok(Placement::New(call)) => return self.place(call),
                Ok(Placement::Supersede(earlier)) => {
                    let event = Event::Superseded(device.clone());
                    self.apply(&earlier, &event).expect("it was live");
                }
                Ok(Placement::Repeated(_)) => unreachable!("attempts have no name here"),
                Err(Refusal::SelfCall) => return assert_eq!(device.user, attempt.to),
                Err(Refusal::Glare(id)) => {
                    let survivor = &self.calls[&id];
                    assert!(survivor.is_ringing());
                    assert_eq!(survivor.callee.user, device.user);
                    return assert_eq!(survivor.caller.user, attempt.to);
                }
                Err(Refusal::CallInProgress(id)) => {
                    assert!(self.calls[&id].is_live());
                    return assert!(self.calls[&id].role_of(&device.user).is_some());
                }
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
    }

    fn place(&mut self, call: Call) {
        self.claims.insert(call.caller.user.clone(), call.id);
        if call.is_live() {
            self.claims.insert(call.callee.user.clone(), call.id);
            let rung = self.sockets_of(&call.callee.user);
            for socket in &rung {
                self.fates.insert((call.id, *socket), Vec::new());
            }
            self.rung.insert(call.id, rung);
        }
        self.calls.insert(call.id, call);
    }

    /// An event of a device about its user's latest call. `fate`: the fate that a ringing socket learns from the
    /// ack of its own event, if that is accepted.
    fn own_event(&mut self, device: &Device, event: Event, fate: Option<&'static str>) {
        let Some(call) = self.latest(&device.user) else { return };
        let was_ringing = call.is_ringing();
        if self.apply(&call, &event).is_ok()
            && was_ringing
            && let Some(fate) = fate
            && let Some(fates) = self.fates.get_mut(&(call.id, device.socket))
        {
            fates.push(fate);
        }
    }

    fn signal(&mut self, device: &Device, signal: Signal) {
        let Some(call) = self.latest(&device.user) else { return };
        if call.awaits_confirmation(device) {
            self.apply(&call, &Event::Confirmed(device.clone())).expect("it waits for it");
        }
        let call = &self.calls[&call.id];
        let from = call.role_of(&device.user).expect("it is the user's own call");
        match call.route(device, signal) {
            Ok(Route::Bound(to, _, socket)) => {
                assert_eq!(to, from.other());
                assert!(call.is_bound_to(device));
                assert!(call.party(to).link.is_on(socket));
            }
            Ok(Route::WhenBack(to)) => {
                assert_eq!(to, from.other());
                assert!(call.party(to).link.lost_until().is_some());
            }
            Ok(Route::Ringing) => {
                assert!(call.is_ringing() && call.caller.link.is_on(device.socket));
            }
            Ok(Route::AfterAnswer(_) | Route::Answers(_)) => {
                assert!(call.is_ringing() && from == Role::Callee);
            }
            Err(Refusal::Over) => assert!(!call.is_live()),
            Err(Refusal::NotInCall) => {
                assert!(call.is_ringing() || !call.is_bound_to(device));
            }
            Err(Refusal::AlreadyAnswered(_)) => assert!(!call.is_bound_to(device)),
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    fn join(&mut self, name: &'static str) {
        self.sockets += 1;
        let mut device = device(name);
        device.socket = format!("{:016}", self.sockets).parse().expect("16 bytes");
        self.online.insert(name, device.clone());
        let Some(call) = self.latest(&device.user) else { return };
        if self.apply(&call, &Event::Joined(device.clone())).is_err()
            && call.is_ringing()
            && call.callee.user == device.user
        {
            self.rung.get_mut(&call.id).expect("it rings").push(device.socket);
            self.fates.insert((call.id, device.socket), Vec::new());
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now_s += seconds;
        let live: Vec<_> = self.calls.values().filter(|call| call.is_live()).cloned().collect();
        for call in live {
            let due = call.deadline() <= self.now();
            let result = self.apply(&call, &Event::Due);
            // Invariant 4: calls end at their deadline, and none before.
            assert_eq!(result.is_ok(), due, "{result:?}");
        }
    }

    fn apply(&mut self, call: &Call, event: &Event) -> Result<(), Refusal> {
        let next = RULES.apply(call, event, node(), self.now())?;
        // Invariant 2: the version goes up by one, and an ended call stays as it ended.
        assert_eq!(next.version, call.version + 1);
        if !call.is_live() {
            assert_eq!(next.state, call.state);
        }
        let rung = self.rung.get(&call.id).cloned().unwrap_or_default();
        for (socket, notification) in notifications(call, &next, &rung, &[]) {
            self.check_addressee(&next, socket);
            let fate = match notification {
                Notification::Ended { why: NotifiedReason::ResumedElsewhere, .. } => continue,
                Notification::Ended { why, .. } => why.as_str(),
                Notification::Rejected { .. } | Notification::Busy => "ended",
                _ => continue,
            };
            if let Some(fates) = self.fates.get_mut(&(call.id, socket))
                && call.is_ringing()
            {
                fates.push(fate);
            }
        }
        if !next.is_ringing() {
            self.rung.remove(&call.id);
        } else if let Some(rung) = self.rung.get_mut(&call.id) {
            rung.retain(|socket| !next.is_busy_on(*socket));
        }
        self.calls.insert(next.id, next);
        Ok(())
    }

    /// Invariant 7: notifications go to parties of the call only.
    fn check_addressee(&self, call: &Call, socket: SocketId) {
        let named = self.online.values().find(|device| device.socket == socket);
        assert!(named.is_none_or(|device| call.role_of(&device.user).is_some()));
    }

    fn check(&self) {
        // Invariant 1: a user has at most one live call.
        let mut busy = HashSet::new();
        for call in self.calls.values().filter(|call| call.is_live()) {
            assert!(busy.insert(&call.caller.user) && busy.insert(&call.callee.user));
        }
        // Invariant 3: a socket that rang has one fate when its call rings no more.
        for ((id, socket), fates) in &self.fates {
            let call = &self.calls[id];
            let expected = usize::from(!call.is_ringing() || call.is_busy_on(*socket));
            let gone = !self.online.values().any(|device| device.socket == *socket);
            assert!(fates.len() == expected || gone, "{socket}: {fates:?}, {:?}", self.calls[id]);
            assert!(fates.len() <= 1, "{socket}: {fates:?}");
        }
        for call in self.calls.values() {
            Self::check_end(call);
        }
    }

    /// The timeline tells of every version in order, but for those in which a device was busy, or of as many
    /// as there is room for, and of the end once.
    fn check_timeline(call: &Call) {
        let versions: Vec<u64> = call.timeline.iter().map(|step| step.version).collect();
        assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
        let most = call.version.min(MAX_STEPS as u64);
        assert!(versions.len() as u64 <= most, "{versions:?}");
        assert!(versions.len() as u64 == most || !call.busy.is_empty(), "{versions:?}");
        assert_eq!(versions[0], 1);
        assert!(versions.last() == Some(&call.version) || !call.busy.is_empty());
        let ends: Vec<_> = call.timeline.iter().filter_map(|step| step.reason).collect();
        assert_eq!(ends, call.end_reason().as_slice());
    }

    /// The rules' part of invariant 5: the end has one reason, and fits the status.
    fn check_end(call: &Call) {
        assert_eq!(call.is_live(), call.end_reason().is_none());
        assert_eq!(call.is_live(), call.ended_at().is_none());
        assert_eq!(call.duration_s().is_some(), call.answered_at().is_some() && !call.is_live());
        assert_ne!(call.caller.user, call.callee.user);
        Self::check_timeline(call);
        if let State::Active { .. } = call.state {
            assert!(!matches!(call.callee.link, super::Link::Open));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_invariants_hold_whatever_happens(happenings in prop::collection::vec(happening(), 1..80)) {
        let mut model = Model::default();
        for name in DEVICES {
            model.join(name);
        }
        for happening in happenings {
            model.happen(happening);
            model.check();
        }
        // Liveness: left alone, every call ends.
        model.pass(13 * 3_600);
        model.check();
        prop_assert!(model.calls.values().all(|call| !call.is_live()));
    }
}
