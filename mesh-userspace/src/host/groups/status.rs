//! Who is in which group, for people.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use mesh_common::maps::GroupKey;
use serde::{Deserialize, Serialize};

use crate::{
    bpf::{sync, tables::Tables},
    config::Cluster,
    host::{Host, HostError},
};

/// A multicast group of a network, and who gets its packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub network: String,
    /// `None`: members asked for more groups than are told apart, and get all.
    pub group: Option<IpAddr>,
    /// Endpoints here; the host itself is "host".
    pub endpoints: Vec<String>,
    /// Other nodes with members.
    pub nodes: Vec<String>,
}

impl Host {
    /// In the order of networks' numbers and groups.
    pub(in crate::host) fn groups(
        &self,
        cluster: &Cluster,
        tables: &Tables,
    ) -> Result<Vec<GroupStatus>, HostError> {
        let peers = sync::peers(tables)?;
        let node = |index: &u32| {
            let address = IpAddr::from(peers.get(index)?.remote);
            Some(cluster.nodes.iter().find(|node| node.underlay == address)?.name.clone())
        };
        let here = self.state.endpoints.iter().map(|(name, e)| (e.host.index, name.as_str()));
        let host = self.state.host.iter().map(|host| (host.index, "host"));
        let here: HashMap<u32, &str> = here.chain(host).collect();
        let mut groups = BTreeMap::new();
        for (key, info) in sync::groups(tables)? {
            let is_all = key.group == GroupKey::ANY;
            // Of all that are here together, or only a count.
            if key.member == 0 || is_all && info.count <= GroupKey::most(key.member) {
                continue;
            }
            let group = (!is_all).then(|| IpAddr::from(key.group));
            let (endpoints, nodes): &mut (Vec<_>, Vec<_>) =
                groups.entry((key.vni, group)).or_default();
            if key.member & GroupKey::PEER != 0 {
                nodes.extend(node(&(key.member & !GroupKey::PEER)));
            } else {
                endpoints.extend(here.get(&key.member).map(|name| (*name).to_owned()));
            }
        }
        let name = |vni: u32| {
            let network = cluster.networks.iter().find(|n| n.vni.get() == vni);
            network.map_or_else(|| vni.to_string(), |n| n.name.clone())
        };
        let status =
            |((vni, group), (mut endpoints, mut nodes)): (_, (Vec<String>, Vec<String>))| {
                endpoints.sort();
                nodes.sort();
                GroupStatus { network: name(vni), group, endpoints, nodes }
            };
        Ok(groups.into_iter().map(status).collect())
    }
}
