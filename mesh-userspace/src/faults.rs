//! What is wrong on this host now, and what was wrong until a moment ago.
//!
//! Every part of the agent sets and clears its own faults, each under a key. A fault says the cause and
//! the remedy. It stands under FAULTS in `mesh status` until its part clears it, and under PAST FAULTS
//! afterwards.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// Past faults that are remembered.
const PAST_MAX: usize = 32;

/// The faults of one host. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    /// By part and key.
    now: BTreeMap<(&'static str, String), Fault>,
    past: VecDeque<(Fault, Instant)>,
}

#[derive(Clone, Debug)]
struct Fault {
    text: String,
    since: Instant,
}

/// A fault that was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastFault {
    pub fault: String,
    /// Since it was mended.
    pub seconds_ago: u64,
    pub lasted_seconds: u64,
}

impl Faults {
    /// Sets or clears the one fault that `part` may have. Logs only what changes.
    pub fn set(&self, part: &'static str, fault: Option<String>) {
        self.set_one(part, "", fault);
    }

    /// Sets or clears the fault that `part` has with one thing, such as an address.
    pub fn set_one(&self, part: &'static str, key: &str, fault: Option<String>) {
        self.lock().set(part, key, fault);
    }

    /// Makes these, by key, all the faults that `part` has.
    pub fn set_all(&self, part: &'static str, faults: BTreeMap<String, String>) {
        let mut board = self.lock();
        let known = board.now.keys().filter(|(of, _)| *of == part).map(|(_, key)| key);
        let mended: Vec<String> = known.filter(|key| !faults.contains_key(*key)).cloned().collect();
        for key in mended {
            board.set(part, &key, None);
        }
        for (key, fault) in faults {
            board.set(part, &key, Some(fault));
        }
    }

    /// What is wrong now, in the order of parts and keys.
    pub fn now(&self) -> Vec<String> {
        self.lock().now.values().map(|fault| fault.text.clone()).collect()
    }

    /// What was wrong, the latest first.
    pub fn past(&self) -> Vec<PastFault> {
        let past = |(fault, ended): &(Fault, Instant)| PastFault {
            fault: fault.text.clone(),
            seconds_ago: ended.elapsed().as_secs(),
            lasted_seconds: ended.duration_since(fault.since).as_secs(),
        };
        self.lock().past.iter().map(past).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        // The board is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    fn set(&mut self, part: &'static str, key: &str, text: Option<String>) {
        let key = (part, key.to_owned());
        let old = self.now.get(&key);
        if old.map(|fault| &fault.text) == text.as_ref() {
            return;
        }
        if let Some(text) = &text {
            tracing::warn!("{text}");
        } else if let Some(old) = old {
            tracing::info!("no longer so: {}", old.text);
        }
        let since = Instant::now();
        let old = match text {
            Some(text) => self.now.insert(key, Fault { text, since }),
            None => self.now.remove(&key),
        };
        if let Some(old) = old {
            self.past.push_front((old, since));
            self.past.truncate(PAST_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_is_mended_is_history() {
        let faults = Faults::default();
        faults.set("firewall", Some("no nft".into()));
        faults.set_one("names", "10.42.0.1", Some("port 53 is busy".into()));
        faults.set("firewall", Some("no nft".into()));
        assert_eq!(faults.now(), ["no nft", "port 53 is busy"]);
        assert_eq!(faults.past(), []);
        faults.clone().set("firewall", None);
        faults.set("firewall", None);
        assert_eq!(faults.now(), ["port 53 is busy"]);
        let past: Vec<_> = faults.past().into_iter().map(|past| past.fault).collect();
        assert_eq!(past, ["no nft"]);
    }

    #[test]
    fn all_faults_of_a_part_are_replaced_at_once() {
        let faults = Faults::default();
        let of = |keys: &[&str]| keys.iter().map(|k| ((*k).to_owned(), format!("{k}!"))).collect();
        faults.set("guard", Some("guard!".into()));
        faults.set_all("endpoint", of(&["a", "b"]));
        faults.set_all("endpoint", of(&["b", "c"]));
        assert_eq!(faults.now(), ["b!", "c!", "guard!"]);
        faults.set_all("endpoint", of(&[]));
        assert_eq!(faults.now(), ["guard!"]);
        assert_eq!(faults.past().len(), 3);
    }

    #[test]
    fn history_has_an_end() {
        let faults = Faults::default();
        for n in 0..100 {
            faults.set("x", Some(n.to_string()));
        }
        assert_eq!(faults.past().len(), PAST_MAX);
        assert_eq!(faults.past()[0].fault, "98");
    }
}
