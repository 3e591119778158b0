//! What Docker asks for, carried out: networks, endpoints, addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Docker,
    ipam::IpamError,
    options::Options,
    protocol::{
        Call, CreateEndpoint, CreateNetwork, InterfaceName, IpData, Join, Joined, OfEndpoint,
        PortBinding, Program, ip,
    },
    saved::{Local, Note},
};
use crate::{
    config::{Cluster, gateway},
    host::{AddedNetwork, Host, HostError, PortRequest, SandboxRequest},
    peers::{NetworkSpec, Subnet},
    state::Proto,
};

/// What is said of a network whose name nobody told yet.
pub const NOT_YET: &str = "is not known to the mesh yet";

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Something that the user can mend; says how.
    #[error("{0}")]
    User(String),
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("network {network} {}", NOT_YET)]
    NotYet { network: String },
    /// The agent did not come to it in time: says what it does instead.
    #[error("{0}")]
    Busy(String),
    #[error("the agent is about to end")]
    Ending,
}

impl Docker {
    /// Carries out a call, and notes what became of it. What Docker is given must be noted, or it is
    /// not given. What it gives back is taken back all the same: an agent that starts with notes from
    /// before asks Docker.
    pub(super) async fn answer(
        &mut self,
        host: &mut Host,
        call: Call,
    ) -> Result<Value, DriverError> {
        if let Call::Known(answer) = call {
            return Ok(answer);
        }
        let before = call.gives().then(|| self.saved.clone());
        let answer = self.carry_out(host, call).await;
        let noted = self.save(host);
        if let (Err(e), Some(before)) = (noted, before.filter(|_| answer.is_ok())) {
            self.saved = before;
            return Err(e);
        }
        answer
    }

    async fn carry_out(&mut self, host: &mut Host, call: Call) -> Result<Value, DriverError> {
        match call {
            Call::RequestPool(asked) => self.request_pool(host, asked).await,
            Call::ReleasePool(of) => {
                self.asked.remove(&of.pool.0);
                self.saved.ipam.remove(of.pool.0);
                Ok(json!({}))
            }
            Call::RequestAddress(asked) => self.request_address(host, &asked),
            Call::ReleaseAddress(of) => {
                if let Some(address) = ip(&of.address) {
                    self.saved.ipam.release(of.pool.0, address);
                }
                Ok(json!({}))
            }
            Call::CreateNetwork(made) => self.create_network(host, made).await,
            Call::DeleteNetwork(of) => self.delete_network(host, &of.network).await,
            Call::CreateEndpoint(made) => self.create_endpoint(host, made),
            Call::DeleteEndpoint(of) => self.delete_endpoint(host, &of).await,
            Call::Join(join) => self.join(host, join).await,
            Call::Program(program) => self.publish(host, program).await,
            Call::Revoke(of) => {
                let done = host.unpublish(&endpoint_name(&of.endpoint)).await;
                done.map(|()| json!({})).map_err(DriverError::from)
            }
            Call::Leave(of) => self.leave(host, &of.endpoint).await.map(|()| json!({})),
            Call::Known(answer) => Ok(answer),
        }
    }

    async fn create_network(
        &mut self,
        host: &mut Host,
        made: CreateNetwork,
    ) -> Result<Value, DriverError> {
        let given = made.generic();
        let options = Options::parse(&given).map_err(DriverError::User)?;
        let cluster = cluster(host)?;
        if let Some(encap) = options.encap.filter(|encap| *encap != cluster.encap.to_string()) {
            return Err(DriverError::User(format!(
                "encap={encap}: all networks of this mesh have {}, from its config file",
                cluster.encap
            )));
        }
        let subnets = subnets(&made.v4, &made.v6)?;
        if options.gateway {
            check_gateway(&made, &subnets)?;
        }
        for subnet in &subnets {
            self.check_free(host, subnet.net, options.network.as_deref()).await?;
        }
        let taken = options.vni.and_then(|vni| {
            let mut networks = cluster.networks.iter();
            networks.find(|n| n.vni.get() == vni && Some(&n.name) != options.network.as_ref())
        });
        if let Some(network) = taken {
            let (vni, name) = (network.vni, &network.name);
            return Err(DriverError::User(format!("vni={vni}: network {name} has it")));
        }
        if let Some(node) = options.vni.and_then(|vni| cluster.foreign_with(vni)) {
            return Err(DriverError::User(format!(
                "vni={}: node {} has it for the cluster's own network",
                options.vni.unwrap_or_default(),
                node.name
            )));
        }
        let network = AddedNetwork {
            name: options.network.clone().unwrap_or_default(),
            vni: options.vni.unwrap_or_default(),
            cidrs: subnets.iter().map(|s| s.net).collect(),
            first: self.me().to_owned(),
            gateway: options.gateway,
            flood: options.flood,
        };
        if let Some(fault) = network.size_fault(&cluster) {
            return Err(DriverError::User(fault));
        }
        // Not even one that an agent made has its name at once: a list that Docker was asked for
        // before does not have it, and a network that was there and is not is one that was removed.
        self.asked.retain(|pool| subnets.iter().all(|s| s.net != *pool));
        let local = Local { name: None, subnets, options: given, spec: None };
        self.saved.networks.insert(made.network, local);
        // Its name is known once Docker is done with this call.
        self.look.notify_one();
        Ok(json!({}))
    }

    async fn delete_network(&mut self, host: &mut Host, id: &str) -> Result<Value, DriverError> {
        self.deleted.insert(id.to_owned());
        if let Some(Local { name: Some(name), .. }) = self.saved.networks.remove(id) {
            self.removed_here(&name);
            // Docker has no such network any more, whatever becomes of it here.
            self.apply_networks(host).await.unwrap_or_else(|e| tracing::warn!("{e}; tried again"));
        }
        Ok(json!({}))
    }

    fn create_endpoint(&mut self, host: &Host, made: CreateEndpoint) -> Result<Value, DriverError> {
        if let Some(address) = made.interface.net() {
            self.recognise(&made.network, address);
        }
        let (name, _) = self.known(&made.network)?;
        let addresses = made.interface.addresses();
        if addresses.is_empty() {
            return Err(DriverError::User(format!("network {name} gives out no addresses")));
        }
        let Some(local) = self.saved.networks.get(&made.network) else {
            return Err(DriverError::NotYet { network: name });
        };
        let pools: Vec<IpNet> = local.subnets.iter().map(|s| s.net).collect();
        let blocks = self.own_blocks(host, &pools)?;
        // Docker's own IPAM knows nothing of blocks.
        let elsewhere = addresses.iter().find(|ip| !blocks.iter().any(|b| b.contains(*ip)));
        if let Some(address) = elsewhere {
            let pool = pools.iter().find(|p| p.contains(address)).or(pools.first());
            let (address, pool) = (*address, pool.copied().unwrap_or_else(|| (*address).into()));
            return Err(IpamError::Elsewhere { address, pool, blocks }.into());
        }
        let has_gateway = Options::parse(&local.options).is_ok_and(|options| options.gateway);
        let taken = addresses.iter().find(|ip| blocks.iter().any(|b| gateway(*b) == **ip));
        if let (true, Some(address)) = (has_gateway, taken) {
            return Err(IpamError::Taken { address: *address }.into());
        }
        let given = parse_mac(&made.interface.mac_address);
        let mac = given.unwrap_or_else(|| mac_of(addresses[0]));
        let note = Note { network: made.network, addresses, mac };
        self.saved.endpoints.insert(made.endpoint, note);
        let text = mac.map(|b| format!("{b:02x}")).join(":");
        let interface = if given.is_some() { json!({}) } else { json!({"MacAddress": text}) };
        Ok(json!({"Interface": interface}))
    }

    async fn join(&mut self, host: &mut Host, join: Join) -> Result<Value, DriverError> {
        let (network, spec) = self.known(&join.network)?;
        let Some(note) = self.saved.endpoints.get(&join.endpoint) else {
            return Err(DriverError::User(format!("no endpoint {} was made", join.endpoint)));
        };
        let options = Options::parse(&spec.options).unwrap_or_default();
        let request = SandboxRequest {
            name: endpoint_name(&join.endpoint),
            network,
            addresses: note.addresses.clone(),
            mac: note.mac,
            netns: join.sandbox_key,
            mtu: options.mtu,
        };
        let addresses = request.addresses.clone();
        let pools: Vec<IpNet> = spec.subnets.iter().map(|s| s.net).collect();
        let src_name = host.make_sandbox(request).await?;
        let interface_name = InterfaceName { src_name, dst_prefix: "eth" };
        let blocks = if options.gateway { self.own_blocks(host, &pools)? } else { Vec::new() };
        let of = |v4: bool| {
            let address = addresses.iter().find(|ip| ip.is_ipv4() == v4)?;
            blocks.iter().find(|block| block.contains(address)).map(|block| gateway(*block))
        };
        Ok(json!(Joined { interface_name, gateway: of(true), gateway_v6: of(false) }))
    }

    async fn publish(&mut self, host: &mut Host, program: Program) -> Result<Value, DriverError> {
        let requests: Result<Vec<_>, _> = program.options.ports.iter().map(port_request).collect();
        host.publish(&endpoint_name(&program.endpoint), &requests?).await?;
        Ok(json!({}))
    }

    pub(super) async fn leave(
        &mut self,
        host: &mut Host,
        endpoint: &str,
    ) -> Result<(), DriverError> {
        let name = endpoint_name(endpoint);
        if host.state.endpoints.contains_key(&name) {
            host.detach(&name).await?;
        }
        Ok(())
    }

    async fn delete_endpoint(
        &mut self,
        host: &mut Host,
        of: &OfEndpoint,
    ) -> Result<Value, DriverError> {
        self.leave(host, &of.endpoint).await?;
        self.saved.endpoints.remove(&of.endpoint);
        self.ended.insert(of.endpoint.clone());
        Ok(json!({}))
    }

    /// Name of a network by Docker's id, and what it is, once both are known.
    fn known(&self, id: &str) -> Result<(String, NetworkSpec), DriverError> {
        let not_yet = || DriverError::NotYet { network: id.to_owned() };
        let name = self.saved.networks.get(id).and_then(|n| n.name.clone()).ok_or_else(not_yet)?;
        let spec = self.shared.lock().network(&name).cloned();
        match spec {
            Some(spec) if self.applied.iter().any(|n| n.name == name) => Ok((name, spec)),
            _ => Err(DriverError::NotYet { network: name }),
        }
    }
}

pub(super) fn cluster(host: &Host) -> Result<Cluster, DriverError> {
    let gone = || DriverError::User("the mesh is not up on this host".into());
    host.last_cluster().ok_or_else(gone)
}

fn subnets(v4: &[IpData], v6: &[IpData]) -> Result<Vec<Subnet>, DriverError> {
    let mut subnets = Vec::new();
    for data in v4.iter().chain(v6) {
        let net: IpNet = data.pool.parse().map_err(|_| {
            DriverError::User(format!("{:?} is no subnet, such as 10.0.9.0/24", data.pool))
        })?;
        if net.prefix_len() == 0 {
            return Err(DriverError::User("a network without addresses is none of mesh".into()));
        }
        subnets.push(Subnet { net: net.trunc(), gateway: ip(&data.gateway) });
    }
    Ok(subnets)
}

/// Each host has the first address of its own part: there is no one gateway to choose.
fn check_gateway(made: &CreateNetwork, subnets: &[Subnet]) -> Result<(), DriverError> {
    if made.is_internal() {
        return Err(DriverError::User(
            "gateway=mesh leads into the world and --internal does not: leave one of them out"
                .into(),
        ));
    }
    let is_other = |s: &&Subnet| s.gateway.is_some_and(|ip| ip != gateway(s.net));
    match subnets.iter().find(is_other) {
        Some(Subnet { gateway: Some(ip), .. }) => Err(DriverError::User(format!(
            "--gateway {ip}: with gateway=mesh each host has the first address of its part of the \
             subnet, leave it out"
        ))),
        _ => Ok(()),
    }
}

fn port_request(binding: &PortBinding) -> Result<PortRequest, DriverError> {
    let proto = match i32::from(binding.proto) {
        libc::IPPROTO_TCP => Proto::Tcp,
        libc::IPPROTO_UDP => Proto::Udp,
        other => {
            return Err(DriverError::User(format!(
                "port {} of IP protocol {other} can not be published by gateway=mesh: only of TCP \
                 and UDP",
                binding.port
            )));
        }
    };
    Ok(PortRequest {
        proto,
        port: binding.port,
        host_ip: ip(&binding.host_ip),
        first: binding.host_port,
        last: binding.host_port_end,
    })
}

/// What an endpoint of Docker's is called here.
pub(super) fn endpoint_name(id: &str) -> String {
    format!("docker-{}", id.get(..12).unwrap_or(id))
}

pub fn is_dockers(endpoint: &str) -> bool {
    endpoint.starts_with("docker-")
}

/// As Docker makes them: the address tells the MAC.
fn mac_of(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    [0x02, 0x42, a, b, c, d]
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_or_follows_from_the_address() {
        assert_eq!(parse_mac("02:42:0a:00:09:02"), Some([2, 0x42, 10, 0, 9, 2]));
        assert_eq!(parse_mac(""), None);
        assert_eq!(parse_mac("02:42:0a:00:09"), None);
        assert_eq!(mac_of("10.0.9.2".parse().unwrap()), [2, 0x42, 10, 0, 9, 2]);
    }

    #[test]
    fn subnets_come_with_their_gateways() {
        let data = |pool: &str, gateway: &str| IpData {
            pool: pool.into(),
            gateway: gateway.into(),
            ..IpData::default()
        };
        let got = subnets(&[data("10.0.9.0/24", "10.0.9.1/24")], &[data("fd00:9::/64", "")]);
        let got = got.unwrap();
        assert_eq!(got[0].gateway, Some("10.0.9.1".parse().unwrap()));
        assert_eq!(got[1].gateway, None);
        assert!(subnets(&[data("0.0.0.0/0", "")], &[]).is_err());
        assert!(subnets(&[data("x", "")], &[]).is_err());
    }
}
