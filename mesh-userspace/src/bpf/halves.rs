//! Arrays whose entries have two halves ([`mesh_common::halves`]), written as if they had one.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{Ordering, fence},
    },
};

use bytemuck::{AnyBitPattern, NoUninit, bytes_of};
use mesh_common::halves::Halves;

use super::{
    grace::grace,
    raw::{Store, Table},
};
use crate::plan::Entries;

/// Reads and writes are of the good halves. Whoever is interrupted leaves each entry as it was or as it
/// shall be.
pub struct HalvedTable<V> {
    table: Table<u32, Halves<V>>,
    /// The halves that are not good may still be read, also since a process before this one.
    is_turned: Mutex<bool>,
}

impl<V> HalvedTable<V>
where
    V: NoUninit + AnyBitPattern,
    Halves<V>: NoUninit + AnyBitPattern,
{
    pub(super) fn new(table: Table<u32, Halves<V>>) -> Self {
        Self { table, is_turned: Mutex::new(true) }
    }

    pub fn get(&self, index: &u32) -> io::Result<Option<V>> {
        Ok(self.table.get(index)?.map(|entry| *entry.good()))
    }

    /// Those that are not all zero.
    pub fn used(&self) -> io::Result<Entries<u32, V>> {
        let is_used = |entry: &Halves<V>| bytes_of(entry.good()).iter().any(|byte| *byte != 0);
        let entries = self.table.entries(is_used)?;
        Ok(entries.into_iter().map(|(index, entry)| (index, *entry.good())).collect())
    }

    /// A grace period is over.
    pub(super) fn set_waited(&self) {
        *self.is_turned.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// The entries at these places.
    fn read(&self, pairs: &[(u32, V)]) -> io::Result<Entries<u32, Halves<V>>> {
        /// From here on it is faster to read all.
        const MANY: usize = 256;
        if pairs.len() >= MANY {
            return self.table.entries(|_| true);
        }
        let read = |(index, _): &(u32, V)| {
            let entry = self.table.get(index)?;
            Ok((*index, entry.ok_or(io::ErrorKind::NotFound)?))
        };
        pairs.iter().map(read).collect()
    }
}

impl<V> Store<u32, V> for HalvedTable<V>
where
    V: NoUninit + AnyBitPattern,
    Halves<V>: NoUninit + AnyBitPattern,
{
    /// Waits for a grace period, some 15 ms, unless there was one since the last change.
    fn set_all(&self, pairs: &[(u32, V)]) -> io::Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        let before = self.read(pairs)?;
        let next = |(index, value): &(u32, V)| {
            let entry = before.get(index).ok_or(io::ErrorKind::NotFound)?;
            Ok((*index, entry.with_next(*value)))
        };
        let mut entries: Vec<_> = pairs.iter().map(next).collect::<io::Result<_>>()?;
        let mut is_turned = self.is_turned.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_turned {
            grace()?;
        }
        // All other words are written as they are.
        self.table.set_all(&entries)?;
        // Who reads that a half is good reads what is in it: see `Halves::good`.
        fence(Ordering::SeqCst);
        for (_, entry) in &mut entries {
            *entry = entry.turned();
        }
        *is_turned = true;
        self.table.set_all(&entries)
    }

    /// Sets them to all zero.
    fn remove_all(&self, indices: &[u32]) -> io::Result<()> {
        self.set_all(&indices.iter().map(|index| (*index, V::zeroed())).collect::<Vec<_>>())
    }
}
