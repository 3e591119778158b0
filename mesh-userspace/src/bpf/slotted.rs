//! Hash maps with an array of slots in front ([`mesh_common::slots`]), written as one.

use std::{
    collections::HashSet,
    hash::Hash,
    io,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytemuck::{Pod, Zeroable};
use mesh_common::slots::{Slot, SlotKey};

use super::raw::{Store, Table};
use crate::plan::Entries;

/// Reads are those of the hash map, which has all entries.
///
/// A slot is freed when its key is removed or gets another value, and taken by a key that is set while
/// it is free. In between is a grace period: see [`Slots`]. Whoever is interrupted leaves an unused slot
/// and never a wrong one.
pub struct SlottedTable<K, V> {
    table: Table<K, V>,
    slots: Table<u32, Slot<K, V>>,
    pending: Mutex<Pending<K, V>>,
}

/// What is to be done with the slots of a table once its entries are set and removed.
///
/// ```text
/// set_all, remove_all    slots of these keys are unused from here on
/// is_freed               a grace period is needed: programs may read these slots still
/// fill                   contents of free slots are written
///                        what was written is seen by all (`grace::order`)
/// publish                they are used
/// ```
pub(super) trait Slots {
    /// Forgets what a change that failed wanted.
    fn reset(&self);

    /// Whether slots were freed, or may have been by a process before, since [`Slots::set_waited`].
    fn is_freed(&self) -> bool;

    /// A grace period is over.
    fn set_waited(&self);

    /// Whether slots are to be taken.
    fn is_wanted(&self) -> bool;

    fn fill(&self) -> io::Result<()>;

    fn publish(&self) -> io::Result<()>;
}

struct Pending<K, V> {
    is_freed: bool,
    /// Contents of slots that are to be taken, if they are free by then.
    wanted: Entries<u32, Slot<K, V>>,
}

impl<K, V> Deref for SlottedTable<K, V> {
    type Target = Table<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.table
    }
}

impl<K, V> Store<K, V> for SlottedTable<K, V>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    fn set_all(&self, pairs: &[(K, V)]) -> io::Result<()> {
        let mut slots = self.slots_of(pairs.iter().map(|(key, _)| key))?;
        // First the map: a key whose slot is free is found there.
        self.table.set_all(pairs)?;
        self.free(&mut slots, pairs.iter().map(|(key, _)| *key))?;
        let wanted = &mut self.pending().wanted;
        // Of those that come at once the lowest key, so that the same entries make the same slots.
        for (key, info) in pairs {
            let slot = Slot { used: 0, key: *key, info: *info };
            let taker = wanted.entry(key.slot()).or_insert(slot);
            if *key < taker.key {
                *taker = slot;
            }
        }
        Ok(())
    }

    fn remove_all(&self, keys: &[K]) -> io::Result<()> {
        let mut slots = self.slots_of(keys.iter())?;
        self.free(&mut slots, keys.iter().copied())?;
        self.table.remove_all(keys)
    }
}

impl<K, V> Slots for SlottedTable<K, V>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    fn reset(&self) {
        self.pending().wanted.clear();
    }

    fn is_freed(&self) -> bool {
        self.pending().is_freed
    }

    fn set_waited(&self) {
        self.pending().is_freed = false;
    }

    fn is_wanted(&self) -> bool {
        !self.pending().wanted.is_empty()
    }

    fn fill(&self) -> io::Result<()> {
        // Only now it is known which are free.
        let keys: Vec<K> = self.pending().wanted.values().map(|slot| slot.key).collect();
        let slots = self.slots_of(keys.iter())?;
        let is_free = |place: &u32| slots.get(place).is_some_and(|slot| slot.used == 0);
        self.pending().wanted.retain(|place, _| is_free(place));
        self.slots.set_all(&self.wanted(0))
    }

    fn publish(&self) -> io::Result<()> {
        self.slots.set_all(&self.wanted(1))?;
        self.reset();
        Ok(())
    }
}

impl<K, V> SlottedTable<K, V>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    pub(super) fn new(table: Table<K, V>, slots: Table<u32, Slot<K, V>>) -> Self {
        // Whoever wrote before may have ended between freeing a slot and waiting.
        let pending = Pending { is_freed: true, wanted: Entries::default() };
        Self { table, slots, pending: Mutex::new(pending) }
    }

    fn pending(&self) -> MutexGuard<'_, Pending<K, V>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots that are to be taken, marked so.
    fn wanted(&self, used: u32) -> Vec<(u32, Slot<K, V>)> {
        let pending = self.pending();
        pending.wanted.iter().map(|(place, slot)| (*place, Slot { used, ..*slot })).collect()
    }

    /// The slots of all keys.
    fn slots_of<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a K>,
    ) -> io::Result<Entries<u32, Slot<K, V>>>
    where
        K: 'a,
    {
        /// From here on it is faster to read all.
        const MANY: usize = 256;
        if keys.len() >= MANY {
            return self.slots.entries(|_| true);
        }
        let places: HashSet<u32> = keys.map(SlotKey::slot).collect();
        let read = |place| Ok((place, self.slots.get(&place)?.unwrap_or_else(Slot::zeroed)));
        places.into_iter().map(read).collect()
    }

    /// Marks the slots that keys have as unused.
    fn free(
        &self,
        slots: &mut Entries<u32, Slot<K, V>>,
        keys: impl Iterator<Item = K>,
    ) -> io::Result<()> {
        let mut freed = Vec::new();
        for key in keys {
            let place = key.slot();
            if let Some(slot) = slots.get_mut(&place).filter(|s| s.used != 0 && s.key == key) {
                slot.used = 0;
                freed.push((place, *slot));
            }
        }
        if !freed.is_empty() {
            self.pending().is_freed = true;
        }
        // The other words are written as they are: no program sees a change but of this one.
        self.slots.set_all(&freed)
    }
}
