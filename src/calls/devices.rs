//! The devices on this node: joining, the welcome with the user's call, and leaving.

use std::collections::{BTreeMap, HashSet};

use parking_lot::MutexGuard;
use tracing::warn;

use super::{
    Calls, Failure,
    pending::{Item, Outcome, Work},
    sweeper::{AT_ONCE, some_at_a_time},
};
use crate::{
    call::{Call, Device, Event},
    cluster::{Detached, Unavailable},
    ids::{CallId, SocketId, UserId},
};

/// A device on this node.
pub(super) struct Present {
    pub device: Device,
    /// Whether the device is attached to the shared state. Before that nothing rings there; it is
    /// welcomed afterwards.
    has_joined: bool,
    /// The latest call whose end the device knows. The record may be rolled back, or restored by a
    /// node that missed the end.
    knows_end_of: Option<CallId>,
}

impl Calls {
    /// A socket has identified itself: its user is online from now on.
    pub async fn join(&self, device: &Device) -> Result<(), Unavailable> {
        let present = Present { device: device.clone(), has_joined: false, knows_end_of: None };
        self.devices().insert(device.socket, present);
        match self.attach(device).await {
            Ok(()) => {
                if let Some(present) = self.devices().get_mut(&device.socket) {
                    present.has_joined = true;
                }
                Ok(())
            }
            Err(error) => {
                self.devices().remove(&device.socket);
                // The write may have been applied.
                self.add_pending(Work::UndoJoin(device.clone()));
                Err(error)
            }
        }
    }

    /// Attaches a device and announces the presence change; if the reply is lost, the change is
    /// announced later.
    pub(super) async fn attach(&self, device: &Device) -> Result<(), Unavailable> {
        let attached = self.cluster.attach(&device.user, device.socket).await;
        self.announce(attached.inspect_err(|_| self.announce_later([&device.user]))?);
        Ok(())
    }

    pub(super) fn devices(&self) -> MutexGuard<'_, BTreeMap<SocketId, Present>> {
        self.devices.lock()
    }

    /// Whether the device's socket is joining or has joined, and is not gone.
    pub(super) fn is_connected(&self, device: &Device) -> bool {
        self.devices().contains_key(&device.socket)
    }

    /// Whether the device is attached, and its socket is not gone.
    pub(super) fn has_joined(&self, device: &Device) -> bool {
        self.devices().get(&device.socket).is_some_and(|present| present.has_joined)
    }

    /// Whether the device was already told the end of the call, after it had been marked lost.
    pub(super) fn knows_end_of(&self, call: &Call, device: &Device) -> bool {
        let devices = self.devices();
        devices.get(&device.socket).is_some_and(|present| present.knows_end_of == Some(call.id))
    }

    /// Records that the device was told the end of the call.
    pub(super) fn told_end_of(&self, call: &Call, device: &Device) {
        if let Some(present) = self.devices().get_mut(&device.socket) {
            present.knows_end_of = Some(call.id);
        }
    }

    /// Records that the local devices in this call know its end.
    pub(super) fn note_end(&self, call: &Call) {
        let mut devices = self.devices();
        for socket in
            [&call.caller, &call.callee].into_iter().filter_map(|party| party.link.socket())
        {
            if let Some(present) = devices.get_mut(&socket) {
                present.knows_end_of = Some(call.id);
            }
        }
    }

    /// Whether a local device that is in this live call by its record knows its end: then the node
    /// that restored the call had missed the end.
    pub(super) fn has_ended_here(&self, call: &Call) -> bool {
        let devices = self.devices();
        let knows = |socket| {
            devices.get(&socket).is_some_and(|present| present.knows_end_of == Some(call.id))
        };
        let parties = [&call.caller, &call.callee];
        call.is_live() && parties.into_iter().any(|party| party.link.socket().is_some_and(knows))
    }

    /// The local sockets of `user` on which a call may ring.
    pub(super) fn joined_sockets_of(&self, user: &UserId) -> Vec<SocketId> {
        let mut sockets = self.outlet.sockets_of(user);
        let devices = self.devices();
        sockets.retain(|socket| devices.get(socket).is_some_and(|present| present.has_joined));
        sockets
    }

    /// Tells a joined socket about its user's call: a lost device resumes its call, a device of a
    /// called user rings. Until the record can be read, the welcome stays pending.
    pub async fn welcome(&self, device: &Device) -> Result<(), Unavailable> {
        let welcomed = self.tell_of_call(device, Event::Joined(device.clone())).await;
        if welcomed.is_err() {
            self.add_pending(Work::Welcome(device.clone()));
        }
        welcomed.map(drop)
    }

    /// Welcomes a socket whose call could not be read when it joined. The shared state may have come
    /// back empty: then another node restores the call.
    pub(super) async fn welcome_pending(&self, device: &Device) -> Result<Outcome, Unavailable> {
        if !self.is_connected(device) {
            return Ok(Outcome::Done);
        }
        let is_found = self.tell_of_call(device, Event::Joined(device.clone())).await?;
        // The socket may have left and been detached before it was bound to its call.
        self.sign_off_if_gone(device).await?;
        Ok(if is_found { Outcome::Done } else { Outcome::Nothing })
    }

    /// Tells the device about its user's call. Returns whether there is one.
    pub(super) async fn tell_of_call(
        &self,
        device: &Device,
        back: Event,
    ) -> Result<bool, Unavailable> {
        let found = self.cluster.latest(&device.user).await?;
        self.tell_of_latest(device, found, back).await
    }

    /// The same, given the latest call of the user.
    pub(super) async fn tell_of_latest(
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
        match self.transition(call.clone(), &back).await {
            Ok(_) => return Ok(true),
            Err(Failure::Refused(_)) => {}
            Err(_) => return Err(Unavailable),
        }
        if call.rings_for(&device.user) && !call.is_busy_on(device.socket) {
            self.live.keep(&call);
            self.live.open(&call).ring(&[device.socket], None, &self.reach());
        }
        Ok(true)
    }

    /// A socket is gone; `may_return` unless its client left on purpose. If the shared state is
    /// unavailable, the departure stays pending.
    pub async fn leave(&self, device: &Device, may_return: bool) {
        self.leaving().insert(device.socket);
        self.devices().remove(&device.socket);
        let unwatched = self.watchers.forget(device.socket);
        if let Err(error) = self.sign_off(device, may_return).await {
            warn!(%error, user = %device.user.logged(), "a closed socket could not be detached: it is detached later");
            self.add_pending(Work::SignOff { device: device.clone(), may_return });
        }
        self.leaving().remove(&device.socket);
        // Last, because no step of a call depends on it.
        self.unwatch(unwatched).await;
    }

    /// Whether the device of this socket has left, which its call's record may not show yet.
    pub(super) fn is_leaving(&self, user: &UserId, socket: SocketId) -> bool {
        self.leaving().contains(&socket) || self.pending.signs_off(user, socket)
    }

    fn leaving(&self) -> MutexGuard<'_, HashSet<SocketId>> {
        self.leaving.lock()
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
        if self.is_connected(device) {
            return self.attach(device).await;
        }
        // The shared state may have lost the call that this device is in.
        let seen = self.live.of_user(&device.user).map(|live| live.snapshot());
        let own = seen.filter(|call| call.is_live() && call.is_bound_to(device));
        let Some(call) = own.or(detached.call) else { return Ok(()) };
        if let Some(live) = self.live.get(call.id) {
            live.forget_device(device.socket);
        }
        let gone = Event::Gone { device: device.clone(), may_return };
        match self.transition(call, &gone).await {
            Ok(call) if self.is_unsure() => self.tell_where_users_are(&call).await,
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(_) => Err(Unavailable),
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
                if self.is_connected(device) {
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
