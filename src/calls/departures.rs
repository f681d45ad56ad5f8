//! Departures: sockets that left while the shared state was unavailable, to be detached later.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    call::Device,
    ids::{SocketId, UserId},
};

/// The most departures of a node: several times its number of sockets.
pub const MAX_DEPARTURES: usize = 100_000;

/// The pending departures of this node, and whether each device may return.
#[derive(Default)]
pub struct Departures {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    sockets: BTreeMap<SocketId, (Device, bool)>,
    /// The number of departures of each user.
    users: HashMap<UserId, usize>,
}

/// How many departures of a user are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Often {
    Always,
    OnceAUser,
}

/// There is no room for another departure.
pub struct Full;

impl Departures {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, device: &Device, may_return: bool, often: Often) -> Result<(), Full> {
        let mut index = self.index();
        if often == Often::OnceAUser && index.users.contains_key(&device.user) {
            return Ok(());
        }
        if index.sockets.len() >= MAX_DEPARTURES {
            return Err(Full);
        }
        if index.sockets.insert(device.socket, (device.clone(), may_return)).is_none() {
            *index.users.entry(device.user.clone()).or_default() += 1;
        }
        Ok(())
    }

    /// Up to `limit` departures, which stay in the queue.
    pub fn some(&self, limit: usize) -> Vec<(Device, bool)> {
        self.index().sockets.values().take(limit).cloned().collect()
    }

    pub fn forget(&self, socket: SocketId) {
        let mut index = self.index();
        let Some((device, _)) = index.sockets.remove(&socket) else { return };
        let Some(count) = index.users.get_mut(&device.user) else { return };
        *count -= 1;
        if *count == 0 {
            index.users.remove(&device.user);
        }
    }

    pub fn holds(&self, socket: SocketId) -> bool {
        self.index().sockets.contains_key(&socket)
    }
}
