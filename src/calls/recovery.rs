//! Recovery: the shared state has forgotten this node, or notifications were lost. The node
//! announces its sockets and subscriptions again, and looks up all calls.
//!
//! One recovery runs at a time, in a task of its own, part by part. A failed part is repeated,
//! earlier ones are not. Devices and calls come first, because clients wait for them; watched users
//! may be ten times as many.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tracing::info;

use super::{
    Calls,
    pending::Work,
    sweeper::{AT_ONCE, some_at_a_time},
};
use crate::{
    call::{Call, Device, Event},
    cluster::{USERS_AT_ONCE, Unavailable},
    ids::{CallId, SocketId, UserId},
    metrics,
    time::Timestamp,
};

/// Longer than the difference between two nodes in noticing that the shared state is back.
pub(super) const WINDOW: Duration = Duration::from_secs(4);
/// The number of devices or watched users per part, which takes a few operations.
const PART: usize = 4 * USERS_AT_ONCE;
/// The nodes of a cluster begin at different moments within this time.
const JITTER: Duration = Duration::from_millis(300);
/// A part waits until fewer messages than this are queued for other nodes, but at most for
/// [`MAX_WAIT`]: each of its users may cause a message to every node.
const MAX_QUEUED: usize = 2_000;
const QUEUE_POLL: Duration = Duration::from_millis(10);
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The progress of this node's recovery.
#[derive(Default)]
pub struct Recovery {
    /// The number of resets so far.
    heard: AtomicU64,
    /// The time of the latest reset, in Unix milliseconds.
    at_ms: AtomicU64,
    /// The number of resets after which all devices and calls were handled.
    calls_done: AtomicU64,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The number of resets when the pass over the devices began.
    covered: u64,
    stage: Stage,
    /// The position among the watched users, when a later reset gave priority to devices and calls
    /// again.
    left_at: Option<UserId>,
    /// The work done since the last completed recovery.
    began_at: Option<Timestamp>,
    devices: usize,
    calls: usize,
    watched: usize,
}

/// The next part. Each variant has the position after the last completed part.
#[derive(Default, Clone)]
enum Stage {
    #[default]
    Well,
    Devices(Option<SocketId>),
    Calls(Option<CallId>),
    Welcome(Option<SocketId>),
    Watched(Ring),
    Absent(Option<String>),
    /// Users who were just removed from this node, their latest calls, and the position at which
    /// stale entries are looked for next.
    Lost(Vec<(UserId, Option<Call>)>, Option<String>),
}

/// A position in a cyclic walk over all users, which may begin anywhere.
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

    /// Advances past `last`, or past the end. `None` when the walk is back at its beginning.
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
    /// Whether calls may still be restored, by this node or by one that noticed the reset later.
    pub fn is_under_way(&self, now: Timestamp) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let at = Timestamp::from_millis(self.at_ms.load(Ordering::Relaxed));
        heard > 0 && (now - at < WINDOW || self.calls_done.load(Ordering::Relaxed) < heard)
    }
}

impl Calls {
    /// Records that the shared state has forgotten this node, or that notifications were lost.
    /// Never blocks.
    pub(super) fn note_reset(&self) {
        self.recovery.at_ms.store(self.clock.now().as_millis(), Ordering::Relaxed);
        self.recovery.heard.fetch_add(1, Ordering::Relaxed);
        self.add_pending_at(Work::Recovery, self.clock.now() + self.jitter(JITTER));
    }

    /// A part of this time that differs between nodes and between resets.
    fn jitter(&self, time: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (self.node().to_string(), self.recovery.heard.load(Ordering::Relaxed)).hash(&mut hasher);
        let share = u32::try_from(hasher.finish() % 1_000).expect("it is below 1,000");
        time * share / 1_000
    }

    /// Runs the recovery to its end. A failed part is repeated by the next call.
    pub(super) async fn recover(&self) -> Result<(), Unavailable> {
        let mut progress = self.recovery.progress.lock().await;
        loop {
            let heard = self.recovery.heard.load(Ordering::Relaxed);
            match &progress.stage {
                Stage::Well if progress.covered == heard => return Ok(()),
                Stage::Well | Stage::Absent(_) if progress.covered < heard => {
                    self.begin(&mut progress, heard);
                }
                // Clients wait for their calls; the watched users continue from here afterwards.
                Stage::Watched(ring) if progress.covered < heard => {
                    let left_at = ring.at.clone();
                    progress.left_at = left_at;
                    self.begin(&mut progress, heard);
                }
                _ => {}
            }
            // The messages of a part are sent before the next part adds more.
            for _ in 0..MAX_WAIT.as_millis() / QUEUE_POLL.as_millis() {
                if self.cluster.queued() < MAX_QUEUED {
                    break;
                }
                tokio::time::sleep(QUEUE_POLL).await;
            }
            self.take_part(&mut progress).await?;
        }
    }

    fn begin(&self, progress: &mut Progress, heard: u64) {
        metrics::RESETS.increment(1);
        progress.covered = heard;
        progress.began_at.get_or_insert(self.clock.now());
        progress.stage = Stage::Devices(None);
    }

    /// Runs the next part.
    async fn take_part(&self, progress: &mut Progress) -> Result<(), Unavailable> {
        progress.stage = match progress.stage.clone() {
            Stage::Well => Stage::Well,
            Stage::Devices(after) => {
                let devices = self.sessions.after(after, PART);
                let attached = devices.chunks(USERS_AT_ONCE).map(|some| self.attach_again(some));
                all(join_all(attached).await)?;
                progress.devices += devices.len();
                match devices.last() {
                    Some(last) => Stage::Devices(Some(last.socket)),
                    None => Stage::Calls(None),
                }
            }
            Stage::Calls(after) => {
                let calls = self.live.after(after, AT_ONCE);
                some_at_a_time(&calls, |live| self.look_up_one(live)).await?;
                progress.calls += calls.len();
                match calls.last() {
                    Some(last) => Stage::Calls(Some(last.id())),
                    None => Stage::Welcome(None),
                }
            }
            Stage::Welcome(after) => {
                let devices = self.sessions.after(after, PART);
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
                progress.watched += users.len();
                match ring.on(users.into_iter().next_back()) {
                    Some(ring) => Stage::Watched(ring),
                    None => Stage::Absent(None),
                }
            }
            Stage::Absent(from) => {
                let (absent, next) = self.cluster.tidy(from.as_deref()).await?;
                let lost = absent.into_iter().map(|(user, detached)| {
                    // They may have been removed before by an operation without a reply.
                    self.announce_later([&user]);
                    (user, detached.call)
                });
                Stage::Lost(lost.collect(), next)
            }
            Stage::Lost(lost, next) => {
                some_at_a_time(&lost, |(user, call)| {
                    self.mark_lost_on(self.node(), user, call.clone())
                })
                .await?;
                match next {
                    Some(from) => Stage::Absent(Some(from)),
                    None => {
                        self.log_done(progress);
                        Stage::Well
                    }
                }
            }
        };
        Ok(())
    }

    /// Logs one line for the whole recovery.
    fn log_done(&self, progress: &mut Progress) {
        let covered = progress.covered;
        let Progress { began_at, devices, calls, watched, .. } =
            std::mem::replace(progress, Progress { covered, ..Progress::default() });
        let took = began_at.map_or(Duration::ZERO, |began_at| self.clock.now() - began_at);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        info!(devices, calls, watched, took_ms, "the recovery of this node is complete");
    }

    async fn attach_again(&self, devices: &[Device]) -> Result<(), Unavailable> {
        let sockets: Vec<_> =
            devices.iter().map(|device| (device.user.clone(), device.socket)).collect();
        let edges = self.cluster.attach_again(&sockets).await;
        let users = || sockets.iter().map(|(user, _)| user);
        self.announce(edges.inspect_err(|_| self.announce_later(users()))?);
        self.sign_off_gone(devices).await
    }

    /// Welcomes the devices of users in a call again.
    async fn welcome_again(&self, devices: &[Device]) -> Result<(), Unavailable> {
        let users: Vec<_> = devices.iter().map(|device| device.user.clone()).collect();
        let latest = self.cluster.latest_of(&users).await?;
        let concerned: Vec<_> = std::iter::zip(devices, latest)
            .filter(|(device, found)| found.is_some() || self.live.of_user(&device.user).is_some())
            .filter(|(device, _)| self.sessions.has_joined(device))
            .collect();
        some_at_a_time(&concerned, |(device, found)| async move {
            let stayed = Event::StillConnected((*device).clone());
            self.notify_of_latest(device, found.clone(), stayed).await.map(drop)
        })
        .await?;
        self.sign_off_gone(devices).await
    }

    /// Detaches a device that left meanwhile and has just been attached again.
    pub(super) async fn sign_off_if_gone(&self, device: &Device) -> Result<(), Unavailable> {
        if self.sessions.is_connected(device) {
            return Ok(());
        }
        self.sign_off(device, true).await
    }

    /// Devices that left meanwhile were detached, and may just have been attached again.
    async fn sign_off_gone(&self, devices: &[Device]) -> Result<(), Unavailable> {
        let gone: Vec<_> =
            devices.iter().filter(|device| !self.sessions.is_connected(device)).collect();
        some_at_a_time(&gone, |device| self.sign_off(device, true)).await
    }

    /// Watches these users again; `newest` is the highest order known of them.
    async fn watch_again(&self, users: &[UserId], newest: u64) -> Result<(), Unavailable> {
        let watched = self.cluster.watch(users, newest).await;
        let now = self.clock.now();
        for edge in watched.iter().flatten() {
            self.watchers.announce(edge, &*self.sink, now);
        }
        // Users without a watcher by now were just watched again; a failed write may have been applied.
        self.unwatch(self.watchers.unwatched(users)).await;
        watched.map(drop)
    }
}

/// Fails if one of the results is an error.
fn all(results: impl IntoIterator<Item = Result<(), Unavailable>>) -> Result<(), Unavailable> {
    results.into_iter().collect()
}
