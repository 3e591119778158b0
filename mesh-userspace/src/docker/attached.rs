//! Containers that are none of Docker's: what they are called, and what names they may ask for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
    /// The cluster's own network, and the addresses in it that Docker confirmed on attached bridges:
    /// what their containers are called is Docker's to tell.
    pub bridged: Option<(String, BTreeSet<IpAddr>)>,
}

impl Attached {
    pub fn of(host: &Host) -> Self {
        let mut attached = Self::default();
        let Some(cluster) = host.cluster() else { return attached };
        let networks: HashMap<u32, &str> =
            cluster.networks.iter().map(|n| (n.vni.get(), n.name.as_str())).collect();
        let mut by_namespace: HashMap<(u64, u64), BTreeSet<&str>> = HashMap::new();
        for endpoint in host.state.endpoints.values() {
            let Some(network) = networks.get(&endpoint.vni) else { continue };
            by_namespace.entry(endpoint.netns_id).or_default().insert(network);
            if !endpoint.names.is_empty() {
                let (names, addresses) = (endpoint.names.clone(), endpoint.addresses.clone());
                let named = Named { names, addresses };
                attached.names.entry((*network).to_owned()).or_default().push(named);
            }
        }
        let own = host.state.endpoints.values().filter(|e| e.vni == Vni::DEFAULT.get());
        for endpoint in own {
            let Some(own) = networks.get(&endpoint.vni) else { continue };
            let seen: Vec<String> = match &endpoint.bridged {
                // The namespace of one is not looked into.
                Some(_) => vec![(*own).to_owned()],
                None => by_namespace[&endpoint.netns_id].iter().map(|n| (*n).to_owned()).collect(),
            };
            if endpoint.bridged.as_ref().is_some_and(|bridged| bridged.container.is_some()) {
                let bridged = attached.bridged.get_or_insert_with(|| (seen[0].clone(), [].into()));
                bridged.1.extend(&endpoint.addresses);
            }
            attached.askers.extend(endpoint.addresses.iter().map(|ip| (*ip, seen.clone())));
        }
        attached
    }
}
