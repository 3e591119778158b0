//! Containers that are none of Docker's: what they are called, and what names they may ask for.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::{config::Vni, host::Host, peers::Named};

/// As they were attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// By network.
    pub names: BTreeMap<String, Vec<Named>>,
    /// The networks of a container, by its address in the cluster's own: from that it asks.
    pub askers: HashMap<IpAddr, Vec<String>>,
}

impl Attached {
    pub fn of(host: &Host) -> Self {
        let mut attached = Self::default();
        let Some(cluster) = host.cluster() else { return attached };
        let networks: HashMap<u32, &str> =
            cluster.networks.iter().map(|n| (n.vni.get(), n.name.as_str())).collect();
        let mut by_namespace: HashMap<(u64, u64), Vec<String>> = HashMap::new();
        for endpoint in host.state.endpoints.values() {
            let Some(network) = networks.get(&endpoint.vni) else { continue };
            by_namespace.entry(endpoint.netns_id).or_default().push((*network).to_owned());
            if !endpoint.names.is_empty() {
                let (names, addresses) = (endpoint.names.clone(), endpoint.addresses.clone());
                let named = Named { names, addresses };
                attached.names.entry((*network).to_owned()).or_default().push(named);
            }
        }
        let own = host.state.endpoints.values().filter(|e| e.vni == Vni::DEFAULT.get());
        for endpoint in own {
            let networks = &by_namespace[&endpoint.netns_id];
            attached.askers.extend(endpoint.addresses.iter().map(|ip| (*ip, networks.clone())));
        }
        attached
    }
}
