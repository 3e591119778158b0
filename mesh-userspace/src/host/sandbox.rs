//! Containers of Docker: mesh makes the interface, and Docker moves it into the container, names it
//! and gives it its addresses.

use std::{net::IpAddr, os::fd::AsFd};

use super::{ALIAS, Host, HostError, choice, endpoint};
use crate::{
    bpf::attach::Interface,
    compile,
    config::{Cluster, Flood, Network},
    net::{Veth, VethPair, open_netns},
    state::Endpoint,
};

/// An interface for a container.
#[derive(Clone, Debug)]
pub struct SandboxRequest {
    /// Of the endpoint.
    pub name: String,
    pub network: String,
    pub addresses: Vec<IpAddr>,
    pub mac: [u8; 6],
    /// Path of the container's namespace.
    pub netns: String,
    /// The interface gets no more than this.
    pub mtu: Option<u32>,
}

impl Host {
    /// Makes an interface in this namespace, ready to be moved, and returns its name. One of the
    /// same endpoint that is left from before is replaced.
    pub async fn make_sandbox(&mut self, request: SandboxRequest) -> Result<String, HostError> {
        let cluster = self.adopt()?;
        let done = self.make_sandbox_in(&cluster, request).await;
        self.cluster = Some(cluster);
        done
    }

    async fn make_sandbox_in(
        &mut self,
        cluster: &Cluster,
        request: SandboxRequest,
    ) -> Result<String, HostError> {
        let me = super::find(cluster, &self.state.node)?;
        self.roll_back().await;
        let network = choice::find_network(cluster, Some(&request.network))?;
        if self.state.endpoints.contains_key(&request.name) {
            self.remove_endpoint(cluster, &me, &request.name).await?;
        }
        let mtu = compile::container_mtu(cluster, network.vni, self.underlay(&me).await?.mtu)
            .unwrap_or_else(|largest| largest);
        let mtu = request.mtu.map_or(mtu, |most| most.min(mtu));
        let host_ifname = choice::host_ifname(&request.name);
        let ifname = host_ifname.replacen("mesh", "mc", 1);
        let id = self.free_id()?;
        self.clear_away(&request.name, &host_ifname).await?;
        let netns = open_netns(&request.netns).ok();
        let endpoint = Endpoint {
            vni: network.vni.get(),
            id,
            host: Interface { name: host_ifname.clone(), index: 0 },
            ifname: ifname.clone(),
            ifindex: 0,
            mac: request.mac,
            addresses: request.addresses,
            mtu,
            mtu_max: request.mtu,
            netns: request.netns,
            netns_id: netns.map(|fd| endpoint::id_of(fd.as_fd())).unwrap_or_default(),
            names: Vec::new(),
            cni: None,
            netkit: false,
            bridged: None,
            ports: Vec::new(),
            floods: Some(network.flood == Flood::All),
            unfinished: true,
            found: false,
        };
        let veth = Veth {
            name: &host_ifname,
            mac: compile::node_mac(me.underlay),
            mtu: endpoint::HOST_SIDE_MTU,
            alias: Some(&format!("{ALIAS}{}", request.name)),
            peer_name: &ifname,
            peer_mac: request.mac,
            peer_mtu: mtu,
            peer_netns: None,
        };
        self.state.endpoints.insert(request.name.clone(), endpoint);
        let made = match self.make_pair(cluster, network, &request.name, &veth).await {
            Ok(pair) => self.finish_sandbox(cluster, network, &request.name, pair).await,
            Err(e) => Err(e),
        };
        self.conclude(cluster, &me, &request.name, made).await?;
        Ok(ifname)
    }

    async fn finish_sandbox(
        &mut self,
        cluster: &Cluster,
        network: &Network,
        name: &str,
        pair: VethPair,
    ) -> Result<(), HostError> {
        let Some(endpoint) = self.state.endpoints.get(name).cloned() else { return Ok(()) };
        let me = super::find(cluster, &self.state.node)?;
        self.join(cluster, &me, &endpoint).await?;
        if network.has_ipv6() {
            // The kernel confirms a neighbour only from a link-local address, which Docker leaves
            // to the kernel.
            self.net.set_link_local(pair.peer_ifindex).await?;
        }
        self.net.set_up(pair.ifindex).await?;
        if self.is_gateway_of(&endpoint) {
            let mut faults = self.ensure_ways_back(&me).await?;
            return faults.remove(name).map_or(Ok(()), |fault| Err(HostError::User(fault)));
        }
        Ok(())
    }
}
