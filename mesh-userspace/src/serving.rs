//! The thread that serves others: names, the other agents, callers of the agent's socket, Docker and its
//! plugin, published ports at `[::1]`.
//!
//! The agent's own thread works on the host, one thing at a time, and may wait for the kernel or for a
//! program such as `nft`. Nothing that is served waits with it: what both threads know is handed over
//! whole, by channels, or is behind a lock that nobody holds while it waits.

use std::{convert::Infallible, future::pending, io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// The thread, for as long as the process is there.
#[derive(Debug)]
pub struct Serving {
    runtime: Handle,
    ended: oneshot::Receiver<Infallible>,
}

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
        let (alive, ended) = oneshot::channel();
        thread::Builder::new().name("serving".into()).spawn(move || {
            // Dropped at the end of the thread, whatever ends it.
            let _alive: oneshot::Sender<Infallible> = alive;
            runtime.block_on(work);
        })?;
        Ok(Self { runtime: handle, ended })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
