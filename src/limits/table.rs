//! Buckets and counts by address or by user, in bounded maps.

use std::{collections::HashMap, fmt, hash::Hash, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use super::bucket::{Bucket, Quota};

/// Bound on the remembered addresses, or users.
pub const MAX_KEYS: usize = 100_000;
/// Smaller maps are not pruned.
const FEW_KEYS: usize = 1_024;
/// Shortest pause between prunings of a full map.
const TIDY_INTERVAL_US: u64 = 1_000_000;

/// A bucket per key.
#[derive(Debug)]
pub struct Buckets<K> {
    quota: Option<Quota>,
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    buckets: HashMap<K, Bucket>,
    /// Size at which the map is pruned next.
    tidy_at: usize,
    tidied_us: Option<u64>,
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum No {
    /// The bucket is empty; retry after this time.
    Wait(Duration),
    /// The map is full: allowed, and not counted.
    NotCounted,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// Without a quota everything is allowed.
    pub fn new(quota: Option<Quota>) -> Self {
        let table = Table { buckets: HashMap::new(), tidy_at: FEW_KEYS, tidied_us: None };
        Self { quota, table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table<K>> {
        self.table.lock()
    }

    /// Takes a token of `key`.
    pub fn take(&self, key: &K, now_us: u64) -> Result<(), No> {
        self.take_many(1, key, now_us)
    }

    /// Takes `count` tokens of `key`, or none.
    pub fn take_many(&self, count: u32, key: &K, now_us: u64) -> Result<(), No> {
        let Some(quota) = self.quota else { return Ok(()) };
        let mut table = self.table();
        if let Some(bucket) = table.buckets.get_mut(key) {
            return bucket.take_many(count, quota, now_us).map_err(No::Wait);
        }
        if !table.has_room(quota, now_us) {
            return Err(No::NotCounted);
        }
        let mut bucket = Bucket::default();
        let taken = bucket.take_many(count, quota, now_us).map_err(No::Wait);
        table.buckets.insert(key.clone(), bucket);
        taken
    }

    /// Whether `key` has a token.
    pub fn check(&self, key: &K, now_us: u64) -> Result<(), No> {
        let Some(quota) = self.quota else { return Ok(()) };
        let mut table = self.table();
        let Some(bucket) = table.buckets.get_mut(key) else { return Ok(()) };
        bucket.check(quota, now_us).map_err(No::Wait)
    }
}

impl<K: Eq + Hash> Table<K> {
    /// Removes full buckets. Amortised: it runs when the map has doubled since the last pruning.
    fn has_room(&mut self, quota: Quota, now_us: u64) -> bool {
        if self.buckets.len() < self.tidy_at {
            return true;
        }
        let is_soon = self.tidied_us.is_some_and(|at| now_us.abs_diff(at) < TIDY_INTERVAL_US);
        if self.buckets.len() < MAX_KEYS || !is_soon {
            self.buckets.retain(|_, bucket| !bucket.is_full(quota, now_us));
            self.tidied_us = Some(now_us);
            self.tidy_at = (self.buckets.len() * 2).clamp(FEW_KEYS, MAX_KEYS);
        }
        self.buckets.len() < MAX_KEYS
    }
}

/// The present count per key. Keys with a count of zero are removed.
pub struct Counts<K>(Mutex<HashMap<K, u32>>);

/// One counted item, released on drop.
pub struct Place<K: Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Counts<K> {
    /// A slot for `key`, if its count is below `most`.
    pub fn enter(self: &Arc<Self>, key: &K, most: Option<u32>) -> Option<Place<K>> {
        let mut counts = self.lock();
        let count = counts.get(key).copied().unwrap_or(0);
        if most.is_some_and(|most| count >= most) {
            return None;
        }
        counts.insert(key.clone(), count.saturating_add(1));
        Some(Place { counts: self.clone(), key: key.clone() })
    }
}

impl<K> Counts<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, u32>> {
        self.0.lock()
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.key)),
        }
        // Releases the memory of a peak.
        if counts.capacity() > 4 * counts.len().max(FEW_KEYS) {
            counts.shrink_to_fit();
        }
    }
}

impl<K: Eq + Hash> fmt::Debug for Place<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Quota = Quota::new(1, Duration::from_secs(10));
    const START_US: u64 = 1_000_000_000;

    #[test]
    fn each_key_has_its_own() {
        let buckets = Buckets::new(Some(ONE));
        assert_eq!(buckets.take(&1, START_US), Ok(()));
        assert_eq!(buckets.check(&1, START_US), Err(No::Wait(Duration::from_secs(10))));
        assert_eq!(buckets.take(&1, START_US), Err(No::Wait(Duration::from_secs(10))));
        assert_eq!(buckets.check(&2, START_US), Ok(()));
        assert_eq!(buckets.take(&2, START_US), Ok(()));
        assert_eq!(buckets.take(&1, START_US + 10_000_000), Ok(()));
        let off = Buckets::new(None);
        assert!((0..1_000).all(|_| off.take(&1, START_US).is_ok()));
        assert!(off.table().buckets.is_empty());
    }

    #[test]
    fn whom_one_need_not_remember_is_forgotten() {
        let buckets = Buckets::new(Some(ONE));
        // A thousand per second, each active for ten.
        for key in 0..200_000_u64 {
            assert_eq!(buckets.take(&key, START_US + key * 1_000), Ok(()));
        }
        assert!(buckets.table().buckets.len() < 30_000, "{}", buckets.table().buckets.len());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let buckets = Buckets::new(Some(ONE));
        let beyond = MAX_KEYS as u64 + 5;
        let last = (0..beyond).map(|key| buckets.take(&key, START_US)).last();
        assert_eq!(last, Some(Err(No::NotCounted)));
        assert_eq!(buckets.table().buckets.len(), MAX_KEYS);
        assert_eq!(buckets.take(&5, START_US), Err(No::Wait(Duration::from_secs(10))));
        assert_eq!(buckets.take(&beyond, START_US + 10_000_000), Ok(()), "there is room again");
        assert_eq!(buckets.table().buckets.len(), 1);
    }

    #[test]
    fn places_are_given_back() {
        let counts = Arc::new(Counts::default());
        let first = counts.enter(&"a", Some(2)).unwrap();
        let second = counts.enter(&"a", Some(2)).unwrap();
        assert!(counts.enter(&"a", Some(2)).is_none());
        assert!(counts.enter(&"b", Some(2)).is_some());
        assert!(counts.enter(&"a", None).is_some(), "and gone at once");
        drop(first);
        let third = counts.enter(&"a", Some(2)).unwrap();
        drop((second, third));
        assert!(counts.lock().is_empty());
    }
}
