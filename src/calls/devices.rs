//! The devices on this node: joining, the welcome with the user's call, and leaving.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{MutexGuard, PoisonError},
};

use tracing::warn;

use super::{
    Calls, Failure,
    departures::Often,
    sweeper::{AT_ONCE, some_at_a_time},
    unsure::UNSURE,
};
use crate::{
    call::{Call, Device, Event},
    cluster::{Detached, Unavailable},
    ids::{CallId, SocketId, UserId},
    metrics::{self, Limit},
    time::Timestamp,
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
                // The write may have been applied. One pending departure per user is enough,
                // however often clients retry.
                self.depart(device, false, Often::OnceAUser);
                Err(error)
            }
        }
    }

    /// Attaches a device and announces the presence change; if the reply is lost, the change is
    /// announced later.
    pub(super) async fn attach(&self, device: &Device) -> Result<(), Unavailable> {
        let attached = self.cluster.attach(&device.user, device.socket).await;
        self.announce(attached.inspect_err(|_| self.unannounced.note([&device.user]))?);
        Ok(())
    }

    pub(super) fn devices(&self) -> MutexGuard<'_, BTreeMap<SocketId, Present>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.unwelcomed().insert(device.socket, (device.clone(), None));
        }
        welcomed.map(drop)
    }

    fn unwelcomed(&self) -> MutexGuard<'_, BTreeMap<SocketId, (Device, Option<Timestamp>)>> {
        self.unwelcomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Welcomes sockets whose call could not be read when they joined. The shared state may have
    /// come back empty: then another node restores the call.
    pub(super) async fn welcome_late(&self) -> Result<(), Unavailable> {
        let now = self.clock.now();
        let is_due = |(_, at): &&(_, Option<Timestamp>)| at.is_none_or(|at| now - at >= UNSURE);
        let due: Vec<_> = {
            let mut unwelcomed = self.unwelcomed();
            // Therefore pending welcomes are never more than local devices.
            unwelcomed.retain(|_, (device, _)| self.is_connected(device));
            unwelcomed.values().filter(is_due).cloned().collect()
        };
        some_at_a_time(&due, |(device, at)| self.welcome_one_late(device, *at)).await
    }

    async fn welcome_one_late(
        &self,
        device: &Device,
        found_none_at: Option<Timestamp>,
    ) -> Result<(), Unavailable> {
        let is_known = !self.is_connected(device)
            || self.tell_of_call(device, Event::Joined(device.clone())).await?
            || found_none_at.is_some();
        // The socket may have left and been detached before it was bound to its call.
        self.sign_off_if_gone(device).await?;
        if is_known {
            self.unwelcomed().remove(&device.socket);
        } else {
            self.unwelcomed().insert(device.socket, (device.clone(), Some(self.clock.now())));
        }
        Ok(())
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
            self.depart(device, may_return, Often::Always);
        }
        self.leaving().remove(&device.socket);
        // Last, because no step of a call depends on it.
        self.unwatch(unwatched).await;
    }

    /// Whether the device of this socket has left, which its call's record may not show yet.
    pub(super) fn is_leaving(&self, socket: SocketId) -> bool {
        self.leaving().contains(&socket) || self.departures.holds(socket)
    }

    fn leaving(&self) -> MutexGuard<'_, HashSet<SocketId>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn sign_off(
        &self,
        device: &Device,
        may_return: bool,
    ) -> Result<(), Unavailable> {
        let detached = self.cluster.detach(&device.user, device.socket).await;
        let detached = detached.inspect_err(|_| self.unannounced.note([&device.user]))?;
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

    /// Queues the departure of a device. If the queue is full, the stale entry is removed when this
    /// node next announces its sockets.
    fn depart(&self, device: &Device, may_return: bool, often: Often) {
        if self.departures.note(device, may_return, often).is_err() {
            metrics::LIMITS.of(Limit::Departures).increment(1);
            self.note_reset();
        }
    }

    /// Detaches the devices whose departure is pending, in batches.
    pub(super) async fn sign_off_late(&self) -> Result<(), Unavailable> {
        loop {
            let some = self.departures.some(AT_ONCE);
            if some.is_empty() {
                return Ok(());
            }
            // A device that could not join may have tried again.
            let (back, gone): (Vec<_>, Vec<_>) =
                some.into_iter().partition(|(device, _)| self.is_connected(device));
            for (device, _) in back {
                self.departures.forget(device.socket);
            }
            let sockets: Vec<_> =
                gone.iter().map(|(device, _)| (device.user.clone(), device.socket)).collect();
            let detached = self.cluster.detach_all(&sockets).await;
            let users = || sockets.iter().map(|(user, _)| user);
            let detached = detached.inspect_err(|_| self.unannounced.note(users()))?;
            let detached: Vec<_> = std::iter::zip(gone, detached).collect();
            some_at_a_time(&detached, |((device, may_return), detached)| async move {
                self.signed_off(device, *may_return, detached.clone()).await?;
                self.departures.forget(device.socket);
                Ok(())
            })
            .await?;
        }
    }
}
