//! What a change of the config file is about, where that is less than everything.

use std::net::IpAddr;

use super::{Desired, Facts, Whole, compile_with};
use crate::config::{Cluster, Flood, Node};

/// How a cluster became another: both without the nodes that are the same at the beginning and at
/// the end of the two files, and what depends on all nodes.
#[derive(Debug)]
pub struct Difference {
    old: Cluster,
    new: Cluster,
    whole: Whole,
}

impl Difference {
    /// `None` if more than nodes, or this node, or what is in [`Whole`] differs, on which the entries
    /// of all nodes depend.
    pub fn of(old: &Cluster, new: &Cluster, me: &str) -> Option<Self> {
        let (a, b) = (&old.nodes[..], &new.nodes[..]);
        let head = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let (a, b) = (&a[head..], &b[head..]);
        let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
        let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);
        let of = |cluster: &Cluster, nodes: &[Node]| Cluster {
            nodes: nodes.to_vec(),
            name: cluster.name.clone(),
            networks: cluster.networks.clone(),
            links: cluster.links.clone(),
            docker: cluster.docker.clone(),
            bridges: cluster.bridges.clone(),
            ..*cluster
        };
        let whole = Whole::of(new);
        let is_same = common(old) == common(new)
            && a.iter().chain(b).all(|node| node.name != me)
            // All nodes are in a list.
            && new.networks.iter().all(|network| network.flood == Flood::None)
            && Whole::of(old) == whole;
        is_same.then(|| Self { old: of(old, a), new: of(new, b), whole })
    }

    /// The new cluster, as far as it is about it.
    pub fn new_cluster(&self) -> &Cluster {
        &self.new
    }

    /// Underlay addresses of all nodes that it is about.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.old.nodes.iter().chain(&self.new.nodes).map(|node| node.underlay)
    }

    /// What the maps contain of these nodes, and what they shall contain. `facts`: with the indices
    /// of all nodes of the old cluster.
    pub fn compile(&self, me: &Node, facts: &Facts) -> (Desired, Desired) {
        let compile = |cluster| compile_with(&self.whole, cluster, me, facts);
        (compile(&self.old), compile(&self.new))
    }
}

/// What the entries of each node follow from besides itself and this node.
fn common(c: &Cluster) -> impl PartialEq {
    (c.encap, c.mtu, c.port, c.ttl, c.dscp, &c.links, &c.networks, &c.bridges)
}
