//! What is wrong with endpoints and attached bridges, told the board of faults.

use super::{Host, HostError, Status};
use crate::{
    config::{Cluster, Node},
    faults::{Fault, Of},
    state::Endpoint,
};

impl Host {
    /// Looks at all of them.
    pub(super) fn tell_faults(&self, cluster: &Cluster, me: &Node) -> Result<(), HostError> {
        let endpoints = self.state.endpoints.iter().flat_map(|(name, endpoint)| {
            let unfollowed = self.unfollowed.get(name).map(|u| u.fault.clone());
            let faults = faults(cluster, me, endpoint).into_iter().chain(unfollowed);
            faults.map(|fault| (Of::Endpoint(name.clone()), fault))
        });
        self.faults.set_all_of("place", endpoints);
        self.faults.set_all_of("bridge", self.bridge_faults(cluster, me)?);
        Ok(())
    }
}

impl Status {
    /// Takes what is wrong, and puts it beside what it is of as well.
    pub(super) fn take_faults(&mut self, faults: Vec<Fault>) {
        for Fault { of, fault } in &faults {
            let beside = match of {
                Of::Host => Some(&mut self.faults),
                Of::Network(name) => {
                    self.networks.iter_mut().find(|n| n.name == *name).map(|n| &mut n.faults)
                }
                Of::Endpoint(name) => {
                    self.endpoints.iter_mut().find(|e| e.name == *name).map(|e| &mut e.faults)
                }
                Of::Bridge(name) => {
                    self.bridges.iter_mut().find(|b| b.name == *name).map(|b| &mut b.faults)
                }
                Of::Docker | Of::Agent => None,
            };
            if let Some(beside) = beside {
                beside.push(fault.clone());
            }
        }
        self.all_faults = faults;
    }
}

/// What is wrong with an endpoint's place in the cluster, and the way out: no other node finds its
/// address any more.
fn faults(cluster: &Cluster, me: &Node, endpoint: &Endpoint) -> Vec<String> {
    let Some(network) = cluster.networks.iter().find(|n| n.vni.get() == endpoint.vni) else {
        let vni = endpoint.vni;
        return vec![format!(
            "its network, VNI {vni}, is not there any more: bring that back, or detach it"
        )];
    };
    let remedy = remedy(endpoint);
    let is_lost = |ip| !me.subnets_of(network.vni).any(|net| net.contains(ip));
    let fault = |ip| {
        format!(
            "{ip} is in no subnet of {} in network {} any more: {remedy}",
            me.name, network.name
        )
    };
    endpoint.addresses.iter().filter(|ip| is_lost(*ip)).map(fault).collect()
}

/// Who attached it must do so again.
pub(super) fn remedy(endpoint: &Endpoint) -> &'static str {
    let is_dockers = endpoint.netns.contains("/docker/netns/");
    if endpoint.bridged.is_some() || endpoint.cni.is_some() || is_dockers {
        "start its container anew"
    } else {
        "detach and attach it again"
    }
}
