//! Arrays of slots, and hash maps with their numbers ([`mesh_common::slots`]), written as one.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytemuck::{Pod, Zeroable};
use mesh_common::slots::{SLOTS, Slot, SlotKey};

use super::{
    grace::grace,
    raw::{Store, Table},
};
use crate::plan::Entries;

/// A key gets another value in another slot: the old one stays as it is until nobody reads it any more.
/// Each key is found all the time, with the old value or with the new one, and so it is for whoever is
/// interrupted: which slot is the key's is what the hash map says.
///
/// ```text
/// set_all, remove_all    keys are found as they shall be; those whose own slot is free, or will be,
///                        are noted
/// (grace period)         if programs may still read such a slot
/// fill                   these keys' own slots are written
///                        what was written is seen by all (`grace::order`)
/// publish                and found by the key alone
/// ```
pub struct SlottedTable<K, V> {
    numbers: Table<K, u32>,
    slots: Table<u32, Slot<K, V>>,
    room: Mutex<Room<K, V>>,
}

struct Room<K, V> {
    /// Of each slot. Empty before it is known, and after a change that failed.
    uses: Vec<Use>,
    /// Slots that are so, of which those that are no key's own are taken from the end.
    freed: Vec<u32>,
    free: Vec<u32>,
    /// Keys that shall be found without the hash map, and their slots.
    wanted: BTreeMap<K, (u32, V)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Nobody reads it.
    Free,
    /// It was a key's until a moment ago.
    Freed,
    Taken,
}

/// What keeps a table's slots.
pub(super) trait Slots {
    /// Forgets what a change that failed wanted, and looks which slots are free if that is not known.
    ///
    /// Returns whether it had to look: a process before may have freed those that are free only now.
    fn prepare(&self) -> io::Result<bool>;

    /// A grace period is over.
    fn set_waited(&self);

    /// Whether a grace period is needed before [`Slots::fill`].
    fn is_freed(&self) -> bool;

    /// Whether there are keys to fill in.
    fn is_wanted(&self) -> bool;

    fn fill(&self) -> io::Result<()>;

    fn publish(&self) -> io::Result<()>;
}

impl<K, V> SlottedTable<K, V>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    pub(super) fn new(numbers: Table<K, u32>, slots: Table<u32, Slot<K, V>>) -> Self {
        Self { numbers, slots, room: Mutex::new(Room::of(Vec::new())) }
    }

    /// The kernel's number for the hash map.
    pub fn id(&self) -> io::Result<u32> {
        self.numbers.id()
    }

    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        // Who changes it meanwhile has the number go elsewhere.
        for _ in 0..8 {
            let Some(number) = self.numbers.get(key)? else { return Ok(None) };
            if let Some(slot) = self.slots.get(&number)?.filter(|slot| slot.key == *key) {
                return Ok(Some(slot.info));
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "its slot is another key's"))
    }

    pub fn entries(&self) -> io::Result<Entries<K, V>> {
        let numbers = self.numbers.entries(|_| true)?;
        let slots = self.slots_at(numbers.values().copied())?;
        let mut all = Entries::default();
        for (key, number) in numbers {
            let info = match slots.get(&number).filter(|slot| slot.key == key) {
                Some(slot) => Some(slot.info),
                None => self.get(&key)?,
            };
            all.extend(info.map(|info| (key, info)));
        }
        Ok(all)
    }

    fn room(&self) -> MutexGuard<'_, Room<K, V>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots_at(
        &self,
        numbers: impl ExactSizeIterator<Item = u32>,
    ) -> io::Result<Entries<u32, Slot<K, V>>> {
        if numbers.len() >= MANY {
            return self.slots.entries(|_| true);
        }
        let read = |number| Ok((number, self.slots.get(&number)?.unwrap_or_else(Slot::zeroed)));
        numbers.map(read).collect()
    }

    /// The slots of these keys.
    fn numbers_of<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = &'a K>,
    ) -> io::Result<Entries<K, u32>>
    where
        K: 'a,
    {
        if keys.len() >= MANY {
            return self.numbers.entries(|_| true);
        }
        let mut numbers = Entries::default();
        for key in keys {
            numbers.extend(self.numbers.get(key)?.map(|number| (*key, number)));
        }
        Ok(numbers)
    }

    /// Looks which slots are free, and has no key found by itself that the hash map does not have there.
    fn look(&self, room: &mut Room<K, V>) -> io::Result<()> {
        let capacity = self.slots.capacity();
        let mut uses = vec![Use::Freed; capacity as usize];
        let numbers = self.numbers.entries(|_| true)?;
        for number in numbers.values() {
            if let Some(a) = uses.get_mut(*number as usize) {
                *a = Use::Taken;
            }
        }
        for number in SLOTS..(SLOTS + K::LEARNED).min(capacity) {
            uses[number as usize] = Use::Taken;
        }
        let is_stray = |(number, slot): &(u32, Slot<K, V>)| {
            *number < SLOTS && numbers.get(&slot.key) != Some(number)
        };
        let used = self.slots.entries(|slot| slot.used != 0)?;
        let stray: Vec<_> = used.into_iter().filter(is_stray).collect();
        self.set_used(&stray, 0)?;
        *room = Room::of(uses);
        Ok(())
    }

    /// Writes the slots' first word anew, and all else as it is: no program sees a change but of this.
    fn set_used(&self, slots: &[(u32, Slot<K, V>)], used: u32) -> io::Result<()> {
        let set: Vec<_> = slots.iter().map(|(n, slot)| (*n, Slot { used, ..*slot })).collect();
        self.slots.set_all(&set)
    }

    /// Nobody comes to these slots any more.
    fn free(&self, room: &mut Room<K, V>, numbers: &[u32]) -> io::Result<()> {
        let own: Vec<u32> = numbers.iter().copied().filter(|number| *number < SLOTS).collect();
        let wanted: HashSet<u32> = own.iter().copied().collect();
        let slots = self.slots_at(own.into_iter())?;
        let used: Vec<_> =
            slots.into_iter().filter(|(n, slot)| slot.used != 0 && wanted.contains(n)).collect();
        self.set_used(&used, 0)?;
        for number in numbers {
            room.set_freed::<K>(*number);
        }
        Ok(())
    }

    /// Writes as many of the pairs as there are free slots for. Returns how many.
    fn set_some(
        &self,
        room: &mut Room<K, V>,
        pairs: &[(K, V)],
        before: &Entries<K, u32>,
    ) -> io::Result<usize> {
        let (mut slots, mut numbers, mut old) = (Vec::new(), Vec::new(), Vec::new());
        for (key, info) in pairs {
            let Some(number) = room.take(key.slot()) else { break };
            slots.push((number, Slot { used: 0, key: *key, info: *info }));
            numbers.push((*key, number));
            old.extend(before.get(key));
            room.wanted.insert(*key, (number, *info));
        }
        self.slots.set_all(&slots)?;
        // Only now a program comes to a slot, by its number (in an element that the kernel links with
        // a store-release).
        self.numbers.set_all(&numbers)?;
        self.free(room, &old)?;
        Ok(numbers.len())
    }

    fn change(&self, change: impl FnOnce(&mut Room<K, V>) -> io::Result<()>) -> io::Result<()> {
        let mut room = self.room();
        if room.uses.is_empty() {
            self.look(&mut room)?;
        }
        let changed = change(&mut room);
        if changed.is_err() {
            *room = Room::of(Vec::new());
        }
        changed
    }
}

impl<K, V> Store<K, V> for SlottedTable<K, V>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    /// Waits for a grace period if it needs more slots than are free.
    fn set_all(&self, pairs: &[(K, V)]) -> io::Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        // Of those that come at once the lowest key gets the slot, so that the same entries make the
        // same slots.
        let mut pairs = pairs.to_vec();
        pairs.sort_unstable_by_key(|(key, _)| *key);
        self.change(|room| {
            let before = self.numbers_of(pairs.iter().map(|(key, _)| key))?;
            let mut rest = &pairs[..];
            loop {
                let done = self.set_some(room, rest, &before)?;
                rest = &rest[done..];
                if rest.is_empty() {
                    return Ok(());
                }
                if room.freed.is_empty() {
                    return Err(io::Error::from_raw_os_error(libc::E2BIG));
                }
                grace()?;
                room.set_waited();
            }
        })
    }

    fn remove_all(&self, keys: &[K]) -> io::Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.change(|room| {
            let before = self.numbers_of(keys.iter())?;
            let numbers: Vec<u32> =
                keys.iter().filter_map(|key| before.get(key).copied()).collect();
            self.free(room, &numbers)?;
            for key in keys {
                room.wanted.remove(key);
            }
            self.numbers.remove_all(keys)
        })
    }
}

impl<K, V> Slots for SlottedTable<K, V>
where
    K: SlotKey + Pod + Ord + Hash,
    V: Pod,
    Slot<K, V>: Pod,
{
    fn prepare(&self) -> io::Result<bool> {
        let mut room = self.room();
        room.wanted.clear();
        let is_known = !room.uses.is_empty();
        if !is_known {
            self.look(&mut room)?;
        }
        Ok(!is_known)
    }

    fn set_waited(&self) {
        self.room().set_waited();
    }

    fn is_freed(&self) -> bool {
        let room = self.room();
        room.wanted.keys().any(|key| room.uses.get(key.slot() as usize) == Some(&Use::Freed))
    }

    fn is_wanted(&self) -> bool {
        !self.room().wanted.is_empty()
    }

    fn fill(&self) -> io::Result<()> {
        self.change(|room| {
            let mut moved = Vec::new();
            let Room { uses, wanted, .. } = room;
            wanted.retain(|key, (number, info)| {
                let own = key.slot();
                let Some(a) = uses.get_mut(own as usize) else { return false };
                if *number != own && *a == Use::Free {
                    *a = Use::Taken;
                    moved.push((own, Slot { used: 0, key: *key, info: *info }));
                    return true;
                }
                *number == own
            });
            self.slots.set_all(&moved)
        })
    }

    fn publish(&self) -> io::Result<()> {
        self.change(|room| {
            let wanted = std::mem::take(&mut room.wanted);
            let slot = |(key, (_, info)): (&K, &(u32, V))| {
                (key.slot(), Slot { used: 1, key: *key, info: *info })
            };
            self.slots.set_all(&wanted.iter().map(slot).collect::<Vec<_>>())?;
            let moved = wanted.iter().filter(|(key, (number, _))| *number != key.slot());
            let numbers: Vec<_> = moved.clone().map(|(key, _)| (*key, key.slot())).collect();
            self.numbers.set_all(&numbers)?;
            moved.for_each(|(_, (number, _))| room.set_freed::<K>(*number));
            Ok(())
        })
    }
}

impl<K, V> Room<K, V> {
    fn of(uses: Vec<Use>) -> Self {
        let is_freed = |number: &u32| uses[*number as usize] == Use::Freed;
        let freed = (0..uses.len() as u32).rev().filter(is_freed).collect();
        Self { uses, freed, free: Vec::new(), wanted: BTreeMap::new() }
    }

    /// A free slot: `own`, or any that is no key's own.
    fn take(&mut self, own: u32) -> Option<u32> {
        let is_free = self.uses.get(own as usize) == Some(&Use::Free);
        let number = if is_free { own } else { self.free.pop()? };
        self.uses[number as usize] = Use::Taken;
        Some(number)
    }

    fn set_freed<S: SlotKey>(&mut self, number: u32) {
        let is_learned = (SLOTS..SLOTS + S::LEARNED).contains(&number);
        if let Some(a) = self.uses.get_mut(number as usize).filter(|_| !is_learned) {
            *a = Use::Freed;
            self.freed.push(number);
        }
    }

    fn set_waited(&mut self) {
        for number in self.freed.drain(..) {
            self.uses[number as usize] = Use::Free;
            if number >= SLOTS {
                self.free.push(number);
            }
        }
    }
}

/// From so many on it is faster to read all.
const MANY: usize = 256;
