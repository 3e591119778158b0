//! What the kernel tells of changes on this host.

use tokio::time::Instant;

use super::{LOOK_INTERVAL, RETRY};
use crate::{
    faults::Faults,
    host::Host,
    net::{Change, Net, NetError, Watch},
};

/// The faults' part of the agent.
const WATCH: &str = "watch";

/// A watch that fails is taken up again, and changes nothing else.
pub(super) struct Changes {
    watch: Option<Watch>,
    /// When to try to watch again.
    retry: Instant,
}

impl Changes {
    pub(super) fn of(watch: Watch) -> Self {
        Self { watch: Some(watch), retry: Instant::now() }
    }

    /// The next change that bears on the mesh. May be dropped while it waits: at most what somebody
    /// else changed is lost, or a neighbour is confirmed later.
    pub(super) async fn next(&mut self, host: &Host) -> Change {
        loop {
            let change = self.any(host.net(), host.faults()).await;
            if host.heeds(&change).await {
                return change;
            }
        }
    }

    async fn any(&mut self, net: &Net, faults: &Faults) -> Change {
        loop {
            if let Some(watch) = &mut self.watch {
                match watch.next().await {
                    Ok(change) => return change,
                    Err(e) => self.failed(faults, &e),
                }
            }
            tokio::time::sleep_until(self.retry).await;
            match net.watch() {
                Ok(watch) => {
                    faults.set(WATCH, None);
                    self.watch = Some(watch);
                    return Change::Overrun;
                }
                Err(e) => self.failed(faults, &e),
            }
        }
    }

    fn failed(&mut self, faults: &Faults, e: &NetError) {
        let secs = LOOK_INTERVAL.as_secs();
        faults.set(
            WATCH,
            Some(format!(
                "{e}: what changes on this host is seen up to {secs} s later; it is tried again"
            )),
        );
        self.watch = None;
        self.retry = Instant::now() + RETRY;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_watch_that_fails_is_a_fault_until_it_is_taken_up_again() {
        let (net, faults) = (Net::here().unwrap(), Faults::default());
        let mut changes = Changes::of(Watch::broken().unwrap());
        // Dropped while it waits, as other work comes first.
        while faults.now().is_empty() {
            let _ = timeout(Duration::from_millis(1), changes.any(&net, &faults)).await;
        }
        let next = timeout(Duration::from_secs(60), changes.any(&net, &faults)).await;
        assert_eq!(next.unwrap(), Change::Overrun);
        assert_eq!(faults.now(), [""; 0]);
        assert!(changes.watch.is_some() && faults.past().len() == 1);
    }
}
