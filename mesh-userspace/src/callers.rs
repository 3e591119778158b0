//! Who is connected to a unix socket of ours: root alone, and so many at once. Who does not say what it
//! wants, or does not take its answer, makes place for the next.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{net::UnixStream, sync::Semaphore, task::AbortHandle};

/// The connections of one socket.
#[derive(Debug)]
pub struct Callers {
    places: Arc<Semaphore>,
    /// The oldest first.
    callers: VecDeque<Caller>,
}

#[derive(Debug)]
struct Caller {
    task: AbortHandle,
    served: Served,
}

/// Whether the caller waits for us, rather than we for the caller. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Served(Arc<AtomicBool>);

impl Served {
    pub fn set(&self, is_served: bool) {
        self.0.store(is_served, Ordering::Relaxed);
    }
}

/// Whether the process that connected was root's, or this one's user's. To be asked before anything is
/// read or kept for it.
pub fn is_trusted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

impl Callers {
    /// `max`: connections at once.
    pub fn new(max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(max)), callers: VecDeque::new() }
    }

    /// Runs `serve` on a task of its own. Where there is no place, the oldest connection that is not
    /// being served is cut off; where all are served, this waits until one is done.
    pub async fn admit<F>(&mut self, serve: impl FnOnce(Served) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.callers.retain(|caller| !caller.task.is_finished());
        let place = match self.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                self.cut_off_oldest();
                let Ok(place) = self.places.clone().acquire_owned().await else { return };
                place
            }
        };
        let served = Served::default();
        let serving = serve(served.clone());
        let task = tokio::spawn(async move {
            serving.await;
            drop(place);
        });
        self.callers.push_back(Caller { task: task.abort_handle(), served });
    }

    fn cut_off_oldest(&mut self) {
        let is_idle = |caller: &Caller| !caller.served.0.load(Ordering::Relaxed);
        if let Some(at) = self.callers.iter().position(is_idle)
            && let Some(caller) = self.callers.remove(at)
        {
            caller.task.abort();
        }
    }
}
