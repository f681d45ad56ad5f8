//! Starting over: the shared state has forgotten this node, or news of it were lost. The node says again who is
//! here and whom it watches, and looks all calls up.
//!
//! There is one at a time, in a task of its own, a part after the other. A part that fails is tried again; what
//! went before is not repeated. Devices and calls come first: clients wait for them. Whom the node watches can be
//! ten times as many.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::Bound,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::{Mutex, Notify};
use tracing::{info, warn};

use super::{
    Calls,
    sweeper::{AT_ONCE, some_at_a_time},
    unsure::UNSURE,
};
use crate::{
    call::{Call, Device, Event},
    cluster::{USERS_AT_ONCE, Unavailable},
    ids::{CallId, SocketId, UserId},
    metrics,
    time::Timestamp,
};

/// How many devices or watched users a part has. A few operations are under way for it.
const PART: usize = 4 * USERS_AT_ONCE;
/// The nodes of a cluster begin within this time, not at once.
const JITTER: Duration = Duration::from_millis(300);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// A part waits until fewer messages than this are on their way to other nodes, but not longer than
/// [`MAX_WAIT`]: each of its users may be news to all of them.
const MAX_QUEUED: usize = 2_000;
const QUEUE_POLL: Duration = Duration::from_millis(10);
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How far this node has come.
#[derive(Default)]
pub struct Recovery {
    /// How many resets were heard of.
    heard: AtomicU64,
    /// When the latest was, Unix milliseconds.
    at_ms: AtomicU64,
    /// After how many of them all devices and calls were seen to.
    calls_done: AtomicU64,
    wake: Notify,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// How many resets had been heard of when the devices were begun with.
    covered: u64,
    stage: Stage,
    /// Where the watched users were left when a later reset had the devices and calls come first again.
    left_at: Option<UserId>,
    count: Count,
    /// Whether it has been said that it is interrupted.
    is_interrupted: bool,
}

/// What was done since the node was well.
#[derive(Default)]
struct Count {
    began_at: Option<Timestamp>,
    devices: usize,
    calls: usize,
    watched: usize,
}

/// What comes next, each from after the one that was done last.
#[derive(Default, Clone)]
enum Stage {
    #[default]
    Well,
    Devices(Option<SocketId>),
    Calls(Option<CallId>),
    Welcome(Option<SocketId>),
    Watched(Ring),
    Absent(Option<String>),
    /// Users who were just taken off this node, their latest calls, and where to go on with the absent ones.
    Lost(Vec<(UserId, Option<Call>)>, Option<String>),
}

/// A walk over all users in their order, that begins and ends anywhere.
#[derive(Clone, Default)]
struct Ring {
    at: Option<UserId>,
    end: Option<UserId>,
    has_wrapped: bool,
}

impl Ring {
    fn from(at: Option<UserId>) -> Self {
        Self { at: at.clone(), end: at, has_wrapped: false }
    }

    /// After all up to `last`, or after the very last: where to go on, unless it is back where it began.
    fn on(self, last: Option<UserId>) -> Option<Self> {
        match last {
            Some(last) => {
                let is_over = self.has_wrapped && self.end.as_ref().is_some_and(|end| last >= *end);
                (!is_over).then_some(Self { at: Some(last), ..self })
            }
            None if self.has_wrapped || self.end.is_none() => None,
            None => Some(Self { at: None, has_wrapped: true, ..self }),
        }
    }
}

impl Recovery {
    /// Whether calls may still be put back by this node, or by one that has noticed later.
    pub fn is_under_way_at(&self, now: Timestamp) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let at = Timestamp::from_millis(self.at_ms.load(Ordering::Relaxed));
        heard > 0 && (now - at < UNSURE || self.calls_done.load(Ordering::Relaxed) < heard)
    }
}

impl Calls {
    /// Notes that the shared state has forgotten this node, or that news of it were lost. Never waits.
    pub(super) fn note_reset(&self) {
        self.recovery.at_ms.store(self.clock.now().as_millis(), Ordering::Relaxed);
        self.recovery.heard.fetch_add(1, Ordering::Relaxed);
        self.recovery.wake.notify_one();
    }

    /// Starts over whenever that is to be done, for ever.
    pub(super) async fn run_recovery(&self) {
        loop {
            self.recovery.wake.notified().await;
            tokio::time::sleep(self.jitter(JITTER)).await;
            let mut pause = FIRST_RETRY;
            while self.recover().await.is_err() {
                tokio::time::sleep(pause + self.jitter(pause)).await;
                pause = (pause * 2).min(LAST_RETRY);
            }
        }
    }

    /// A part of this time, another one on each node and after each reset.
    fn jitter(&self, time: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (self.node().to_string(), self.recovery.heard.load(Ordering::Relaxed)).hash(&mut hasher);
        let share = u32::try_from(hasher.finish() % 1_000).expect("it is below 1,000");
        time * share / 1_000
    }

    /// Goes on with starting over until that is done. What fails is done again the next time.
    pub(super) async fn recover(&self) -> Result<(), Unavailable> {
        let mut progress = self.recovery.progress.lock().await;
        loop {
            let heard = self.recovery.heard.load(Ordering::Relaxed);
            match &progress.stage {
                Stage::Well if progress.covered == heard => return Ok(()),
                Stage::Well | Stage::Absent(_) if progress.covered < heard => {
                    self.begin(&mut progress, heard);
                }
                // Clients wait for their calls; who is watched goes on from there.
                Stage::Watched(ring) if progress.covered < heard => {
                    let left_at = ring.at.clone();
                    progress.left_at = left_at;
                    self.begin(&mut progress, heard);
                }
                _ => {}
            }
            // What a part has to say leaves this node before the next says more.
            for _ in 0..MAX_WAIT.as_millis() / QUEUE_POLL.as_millis() {
                if self.cluster.queued() < MAX_QUEUED {
                    break;
                }
                tokio::time::sleep(QUEUE_POLL).await;
            }
            if let Err(error) = self.take_part(&mut progress).await {
                if !std::mem::replace(&mut progress.is_interrupted, true) {
                    warn!(%error, "telling the cluster again who is here is interrupted: it goes on");
                }
                return Err(error);
            }
        }
    }

    fn begin(&self, progress: &mut Progress, heard: u64) {
        metrics::RESETS.increment(1);
        progress.covered = heard;
        progress.count.began_at.get_or_insert(self.clock.now());
        progress.stage = Stage::Devices(None);
    }

    /// Does the next part.
    async fn take_part(&self, progress: &mut Progress) -> Result<(), Unavailable> {
        progress.stage = match progress.stage.clone() {
            Stage::Well => Stage::Well,
            Stage::Devices(after) => {
                let devices = self.devices_after(after);
                let attached = devices.chunks(USERS_AT_ONCE).map(|some| self.attach_again(some));
                all(join_all(attached).await)?;
                progress.count.devices += devices.len();
                match devices.last() {
                    Some(last) => Stage::Devices(Some(last.socket)),
                    None => Stage::Calls(None),
                }
            }
            Stage::Calls(after) => {
                let calls = self.live.after(after, AT_ONCE);
                some_at_a_time(&calls, |live| self.look_up_one(live)).await?;
                progress.count.calls += calls.len();
                match calls.last() {
                    Some(last) => Stage::Calls(Some(last.id())),
                    None => Stage::Welcome(None),
                }
            }
            Stage::Welcome(after) => {
                let devices = self.devices_after(after);
                let welcomed = devices.chunks(USERS_AT_ONCE).map(|some| self.welcome_again(some));
                all(join_all(welcomed).await)?;
                match devices.last() {
                    Some(last) => Stage::Welcome(Some(last.socket)),
                    None => {
                        self.recovery.calls_done.store(progress.covered, Ordering::Relaxed);
                        Stage::Watched(Ring::from(progress.left_at.take()))
                    }
                }
            }
            Stage::Watched(ring) => {
                let (users, newest) = self.watchers.after(ring.at.as_ref(), PART);
                let watched =
                    users.chunks(USERS_AT_ONCE).map(|some| self.watch_again(some, newest));
                all(join_all(watched).await)?;
                progress.count.watched += users.len();
                match ring.on(users.into_iter().next_back()) {
                    Some(ring) => Stage::Watched(ring),
                    None => Stage::Absent(None),
                }
            }
            Stage::Absent(from) => {
                let (absent, next) = self.cluster.tidy(from.as_deref()).await?;
                let lost = absent.into_iter().map(|(user, detached)| {
                    // They may have been taken off before, and that not be answered.
                    self.unannounced.note([&user]);
                    (user, detached.call)
                });
                Stage::Lost(lost.collect(), next)
            }
            Stage::Lost(lost, next) => {
                some_at_a_time(&lost, |(user, call)| {
                    self.lose_device_on(self.node(), user, call.clone())
                })
                .await?;
                match next {
                    Some(from) => Stage::Absent(Some(from)),
                    None => {
                        self.say_done(progress);
                        Stage::Well
                    }
                }
            }
        };
        Ok(())
    }

    /// One line for all of it.
    fn say_done(&self, progress: &mut Progress) {
        let Count { began_at, devices, calls, watched } = std::mem::take(&mut progress.count);
        progress.is_interrupted = false;
        let took = began_at.map_or(Duration::ZERO, |began_at| self.clock.now() - began_at);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        info!(devices, calls, watched, took_ms, "this node has told the cluster again who is here");
    }

    fn devices_after(&self, socket: Option<SocketId>) -> Vec<Device> {
        let devices = self.devices();
        let from = socket.map_or(Bound::Unbounded, Bound::Excluded);
        let after = devices.range((from, Bound::Unbounded));
        after.take(PART).map(|(_, present)| present.device.clone()).collect()
    }

    async fn attach_again(&self, devices: &[Device]) -> Result<(), Unavailable> {
        let sockets: Vec<_> =
            devices.iter().map(|device| (device.user.clone(), device.socket)).collect();
        let edges = self.cluster.attach_again(&sockets).await;
        let users = || sockets.iter().map(|(user, _)| user);
        self.announce(edges.inspect_err(|_| self.unannounced.note(users()))?);
        self.sign_off_gone(devices).await
    }

    /// Those of users who are in a call take their places in it again.
    async fn welcome_again(&self, devices: &[Device]) -> Result<(), Unavailable> {
        let users: Vec<_> = devices.iter().map(|device| device.user.clone()).collect();
        let latest = self.cluster.latest_of(&users).await?;
        let concerned: Vec<_> = std::iter::zip(devices, latest)
            .filter(|(device, found)| found.is_some() || self.live.of_user(&device.user).is_some())
            .filter(|(device, _)| self.has_joined(device))
            .collect();
        some_at_a_time(&concerned, |(device, found)| async move {
            let stayed = Event::Stayed((*device).clone());
            self.tell_of_latest(device, found.clone(), stayed).await.map(drop)
        })
        .await?;
        self.sign_off_gone(devices).await
    }

    /// Devices that left meanwhile were signed off, and may just have been signed on again.
    async fn sign_off_gone(&self, devices: &[Device]) -> Result<(), Unavailable> {
        let gone: Vec<_> = devices.iter().filter(|device| !self.is_connected(device)).collect();
        some_at_a_time(&gone, |device| self.sign_off(device, true)).await
    }

    /// Where `newest` is the highest order known of these users.
    async fn watch_again(&self, users: &[UserId], newest: u64) -> Result<(), Unavailable> {
        let edges = self.cluster.watch(users, newest).await?;
        let now = self.clock.now();
        for edge in &edges {
            self.watchers.announce(edge, &*self.outlet, now);
        }
        // Who was left meanwhile was just watched again.
        self.unwatch(self.watchers.unwatched(users)).await;
        Ok(())
    }
}

/// Whether all went well.
fn all(results: impl IntoIterator<Item = Result<(), Unavailable>>) -> Result<(), Unavailable> {
    results.into_iter().collect()
}
