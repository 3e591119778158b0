//! This host's part of the mesh: brought up, kept right, taken away.

use std::net::IpAddr;

use crate::{
    bpf::{
        BpfError, Pins,
        attach::{self, Interface, Mode},
        load::{self, Identity, Loaded, Room},
        sync,
        tables::Tables,
    },
    cli::Place,
    compile::{self, ByAddress, Difference, Facts},
    config::{Cluster, Node},
    net::{Hop, Net, NetError},
    plan::{Contents, Observed, plan, plan_difference},
    state::{Endpoint, RunDir, State, StateError},
};

mod bridge;
mod choice;
mod cni;
mod endpoint;
mod firewall;
mod gateway;
mod gro;
mod groups;
mod headroom;
mod identity;
mod mesh0;
mod networks;
mod pair;
mod path_mtu;
mod recover;
mod sandbox;
mod status;
mod teardown;
mod underlay;

pub use bridge::Told;
pub use endpoint::{AttachRequest, Attached};
pub use gateway::PortRequest;
pub use groups::{GroupStatus, QUERY_INTERVAL, Querier};
pub use identity::which_node;
pub use networks::{AddedNetwork, with_added};
pub use sandbox::SandboxRequest;
pub use status::{BridgeStatus, Count, NextHop, Status};

use mesh_common::names;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Netns(#[from] crate::net::NetnsError),
    #[error(transparent)]
    State(#[from] StateError),
    /// Something that the user can mend; says how.
    #[error("{0}")]
    User(String),
    /// No endpoint of that name.
    #[error("{0}")]
    Unknown(String),
}

/// The protocol number of our routes, in the range that rtnetlink(7) leaves to everybody.
const ROUTE_PROTOCOL: u8 = 109;

/// Starts the alias of every interface that we make.
const ALIAS: &str = "mesh:";

/// This host, with the lock on its run folder.
pub struct Host {
    run: RunDir,
    pub state: State,
    /// As this process last wrote it.
    saved: Option<State>,
    net: Net,
    pins: Pins,
    /// What was applied last.
    cluster: Option<Cluster>,
    tables: Option<Tables>,
    /// The bridge that gives its ports headroom.
    headroom: Option<u32>,
    bridges: bridge::Bridges,
    firewall: firewall::Table,
    gateways: gateway::Gateways,
    /// What this process last made the maps contain; `None` if they must be read. Only who holds
    /// the lock writes to them.
    contents: Option<Contents>,
    /// Counts what may have changed the endpoints.
    revision: u64,
    /// The kernel's routes to the other nodes from `hops_from`; see [`Host::forget_routes`].
    hops: ByAddress<Option<Hop>>,
    hops_from: Option<IpAddr>,
    next_hops: underlay::NextHops,
    path_mtus: path_mtu::PathMtus,
    gro_failed: gro::Failed,
    /// The kernel has no netkit; it need not be asked again.
    no_netkit: bool,
}

impl Host {
    /// Takes the lock and reads what was made here before. Changes nothing.
    pub fn open(place: &Place) -> Result<Self, HostError> {
        Self::open_with(place, RunDir::load)
    }

    /// As [`Host::open`], to take everything away: a state that makes no sense counts as lost, and
    /// what is ours is known by its mark.
    pub fn open_to_remove(place: &Place) -> Result<Self, HostError> {
        Self::open_with(place, |run| match run.load() {
            Err(e @ StateError::Parse { .. }) => {
                tracing::warn!("{e}");
                Ok(State::default())
            }
            other => other,
        })
    }

    fn open_with(
        place: &Place,
        load: impl FnOnce(&RunDir) -> Result<State, StateError>,
    ) -> Result<Self, HostError> {
        let run = RunDir::lock(&place.run_dir)?;
        let state = load(&run)?;
        // Where it is, whatever folder is named now.
        let pins = Pins::new(state.pin_dir.as_ref().unwrap_or(&place.pin_dir));
        Ok(Self {
            run,
            state,
            saved: None,
            net: Net::here()?,
            pins,
            cluster: None,
            tables: None,
            headroom: None,
            bridges: bridge::Bridges::default(),
            firewall: firewall::Table::default(),
            gateways: gateway::Gateways::default(),
            contents: None,
            revision: 0,
            hops: ByAddress::default(),
            hops_from: None,
            next_hops: underlay::NextHops::default(),
            path_mtus: path_mtu::PathMtus::default(),
            gro_failed: gro::Failed::default(),
            no_netkit: false,
        })
    }

    /// Fails if somebody removed the run folder, and another may be in charge by now.
    pub fn check(&self) -> Result<(), HostError> {
        Ok(self.run.check()?)
    }

    /// The cluster as this process applied it last.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Another one than before: the endpoints may be others.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The cluster as it was applied last, by this process or one before.
    pub fn last_cluster(&self) -> Option<Cluster> {
        self.cluster
            .clone()
            .or_else(|| Some(with_added(self.file_cluster()?, &self.state.networks)))
    }

    /// The last config file that was good, as it was.
    pub fn last_config(&self) -> Option<Vec<u8>> {
        self.run.cluster()
    }

    /// What Docker was given, as [`Host::save_docker`] kept it.
    pub fn docker(&self) -> Option<Vec<u8>> {
        self.run.docker()
    }

    pub fn save_docker(&self, bytes: &[u8]) -> Result<(), HostError> {
        Ok(self.run.save_docker(bytes)?)
    }

    /// Brings the host to what `cluster` says, from whatever it is now. `bytes`: the file it came
    /// from, kept for a restart.
    pub async fn apply(
        &mut self,
        cluster: Cluster,
        bytes: &[u8],
        node: &str,
        mode: Mode,
    ) -> Result<(), HostError> {
        let done = self.apply_all(cluster, bytes, node, mode).await;
        if done.is_err() {
            // They may be of maps that never came into use.
            self.tables = None;
            self.contents = None;
        }
        done
    }

    async fn apply_all(
        &mut self,
        cluster: Cluster,
        bytes: &[u8],
        node: &str,
        mode: Mode,
    ) -> Result<(), HostError> {
        self.check()?;
        let cluster = with_added(cluster, &self.state.networks);
        let me = find(&cluster, node)?;
        // Everything that can be wrong is looked at before anything is changed.
        let underlay = self.underlay(&me).await?;
        self.check_mtu(&cluster, &underlay)?;
        self.bridges = self.look_at_bridges(&cluster, &me).await?;
        self.check_routes(&cluster, &me).await?;
        self.check_owner()?;

        self.pins.prepare()?;
        self.state.pin_dir = Some(self.pins.dir().to_owned());
        let old_mode = self.state.mode.replace(mode);
        self.save()?;

        let pinned =
            self.state.pinned.take().filter(|p| Identity::of(&self.pins).as_ref() == Some(p));
        let contents = self.contents.take().filter(|_| pinned.is_some());
        // What was applied last is what the maps contain.
        let last = self.cluster.as_ref().filter(|_| contents.is_some() && self.state.node == node);
        let difference = last.and_then(|last| Difference::of(last, &cluster, node));
        let observed = contents.or_else(|| self.observe_pinned());
        let room = compile::room(&cluster).beside(&held(observed.as_ref()));
        let staged = match pinned.filter(|pinned| pinned.is_in_use(&self.pins, &room)) {
            Some(pinned) => {
                self.state.pinned = Some(pinned);
                None
            }
            None => Some(load::stage(&self.pins, &room)?),
        };
        let fresh = staged.as_ref().is_some_and(|staged| staged.maps == Loaded::Fresh);
        let maps = if fresh { self.pins.next_maps() } else { self.pins.maps() };
        let tables = Tables::open(&maps)?;
        let observed = match observed {
            Some(observed) if !fresh => observed,
            _ => sync::observe(&tables)?,
        };
        self.tables = Some(tables);
        self.ensure_mesh0(&cluster, &me, underlay.mtu).await?;
        if self.state.endpoints.is_empty() {
            self.recover().await?;
        }
        self.ensure_headroom().await?;
        self.ensure_ports().await?;
        // Also the routes to nodes that are gone are forgotten now and then.
        let is_small = self.hops.len() <= 2 * cluster.nodes.len();
        match difference.filter(|_| is_small && staged.is_none()) {
            Some(difference) => self.fill_difference(&difference, &me, observed).await?,
            None => self.fill(&cluster, &me, observed).await?,
        }
        if let Some(staged) = staged {
            load::commit(&self.pins, staged)?;
            self.state.pinned = Identity::of(&self.pins);
        }
        self.attach_all(&me).await?;
        self.gro_failed.forget();
        self.ensure_gro(&cluster).await?;
        if let Some(old) = old_mode.filter(|old| *old != mode) {
            self.detach_all(old)?;
        }
        self.ensure_host_routes(&cluster, &me).await?;
        self.ensure_firewall();
        self.follow_mtu(&cluster, underlay.mtu).await;
        self.ensure_gateways(&cluster, &me).await?;
        // Ours are attached behind them, and take over as they go.
        for e in self.pins.remove_other_versions() {
            tracing::warn!("{e}");
        }

        if self.run.cluster().as_deref() != Some(bytes) {
            self.run.save_cluster(bytes)?;
            self.state.generation += 1;
        }
        self.cluster = Some(cluster);
        // Only now: until here the last good file, which may name this node otherwise, is in effect.
        self.state.node = node.to_owned();
        self.save()
    }

    /// Follows the host: routes, neighbours, interfaces that went. What is right stays untouched,
    /// what somebody took away comes back.
    pub async fn refresh(&mut self) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let done = self.refresh_all(&cluster).await;
        self.cluster = Some(cluster);
        done
    }

    /// Brings the host to what the last good file says, from whatever is left of it.
    pub async fn restore(&mut self) -> Result<(), HostError> {
        let (Some(cluster), Some(bytes)) = (self.file_cluster(), self.last_config()) else {
            return Err(HostError::User("the last config file that was good is gone".into()));
        };
        let node = self.state.node.clone();
        self.contents = None;
        self.apply(cluster, &bytes, &node, self.mode()).await
    }

    async fn refresh_all(&mut self, cluster: &Cluster) -> Result<(), HostError> {
        let me = find(cluster, &self.state.node)?;
        let before = self.state.clone();
        let mtu = self.underlay(&me).await?.mtu;
        self.forget_gone().await?;
        self.ensure_mesh0(cluster, &me, mtu).await?;
        self.ensure_headroom().await?;
        self.bridges = self.look_at_bridges(cluster, &me).await?;
        self.ensure_ports().await?;
        // Also what somebody else did to the maps is put right.
        self.contents = None;
        let observed = sync::observe(self.tables()?)?;
        self.fill(cluster, &me, observed).await?;
        self.attach_all(&me).await?;
        self.ensure_gro(cluster).await?;
        self.ensure_host_routes(cluster, &me).await?;
        self.ensure_firewall();
        self.ensure_gateways(cluster, &me).await?;
        if self.state != before { self.save() } else { Ok(()) }
    }

    /// The cluster and the open maps, also when another process applied them.
    fn adopt(&mut self) -> Result<Cluster, HostError> {
        let Some(cluster) = self.cluster.take().or_else(|| self.last_cluster()) else {
            return Err(HostError::User(
                "the mesh is not up on this host: run `mesh up --config FILE`".into(),
            ));
        };
        if self.tables.is_none() {
            self.tables = Some(Tables::open(&self.pins.maps())?);
        }
        Ok(cluster)
    }

    /// What the pinned maps contain, if they can be read.
    fn observe_pinned(&self) -> Option<Observed> {
        Tables::open(&self.pins.maps()).and_then(|tables| sync::observe(&tables)).ok()
    }

    fn tables(&self) -> Result<&Tables, HostError> {
        self.tables.as_ref().ok_or_else(|| HostError::User("the mesh is not up".into()))
    }

    /// Fills the maps after something changed that is not in the network: no route is looked up,
    /// and the maps contain what was last put there.
    async fn refill(&mut self, cluster: &Cluster, me: &Node) -> Result<(), HostError> {
        let observed = match self.contents.take() {
            Some(contents) => contents,
            None => sync::observe(self.tables()?)?,
        };
        self.fill(cluster, me, observed).await
    }

    /// Compiles, compares with what the maps contain, and changes what differs.
    async fn fill(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        observed: Observed,
    ) -> Result<(), HostError> {
        let others = cluster.nodes.iter().filter(|n| n.name != me.name).map(|n| n.underlay);
        let others: Vec<IpAddr> = others.collect();
        self.keep_hops(&others);
        let told = self.adopt_learned(me)?;
        let facts = self.facts(cluster, me, &others, &observed).await?;
        let desired = compile::compile(cluster, me, &facts);
        let plan = plan(&desired, &observed);
        if !plan.is_empty() {
            tracing::debug!(entries = plan.len(), "maps change");
            sync::apply(self.tables()?, &plan)?;
        }
        self.contents = Some(desired.maps);
        // Only now: as long as it is there, the port learns nothing else.
        Ok(sync::forget_learned(self.tables()?, &told)?)
    }

    /// [`Host::fill`] where the maps contain what the old cluster made of the same network: of the
    /// other nodes only those that differ are looked at. A change of the network that nobody told of
    /// yet is an event on its way, and that looks at everything.
    async fn fill_difference(
        &mut self,
        difference: &Difference,
        me: &Node,
        mut contents: Contents,
    ) -> Result<(), HostError> {
        let nodes: Vec<IpAddr> = difference.addresses().collect();
        let facts = self.facts(difference.new_cluster(), me, &nodes, &contents).await?;
        let plan = plan_difference(difference, me, &facts, &contents);
        tracing::debug!(entries = plan.len(), nodes = nodes.len(), "maps change");
        sync::apply(self.tables()?, &plan)?;
        contents.follow(&plan);
        self.contents = Some(contents);
        Ok(())
    }

    /// What holds for this host, with the ways to `nodes`.
    async fn facts(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        nodes: &[IpAddr],
        observed: &Observed,
    ) -> Result<Facts, HostError> {
        let underlay = self.underlay(me).await?;
        self.bridges = self.look_at_bridges(cluster, me).await?;
        let links = self.net.links().await?;
        let foreign = ["gre", "gretap", "ip6gre", "ip6gretap", "erspan"];
        // Loaded modules make devices of these kinds that are down; they count for nothing.
        let is_foreign_gre = |l: &crate::net::Link| {
            l.up && l.kind.as_deref().is_some_and(|kind| foreign.contains(&kind))
        };
        Ok(Facts {
            paths: self.paths(nodes, me, &links).await?,
            attachments: self.attachments(cluster, me),
            underlay_mtu: underlay.mtu,
            worlds: self.worlds(),
            bridge: self.bridges.first(),
            foreign_gre: links.iter().any(is_foreign_gre),
            foreign_ports: links
                .iter()
                .filter(|l| l.up && !gro::is_listener(l))
                .filter_map(|l| l.udp_port)
                .collect(),
            netns: own_inode()?,
            peer_indices: peer_indices(observed),
        })
    }

    /// Attaches every program where it belongs, and takes it off where it does not any more.
    async fn attach_all(&mut self, me: &Node) -> Result<(), HostError> {
        let mode = self.mode();
        let wanted = self.underlay_interfaces(me).await?;
        for interface in &wanted {
            let made = attach::attach(&self.pins, mode, names::FROM_UNDERLAY, interface)?;
            if made && !self.state.clsact.contains(interface) {
                self.state.clsact.push(interface.clone());
            }
        }
        // By number: an interface with another name is still the same one.
        let is_wanted = |i: &Interface| wanted.iter().any(|w| w.index == i.index);
        for interface in self.state.underlay.iter().filter(|i| !is_wanted(i)) {
            attach::detach(&self.pins, mode, names::FROM_UNDERLAY, interface)?;
        }
        self.state.underlay = wanted;
        if let Some(host) = &self.state.host {
            attach::attach(&self.pins, mode, names::FROM_HOST, host)?;
        }
        for endpoint in self.state.endpoints.values() {
            let mode = self.mode_of(endpoint);
            match attach::attach(&self.pins, mode, names::FROM_CONTAINER, &endpoint.host) {
                Ok(true) if endpoint.bridged.is_some() => {
                    if !self.state.clsact.contains(&endpoint.host) {
                        self.state.clsact.push(endpoint.host.clone());
                    }
                }
                // A container that ends takes its interface with it.
                Err(e) if endpoint.bridged.is_some() => tracing::debug!("{e}"),
                done => drop(done?),
            }
        }
        Ok(())
    }

    /// Pins of another namespace's mesh are left alone while it lives, and cleared away when its
    /// interfaces are gone.
    fn check_owner(&self) -> Result<(), HostError> {
        let Ok(tables) = Tables::open(&self.pins.maps()) else { return Ok(()) };
        let owner = sync::observe_node(&tables)?.netns;
        if owner == 0 || owner == own_inode()? {
            return Ok(());
        }
        if attach::any_live(&self.pins) {
            let dir = self.pins.dir().display();
            return Err(HostError::User(format!(
                "{dir} belongs to the mesh of another network namespace on this machine: give each \
                 a --pin-dir of its own"
            )));
        }
        match self.pins.remove().into_iter().next() {
            Some(e) => Err(e.into()),
            None => Ok(()),
        }
    }

    /// Takes the attachments of one kind away, as those of the other are in place.
    fn detach_all(&self, old: Mode) -> Result<(), HostError> {
        for interface in &self.state.underlay {
            attach::detach(&self.pins, old, names::FROM_UNDERLAY, interface)?;
        }
        if let Some(host) = &self.state.host {
            attach::detach(&self.pins, old, names::FROM_HOST, host)?;
        }
        for endpoint in self.state.endpoints.values().filter(|e| !e.netkit) {
            attach::detach(&self.pins, old, names::FROM_CONTAINER, &endpoint.host)?;
        }
        Ok(())
    }

    fn mode(&self) -> Mode {
        self.state.mode.unwrap_or(Mode::Tcx)
    }

    fn mode_of(&self, endpoint: &Endpoint) -> Mode {
        if endpoint.netkit { Mode::Netkit } else { self.mode() }
    }

    /// On a disk, to put a file in the place of another takes 2 to 11 ms; it is not done for nothing.
    fn save(&mut self) -> Result<(), HostError> {
        self.revision += 1;
        if self.saved.as_ref() != Some(&self.state) {
            self.saved = None;
            self.run.save(&self.state)?;
            self.saved = Some(self.state.clone());
        }
        Ok(())
    }
}

fn find(cluster: &Cluster, node: &str) -> Result<Node, HostError> {
    let Some(node) = cluster.nodes.iter().find(|n| n.name == node) else {
        return Err(HostError::User(format!(
            "the config file has no node {node:?}, which this host is: add it, or run `mesh down`"
        )));
    };
    identity::managed(node).cloned()
}

/// The inode number of this network namespace.
fn own_inode() -> Result<u32, HostError> {
    let netns = crate::net::own_netns()?;
    let stat = rustix::fs::fstat(&netns).map_err(|e| HostError::User(format!("own netns: {e}")))?;
    Ok(stat.st_ino as u32)
}

/// The room that is taken already: what is new is set before what is old is removed.
fn held(observed: Option<&Observed>) -> Room {
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    observed.map_or_else(Room::default, |o| Room {
        endpoints: len(o.endpoints.len()),
        peers: len(o.peers.len()),
        prefixes: len(o.fib.len().max(o.fib_lpm.len())),
        peer_networks: len(o.peer_by_addr.len()),
        networks: len(o.networks.len()),
        flood: len(o.flood.len()),
    })
}

/// The indices that nodes have in PEERS, read back from it.
fn peer_indices(observed: &Observed) -> ByAddress<u32> {
    observed.peers.iter().map(|(index, peer)| (peer.remote.into(), *index)).collect()
}
