//! The host brought to what a config file says, and kept there.

use super::{Host, HostError, find, groups, own_inode, parts::Parts, with_added};
use crate::{
    bpf::{
        attach::{self, Mode},
        load::{self, Identity, Loaded, Room},
        sync,
        tables::Tables,
    },
    claim,
    compile::{self, Difference},
    config::Cluster,
    plan::Observed,
};

impl Host {
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

        let mounting = (!self.pins.is_mounted()).then(claim::mounting).transpose()?;
        self.pins.prepare()?;
        drop(mounting);
        self.state.pin_dir = Some(self.pins.dir().to_owned());
        if let Some(old) = self.state.mode.replace(mode).filter(|old| *old != mode) {
            self.state.old_mode = Some(old);
        }
        self.note();

        let pinned =
            self.state.pinned.take().filter(|p| Identity::of(&self.pins).as_ref() == Some(p));
        let contents = self.contents.take().filter(|_| pinned.is_some());
        // Those that are open know which of their slots are free.
        let open = self.tables.take().filter(|_| contents.is_some());
        // What was applied last is what the maps contain.
        let last = self.cluster.as_ref().filter(|_| contents.is_some() && self.state.node == node);
        let difference = last.and_then(|last| Difference::of(last, &cluster, node));
        let observed = contents.or_else(|| self.observe_pinned());
        let ports = observed.as_ref().map(|o| o.ports.clone()).unwrap_or_default();
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
        let tables = match open.filter(|_| staged.is_none()) {
            Some(open) => open,
            None => Tables::open(&maps)?,
        };
        let observed = match observed {
            Some(observed) if !fresh => observed,
            _ => sync::observe(&tables)?,
        };
        self.tables = Some(tables);
        self.forget_gone().await?;
        self.roll_back().await;
        self.ensure_mesh0(&cluster, &me, underlay.mtu).await?;
        self.recover(&ports).await?;
        self.ensure_headroom().await?;
        self.ensure_ports().await?;
        // Also the routes to nodes that are gone are forgotten now and then.
        let is_small = self.hops.len() <= 2 * cluster.nodes.len();
        match difference.filter(|_| is_small && staged.is_none()) {
            Some(difference) => self.fill_difference(&difference, &me, observed).await?,
            None => self.fill(&cluster, &me, observed).await?,
        }
        if let Some(staged) = staged {
            if fresh && let Err(e) = groups::carry(&self.pins, self.tables()?) {
                tracing::warn!(
                    "multicast groups are only known again when they are asked for: {e}"
                );
            }
            // Of what is replaced now no pin is to be made again.
            self.held = None;
            load::commit(&self.pins, staged)?;
            self.state.pinned = Identity::of(&self.pins);
        }
        self.hold_pins()?;
        self.attach_all(&me).await?;
        // One endpoint must not stop the start; the next look tells it as a fault.
        if let Err(e) = self.ensure_endpoints_up().await {
            tracing::warn!("{e}");
        }
        self.listeners.forget_failed();
        self.ensure_gro(&cluster).await?;
        if let Some(old) = self.state.old_mode.filter(|old| *old != mode) {
            self.detach_all(old)?;
        }
        self.state.old_mode = None;
        self.ensure_host_routes(&cluster, &me).await?;
        self.ensure_firewall();
        self.ensure_guard(&me);
        self.follow_mtu(&cluster, underlay.mtu).await;
        self.recall_flood();
        self.follow_flood(&cluster).await;
        self.ensure_gateways(&cluster, &me).await?;
        self.tell_faults(&cluster, &me).await?;
        // Ours are attached behind them, and take over as they go.
        for e in self.pins.remove_other_versions() {
            tracing::warn!("{e}");
        }

        if self.run.cluster().as_deref() != Some(bytes) {
            self.keep_config(bytes);
            self.state.generation += 1;
        }
        self.cluster = Some(cluster);
        // Only now: until here the last good file, which may name this node otherwise, is in effect.
        self.state.node = node.to_owned();
        self.save_again();
        self.say_spoiled();
        self.note();
        Ok(())
    }

    /// Follows the host: routes, neighbours, interfaces that went. What is right stays untouched,
    /// what somebody took away comes back. What can not be put right is under FAULTS afterwards; the
    /// first of it is returned.
    pub async fn refresh(&mut self) -> Result<(), HostError> {
        let mut parts = Parts::default();
        match self.hold_pins().and_then(|()| self.adopt()) {
            Ok(cluster) => {
                self.refresh_parts(&cluster, &mut parts).await;
                self.cluster = Some(cluster);
            }
            Err(e) => {
                tracing::debug!("{e}; everything anew");
                parts.note("restore", self.restore().await);
            }
        }
        parts.tell(&self.faults)
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

    /// [`Host::refresh`] with a cluster that was taken out.
    pub(super) async fn refresh_all(&mut self, cluster: &Cluster) -> Result<(), HostError> {
        let mut parts = Parts::default();
        self.refresh_parts(cluster, &mut parts).await;
        parts.tell(&self.faults)
    }

    async fn refresh_parts(&mut self, cluster: &Cluster, parts: &mut Parts) {
        let Some(me) = parts.note("node", find(cluster, &self.state.node)) else { return };
        let underlay = parts.note("underlay", self.underlay(&me).await);
        parts.note("endpoints", self.forget_gone().await);
        self.roll_back().await;
        if let Some(underlay) = &underlay {
            parts.note("mesh0", self.ensure_mesh0(cluster, &me, underlay.mtu).await);
        }
        parts.note("headroom", self.ensure_headroom().await);
        if let Some(bridges) = parts.note("bridges", self.look_at_bridges(cluster, &me).await) {
            self.bridges = bridges;
            parts.note("ports of bridges", self.ensure_ports().await);
        }
        // Also what somebody else did to the maps is put right. Without an underlay no other node is
        // reached, whatever they contain.
        self.contents = None;
        if underlay.is_some() {
            parts.note("maps", self.refill(cluster, &me).await);
        }
        parts.note("programs", self.attach_all(&me).await);
        parts.note("interfaces", self.ensure_endpoints_up().await);
        parts.note("listeners", self.ensure_gro(cluster).await);
        parts.note("routes", self.ensure_host_routes(cluster, &me).await);
        self.ensure_firewall();
        self.ensure_guard(&me);
        if let Some(underlay) = &underlay {
            self.follow_mtu(cluster, underlay.mtu).await;
        }
        self.follow_flood(cluster).await;
        parts.note("gateways", self.ensure_gateways(cluster, &me).await);
        parts.note("faults", self.tell_faults(cluster, &me).await);
        self.save_again();
        self.say_spoiled();
        if !self.is_saved() {
            self.note();
        }
    }

    /// What the pinned maps contain, if they can be read.
    fn observe_pinned(&self) -> Option<Observed> {
        Tables::open(&self.pins.maps()).and_then(|tables| sync::observe(&tables)).ok()
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
