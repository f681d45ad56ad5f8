//! Mutual exclusion per key, without waiting.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use parking_lot::{Mutex, MutexGuard};

/// The keys that are taken.
#[derive(Debug)]
pub struct Turns<K>(Arc<Mutex<HashSet<K>>>);

/// A taken key, released on drop.
pub struct Turn<K: Copy + Eq + Hash> {
    turns: Turns<K>,
    key: K,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    /// Takes the key; `None` if it is taken already.
    pub fn take(&self, key: K) -> Option<Turn<K>> {
        self.keys().insert(key).then(|| Turn { turns: self.clone(), key })
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<K>> {
        self.0.lock()
    }
}

impl<K: Copy + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        self.turns.keys().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_for_each_key() {
        let turns = Turns::default();
        let first = turns.take(1);
        assert!(first.is_some() && turns.take(1).is_none() && turns.take(2).is_some());
        drop(first);
        assert!(turns.take(1).is_some());
    }
}
