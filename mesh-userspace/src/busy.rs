//! What the agent's own thread is doing, for those who wait for it.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// One piece of work after the other. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<Mutex<Option<Work>>>);

#[derive(Debug)]
struct Work {
    what: Cow<'static, str>,
    since: Instant,
}

impl Busy {
    /// `what`: as in "the agent is busy with `what`".
    pub fn begin(&self, what: impl Into<Cow<'static, str>>) {
        *self.lock() = Some(Work { what: what.into(), since: Instant::now() });
    }

    pub fn end(&self) {
        *self.lock() = None;
    }

    /// Why somebody has waited in vain since `since`, and what to do.
    pub fn why(&self, since: Instant) -> String {
        let waited = since.elapsed().as_secs();
        let work = match &*self.lock() {
            Some(Work { what, since }) => {
                format!("has been busy with {what} for {} s", since.elapsed().as_secs())
            }
            None => "has more to do than it can".to_owned(),
        };
        format!(
            "the agent {work}, and did not come to this within {waited} s: try again; its log and \
             `mesh status` say what is slow (containers keep talking meanwhile, and names are answered)"
        )
    }

    fn lock(&self) -> MutexGuard<'_, Option<Work>> {
        // It is replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_what_for() {
        let (busy, now) = (Busy::default(), Instant::now());
        assert!(busy.why(now).contains("more to do"));
        busy.clone().begin("a look at everything");
        let why = busy.why(now);
        assert!(
            why.starts_with("the agent has been busy with a look at everything for 0 s"),
            "{why}"
        );
        busy.end();
        assert!(busy.why(now).contains("more to do"));
    }
}
