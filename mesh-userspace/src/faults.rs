//! What is wrong on this host now, and what was wrong until a moment ago.
//!
//! Every part of the agent sets and clears its own faults, each under a key. A fault says the cause and
//! the remedy. It stands under FAULTS in `mesh status` until its part clears it, and under PAST FAULTS
//! afterwards.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::shown::plain;

/// Of a fault, in characters: more is for JSON.
pub const SHOWN_MAX: usize = 2000;
/// Past faults that are remembered.
const PAST_MAX: usize = 32;

/// The faults of one host. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    /// By part and key.
    now: BTreeMap<(&'static str, String), Entry>,
    past: VecDeque<Past>,
    /// Changes are not logged.
    is_quiet: bool,
    /// Whether a fault came or went.
    unlogged: Vec<(Fault, bool)>,
}

#[derive(Clone, Debug)]
struct Entry {
    fault: Fault,
    since: Instant,
}

#[derive(Debug)]
struct Past {
    fault: Fault,
    ended: Instant,
    lasted: Duration,
    times: u64,
}

/// What a fault is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "of", content = "name", rename_all = "snake_case")]
pub enum Of {
    /// None runs, or it does not answer.
    Agent,
    Host,
    Network(String),
    Endpoint(String),
    Bridge(String),
    Docker,
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent => f.write_str("agent"),
            Self::Host => f.write_str("host"),
            Self::Network(name) => write!(f, "network {name}"),
            Self::Endpoint(name) => write!(f, "endpoint {name}"),
            Self::Bridge(name) => write!(f, "bridge {name}"),
            Self::Docker => f.write_str("docker"),
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    #[serde(flatten)]
    pub of: Of,
    /// The cause, and the remedy.
    pub fault: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (of, fault) = (self.of.to_string(), plain(&self.fault, SHOWN_MAX));
        if self.of == Of::Host {
            f.write_str(&fault)
        } else {
            write!(f, "{}: {fault}", plain(&of, SHOWN_MAX))
        }
    }
}

#[cfg(test)]
impl PartialEq<&str> for Fault {
    fn eq(&self, text: &&str) -> bool {
        self.fault == *text
    }
}

/// A fault that was mended, or something that went wrong once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastFault {
    #[serde(flatten)]
    pub of: Of,
    pub fault: String,
    /// Since it was mended.
    pub seconds_ago: u64,
    /// The last time.
    pub lasted_seconds: u64,
    /// How often it was so.
    pub times: u64,
}

impl Faults {
    /// Sets or clears the one fault that `part` may have. Logs only what changes.
    pub fn set(&self, part: &'static str, fault: Option<String>) {
        self.set_one(part, "", fault);
    }

    /// Sets or clears the fault that `part` has with one thing, such as an address.
    pub fn set_one(&self, part: &'static str, key: &str, fault: Option<String>) {
        let fault = fault.map(|fault| Fault { of: Of::Host, fault });
        self.change(|board| board.set(part, key, fault));
    }

    /// Makes these, by key, all the faults that `part` has.
    pub fn set_all(&self, part: &'static str, faults: BTreeMap<String, String>) {
        let of_host = |(key, fault)| (key, Fault { of: Of::Host, fault });
        self.change(|board| board.set_all(part, faults.into_iter().map(of_host).collect()));
    }

    /// The same for faults that are not the host's: each with what it is of.
    pub fn set_all_of(&self, part: &'static str, faults: impl IntoIterator<Item = (Of, String)>) {
        let keyed = |(of, fault)| {
            let fault = Fault { of, fault };
            (fault.to_string(), fault)
        };
        self.change(|board| board.set_all(part, faults.into_iter().map(keyed).collect()));
    }

    /// Remembers what went wrong and is over, such as a call that was refused. Does not log it.
    pub fn note(&self, of: Of, fault: String) {
        self.lock().remember(Fault { of, fault }, Instant::now(), Duration::ZERO);
    }

    /// The same where a lock must not be waited for: nothing is remembered then.
    pub fn try_note(&self, of: Of, fault: String) {
        if let Ok(mut board) = self.0.try_lock() {
            board.remember(Fault { of, fault }, Instant::now(), Duration::ZERO);
        }
    }

    /// What is wrong now, in the order of parts and keys.
    pub fn now(&self) -> Vec<Fault> {
        self.lock().now.values().map(|entry| entry.fault.clone()).collect()
    }

    /// What was wrong, the latest first.
    pub fn past(&self) -> Vec<PastFault> {
        let past = |past: &Past| PastFault {
            of: past.fault.of.clone(),
            fault: past.fault.fault.clone(),
            seconds_ago: past.ended.elapsed().as_secs(),
            lasted_seconds: past.lasted.as_secs(),
            times: past.times,
        };
        self.lock().past.iter().map(past).collect()
    }

    /// For a command that prints them itself: changes are not logged.
    pub fn be_quiet(&self) {
        self.lock().is_quiet = true;
    }

    /// Logs the changes when others may see them: who reads the log may be slow.
    fn change(&self, change: impl FnOnce(&mut Board)) {
        let mut board = self.lock();
        change(&mut board);
        let changes = std::mem::take(&mut board.unlogged);
        drop(board);
        for (fault, is_so) in changes {
            if is_so {
                tracing::warn!("{fault}");
            } else {
                tracing::info!("no longer so: {fault}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        // The board is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    fn set_all(&mut self, part: &'static str, faults: BTreeMap<String, Fault>) {
        let known = self.now.keys().filter(|(of, _)| *of == part).map(|(_, key)| key);
        let mended: Vec<String> = known.filter(|key| !faults.contains_key(*key)).cloned().collect();
        for key in mended {
            self.set(part, &key, None);
        }
        for (key, fault) in faults {
            self.set(part, &key, Some(fault));
        }
    }

    fn set(&mut self, part: &'static str, key: &str, fault: Option<Fault>) {
        let key = (part, key.to_owned());
        let old = self.now.get(&key).map(|entry| &entry.fault);
        if old == fault.as_ref() {
            return;
        }
        let change = fault.clone().map(|fault| (fault, true));
        let change = change.or_else(|| old.cloned().map(|old| (old, false)));
        self.unlogged.extend(change.filter(|_| !self.is_quiet));
        let since = Instant::now();
        let old = match fault {
            Some(fault) => self.now.insert(key, Entry { fault, since }),
            None => self.now.remove(&key),
        };
        if let Some(old) = old {
            self.remember(old.fault, since, since.duration_since(old.since));
        }
    }

    /// What comes and goes takes one place.
    fn remember(&mut self, fault: Fault, ended: Instant, lasted: Duration) {
        let same = self.past.iter().position(|past| past.fault == fault);
        let before = same.and_then(|at| self.past.remove(at)).map_or(0, |past| past.times);
        self.past.push_front(Past { fault, ended, lasted, times: before + 1 });
        self.past.truncate(PAST_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(faults: &Faults) -> Vec<String> {
        faults.now().iter().map(Fault::to_string).collect()
    }

    #[test]
    fn a_fault_that_is_mended_is_history() {
        let faults = Faults::default();
        faults.set("firewall", Some("no nft".into()));
        faults.set_one("names", "10.42.0.1", Some("port 53 is busy".into()));
        faults.set("firewall", Some("no nft".into()));
        assert_eq!(now(&faults), ["no nft", "port 53 is busy"]);
        assert_eq!(faults.past(), []);
        faults.clone().set("firewall", None);
        faults.set("firewall", None);
        assert_eq!(now(&faults), ["port 53 is busy"]);
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
        assert_eq!(now(&faults), ["b!", "c!", "guard!"]);
        faults.set_all("endpoint", of(&[]));
        assert_eq!(now(&faults), ["guard!"]);
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

    #[test]
    fn each_fault_says_what_it_is_of() {
        let faults = Faults::default();
        let of = Of::Network("my-net".into());
        faults.set_all_of("docker", [(of.clone(), "x".into()), (Of::Docker, "x".into())]);
        faults.set("guard", Some("no nft".into()));
        assert_eq!(now(&faults), ["docker: x", "network my-net: x", "no nft"]);
        let json = serde_json::to_value(&faults.now()[1]).unwrap();
        let expected = serde_json::json!({"of": "network", "name": "my-net", "fault": "x"});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Fault>(json).unwrap(), faults.now()[1]);
        let json = serde_json::to_value(&faults.now()[2]).unwrap();
        assert_eq!(json, serde_json::json!({"of": "host", "fault": "no nft"}));
        faults.set_all_of("docker", []);
        assert_eq!(now(&faults), ["no nft"]);
        assert!(faults.past().iter().any(|past| past.of == of));
    }

    #[test]
    fn what_comes_and_goes_takes_one_place_in_the_history() {
        let faults = Faults::default();
        faults.set("guard", Some("no nft".into()));
        faults.set("guard", None);
        for _ in 0..100 {
            faults.note(Of::Docker, "refused".into());
        }
        let past = faults.past();
        let past: Vec<_> = past.iter().map(|past| (&*past.fault, past.times)).collect();
        assert_eq!(past, [("refused", 100), ("no nft", 1)]);
        assert_eq!(now(&faults), [""; 0]);
        let past: PastFault =
            serde_json::from_str(&serde_json::to_string(&faults.past()[0]).unwrap()).unwrap();
        assert_eq!(past, faults.past()[0]);
    }
}
