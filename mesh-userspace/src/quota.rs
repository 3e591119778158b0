//! How much strangers may have at once: so much each, and so much together.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts what is held by each holder. Clones share it.
#[derive(Debug)]
pub struct Quota<K>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    total: usize,
    least: usize,
    held: Mutex<Held<K>>,
}

#[derive(Debug)]
struct Held<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// One of what a [`Quota`] counts, until it is dropped.
#[derive(Debug)]
pub struct Share<K: Eq + Hash> {
    holder: K,
    of: Arc<Inner<K>>,
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// `total` for all together. Who holds fewer than `least` gets one also when these are taken, so
    /// that nobody shuts others out: the bound is then `total` and `least` for each holder.
    pub fn new(total: usize, least: usize) -> Self {
        let held = Mutex::new(Held { all: 0, by: HashMap::new() });
        Self(Arc::new(Inner { total, least, held }))
    }

    /// One more for this holder, who may have `most`. `None` if it has its share.
    pub fn take(&self, holder: &K, most: usize) -> Option<Share<K>> {
        let mut held = self.0.lock();
        let own = held.by.get(holder).copied().unwrap_or(0);
        if own >= most || held.all >= self.0.total && own >= self.0.least {
            return None;
        }
        held.all += 1;
        held.by.insert(holder.clone(), own + 1);
        Some(Share { holder: holder.clone(), of: self.0.clone() })
    }
}

impl<K> Clone for Quota<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Inner<K> {
    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        // The counts are whole at any time.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        held.all -= 1;
        if let Some(own) = held.by.get_mut(&self.holder) {
            *own -= 1;
            if *own == 0 {
                held.by.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_its_share_and_nobody_is_shut_out() {
        let quota = Quota::new(4, 1);
        let greedy: Vec<_> = (0..9).filter_map(|_| quota.take(&"a", 3)).collect();
        assert_eq!(greedy.len(), 3);
        let more: Vec<_> = (0..9).filter_map(|_| quota.take(&"b", 3)).collect();
        assert_eq!(more.len(), 1, "four in all");
        let third = quota.take(&"c", 3);
        assert!(third.is_some() && quota.take(&"c", 3).is_none());
        drop((greedy, third));
        assert_eq!(
            (0..9).filter_map(|_| quota.take(&"b", 3)).count(),
            9,
            "each given back at once"
        );
        drop(more);
        assert!(quota.0.lock().by.is_empty() && quota.0.lock().all == 0);
    }
}
