//! The thread that serves others: names, the other agents, callers of the agent's socket, Docker and its
//! plugin, published ports at `[::1]`.
//!
//! The agent's own thread works on the host, one thing at a time, and may wait for the kernel or for a
//! program such as `nft`. Nothing that is served waits with it: what both threads know is handed over
//! whole, by channels, or is behind a lock that nobody holds while it waits.

use std::{convert::Infallible, future::pending, io, sync::mpsc, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// The thread. Ends, and its tasks with it, when this is dropped.
#[derive(Debug)]
pub struct Serving {
    runtime: Handle,
    /// Ends it when dropped.
    stop: Option<oneshot::Sender<Infallible>>,
    ended: oneshot::Receiver<Infallible>,
    /// When its tasks are gone, with what they hold.
    gone: mpsc::Receiver<Infallible>,
}

/// How long the end of an agent waits for what its tasks are at.
const ENDING: Duration = Duration::from_secs(2);

impl Serving {
    /// Starts the thread, in the caller's namespaces and with the caller's rights.
    ///
    /// # Errors
    ///
    /// Those of epoll_create1(2), eventfd(2) and clone(2).
    pub fn start() -> io::Result<Self> {
        Self::start_with(pending())
    }

    fn start_with(work: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        let mut runtime = Builder::new_current_thread();
        // One more for what takes its time.
        runtime.max_blocking_threads(1).thread_name("serving-long");
        let runtime = runtime.enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let (alive, ended) = oneshot::channel::<Infallible>();
        let (present, gone) = mpsc::channel::<Infallible>();
        thread::Builder::new().name("serving".into()).spawn(move || {
            // Dropped at the end of the thread, whatever ends it: the last first.
            let (_present, runtime, _alive) = (present, runtime, alive);
            runtime.block_on(async {
                tokio::select! {
                    () = work => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, stop: Some(stop), ended, gone })
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Returns if the thread ever ends, which nothing but an error of ours does.
    pub async fn ended(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.ended).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop = None;
        // Nothing is ever sent.
        let _ = self.gone.recv_timeout(ENDING);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_end_of_the_thread_is_noticed_and_that_of_a_task_does_not_end_it() {
        let mut serving = Serving::start().unwrap();
        let task = serving.runtime().spawn(async { panic!("a task") });
        assert!(task.await.unwrap_err().is_panic());
        assert!(timeout(Duration::from_millis(100), serving.ended()).await.is_err());
        let mut serving = Serving::start_with(async { panic!("the thread") }).unwrap();
        timeout(Duration::from_secs(60), serving.ended()).await.unwrap();
    }

    #[tokio::test]
    async fn what_tasks_hold_is_gone_when_the_agent_ends() {
        let dir = std::env::temp_dir().join(format!("mesh-serving-{}", std::process::id()));
        std::fs::write(&dir, "").unwrap();
        struct Socket(std::path::PathBuf);
        impl Drop for Socket {
            fn drop(&mut self) {
                std::fs::remove_file(&self.0).unwrap();
            }
        }
        let (serving, socket) = (Serving::start().unwrap(), Socket(dir.clone()));
        serving.runtime().spawn(async move {
            let _socket = socket;
            pending::<()>().await;
        });
        drop(serving);
        assert!(!dir.exists());
    }
}
