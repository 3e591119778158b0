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
    fn fault(&self, cluster: &Cluster) -> Option<String> {
        let same = |n: &&Network| n.name == self.name || n.vni.get() == self.vni;
        let taken = cluster.networks.iter().find(same);
        self.size_fault(cluster)
            .or_else(|| taken.map(|n| format!("network {} has VNI {}", n.name, n.vni)))
            .or_else(|| {
                let node = cluster.foreign_with(self.vni)?;
                Some(format!(
                    "node {} has VNI {} for the cluster's own network",
                    node.name, self.vni
                ))
            })
    }

    /// A node's part of each cidr, in their order.
    pub fn blocks(&self, cluster: &Cluster, node: &str) -> Vec<IpNet> {
        let place = |name: &str| cluster.nodes.iter().position(|n| n.name == name);
        let Some(own) = place(node) else { return Vec::new() };
        let index = match place(&self.first) {
            Some(first) if own == first => 0,
            Some(first) if own < first => own + 1,
            _ => own,
        };
        let nodes = cluster.nodes.len();
        self.cidrs.iter().filter_map(|net| share(*net, nodes, index)).collect()
    }
}

/// Adds to a cluster as the file has it; those that do not fit are left out.
pub fn with_added(mut cluster: Cluster, added: &[AddedNetwork]) -> Cluster {
    let mut fitting = Vec::new();
    for network in added {
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
    for at in 0..cluster.nodes.len() {
        for (vni, network) in &fitting {
            let blocks = network.blocks(&cluster, &cluster.nodes[at].name);
            cluster.nodes[at].subnets.extend(blocks.into_iter().map(|net| (*vni, net)));
        }
    }
    cluster
}

impl Host {
    /// Makes the networks besides the file's these.
    pub async fn set_networks(&mut self, added: Vec<AddedNetwork>) -> Result<(), HostError> {
        if self.state.networks == added {
            return Ok(());
        }
        self.state.networks = added;
        self.cluster = None;
        self.save()?;
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
    fn what_does_not_fit_is_left_out() {
        let cluster = cluster(3);
        assert_eq!(with_added(cluster.clone(), &[added("10.0.9.0/30", "h1")]), cluster);
        let twice = [added("10.0.9.0/24", "h1"), added("10.0.8.0/24", "h1")];
        assert_eq!(with_added(cluster, &twice).networks.len(), 2);
    }
}
