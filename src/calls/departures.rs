//! The sockets that left while the shared state could not be reached.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    call::Device,
    ids::{SocketId, UserId},
};

/// Most of them that are kept: several times the sockets of a node.
pub const MAX_DEPARTURES: usize = 100_000;

/// Those of this node, and whether they may return.
#[derive(Default)]
pub struct Departures {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    sockets: BTreeMap<SocketId, (Device, bool)>,
    /// How many there are of each user.
    users: HashMap<UserId, usize>,
}

/// How often a user may be among them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Often {
    Always,
    OnceAUser,
}

/// There is no room for another.
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

    /// Some of them, at most so many. They stay.
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
