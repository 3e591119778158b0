//! Endpoints that the config file has no place for any more: no other node finds their addresses.

use std::collections::BTreeSet;

use super::Host;
use crate::{
    config::{Cluster, Node},
    state::Endpoint,
};

impl Host {
    /// Warns of each endpoint that had a place until now.
    pub(super) fn warn_of_stranded(&mut self, cluster: &Cluster, me: &Node) {
        let mut now = BTreeSet::new();
        for (name, endpoint) in &self.state.endpoints {
            let faults = faults(cluster, me, endpoint);
            now.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
        }
        for fault in now.difference(&self.stranded) {
            tracing::warn!("{fault}");
        }
        self.stranded = now;
    }
}

/// What is wrong with an endpoint's place in the cluster, and the way out.
pub(super) fn faults(cluster: &Cluster, me: &Node, endpoint: &Endpoint) -> Vec<String> {
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
fn remedy(endpoint: &Endpoint) -> &'static str {
    let is_dockers = endpoint.netns.contains("/docker/netns/");
    if endpoint.bridged.is_some() || endpoint.cni.is_some() || is_dockers {
        "start its container anew"
    } else {
        "detach and attach it again"
    }
}
