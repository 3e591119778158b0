//! Subnets and addresses, as Docker's IPAM asks for them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Docker,
    driver::{DriverError, cluster, is_dockers},
    ipam::overlap,
    options::{self, Options},
    protocol::{PoolId, RequestAddress, RequestPool, ip},
    saved::Local,
};
use crate::{
    config::{Flood, added_prefix_fault, gateway},
    host::{AddedNetwork, Host, HostError},
    names::forward::public_resolvers,
    net::{Address, Route},
};

/// Where networks without `--subnet` come from.
const CHOSEN_V4: [u8; 2] = [10, 201];
const CHOSEN_V6: [u16; 3] = [0xfd6d, 0x6573, 0x6800];

/// What is this host's own.
pub(super) struct Taken {
    routes: Vec<Route>,
    addresses: Vec<IpAddr>,
    resolvers: Vec<IpAddr>,
}

impl Taken {
    pub async fn look(host: &Host) -> Result<Self, HostError> {
        // On our own there is the network as other nodes have it: of IPv6, the kernel makes a route of
        // the gateway's address.
        let ours = host.state.host.as_ref().map(|mesh0| mesh0.index);
        let mut routes = host.net().routes().await?;
        routes.retain(|r| r.dst.prefix_len() > 0 && (r.ifindex.is_none() || r.ifindex != ours));
        let addresses = host.net().addresses().await?;
        let addresses = addresses.iter().filter(|a| Some(a.ifindex) != ours).map(Address::ip);
        Ok(Self { routes, addresses: addresses.collect(), resolvers: public_resolvers() })
    }

    /// Why `net` can not be a container network's on this host, `node`.
    pub fn fault(&self, net: IpNet, node: &str) -> Option<String> {
        let of = |what: String| format!("{net} {what}: choose another subnet");
        if let Some(route) = self.routes.iter().find(|r| overlap(r.dst, net)) {
            return Some(of(format!("overlaps a route of host {node}, {route}")));
        }
        if let Some(ip) = self.addresses.iter().find(|ip| net.contains(*ip)) {
            return Some(of(format!("holds {ip}, an address of host {node}")));
        }
        let resolver = self.resolvers.iter().find(|ip| net.contains(*ip))?;
        Some(of(format!("holds {resolver}, a resolver of host {node}")))
    }
}

impl Docker {
    pub(super) async fn request_pool(
        &mut self,
        host: &Host,
        asked: RequestPool,
    ) -> Result<Value, DriverError> {
        if !asked.sub_pool.is_empty() {
            return Err(DriverError::User(format!(
                "--ip-range {}: each node has its own part of a subnet already, leave it out",
                asked.sub_pool
            )));
        }
        let pool = if asked.pool.is_empty() {
            self.choose_pool(host, asked.v6).await?
        } else {
            let net: IpNet = asked.pool.parse().map_err(|_| {
                DriverError::User(format!("{:?} is no subnet, such as 10.0.9.0/24", asked.pool))
            })?;
            let net = net.trunc();
            let name = asked.options.get(options::NETWORK).map(String::as_str);
            self.check_free(host, net, name).await?;
            if self.saved.ipam.contains(net) {
                return Err(DriverError::User(format!("{net} is another mesh network's subnet")));
            }
            net
        };
        self.saved.ipam.add(pool);
        self.asked.insert(pool);
        let id = PoolId(pool).to_string();
        Ok(json!({"PoolID": id, "Pool": pool.to_string(), "Data": {}}))
    }

    /// A subnet that nobody has. Each node begins to look at another place, so that two do not come
    /// to the same.
    async fn choose_pool(&self, host: &Host, v6: bool) -> Result<IpNet, DriverError> {
        let start = self.me().bytes().fold(0u8, |h, b| h.wrapping_mul(31).wrapping_add(b));
        for n in 0..=255u8 {
            let n = n.wrapping_add(start);
            let net: IpNet = if v6 {
                let [a, b, c] = CHOSEN_V6;
                ipnet::Ipv6Net::new_assert([a, b, c, n.into(), 0, 0, 0, 0].into(), 64).into()
            } else {
                let [a, b] = CHOSEN_V4;
                ipnet::Ipv4Net::new_assert([a, b, n, 0].into(), 24).into()
            };
            let is_free = self.saved.ipam.overlapping(net).is_none();
            if is_free && self.check_free(host, net, None).await.is_ok() {
                return Ok(net);
            }
        }
        Err(DriverError::User("no subnet is left to choose: give one with --subnet".into()))
    }

    /// Fails if a subnet is somebody's: another network's than `name`, the underlay's, the host's.
    pub(super) async fn check_free(
        &self,
        host: &Host,
        net: IpNet,
        name: Option<&str>,
    ) -> Result<(), DriverError> {
        let cluster = cluster(host)?;
        if let Some(node) = cluster.nodes.iter().find(|n| net.contains(&n.underlay)) {
            return Err(DriverError::User(format!(
                "{net} holds {}, the underlay address of node {}: choose another subnet",
                node.underlay, node.name
            )));
        }
        for network in cluster.networks.iter().filter(|n| Some(n.name.as_str()) != name) {
            if let Some(cidr) = network.cidrs.iter().find(|cidr| overlap(**cidr, net)) {
                return Err(DriverError::User(format!(
                    "{net} overlaps {cidr} of network {}: choose another subnet",
                    network.name
                )));
            }
        }
        if let Some(fault) = added_prefix_fault(net) {
            return Err(DriverError::User(fault));
        }
        match Taken::look(host).await?.fault(net, self.me()) {
            Some(fault) => Err(DriverError::User(fault)),
            None => Ok(()),
        }
    }

    pub(super) fn request_address(
        &mut self,
        host: &Host,
        asked: &RequestAddress,
    ) -> Result<Value, DriverError> {
        let pool = asked.pool.0;
        let wanted = match asked.address.as_str() {
            "" => None,
            text => Some(
                ip(text)
                    .filter(|ip| pool.contains(ip))
                    .ok_or_else(|| DriverError::User(format!("{text} is no address of {pool}")))?,
            ),
        };
        let address = if asked.is_gateway() {
            self.saved.ipam.gateway(pool, wanted)
        } else if !self.is_known(pool) {
            // Docker had it before this agent, and nobody has told yet what it is.
            return Err(DriverError::NotYet { network: pool.to_string() });
        } else if let (true, Some(aux)) = (self.asked.contains(&pool), wanted) {
            // Of a network that is about to be made: set aside by its maker.
            self.saved.ipam.hold(pool, aux);
            aux
        } else {
            let blocks = self.own_blocks(host, &[pool])?;
            // Of containers that others than Docker attached; let go as leaks are.
            let others = host.state.endpoints.iter().filter(|(name, _)| !is_dockers(name));
            let addresses = others.flat_map(|(_, endpoint)| &endpoint.addresses);
            for address in addresses.filter(|ip| pool.contains(*ip)) {
                self.saved.ipam.hold(pool, *address);
            }
            if self.has_gateway(pool) {
                blocks.iter().for_each(|block| self.saved.ipam.hold(pool, gateway(*block)));
            }
            self.saved.ipam.take(pool, &blocks, wanted)?
        };
        Ok(json!({"Address": format!("{address}/{}", pool.prefix_len()), "Data": {}}))
    }

    fn is_known(&self, pool: IpNet) -> bool {
        self.asked.contains(&pool)
            || self.network_of(pool).is_some()
            || self.shared_network_of(pool).is_some()
    }

    /// The local network that has this pool.
    pub(super) fn network_of(&self, pool: IpNet) -> Option<&Local> {
        self.saved.networks.values().find(|n| n.subnets.iter().any(|s| s.net == pool))
    }

    /// Is the first address of each node's part its host's?
    fn has_gateway(&self, pool: IpNet) -> bool {
        let options = match self.network_of(pool) {
            Some(local) => Some(Options::parse(&local.options)),
            None => self.shared_network_of(pool).map(|(_, spec)| Options::parse(&spec.options)),
        };
        options.is_some_and(|options| options.is_ok_and(|options| options.gateway))
    }

    /// This node's parts of pools of one network.
    pub(super) fn own_blocks(
        &self,
        host: &Host,
        pools: &[IpNet],
    ) -> Result<Vec<IpNet>, DriverError> {
        let pool = pools.first();
        let first = match pool.and_then(|pool| self.network_of(*pool)) {
            Some(local) => local
                .name
                .as_ref()
                .and_then(|name| self.shared.lock().network(name).map(|spec| spec.first.clone())),
            None => pool.and_then(|pool| Some(self.shared_network_of(*pool)?.1.first)),
        };
        let network = AddedNetwork {
            name: String::new(),
            vni: 0,
            cidrs: pools.to_vec(),
            first: first.unwrap_or_else(|| self.me().to_owned()),
            gateway: false,
            flood: Flood::None,
        };
        Ok(network.blocks(&cluster(host)?, self.me()))
    }
}
