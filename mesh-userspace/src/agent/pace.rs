//! When the agent looks at the host: soon after it is told of a change, and at everything now and then,
//! whatever it was told.

use std::time::Duration;

use tokio::time::Instant;

/// Changes come in bursts: what follows within this time is looked at together.
pub const SETTLE: Duration = Duration::from_millis(10);
/// While changes do not stop, looks come this far apart.
const STORM: Duration = Duration::from_millis(500);
/// Looks that may come at once before that, as many as the start of a few containers takes.
const BURST: u32 = 8;

#[derive(Debug)]
pub struct Pace {
    /// Between two looks, at most.
    interval: Duration,
    due: Instant,
    /// When to look also at what is remembered.
    afresh: Instant,
    /// Until when the looks so far would have lasted, had each come [`STORM`] after the one before.
    spent: Instant,
}

impl Pace {
    /// Of an agent that has just looked.
    pub fn new(interval: Duration, now: Instant) -> Self {
        let next = now + interval;
        Self { interval, due: next, afresh: next, spent: now }
    }

    /// When the next look is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        let soon = now + SETTLE;
        let ahead = self.spent.saturating_duration_since(soon);
        self.due = self.due.min(soon + ahead.saturating_sub(STORM * BURST));
    }

    /// A look is due in `wait`, whatever changes.
    pub fn within(&mut self, wait: Duration, now: Instant) {
        self.due = self.due.min(now + wait);
    }

    /// Whether the look that is due is one at everything, also at what is remembered. However many
    /// changes there are, that comes once in an interval.
    pub fn is_afresh(&mut self, now: Instant) -> bool {
        let is_due = self.afresh <= now;
        if is_due {
            self.afresh = now + self.interval;
        }
        is_due
    }

    pub fn looked(&mut self, now: Instant) {
        self.spent = self.spent.max(now) + STORM;
        self.due = self.afresh.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    /// Looks within `time`, with a change each millisecond.
    fn looks(pace: &mut Pace, start: Instant, time: Duration) -> Vec<Duration> {
        let mut looks = Vec::new();
        for ms in 0..time.as_millis() as u64 {
            let now = start + Duration::from_millis(ms);
            pace.changed(now);
            if pace.due() <= now {
                pace.is_afresh(now);
                pace.looked(now);
                looks.push(now - start);
            }
        }
        looks
    }

    #[test]
    fn the_first_looks_are_at_once_and_a_storm_gets_few() {
        let begun = Instant::now();
        let mut pace = Pace::new(INTERVAL, begun);
        let storm = begun + Duration::from_secs(10);
        let seen = looks(&mut pace, storm, Duration::from_secs(10));
        let millis = |n| Duration::from_millis(n);
        let at_once = seen.iter().filter(|at| **at < millis(200)).count();
        assert!((8..=10).contains(&at_once), "{seen:?}");
        assert!(seen.len() <= at_once + 20, "{seen:?}");
        // Then it is over, and the next change is looked at at once.
        pace.looked(pace.due());
        let later = storm + Duration::from_secs(15);
        assert_eq!(looks(&mut pace, later, millis(20))[0], millis(10));
    }

    #[test]
    fn everything_is_looked_at_without_being_told() {
        let begun = Instant::now();
        let mut pace = Pace::new(INTERVAL, begun);
        assert_eq!(pace.due(), begun + INTERVAL);
        let middle = begun + INTERVAL / 2;
        assert!(!pace.is_afresh(middle));
        pace.looked(middle);
        assert_eq!(pace.due(), begun + INTERVAL, "a look for a change puts it off");
        assert!(pace.is_afresh(begun + INTERVAL));
        pace.looked(begun + INTERVAL);
        assert_eq!(pace.due(), begun + 2 * INTERVAL);
        // What failed is tried again sooner; changes do not put that off.
        let now = begun + INTERVAL;
        pace.within(Duration::from_secs(5), now);
        pace.within(INTERVAL, now);
        assert_eq!(pace.due(), now + Duration::from_secs(5));
    }
}
