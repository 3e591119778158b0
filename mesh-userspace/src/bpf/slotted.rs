//! Hash maps with an array of slots in front ([`mesh_common::slots`]), written as one.

use std::{
    collections::{HashSet, hash_map},
    hash::Hash,
    io,
    ops::Deref,
};

use bytemuck::{Pod, Zeroable};
use mesh_common::slots::{Slot, SlotKey};

use super::raw::{Store, Table};
use crate::plan::Entries;

/// Reads are those of the hash map, which has all entries.
///
/// A slot is taken by the first key that is written while it is free, and freed when that key is
/// removed or before it gets another value: whoever is interrupted in between leaves an unused slot
/// and never a wrong one.
pub struct SlottedTable<K, V> {
    table: Table<K, V>,
    slots: Table<u32, Slot<K, V>>,
}

impl<K, V> Deref for SlottedTable<K, V> {
    type Target = Table<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.table
    }
}

impl<K, V> Store<K, V> for SlottedTable<K, V>
where
    K: SlotKey + Pod + Eq + Hash,
    V: Pod,
{
    fn set_all(&self, pairs: &[(K, V)]) -> io::Result<()> {
        let mut slots = self.slots_of(pairs.iter().map(|(key, _)| key))?;
        self.free(&mut slots, pairs.iter().map(|(key, _)| *key))?;
        self.table.set_all(pairs)?;
        self.take(slots, pairs)
    }

    fn remove_all(&self, keys: &[K]) -> io::Result<()> {
        let mut slots = self.slots_of(keys.iter())?;
        self.free(&mut slots, keys.iter().copied())?;
        self.table.remove_all(keys)
    }
}

impl<K, V> SlottedTable<K, V>
where
    K: SlotKey + Pod + Eq + Hash,
    V: Pod,
{
    pub fn new(table: Table<K, V>, slots: Table<u32, Slot<K, V>>) -> Self {
        Self { table, slots }
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
        self.slots.set_all(&freed)
    }

    /// Writes pairs into slots that are free: the contents first, and then that they are used.
    fn take(&self, mut slots: Entries<u32, Slot<K, V>>, pairs: &[(K, V)]) -> io::Result<()> {
        let mut taken = Vec::new();
        for (key, info) in pairs {
            let place = key.slot();
            if let hash_map::Entry::Occupied(slot) = slots.entry(place)
                && slot.get().used == 0
            {
                slot.remove();
                taken.push((place, Slot { used: 0, key: *key, info: *info }));
            }
        }
        self.slots.set_all(&taken)?;
        for (_, slot) in &mut taken {
            slot.used = 1;
        }
        self.slots.set_all(&taken)
    }
}
