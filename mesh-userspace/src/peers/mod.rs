//! What the agents tell each other: the networks that were made while the mesh runs, and the names
//! of each node's containers. No store, and no leader: each network's newest record wins, and each
//! node's names are its own to say.
//!
//! ```text
//! own changes -> Directory -> (client) POST /v1/exchange over the overlay -> (server) Directory
//!                          <- what the other has of it, in the answer
//! ```

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

use refusals::Refusals;

use crate::{
    faults::Faults,
    supervise::{Supervisor, Task},
};
use index::Index;

mod client;
mod directory;
mod index;
mod listeners;
mod protocol;
mod refusals;
mod rules;
mod server;

pub use directory::{Directory, Named, NetworkRecord, NetworkSpec, Subnet, View};
pub use listeners::{Answers, Listeners, Place, Service, TcpListeners, answering, bind, refuse};
pub use protocol::Version;
pub use rules::Rules;

/// Where agents listen, on `mesh0` and their overlay addresses only.
pub const PORT: u16 = 7473;

/// The nodes of the mesh, as far as agents speak to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    pub me: String,
    /// Our own overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Name and overlay addresses of every other node.
    pub peers: Vec<(String, Vec<IpAddr>)>,
    /// This host's bridges whose containers are of the mesh.
    pub bridges: Vec<String>,
}

impl Roster {
    /// The node that has this overlay address.
    fn peer(&self, address: IpAddr) -> Option<&str> {
        let has = |(_, addresses): &&(String, Vec<IpAddr>)| addresses.contains(&address);
        self.peers.iter().find(has).map(|(name, _)| name.as_str())
    }
}

/// The directory, shared by everybody who reads or changes it.
#[derive(Clone, Debug)]
pub struct Shared {
    directory: Arc<Mutex<Directory>>,
    /// Counts our own changes, which are told to every peer at once.
    own: Arc<watch::Sender<u64>>,
    /// Counts changes of networks, whoever made them.
    networks: Arc<watch::Sender<u64>>,
    roster: Arc<watch::Sender<Roster>>,
    /// Counts changes of this host's interfaces.
    looks: Arc<watch::Sender<u64>>,
    lacks: Lacks,
    /// `None`: nothing is taken from anybody.
    rules: Arc<Mutex<Option<Arc<Rules>>>>,
    refusals: Arc<Mutex<Refusals>>,
    faults: Faults,
}

/// Which peers said that they lack our names, by name: whoever speaks to them tells them.
#[derive(Clone, Debug, Default)]
struct Lacks(Arc<Mutex<HashMap<String, Arc<Notify>>>>);

impl Lacks {
    fn of(&self, peer: &str) -> Arc<Notify> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(peer.to_owned()).or_default().clone()
    }
}

impl Shared {
    pub fn new(directory: Directory, faults: Faults) -> Self {
        Self {
            directory: Arc::new(Mutex::new(directory)),
            own: Arc::new(watch::Sender::new(0)),
            networks: Arc::new(watch::Sender::new(0)),
            roster: Arc::default(),
            looks: Arc::new(watch::Sender::new(0)),
            lacks: Lacks::default(),
            rules: Arc::default(),
            refusals: Arc::default(),
            faults,
        }
    }

    /// Never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, Directory> {
        // Every change is one assignment: what a panic left is whole.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what this node says. `change` returns whether it did.
    pub fn publish(&self, change: impl FnOnce(&mut Directory) -> bool) {
        let changed = change(&mut self.lock());
        if changed {
            self.own.send_modify(|n| *n += 1);
        }
    }

    /// Tells when networks came or went on another node.
    pub fn watch_networks(&self) -> watch::Receiver<u64> {
        self.networks.subscribe()
    }

    pub fn set_roster(&self, roster: Roster) {
        self.lock().keep_nodes(&roster);
        self.roster.send_if_modified(|old| {
            let differs = *old != roster;
            *old = roster;
            differs
        });
    }

    /// What may be taken from now on.
    pub fn set_rules(&self, rules: Rules) {
        let mut now = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_deref() != Some(&rules) {
            *now = Some(Arc::new(rules));
            drop(now);
            self.lock().ask_again(true);
        }
    }

    pub fn rules(&self) -> Option<Arc<Rules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why no node would take a network that is made here.
    pub fn fault_of(&self, name: &str, spec: &NetworkSpec) -> Option<String> {
        let rules = self.rules()?;
        rules.fault(&self.lock(), name, spec)
    }

    /// This node's overlay addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.roster.borrow().addresses.clone()
    }

    /// What is wrong on this host.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// An interface may have come or gone: those who listen look where.
    pub fn look(&self) {
        self.looks.send_modify(|n| *n += 1);
    }

    /// Takes what a peer told, as far as the rules go. The rest is a fault.
    fn absorb(&self, from: &str, news: protocol::News) {
        let Some(rules) = self.rules() else { return };
        let now = Instant::now();
        let mut directory = self.lock();
        let has_view = news.view.is_some();
        let (news, refused) = rules.sift(&directory, from, news);
        let changed = directory.absorb(from, &news, now);
        if has_view {
            directory.set_partial(from, refused.is_partial);
        }
        if changed {
            directory.ask_again(false);
            self.networks.send_modify(|n| *n += 1);
        }
        drop(directory);
        self.index(from);
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.add(from, has_view, refused, now, &self.faults);
    }

    /// Lets the names that a peer told be found. It takes its time, which nobody waits for.
    fn index(&self, peer: &str) {
        let Some(view) = self.lock().unindexed(peer) else { return };
        let index = Index::of(view);
        let before = self.lock().set_index(peer, index);
        drop(before);
    }

    /// Forgets what is so no more. `silence`: how long a node may be silent.
    fn expire(&self, silence: Duration) {
        self.lock().expire(silence);
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let roster = self.roster.borrow().clone();
        refusals.expire(silence, &roster, Instant::now(), &self.faults);
    }

    /// What to answer a peer that has this version of our names. If that is not the latest, a request
    /// of our own follows at once.
    fn answer(&self, peer: &str, has: Option<Version>) -> protocol::News {
        let directory = self.lock();
        if directory.is_behind(has) {
            self.lacks.of(peer).notify_one();
        }
        directory.answer_for(peer)
    }

    /// Speaks with the other agents, until the tasks are dropped.
    pub fn start(&self, supervisor: &Supervisor) -> [Task; 2] {
        let of_each = || (self.clone(), supervisor.clone());
        let (server, client) = (of_each(), of_each());
        [
            supervisor.spawn("answers to other agents", move || {
                server::run(server.0.clone(), server.1.clone())
            }),
            supervisor.spawn("questions to other agents", move || {
                client::run(client.0.clone(), client.1.clone())
            }),
        ]
    }
}
