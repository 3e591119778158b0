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
    #[cfg(test)]
    injected: tests::Injected,
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
        Self {
            runtime,
            faults,
            #[cfg(test)]
            injected: tests::Injected::default(),
        }
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
        let (health, make) =
            (Health { faults: self.faults.clone(), of: what.into() }, Arc::new(make));
        #[cfg(test)]
        let make = self.injected.clone().into(health.of.clone(), make);
        let task = self.runtime.spawn(async move {
            loop {
                let make = make.clone();
                let mut run = pin!(caught(async move { make().await }));
                let ended = match timeout(PROBATION, &mut run).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        health.tell(None);
                        run.await
                    }
                };
                let why = ended.err().unwrap_or_else(|| "it came to an end".to_owned());
                health.tell(Some(&why));
                tokio::time::sleep(PAUSE).await;
            }
        });
        Task(task.abort_handle())
    }
}

/// Of one task. One that is gone has no fault.
struct Health {
    faults: Faults,
    of: String,
}

impl Health {
    fn tell(&self, why: Option<&str>) {
        let of = &self.of;
        let fault = |why| {
            format!("{of}: interrupted ({why}); it is started again after a second. Report this")
        };
        self.faults.set_one("task", of, why.map(fault));
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.tell(None);
    }
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
    use std::pin::Pin;

    use tokio::sync::{broadcast, mpsc};

    use super::*;

    /// Panics that tests want in tasks of these names.
    #[derive(Clone, Debug)]
    pub struct Injected(broadcast::Sender<String>);

    impl Default for Injected {
        fn default() -> Self {
            Self(broadcast::Sender::new(16))
        }
    }

    impl Injected {
        /// Makes what `make` makes, with a panic in the middle of it when one is wanted.
        pub fn into<F: Future<Output = ()> + Send + 'static>(
            self,
            name: String,
            make: Arc<impl Fn() -> F + Send + Sync + 'static>,
        ) -> Arc<impl Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync> {
            Arc::new(move || {
                let (name, make, mut wanted) = (name.clone(), make.clone(), self.0.subscribe());
                let injected = async move {
                    while let Ok(of) = wanted.recv().await {
                        assert!(of != name, "injected");
                    }
                };
                let run: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
                    tokio::select! {
                        () = make() => {}
                        () = injected => {}
                    }
                });
                run
            })
        }
    }

    impl Supervisor {
        /// Lets the task of this name panic.
        pub fn panic_in(&self, name: &str) {
            self.injected.0.send(name.to_owned()).unwrap();
        }
    }

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
    async fn a_task_that_is_gone_has_no_fault() {
        let (supervisor, faults) = supervisor();
        let task = supervisor.spawn("x", || async { panic!("badly") });
        wait("the fault", || !faults.now().is_empty()).await;
        drop(task);
        wait("none", || faults.now().is_empty()).await;
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
