//! Networks that were made while the mesh runs: added to those of the config file, and each pool
//! divided among the nodes of the file.

use ipnet::IpNet;
use mesh_common::maps::FloodKey;
use serde::{Deserialize, Serialize};

use super::{Host, HostError};
use crate::{
    bpf::load,
    compile,
    config::{Cluster, Flood, Network, Vni, share},
};

/// Networks of a mesh besides the config file's, whatever is stored.
pub const ADDED_MAX: usize = 512;

/// A network that is not in the config file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedNetwork {
    pub name: String,
    pub vni: u32,
    pub cidrs: Vec<IpNet>,
    /// The node that has the first part of each cidr; the others follow in file order.
    pub first: String,
    /// Each host is its containers' gateway into the world.
    #[serde(default)]
    pub gateway: bool,
    #[serde(default)]
    pub flood: Flood,
}

impl AddedNetwork {
    /// A cidr that is too small for this cluster, or more nodes than can be sent copies.
    pub fn size_fault(&self, cluster: &Cluster) -> Option<String> {
        let nodes = cluster.nodes.len();
        let most = FloodKey::NODES_MAX;
        if self.flood == Flood::All && nodes > most {
            return Some(format!("flood=all: broadcast goes to at most {most} nodes, not {nodes}"));
        }
        let small = self.cidrs.iter().find(|net| share(**net, nodes, 0).is_none())?;
        Some(format!("{small} is too small to be divided among {nodes} nodes"))
    }

    /// What can not be in this cluster.
    pub fn fault(&self, cluster: &Cluster) -> Option<String> {
        let fault = cluster.added_fault(&self.name, self.vni, &self.cidrs);
        fault.or_else(|| self.size_fault(cluster))
    }

    /// A node's part of each cidr, in their order.
    pub fn blocks(&self, cluster: &Cluster, node: &str) -> Vec<IpNet> {
        let own = cluster.nodes.iter().position(|n| n.name == node);
        own.map_or_else(Vec::new, |own| {
            self.blocks_at(cluster.nodes.len(), own, self.first(cluster))
        })
    }

    /// The place of the node with the first part, if the file still has it.
    fn first(&self, cluster: &Cluster) -> Option<usize> {
        cluster.nodes.iter().position(|n| n.name == self.first)
    }

    fn blocks_at(&self, nodes: usize, own: usize, first: Option<usize>) -> Vec<IpNet> {
        let index = match first {
            Some(first) if own == first => 0,
            Some(first) if own < first => own + 1,
            _ => own,
        };
        self.cidrs.iter().filter_map(|net| share(*net, nodes, index)).collect()
    }
}

/// Adds to a cluster as the file has it; those that do not fit are left out.
pub fn with_added(mut cluster: Cluster, added: &[AddedNetwork]) -> Cluster {
    let mut fitting = Vec::new();
    for network in added.iter().take(ADDED_MAX) {
        let Some(vni) = Vni::new(network.vni) else { continue };
        match network.fault(&cluster) {
            Some(fault) => tracing::warn!("network {}: {fault}", network.name),
            None => {
                let (name, cidrs) = (network.name.clone(), network.cidrs.clone());
                cluster.networks.push(Network { name, vni, cidrs, flood: network.flood });
                fitting.push((vni, network));
            }
        }
    }
    let nodes = cluster.nodes.len();
    for (vni, network) in &fitting {
        let first = network.first(&cluster);
        for (own, node) in cluster.nodes.iter_mut().enumerate() {
            let blocks = network.blocks_at(nodes, own, first);
            node.subnets.extend(blocks.into_iter().map(|net| (*vni, net)));
        }
    }
    cluster
}

impl Host {
    /// Makes the networks besides the file's these. They are noted first, so that whoever starts after
    /// us makes them; and are only carried once this has succeeded.
    pub async fn set_networks(&mut self, added: Vec<AddedNetwork>) -> Result<(), HostError> {
        if self.state.networks == added && !self.networks_lag {
            return Ok(());
        }
        self.state.networks = added;
        self.cluster = None;
        self.networks_lag = true;
        // What is not noted is told anew by Docker and by the other nodes.
        self.note();
        self.carry_networks().await?;
        self.networks_lag = false;
        Ok(())
    }

    async fn carry_networks(&mut self) -> Result<(), HostError> {
        let cluster = self.last_cluster();
        if cluster.is_some_and(|c| load::fits(&self.pins, &compile::room(&c))) {
            match self.refresh().await {
                Ok(()) => return Ok(()),
                Err(e) => tracing::debug!("{e}"),
            }
        }
        // With room for more the maps are made anew.
        self.restore().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_network_with_a_foreign_nodes_vni_is_left_out() {
        let mut cluster = cluster(3);
        let foreign = |vni| Some(config::Foreign { vni, ..config::Foreign::default() });
        cluster.nodes[2].foreign = foreign(Some(701));
        let network = added("10.50.0.0/24", "h1");
        assert_eq!(network.fault(&cluster), None);
        cluster.nodes[2].foreign = foreign(Some(700));
        let fault = network.fault(&cluster).unwrap();
        assert_eq!(fault, "node h3 has VNI 700 for the cluster's own network");
        assert_eq!(with_added(cluster.clone(), &[network]), cluster);
    }

    fn cluster(nodes: usize) -> Cluster {
        let node = |n| format!("[[node]]\nname = \"h{n}\"\nunderlay = \"192.0.2.{n}\"\n");
        let nodes: String = (1..=nodes).map(node).collect();
        let file = format!("[cluster]\nname = \"t\"\ncidr = \"10.42.0.0/16\"\n{nodes}");
        config::parse(file.as_bytes()).unwrap()
    }

    fn added(cidr: &str, first: &str) -> AddedNetwork {
        AddedNetwork {
            name: "my-net".into(),
            vni: 700,
            cidrs: vec![cidr.parse().unwrap()],
            first: first.into(),
            gateway: false,
            flood: Flood::None,
        }
    }

    #[test]
    fn the_first_block_is_the_makers_and_the_rest_in_file_order() {
        let cluster = cluster(3);
        let network = added("10.0.9.0/24", "h2");
        let blocks = ["h1", "h2", "h3"].map(|node| network.blocks(&cluster, node)[0].to_string());
        assert_eq!(blocks, ["10.0.9.64/26", "10.0.9.0/26", "10.0.9.128/26"]);
    }

    #[test]
    fn an_added_network_is_one_of_the_cluster() {
        let whole = with_added(cluster(2), &[added("10.0.9.0/24", "h1")]);
        let network = whole.network("my-net").unwrap();
        assert_eq!(network.vni.get(), 700);
        let own: Vec<_> = whole.nodes[1].subnets_of(network.vni).collect();
        assert_eq!(own, ["10.0.9.128/25".parse().unwrap()]);
    }

    #[test]
    fn a_stored_network_that_may_not_be_is_left_out() {
        let cluster = cluster(3);
        for net in ["0.0.0.0/0", "127.0.0.0/8", "192.0.2.0/24", "10.42.1.0/24", "1.1.1.0/24"] {
            assert_eq!(with_added(cluster.clone(), &[added(net, "h1")]), cluster, "{net}");
        }
        let many = |n: u32| AddedNetwork {
            name: format!("n{n}"),
            vni: 700 + n,
            ..added(&format!("10.{}.{}.0/24", 100 + n / 256 % 100, n % 256), "h1")
        };
        let many: Vec<_> = (0..20_000).map(many).collect();
        assert_eq!(with_added(cluster, &many).networks.len(), 1 + ADDED_MAX);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let cluster = cluster(3);
        assert_eq!(with_added(cluster.clone(), &[added("10.0.9.0/30", "h1")]), cluster);
        let twice = [added("10.0.9.0/24", "h1"), added("10.0.8.0/24", "h1")];
        assert_eq!(with_added(cluster, &twice).networks.len(), 2);
    }
}
