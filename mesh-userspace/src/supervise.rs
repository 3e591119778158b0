//! Tasks that run for as long as the agent does, or for as long as somebody wants them.

use std::{future::Future, panic, pin::pin, sync::Arc, time::Duration};

use tokio::{runtime::Handle, task::AbortHandle, time::timeout};

use crate::faults::{Faults, Of};

/// Before a task that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// One that has run for so long since is well again.
const PROBATION: Duration = Duration::from_secs(5);

/// Where tasks run, and who is told when one ends that should not. Clones share both.
#[derive(Clone, Debug)]
pub struct Supervisor {
    runtime: Handle,
    faults: Faults,
}

/// A task, ended when this is dropped.
#[derive(Debug)]
#[must_use = "the task ends when this is dropped"]
pub struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Supervisor {
    pub fn new(runtime: Handle, faults: Faults) -> Self {
        Self { runtime, faults }
    }

    /// Where the tasks run: sockets that are made for them are to be made there.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs what `make` makes, and starts it again should it ever end. That is a fault until it has run
    /// for a while again.
    pub fn spawn<F>(
        &self,
        what: impl Into<String>,
        make: impl Fn() -> F + Send + Sync + 'static,
    ) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (faults, what, make) = (self.faults.clone(), what.into(), Arc::new(make));
        let task = self.runtime.spawn(async move {
            loop {
                let make = make.clone();
                let mut run = pin!(caught(async move { make().await }));
                let ended = match timeout(PROBATION, &mut run).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        faults.set_one(PART, &what, None);
                        run.await
                    }
                };
                faults.set_one(PART, &what, Some(interrupted(&what, ended)));
                tokio::time::sleep(PAUSE).await;
            }
        });
        Task(task.abort_handle())
    }
}

/// The faults' part of tasks.
const PART: &str = "task";

fn interrupted(what: &str, ended: Result<(), String>) -> String {
    let why = ended.err().unwrap_or_else(|| "it came to an end".to_owned());
    format!("{what}: interrupted ({why}); it is started again after a second. Report this")
}

/// Runs a task to its end. The error: with what message it panicked.
pub async fn caught<T: Send + 'static>(
    run: impl Future<Output = T> + Send + 'static,
) -> Result<T, String> {
    let task = tokio::spawn(run);
    let _ends_with_this = Task(task.abort_handle());
    task.await.map_err(|e| e.to_string())
}

/// Remembers every panic from now on as a past fault, whatever thread or task it ends: also of those
/// that serve one caller, which nobody starts again.
pub fn note_panics(faults: Faults) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        usual(info);
        // Says where, and the message.
        let why = info.to_string().replace('\n', " ");
        faults.try_note(Of::Host, format!("a part of the agent {why}. Report this"));
    }));
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn supervisor() -> (Supervisor, Faults) {
        let faults = Faults::default();
        (Supervisor::new(Handle::current(), faults.clone()), faults)
    }

    async fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
        let waited = timeout(Duration::from_secs(60), async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "waited in vain: {what}");
    }

    #[tokio::test]
    async fn a_task_that_ends_is_a_fault_and_runs_again() {
        let (supervisor, faults) = supervisor();
        let (sender, mut runs) = mpsc::channel(1);
        let _task = supervisor.spawn("names", move || {
            let sender = sender.clone();
            async move { _ = sender.send(()).await }
        });
        for _ in 0..2 {
            assert_eq!(runs.recv().await, Some(()));
        }
        assert_eq!(faults.now().len(), 1);
        assert!(faults.now()[0].fault.starts_with("names: interrupted (it came to an end)"));
    }

    #[tokio::test]
    async fn a_panic_ends_no_task_for_good_and_is_over_when_it_runs() {
        let (supervisor, faults) = supervisor();
        let (sender, mut runs) = mpsc::unbounded_channel();
        let count = std::sync::atomic::AtomicUsize::new(0);
        let _task = supervisor.spawn("the watch", move || {
            let sender = sender.clone();
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(n != 0, "made badly");
            async move {
                assert!(n != 1, "ran badly");
                _ = sender.send(n);
                std::future::pending().await
            }
        });
        wait("the first", || faults.now().iter().any(|f| f.fault.contains("made badly"))).await;
        wait("the second", || faults.now().iter().any(|f| f.fault.contains("ran badly"))).await;
        assert_eq!(runs.recv().await, Some(2));
        wait("it to be well", || faults.now().is_empty()).await;
        assert_eq!(faults.past().len(), 2);
    }

    #[tokio::test]
    async fn a_task_that_nobody_wants_any_more_ends() {
        let (supervisor, _) = supervisor();
        let (sender, mut runs) = mpsc::channel::<()>(1);
        let task = supervisor.spawn("x", move || {
            let sender = sender.clone();
            async move { sender.closed().await }
        });
        tokio::task::yield_now().await;
        drop(task);
        assert_eq!(runs.recv().await, None);
    }
}
