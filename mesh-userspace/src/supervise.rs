//! Tasks that run for as long as the agent does.

use std::{future::Future, time::Duration};

use crate::faults::Faults;

/// Before a task that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs what `make` makes, and starts it again should it ever end. Until then that is a fault.
pub fn spawn<F>(faults: Faults, what: &'static str, make: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            let why = match tokio::spawn(make()).await {
                Ok(()) => "it came to an end".to_owned(),
                Err(e) => e.to_string(),
            };
            let fault = format!("{what}: interrupted ({why}); it goes on in a second. Report this");
            faults.set_one("task", what, Some(fault));
            tokio::time::sleep(PAUSE).await;
            faults.set_one("task", what, None);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_a_fault_and_runs_again() {
        let faults = Faults::default();
        let (sender, mut runs) = tokio::sync::mpsc::channel(1);
        spawn(faults.clone(), "names", move || {
            let sender = sender.clone();
            async move { _ = sender.send(()).await }
        });
        for _ in 0..2 {
            assert_eq!(runs.recv().await, Some(()));
        }
        assert_eq!(faults.past().len(), 1);
        assert!(faults.past()[0].fault.starts_with("names: interrupted"), "{:?}", faults.past());
    }
}
