//! What each asker may have of the resolver, so that none takes another's.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::quota::{Quota, Share};

/// Who asks, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// This host, for itself and, as Docker does since 25.0, for its containers.
    Host,
    /// A container that is known here.
    Known(IpAddr),
    /// All others that come by an interface of this index: an address may be made up.
    Unknown(u32),
}

/// Questions forwarded at once, of all askers, and of one even when these are taken.
const FORWARDED: usize = 512;
const FORWARDED_LEAST: usize = 4;
/// Questions at once that wait for Docker to say who asks.
const LOOKUPS: usize = 256;
/// Entries of the table of rates before those that need none are taken out.
const RATES: usize = 1024;

impl Asker {
    /// Questions in a second, and as many at once.
    fn rate(self) -> f64 {
        match self {
            Self::Host => 20_000.0,
            Self::Known(_) => 1_000.0,
            Self::Unknown(_) => 100.0,
        }
    }

    fn forwarded(self) -> usize {
        match self {
            Self::Host => 256,
            Self::Known(_) => 32,
            Self::Unknown(_) => 16,
        }
    }

    fn lookups(self) -> usize {
        match self {
            Self::Host | Self::Known(_) => 32,
            Self::Unknown(_) => 64,
        }
    }

    /// Connections by TCP.
    pub fn clients(self) -> usize {
        match self {
            Self::Host => 64,
            Self::Known(_) => 8,
            Self::Unknown(_) => 4,
        }
    }
}

/// Clones share the counts.
#[derive(Clone)]
pub struct Limits {
    rates: Arc<Mutex<HashMap<Asker, Bucket>>>,
    forwarded: Quota<Asker>,
    lookups: Quota<Asker>,
}

/// Questions that may be asked now.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Limits {
    pub fn new() -> Self {
        Self {
            rates: Arc::default(),
            forwarded: Quota::new(FORWARDED, FORWARDED_LEAST),
            lookups: Quota::new(LOOKUPS, 1),
        }
    }

    /// Returns whether one more question may be looked at.
    pub fn admit(&self, asker: Asker, now: Instant) -> bool {
        // Each bucket is whole at any time.
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= RATES {
            rates.retain(|asker, bucket| bucket.at(*asker, now) < asker.rate());
        }
        let bucket = rates.entry(asker).or_insert(Bucket { left: asker.rate(), at: now });
        let left = bucket.at(asker, now);
        let is_admitted = left >= 1.0;
        *bucket = Bucket { left: if is_admitted { left - 1.0 } else { left }, at: now };
        is_admitted
    }

    pub fn forward(&self, asker: Asker) -> Option<Share<Asker>> {
        self.forwarded.take(&asker, asker.forwarded())
    }

    pub fn look_up(&self, asker: Asker) -> Option<Share<Asker>> {
        self.lookups.take(&asker, asker.lookups())
    }
}

impl Bucket {
    fn at(self, asker: Asker, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + since * asker.rate()).min(asker.rate())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_of_one_leaves_the_others_their_rate() {
        let (limits, began) = (Limits::new(), Instant::now());
        let [one, two] = ["10.0.9.2", "10.0.9.3"].map(|ip| Asker::Known(ip.parse().unwrap()));
        let admitted = |asker, now| (0..5000).filter(|_| limits.admit(asker, now)).count();
        assert_eq!(admitted(one, began), 1000);
        assert_eq!(admitted(two, began), 1000);
        assert_eq!(admitted(one, began + Duration::from_millis(100)), 100);
        assert_eq!(admitted(Asker::Unknown(3), began), 100);
    }

    #[test]
    fn the_table_of_rates_has_an_end() {
        let (limits, began) = (Limits::new(), Instant::now());
        for n in 0..10_000_u32 {
            let now = began + Duration::from_millis(n.into());
            assert!(limits.admit(Asker::Known(std::net::Ipv4Addr::from(n).into()), now));
        }
        assert!(limits.rates.lock().unwrap().len() <= RATES);
    }

    #[test]
    fn forwarded_questions_of_many_leave_a_place_for_one_more() {
        let limits = Limits::new();
        let ask = |n: u32| limits.forward(Asker::Known(std::net::Ipv4Addr::from(n).into()));
        // A hundred of each of fifty.
        let held: Vec<_> = (0..5000).filter_map(|n| ask(n % 50)).collect();
        assert!(held.len() <= FORWARDED + 50 * FORWARDED_LEAST, "{}", held.len());
        assert!(ask(1000).is_some());
    }
}
