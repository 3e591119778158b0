//! The maps filled: what this host is like, compiled with the config, compared with what they contain.

use std::net::IpAddr;

use super::{Host, HostError, own_inode};
use crate::{
    bpf::sync,
    compile::{self, ByAddress, Difference, Facts},
    config::{Cluster, Node},
    net::Link,
    plan::{Contents, Observed, plan, plan_difference},
};

impl Host {
    /// Fills the maps after something changed that is not in the network: no route is looked up,
    /// and the maps contain what was last put there.
    pub(super) async fn refill(&mut self, cluster: &Cluster, me: &Node) -> Result<(), HostError> {
        let observed = match self.contents.take() {
            Some(contents) => contents,
            None => sync::observe(self.tables()?)?,
        };
        self.fill(cluster, me, observed).await
    }

    /// Compiles, compares with what the maps contain, and changes what differs.
    pub(super) async fn fill(
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
            sync::apply(self.tables()?, &plan).await?;
        }
        self.contents = Some(desired.maps);
        // Only now: as long as it is there, the port learns nothing else.
        self.forget_learned(&told).await
    }

    /// [`Host::fill`] where the maps contain what the old cluster made of the same network: of the
    /// other nodes only those that differ are looked at. A change of the network that nobody told of
    /// yet is an event on its way, and that looks at everything.
    pub(super) async fn fill_difference(
        &mut self,
        difference: &Difference,
        me: &Node,
        mut contents: Contents,
    ) -> Result<(), HostError> {
        let nodes: Vec<IpAddr> = difference.addresses().collect();
        let facts = self.facts(difference.new_cluster(), me, &nodes, &contents).await?;
        let plan = plan_difference(difference, me, &facts, &contents);
        tracing::debug!(entries = plan.len(), nodes = nodes.len(), "maps change");
        sync::apply(self.tables()?, &plan).await?;
        contents.follow(&plan);
        self.contents = Some(contents);
        Ok(())
    }

    /// What holds for this host, with the ways to `nodes`.
    pub(super) async fn facts(
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
        let is_foreign_gre =
            |l: &Link| l.up && l.kind.as_deref().is_some_and(|kind| foreign.contains(&kind));
        Ok(Facts {
            paths: self.paths(nodes, me, &links).await?,
            attachments: self.attachments(cluster, me),
            underlay_mtu: underlay.mtu,
            worlds: self.worlds(),
            bridge: self.bridges.first(),
            foreign_gre: links.iter().any(is_foreign_gre),
            foreign_ports: self.follow_foreign_ports(&cluster.udp_tunnels(), &links),
            netns: own_inode()?,
            peer_indices: peer_indices(observed),
        })
    }
}

/// The indices that nodes have in PEERS, read back from it.
fn peer_indices(observed: &Observed) -> ByAddress<u32> {
    observed.peers.iter().map(|(index, peer)| (peer.remote.into(), *index)).collect()
}
