//! What a container runtime asks of attachments that it had made, by way of CNI.

use std::{collections::HashSet, os::fd::BorrowedFd};

use super::{
    AttachRequest, Attached, Host, HostError, choice,
    endpoint::{describe, id_of},
    routes::{container_routes, is_for_groups},
};
use crate::{
    config::{Cluster, Network, Node, Vni, mac_text},
    net::Net,
    state::Endpoint,
};

impl Host {
    /// Fails unless an endpoint's interface, addresses and routes are as they were made.
    pub async fn check_endpoint(
        &mut self,
        name: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        let cluster = self.adopt()?;
        let done = self.check_in(&cluster, name, netns).await;
        self.cluster = Some(cluster);
        done
    }

    async fn check_in(
        &mut self,
        cluster: &Cluster,
        name: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        self.forget_gone().await?;
        let me = super::find(cluster, &self.state.node)?;
        let endpoint = self.state.endpoints.get(name);
        let endpoint = endpoint
            .ok_or_else(|| HostError::Unknown(format!("nothing is attached as {name:?}")))?;
        let network = cluster.networks.iter().find(|n| Some(n.vni) == Vni::new(endpoint.vni));
        let network = network.ok_or_else(|| {
            HostError::User(format!("the network of {name:?} is not there any more"))
        })?;
        if endpoint.netns_id != id_of(netns) {
            return Err(HostError::User(format!("{name:?} is attached to another namespace")));
        }
        let wrong = faults(&Net::in_netns(netns)?, endpoint, network, &me).await?;
        match wrong.as_slice() {
            [] => Ok(describe(name, network, &me, endpoint)),
            wrong => Err(HostError::User(format!("{name:?} was changed: {}", wrong.join("; ")))),
        }
    }

    /// Removes the endpoints of a CNI network that are not in `keep`; returns their names.
    pub async fn collect(&mut self, cni: &str, keep: &[String]) -> Result<Vec<String>, HostError> {
        let keep: HashSet<&str> = keep.iter().map(String::as_str).collect();
        let endpoints = self.state.endpoints.iter();
        let leaked: Vec<String> = endpoints
            .filter(|(name, e)| e.cni.as_deref() == Some(cni) && !keep.contains(name.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        let mut detached = Ok(());
        for name in &leaked {
            detached = detached.and(self.detach(name).await);
        }
        detached.map(|()| leaked)
    }

    /// Fails if nothing could be attached to this network.
    pub fn ready(&mut self, network: Option<&str>) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let done = choice::find_network(&cluster, network).and_then(|network| {
            let me = super::find(&cluster, &self.state.node)?;
            self.addresses_for(&me, network, &AttachRequest::default())?;
            self.free_id().map(drop)
        });
        self.cluster = Some(cluster);
        done
    }

    /// Removes an attachment of the same container that its runtime did not come to remove: it is
    /// known by its name, and has another namespace.
    pub(super) async fn replace_stale(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        request: &AttachRequest,
        netns: BorrowedFd<'_>,
    ) -> Result<(), HostError> {
        let (Some(_), Some(name)) = (&request.cni, &request.name) else { return Ok(()) };
        match self.state.endpoints.get(name) {
            Some(old) if old.netns_id != id_of(netns) => {
                self.remove_endpoint(cluster, me, name).await
            }
            _ => Ok(()),
        }
    }
}

/// What is not as it was made, inside the container.
async fn faults(
    inside: &Net,
    endpoint: &Endpoint,
    network: &Network,
    me: &Node,
) -> Result<Vec<String>, HostError> {
    let name = &endpoint.ifname;
    let Some(link) = inside.link(endpoint.ifindex).await?.filter(|l| l.name == *name) else {
        return Ok(vec![format!("there is no interface {name} of mesh")]);
    };
    let mut faults = Vec::new();
    if !link.up {
        faults.push(format!("{name} is down"));
    }
    if link.mac != Some(endpoint.mac) {
        faults.push(format!("{name} has not the MAC {}", mac_text(endpoint.mac)));
    }
    let addresses = inside.addresses().await?;
    for ip in &endpoint.addresses {
        if !addresses.iter().any(|a| a.ifindex == endpoint.ifindex && a.ip() == *ip) {
            faults.push(format!("{name} has not the address {ip}"));
        }
    }
    let routes = inside.routes().await?;
    for spec in container_routes(network, me, endpoint) {
        let is_it = |r: &&crate::net::Route| {
            // Where broadcast goes may be another network of the container's to say.
            let is_here = r.ifindex == Some(spec.ifindex) || is_for_groups(spec.dst);
            r.dst == spec.dst && is_here && r.gateway == spec.gateway
        };
        if !routes.iter().any(|r| is_it(&r)) {
            faults.push(format!("the route to {} is missing", spec.dst));
        }
    }
    Ok(faults)
}
