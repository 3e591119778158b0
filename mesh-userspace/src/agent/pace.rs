//! When the agent looks at the host: soon after it is told of a change, and at everything now and then,
//! whatever it was told.

use std::time::Duration;

use tokio::time::Instant;

/// Changes come in bursts: what follows within this time is looked at together.
pub const SETTLE: Duration = Duration::from_millis(10);
/// While changes do not stop, two looks are this far apart, and ever farther.
const STORM: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// After a look without another for so long, the storm is over.
const QUIET: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Pace {
    /// Between two looks, at most.
    interval: Duration,
    due: Instant,
    /// When to look also at what is remembered.
    afresh: Instant,
    last: Instant,
    /// From the last look to the next for a change.
    pause: Duration,
}

impl Pace {
    /// Of an agent that has just looked.
    pub fn new(interval: Duration, now: Instant) -> Self {
        let next = now + interval;
        Self { interval, due: next, afresh: next, last: now, pause: Duration::ZERO }
    }

    /// When the next look is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        self.due = self.due.min((now + SETTLE).max(self.last + self.pause));
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
        let is_storm = now.saturating_duration_since(self.last) < QUIET;
        let (least, most) = STORM;
        self.pause = if is_storm { (self.pause * 2).clamp(least, most) } else { least };
        self.last = now;
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
    fn the_first_look_is_at_once_and_a_storm_gets_ever_fewer() {
        let begun = Instant::now();
        let mut pace = Pace::new(INTERVAL, begun);
        let storm = begun + Duration::from_secs(10);
        let seen = looks(&mut pace, storm, Duration::from_secs(10));
        let millis = |n| Duration::from_millis(n);
        assert_eq!(seen[..5], [10, 110, 310, 710, 1510].map(millis));
        assert!(seen.len() <= 14, "{seen:?}");
        // The one that is due yet; then it is over, and the next change is looked at at once.
        pace.looked(pace.due());
        let later = storm + Duration::from_secs(15);
        assert_eq!(looks(&mut pace, later, millis(20)), [millis(10)]);
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
