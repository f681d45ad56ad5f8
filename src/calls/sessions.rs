//! The devices on this node: joining, the welcome with the user's call, and leaving.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
};

use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use super::{
    Calls,
    pending::{Item, Outcome, Work},
    sweeper::{AT_ONCE, some_at_a_time},
};
use crate::{
    call::{Call, Device, Event, Link, Party},
    cluster::{Detached, Unavailable},
    ids::{SocketId, UserId},
};

/// The sockets of this node that have identified their user.
#[derive(Default)]
pub struct Sessions(Mutex<BTreeMap<SocketId, (Device, Stage)>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The device is not attached to the shared state yet. Nothing rings there; it is welcomed
    /// afterwards.
    Joining,
    Joined,
    /// The socket is gone, and is being detached.
    Leaving,
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, BTreeMap<SocketId, (Device, Stage)>> {
        self.0.lock()
    }

    fn set(&self, device: &Device, stage: Stage) {
        self.all().insert(device.socket, (device.clone(), stage));
    }

    fn remove(&self, socket: SocketId) {
        self.all().remove(&socket);
    }

    /// Does nothing if the socket has left meanwhile.
    fn end_joining(&self, socket: SocketId, is_attached: bool) {
        let mut all = self.all();
        match all.get_mut(&socket).filter(|(_, stage)| *stage == Stage::Joining) {
            Some((_, stage)) if is_attached => *stage = Stage::Joined,
            Some(_) => drop(all.remove(&socket)),
            None => {}
        }
    }

    fn stage(&self, socket: SocketId) -> Option<Stage> {
        self.all().get(&socket).map(|(_, stage)| *stage)
    }

    /// Whether the device's socket is joining or has joined, and is not gone.
    pub fn is_connected(&self, device: &Device) -> bool {
        self.stage(device.socket).is_some_and(|stage| stage != Stage::Leaving)
    }

    /// Whether the device is attached, and its socket is not gone.
    pub fn has_joined(&self, device: &Device) -> bool {
        self.stage(device.socket) == Some(Stage::Joined)
    }

    /// Whether the socket is here, or is being detached.
    pub fn has(&self, socket: SocketId) -> bool {
        self.stage(socket).is_some()
    }

    /// The devices that are connected, after this socket, at most `limit`.
    pub fn after(&self, socket: Option<SocketId>, limit: usize) -> Vec<Device> {
        let all = self.all();
        let from = socket.map_or(Bound::Unbounded, Bound::Excluded);
        let after = all.range((from, Bound::Unbounded)).map(|(_, session)| session);
        let connected = after.filter(|(_, stage)| *stage != Stage::Leaving);
        connected.take(limit).map(|(device, _)| device.clone()).collect()
    }

    /// The number of users with a connected device.
    pub fn count_users(&self) -> usize {
        let all = self.all();
        let connected = all.values().filter(|(_, stage)| *stage != Stage::Leaving);
        connected.map(|(device, _)| &device.user).collect::<HashSet<_>>().len()
    }
}

impl Calls {
    /// A socket has identified itself: its user is online from now on.
    pub async fn join(&self, device: &Device) -> Result<(), Unavailable> {
        self.sessions.set(device, Stage::Joining);
        let attached = self.attach(device).await;
        self.sessions.end_joining(device.socket, attached.is_ok());
        if attached.is_err() {
            // The write may have been applied.
            self.add_pending(Work::UndoJoin(device.clone()));
        }
        attached
    }

    /// Attaches a device and announces the presence change; if the reply is lost, the change is
    /// announced later.
    pub(super) async fn attach(&self, device: &Device) -> Result<(), Unavailable> {
        let attached = self.cluster.attach(&device.user, device.socket).await;
        self.announce(attached.inspect_err(|_| self.announce_later([&device.user]))?);
        Ok(())
    }

    /// The local sockets of `user` on which a call may ring.
    pub(super) fn joined_sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let mut sockets = self.sink.sockets_of(user);
        sockets.retain(|socket| self.sessions.stage(*socket) == Some(Stage::Joined));
        sockets
    }

    /// The device of a party that is connected here although the record marks it lost.
    pub(super) fn marked_lost_by_mistake(&self, party: &Party) -> Option<Device> {
        let Link::Lost { device: lost, .. } = &party.link else { return None };
        let here = self.sink.sockets_of(&party.user);
        let sessions = self.sessions.all();
        here.iter().filter_map(|socket| sessions.get(socket)).find_map(|(device, stage)| {
            let is_it = *stage == Stage::Joined && device.id.as_ref() == Some(lost);
            is_it.then(|| device.clone())
        })
    }

    /// Tells a joined socket about its user's call: a lost device resumes its call, a device of a
    /// called user rings. Until the record can be read, the welcome stays pending.
    pub async fn welcome(&self, device: &Device) -> Result<(), Unavailable> {
        let welcomed = self.notify_of_call(device, Event::Joined(device.clone())).await;
        if welcomed.is_err() {
            self.add_pending(Work::Welcome(device.clone()));
        }
        welcomed.map(drop)
    }

    /// Welcomes a socket whose call could not be read when it joined. The shared state may have come
    /// back empty: then another node restores the call.
    pub(super) async fn retry_welcome(&self, device: &Device) -> Result<Outcome, Unavailable> {
        if !self.sessions.is_connected(device) {
            return Ok(Outcome::Done);
        }
        let is_found = self.notify_of_call(device, Event::Joined(device.clone())).await?;
        // The socket may have left and been detached before it was bound to its call.
        self.sign_off_if_gone(device).await?;
        Ok(if is_found { Outcome::Done } else { Outcome::Nothing })
    }

    /// Tells the device about its user's call. Returns whether there is one.
    async fn notify_of_call(&self, device: &Device, back: Event) -> Result<bool, Unavailable> {
        let found = self.cluster.latest(&device.user).await?;
        self.notify_of_latest(device, found, back).await
    }

    /// The same, given the latest call of the user.
    pub(super) async fn notify_of_latest(
        &self,
        device: &Device,
        found: Option<Call>,
        back: Event,
    ) -> Result<bool, Unavailable> {
        // The shared state may have lost the call that the device returns to.
        let seen = self.live.of_user(&device.user).map(|live| live.snapshot());
        let seen = seen.filter(|seen| {
            seen.is_live()
                && found.as_ref().is_none_or(|found| !found.is_live() && found.id != seen.id)
        });
        let Some(call) = seen.or(found) else { return Ok(false) };
        if self.attempt_transition(call.clone(), &back).await?.is_some() {
            return Ok(true);
        }
        if call.rings_for(&device.user) && !call.is_busy_on(device.socket) {
            self.live.keep(&call);
            self.change(&self.live.open(&call), |call, context| {
                call.ring(&[device.socket], None, context);
            });
        }
        Ok(true)
    }

    /// A socket is gone; `may_return` unless its client left on purpose. If the shared state is
    /// unavailable, the departure stays pending.
    pub async fn leave(&self, device: &Device, may_return: bool) {
        self.sessions.set(device, Stage::Leaving);
        let unwatched = self.watchers.forget(device.socket);
        if let Err(error) = self.sign_off(device, may_return).await {
            warn!(%error, user = %device.user.logged(), "a closed socket could not be detached: it is detached later");
            self.add_pending(Work::SignOff { device: device.clone(), may_return });
        }
        self.sessions.remove(device.socket);
        // Last, because no step of a call depends on it.
        self.unwatch(unwatched).await;
    }

    pub(super) async fn sign_off(
        &self,
        device: &Device,
        may_return: bool,
    ) -> Result<(), Unavailable> {
        let detached = self.cluster.detach(&device.user, device.socket).await;
        let detached = detached.inspect_err(|_| self.announce_later([&device.user]))?;
        self.signed_off(device, may_return, detached).await
    }

    /// Handles the consequences after a device was detached.
    async fn signed_off(
        &self,
        device: &Device,
        may_return: bool,
        detached: Detached,
    ) -> Result<(), Unavailable> {
        self.announce(detached.edge);
        if self.sessions.is_connected(device) {
            return self.attach(device).await;
        }
        // The shared state may have lost the call that this device is in.
        let seen = self.live.of_user(&device.user).map(|live| live.snapshot());
        let own = seen.filter(|call| call.is_live() && call.is_bound_to(device));
        let Some(call) = own.or(detached.call) else { return Ok(()) };
        if let Some(live) = self.live.get(call.id) {
            live.state().forget_socket(device.socket);
        }
        let gone = Event::Gone { device: device.clone(), may_return };
        match self.attempt_transition(call, &gone).await? {
            Some(call) if self.is_recovering() => self.send_to_users_nodes(&call).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Detaches devices that left while the shared state was unavailable.
    pub(super) async fn sign_off_pending(&self, items: &[Item]) -> Result<(), Unavailable> {
        for some in items.chunks(AT_ONCE) {
            let (mut gone, now) = (Vec::new(), self.clock.now());
            for item in some {
                let (device, may_return) = match &item.work {
                    Work::SignOff { device, may_return } => (device, *may_return),
                    Work::UndoJoin(device) => (device, false),
                    _ => continue,
                };
                // A device that could not join may have tried again.
                if self.sessions.is_connected(device) {
                    self.pending.attempted(item, Outcome::Done, now);
                } else {
                    gone.push((item, device, may_return));
                }
            }
            let socket = |(_, device, _): &(_, &Device, _)| (device.user.clone(), device.socket);
            let sockets: Vec<_> = gone.iter().map(socket).collect();
            let detached = self.cluster.detach_all(&sockets).await;
            let users = || sockets.iter().map(|(user, _)| user);
            let detached = detached.inspect_err(|_| self.announce_later(users()))?;
            let detached: Vec<_> = std::iter::zip(gone, detached).collect();
            some_at_a_time(&detached, |((item, device, may_return), detached)| async move {
                self.signed_off(device, *may_return, detached.clone()).await?;
                self.pending.attempted(item, Outcome::Done, now);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
