//! Docker: its network and IPAM driver, and the names of its containers and of others.
//!
//! ```text
//! dockerd -> plugin socket (server) -> calls  \
//! dockerd <- API (watch, mirror)    -> events  > agent's loop: driver, networks, containers -> Host
//! other agents <-> peers::Shared    -> changes /
//! ```
//!
//! A network's id in Docker differs from host to host: what it is in the mesh goes by its name.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use tokio::sync::{Notify, mpsc, watch as channel};

use crate::{
    busy::Busy,
    config::{self, Cluster, Vni, gateway},
    host::{AddedNetwork, Host},
    names::Resolver,
    peers::{Directory, Roster, Rules, Shared},
    supervise::{Supervisor, Task},
};

mod api;
mod askers;
mod attached;
mod containers;
mod driver;
mod health;
pub mod http;
mod ipam;
mod kept;
mod networks;
mod options;
mod pools;
mod protocol;
mod revive;
mod saved;
mod server;
mod watch;

/// UDP port of Docker's own overlay networks: that of VXLAN (RFC 7348, 5).
pub const OVERLAY_PORT: u16 = 4789;

use api::Api;
pub use askers::{Askers, GATEWAY, Source};
use attached::Attached;
pub use driver::is_dockers;
use health::Health;
pub use health::{DockerStatus, DriverFault};
use kept::Kept;
pub(crate) use networks::added;
use saved::Saved;
use server::Asked;
use watch::{Event, Inspector, Watcher};

/// Calls and events that may wait for the agent.
const QUEUE: usize = 1024;

/// Something for the agent to do.
#[derive(Debug)]
pub enum Work {
    Call(Asked),
    Event(Event),
    /// Another node's networks.
    Peers,
}

impl Work {
    pub fn name(&self) -> String {
        match self {
            Self::Call((call, _)) => format!("Docker's call {}", call.name()),
            Self::Event(_) => "what happened in Docker".to_owned(),
            Self::Peers => "networks of other nodes".to_owned(),
        }
    }
}

/// The agent's part for Docker.
pub struct Docker {
    node: String,
    is_plugin: bool,
    plugin_socket: Option<PathBuf>,
    api: Api,
    health: Health,
    shared: Shared,
    saved: Saved,
    /// As it is in the run folder; empty if it is not.
    written: Vec<u8>,
    kept: Kept,
    /// As the data plane has them.
    applied: Vec<AddedNetwork>,
    containers: BTreeMap<String, containers::Seen>,
    /// Since when.
    served: Option<Instant>,
    /// Docker's ids of networks that it deleted just now.
    deleted: HashSet<String>,
    /// Subnets of networks that Docker is about to make.
    asked: HashSet<IpNet>,
    /// Docker's ids of endpoints that it removed since the last look at everything, which may still
    /// have them.
    ended: HashSet<String>,
    /// Networks that Docker is making or removing for us.
    busy: HashSet<String>,
    /// Why a network is not as it should be here.
    troubles: BTreeMap<String, String>,
    /// Endpoints, and addresses, that Docker did not know at the last look.
    suspects: BTreeSet<String>,
    loose: BTreeSet<IpAddr>,
    /// Asks the watcher for the networks.
    look: Arc<Notify>,
    events: mpsc::Sender<Event>,
    incoming: mpsc::Receiver<Event>,
    calls: mpsc::Receiver<Asked>,
    peers: channel::Receiver<u64>,
    /// Counts what happened to containers here.
    changes: channel::Sender<u64>,
    /// Of the host's revision `followed`.
    attached: channel::Sender<Attached>,
    followed: Option<u64>,
    supervisor: Supervisor,
    /// The watcher, unless the config file says that there is none, and what is served. They end with
    /// this.
    tasks: Vec<Task>,
}

impl Docker {
    /// Takes up what was saved, and begins to serve as soon as there is a Docker, or a container that
    /// has a name. Where there was a Docker with networks of the mesh, it is served at once: after a
    /// reboot it asks for them before it answers itself. Where the config file has a bridge attached but
    /// no driver, Docker is asked whose the bridge's ports are, and served nothing.
    pub fn start(host: &Host, cluster: &Cluster, state_dir: &Path, busy: Busy) -> Self {
        let settings = cluster.docker.clone();
        let is_asked = settings.plugin || !cluster.bridges.is_empty();
        let (kept, saved) = Kept::take_up(state_dir, host, &cluster.name);
        let rules = Rules::new(host.file_cluster().unwrap_or_else(|| cluster.clone()));
        let (records, refused) = rules.admit(saved.records.clone());
        let stored = refused.map(|why| format!("of the stored networks some are not taken: {why}"));
        host.faults().set("stored networks", stored);
        let directory = Directory::new(host.state.node.clone(), saved.epoch, records);
        let shared = Shared::new(directory, host.faults().clone());
        shared.set_rules(rules);
        let (calls_sender, calls) = mpsc::channel(QUEUE);
        let (events, incoming) = mpsc::channel(QUEUE);
        let look = Arc::new(Notify::new());
        let api = Api { socket: settings.socket };
        let health = Health::new(host.faults().clone());
        let plugin_socket = settings.plugin.then_some(settings.plugin_socket);
        let supervisor = host.supervisor().clone();
        let watcher = Watcher {
            inspector: Inspector::new(api.clone(), events.clone()),
            api: api.clone(),
            plugin_socket: plugin_socket.clone(),
            health: health.clone(),
            is_expected: !saved.networks.is_empty(),
            calls: calls_sender,
            events: events.clone(),
            look: look.clone(),
            busy,
            supervisor: supervisor.clone(),
        };
        let mut peers = shared.watch_networks();
        if watcher.is_expected {
            // What is known is made at once.
            peers.mark_changed();
        }
        let watcher = Arc::new(watcher);
        let watch = || supervisor.spawn(watch::TASK, move || watcher.clone().run());
        let tasks = is_asked.then(watch).into_iter().collect();
        Self {
            node: host.state.node.clone(),
            is_plugin: settings.plugin,
            plugin_socket,
            api,
            health,
            peers,
            shared,
            saved,
            written: Vec::new(),
            kept,
            applied: host.state.networks.clone(),
            containers: BTreeMap::new(),
            served: None,
            deleted: HashSet::new(),
            asked: HashSet::new(),
            ended: HashSet::new(),
            busy: HashSet::new(),
            troubles: BTreeMap::new(),
            suspects: BTreeSet::new(),
            loose: BTreeSet::new(),
            look,
            events,
            incoming,
            calls,
            changes: channel::Sender::new(0),
            attached: channel::Sender::new(Attached::default()),
            followed: None,
            supervisor,
            tasks,
        }
    }

    /// A spoiled file that somebody removed is a fault no more.
    pub fn forget_removed(&self) {
        self.kept.forget_removed();
    }

    /// As [`Kept::keep`].
    pub fn keep(&mut self, host: &Host) {
        self.kept.keep(&self.saved, host.faults());
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Speaks with the other agents and serves names, from when there is a Docker here or a runtime
    /// that speaks CNI: a mesh without any says nothing. Returns since when.
    pub fn serve(&mut self) -> Instant {
        if let Some(since) = self.served {
            return since;
        }
        self.tasks.extend(self.shared.start(&self.supervisor));
        let (changes, attached) = (self.changes.subscribe(), self.attached.subscribe());
        let askers = Askers::new(self.api.clone(), self.shared.clone(), changes, attached);
        self.tasks.push(Resolver::start(self.shared.clone(), askers, &self.supervisor));
        *self.served.insert(Instant::now())
    }

    /// Follows what was attached by others than Docker.
    pub fn follow(&mut self, host: &Host) {
        if self.followed.replace(host.revision()) == Some(host.revision()) {
            return;
        }
        let now = Attached::of(host);
        if now == *self.attached.borrow() {
            return;
        }
        if !now.names.is_empty() || self.is_plugin && now.bridged.is_some() {
            self.serve();
        }
        self.attached.send_replace(now);
        self.publish_names();
    }

    /// Addresses that are Docker's to give, or were given.
    pub fn reserved(&self) -> HashSet<IpAddr> {
        self.saved.ipam.addresses().collect()
    }

    /// The next thing to do. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Work {
        tokio::select! {
            Some(call) = self.calls.recv() => Work::Call(call),
            Some(event) = self.incoming.recv() => Work::Event(event),
            Ok(()) = self.peers.changed() => Work::Peers,
            else => std::future::pending().await,
        }
    }

    pub async fn work(&mut self, host: &mut Host, work: Work) {
        if self.is_plugin {
            self.serve();
        }
        let done = match work {
            Work::Call((call, answer)) => {
                // Docker was told that it failed, and takes back what it asked for.
                if answer.is_closed() && !call.outlives_its_caller() {
                    return;
                }
                let result = self.answer(host, call).await;
                // A caller that went away does not need its answer.
                let _ = answer.send(result);
                Ok(())
            }
            Work::Peers => {
                self.keep_used(host);
                self.look.notify_one();
                let applied = self.apply_networks(host).await;
                applied.and_then(|()| self.save(host))
            }
            Work::Event(event) => self.happened(host, event).await,
        };
        if let Err(e) = done {
            tracing::warn!("{e}");
        }
    }

    async fn happened(&mut self, host: &mut Host, event: Event) -> Result<(), driver::DriverError> {
        match event {
            Event::Networks(_) | Event::All { .. } if !self.is_plugin => {}
            Event::Networks(networks) => return self.reconcile(host, networks).await,
            Event::All { networks, running, count } => {
                self.seen_all(host, &networks.list, &running, count).await?;
                // Docker may have changed what forwarded packets pass.
                host.refresh_gateways().await?;
                return self.reconcile(host, networks).await;
            }
            Event::Container { id, count, container } => {
                for told in container.iter().flat_map(|container| containers::told(container)) {
                    if let Err(e) = host.docker_says(told).await {
                        tracing::warn!("{e}");
                    }
                }
                self.seen(id, count, container.map(|c| *c));
            }
            Event::Left { container, network, count } => self.left(&container, &network, count),
            Event::Made { name, result } => self.made(&name, result),
            Event::Removed { name, result } => self.removed(&name, result),
        }
        Ok(())
    }

    /// This node's name.
    fn me(&self) -> &str {
        &self.node
    }

    fn save(&mut self, host: &Host) -> Result<(), driver::DriverError> {
        self.saved.records = self.shared.lock().records();
        self.kept.save(&self.saved);
        let bytes = serde_json::to_vec_pretty(&self.saved).unwrap_or_default();
        if self.written != bytes {
            self.written.clear();
            host.save_docker(&bytes)?;
            self.written = bytes;
        }
        Ok(())
    }
}

/// Who speaks to whom: all that have an agent.
pub fn roster(cluster: &Cluster, me: &str) -> Roster {
    let addresses = |node: &config::Node| -> Vec<IpAddr> {
        let own: Vec<IpAddr> = node.subnets_of(Vni::DEFAULT).map(gateway).collect();
        let first = |v4: bool| own.iter().find(|ip| ip.is_ipv4() == v4).copied();
        [first(true), first(false)].into_iter().flatten().collect()
    };
    let peers = cluster.nodes.iter().filter(|n| n.name != me && n.is_managed());
    Roster {
        me: me.to_owned(),
        addresses: cluster.node(me).map(addresses).unwrap_or_default(),
        peers: peers.map(|n| (n.name.clone(), addresses(n))).collect(),
        bridges: cluster.bridges.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_speak_to_no_node_that_has_none() {
        let node =
            |name, more| format!("[[node]]\nname='{name}'\nunderlay='192.0.2.{name}'\n{more}");
        let nodes = node("1", "") + &node("2", "managed=false\n") + &node("3", "");
        let file = format!("[cluster]\nname='c'\ncidr='10.42.0.0/16'\n{nodes}");
        let roster = roster(&config::parse(file.as_bytes()).unwrap(), "1");
        let names: Vec<&str> = roster.peers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["3"]);
        // The part that the one between them has is its own all the same.
        assert_eq!(roster.peers[0].1, ["10.42.128.1".parse::<IpAddr>().unwrap()]);
    }
}
