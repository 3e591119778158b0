//! Follows the local Docker: what there is, and what changes. Also when Docker comes later, or comes
//! back.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::Instant,
};

use super::{
    api::{self, Absence, Api, ApiError},
    health::Health,
    networks::DRIVER,
    revive::revive,
    server::{Asked, Plugin, Server},
};
use crate::{busy::Busy, supervise::Supervisor};

/// What the watcher's task is called.
pub const TASK: &str = "the watch over Docker";

/// Between two looks for a Docker that is not there.
const ABSENT: Duration = Duration::from_millis(500);
/// Between two looks at everything, for changes that nobody told of.
const PERIOD: Duration = Duration::from_secs(30);
/// Containers that are asked about at once. Docker answers for one that starts only when it has
/// started.
const AT_ONCE: usize = 64;

/// Before a question about a container that failed is asked again.
const AGAIN: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// What was seen.
#[derive(Debug)]
pub enum Event {
    /// The networks of this driver.
    Networks(api::Networks),
    /// All of them with the containers in them, and the ids of all containers that run.
    All {
        networks: api::Networks,
        running: Vec<String>,
        count: u64,
    },
    /// `count`: the later question wins.
    Container {
        id: String,
        count: u64,
        container: Option<Box<api::Container>>,
    },
    Left {
        container: String,
        network: String,
        count: u64,
    },
    Made {
        name: String,
        result: Result<(), ApiError>,
    },
    Removed {
        name: String,
        result: Result<(), ApiError>,
    },
}

/// Tells when there may be a Docker, or none any more: something happened in the folder of its socket.
struct Appearance {
    /// `None` if the folder can not be watched: it is not there.
    _watcher: Option<notify::RecommendedWatcher>,
    happened: mpsc::Receiver<()>,
}

impl Appearance {
    fn of(socket: &Path) -> Self {
        let (sender, happened) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // The look itself opens the socket.
            let is_change =
                |kind: EventKind| kind.is_create() || kind.is_modify() || kind.is_remove();
            if event.is_ok_and(|event| is_change(event.kind)) {
                // Full: it is told already.
                let _ = sender.try_send(());
            }
        });
        let folder = socket.parent().unwrap_or(Path::new("/"));
        let watching = |mut watcher: notify::RecommendedWatcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive).map(|()| watcher)
        };
        Self { _watcher: watcher.and_then(watching).ok(), happened }
    }

    /// Also returns now and then without any news.
    async fn wait(&mut self) {
        tokio::select! {
            // At once if nobody watches.
            _ = self.happened.recv() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }

    /// Returns when there is no socket any more.
    async fn gone(&mut self, socket: &Path) {
        while socket.exists() {
            if self.happened.recv().await.is_none() {
                // Nobody watches: the end of the events tells.
                std::future::pending().await
            }
        }
    }
}

pub struct Watcher {
    /// One for all lives of Docker, and of this task: its count only grows.
    pub inspector: Inspector,
    pub api: Api,
    /// `None`: no driver is served.
    pub plugin_socket: Option<PathBuf>,
    /// There was a Docker with networks of the driver: it is served before it answers.
    pub is_expected: bool,
    pub calls: mpsc::Sender<Asked>,
    pub events: mpsc::Sender<Event>,
    pub health: Health,
    /// Told when the networks are to be looked at.
    pub look: Arc<Notify>,
    pub busy: Busy,
    pub supervisor: Supervisor,
}

impl Watcher {
    /// Never ends. Serves the plugin from when there is a Docker, or at once if one is expected.
    pub async fn run(self: Arc<Self>) {
        let mut server: Option<Server> = None;
        let mut complaint = String::new();
        loop {
            // Before the look, so that nothing is lost in between.
            let mut appearance = Appearance::of(&self.api.socket);
            let absence = self.api.absence().await;
            self.health.api(absence.clone());
            let is_served = match &absence {
                None => true,
                Some(Absence::Elsewhere) => false,
                Some(Absence::None | Absence::Unreachable(_)) => self.is_expected,
            };
            if is_served {
                self.serve(&mut server);
            }
            if absence.is_none() {
                let done = self.follow(server.as_ref(), &mut appearance).await;
                if let Err(e) = done {
                    let e = e.to_string();
                    if e != complaint {
                        tracing::info!("{e}");
                    }
                    complaint = e;
                }
            } else {
                appearance.wait().await;
            }
            tokio::time::sleep(ABSENT).await;
        }
    }

    /// Listens on the plugin's socket, unless it does.
    fn serve(&self, server: &mut Option<Server>) {
        let Some(socket) = &self.plugin_socket else { return };
        if server.as_ref().is_some_and(Server::is_there) {
            return;
        }
        // The old one first: it removes its socket.
        *server = None;
        let plugin = Plugin {
            calls: self.calls.clone(),
            health: self.health.clone(),
            busy: self.busy.clone(),
        };
        match Server::start(socket, plugin, &self.supervisor) {
            Ok(started) => {
                self.health.plugin(None);
                *server = Some(started);
            }
            Err(e) => {
                self.health.plugin(Some(e.to_string()));
            }
        }
    }

    /// Until Docker ends, or does not find the driver any more.
    async fn follow(
        &self,
        server: Option<&Server>,
        socket: &mut Appearance,
    ) -> Result<(), ApiError> {
        // First listen, then look: nothing is lost in between.
        let mut events = self.api.events().await?;
        let mut due = Instant::now();
        let mut is_first = self.plugin_socket.is_some();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.happened(event).await?,
                    None => return Ok(()),
                },
                // Told to end, it closes its socket and, since 28.0, waits 5 s for who reads its events.
                () = socket.gone(&self.api.socket) => return Ok(()),
                () = self.look.notified() => self.look_at_networks().await?,
                () = tokio::time::sleep_until(due) => {
                    let networks = self.look_at_all().await?;
                    if self.plugin_socket.is_some() && !server.is_some_and(Server::is_there) {
                        return Ok(());
                    }
                    if std::mem::take(&mut is_first) {
                        tokio::spawn(revive(self.api.clone(), networks));
                    }
                    due = Instant::now() + PERIOD;
                }
            }
        }
    }

    async fn happened(&self, event: api::Event) -> Result<(), ApiError> {
        let attribute = |name: &str| event.actor.attributes.get(name).cloned().unwrap_or_default();
        match (event.kind.as_str(), event.action.as_str()) {
            ("network", "create" | "destroy") if attribute("type") == DRIVER => {
                self.look_at_networks().await?;
            }
            ("network", "connect") => self.inspector.ask(attribute("container")),
            ("network", "disconnect") => {
                let (container, network) = (attribute("container"), event.actor.id.clone());
                let count = self.inspector.next();
                self.send(Event::Left { container, network, count }).await;
            }
            ("container", "start" | "rename" | "die" | "destroy") => {
                self.inspector.ask(event.actor.id)
            }
            _ => {}
        }
        Ok(())
    }

    async fn look_at_networks(&self) -> Result<(), ApiError> {
        let networks = self.api.networks(DRIVER).await?;
        self.send(Event::Networks(networks)).await;
        Ok(())
    }

    /// Returns the ids of the networks.
    async fn look_at_all(&self) -> Result<Vec<String>, ApiError> {
        let count = self.inspector.next();
        let mut networks = self.api.networks(DRIVER).await?;
        for listed in std::mem::take(&mut networks.list) {
            match self.api.network(&listed.id).await {
                Ok(network) => networks.list.push(network),
                Err(ApiError::NotFound(_)) => {}
                Err(e) => return Err(e),
            }
        }
        let running = self.api.running().await?;
        for id in &running {
            self.inspector.ask(id.clone());
        }
        let ids = networks.list.iter().map(|n| n.id.clone()).collect();
        self.send(Event::All { networks, running, count }).await;
        Ok(ids)
    }

    async fn send(&self, event: Event) {
        // Fails only when the agent ends.
        let _ = self.events.send(event).await;
    }
}

/// Asks about containers, many at once.
pub struct Inspector {
    api: Api,
    events: mpsc::Sender<Event>,
    at_once: Arc<Semaphore>,
    count: AtomicU64,
}

impl Inspector {
    pub fn new(api: Api, events: mpsc::Sender<Event>) -> Self {
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        Self { api, events, at_once, count: AtomicU64::new(0) }
    }

    fn next(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn ask(&self, id: String) {
        let count = self.next();
        let (api, events, at_once) = (self.api.clone(), self.events.clone(), self.at_once.clone());
        tokio::spawn(async move {
            let _permit = at_once.acquire_owned().await;
            let mut again = AGAIN.into_iter();
            let container = loop {
                match api.container(&id).await {
                    Ok(container) => break Some(Box::new(container)),
                    Err(ApiError::NotFound(_)) => break None,
                    Err(e) => {
                        tracing::debug!("container {id}: {e}");
                        // After that the next look at everything asks.
                        let Some(pause) = again.next() else { return };
                        tokio::time::sleep(pause).await;
                    }
                }
            };
            let _ = events.send(Event::Container { id, count, container }).await;
        });
    }
}

#[cfg(test)]
mod tests;
