//! The way into the world for networks with `gateway=mesh`: this host is their containers' router.
//!
//! What is for nobody in such a network the program gives to the host's stack, as if it came in by
//! `mesh0` ([`mesh_common::maps::NetworkInfo::world`]), and it is routed and masqueraded as by any
//! router. The gateway's address is the first of this node's part of the network, so that each
//! host is the gateway of its own containers; it is on `mesh0`, for who asks the gateway itself. Back
//! leads a route to each container's address, by the host's end of its interface, past the programs:
//! a source from the world is none that `from_endpoint` would let pass.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Host, HostError, ROUTE_PROTOCOL, firewall, mesh0};
use crate::{
    config::{Cluster, Node, Vni, gateway},
    faults::Of,
    net::{Link, Neighbour, Route, RouteSpec},
    state::{Endpoint, State},
};

mod follow;
mod forward;
mod ports;
mod proxy;
mod rules;

pub(super) use ports::Held;
pub use ports::PortRequest;
use rules::{Nets, TABLE};

/// What this process knows of it.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    table: firewall::Table,
    held: Held,
    /// Why the rules are not those of now.
    unruled: Option<String>,
    /// As the kernel follows them.
    ways: follow::Ways,
}

impl Gateways {
    pub fn suspect_table(&mut self) {
        self.table.suspect();
    }
}

impl Host {
    pub(super) fn is_gateway_of(&self, endpoint: &Endpoint) -> bool {
        // One that was cut short may have no interface.
        self.has_gateway(endpoint.vni) && endpoint.host.index != 0
    }

    /// This host's addresses as a gateway.
    pub(super) fn gateways(&self, me: &Node) -> Vec<IpAddr> {
        let ours = self.state.networks.iter().filter_map(|n| Vni::new(n.vni));
        ours.flat_map(|vni| self.gateways_of(me, vni)).collect()
    }

    /// Those of them in one network.
    pub(super) fn gateways_of(&self, me: &Node, vni: Vni) -> Vec<IpAddr> {
        match self.has_gateway(vni.get()) {
            true => me.subnets_of(vni).map(gateway).collect(),
            false => Vec::new(),
        }
    }

    /// Tells what is not as it should be, of each network that it bears on.
    fn tell_gateway_faults(&self, faults: &[String]) {
        let names = self.state.networks.iter().filter(|n| n.gateway).map(|n| &n.name);
        let of = |name: &String| {
            let of = Of::Network(name.clone());
            faults.iter().map(move |fault| (of.clone(), fault.clone()))
        };
        self.faults.set_all_of("gateway", names.flat_map(of));
    }

    /// [`mesh_common::maps::NetworkInfo::world`] by VNI.
    pub(super) fn worlds(&self) -> BTreeMap<u32, u32> {
        let Some(mesh0) = &self.state.host else { return BTreeMap::new() };
        let ours = self.state.networks.iter().filter(|n| n.gateway);
        ours.map(|n| (n.vni, mesh0.index)).collect()
    }

    /// Is this host the gateway of any network?
    pub(super) fn is_gateway(&self) -> bool {
        self.state.networks.iter().any(|n| n.gateway)
    }

    fn has_gateway(&self, vni: u32) -> bool {
        self.state.networks.iter().any(|n| n.vni == vni && n.gateway)
    }

    /// Also what somebody else took away, or made necessary, since.
    pub async fn refresh_gateways(&mut self) -> Result<(), HostError> {
        let cluster = self.adopt()?;
        let done = async {
            let me = super::find(&cluster, &self.state.node)?;
            let before = self.state.clone();
            self.ensure_gateways(&cluster, &me).await?;
            if self.state != before { self.save() } else { Ok(()) }
        };
        let done = done.await;
        self.cluster = Some(cluster);
        done
    }

    /// Makes the ways back and the rules be there, and not be there where no network needs them.
    pub(super) async fn ensure_gateways(
        &mut self,
        cluster: &Cluster,
        me: &Node,
    ) -> Result<(), HostError> {
        if !self.is_gateway() {
            self.gateways = Gateways::default();
            firewall::forget(TABLE, &self.faults);
            self.tell_gateway_faults(&[]);
            let left = remove(&self.state).err();
            let tell = |e| format!("rules of networks that are gone may be left: {e}; tried again");
            self.faults.set(LEFT, left.as_ref().map(tell));
            if left.is_none() && std::mem::take(&mut self.state.gateways) {
                set(mesh0::NAME, LOCALNET, "0");
            }
            return Ok(());
        }
        let ways_back = self.ensure_ways_back(me).await?;
        self.faults.set(LEFT, None);
        // Its packets come in where no route leads to who sent them: strict (1) would drop them.
        set(mesh0::NAME, "rp_filter", "2");
        set(mesh0::NAME, LOCALNET, "1");
        let mut faults = sysctl_faults(self.gateway_nets().any(|net| net.addr().is_ipv6()));
        faults.extend(ways_back.into_values());
        faults.extend(self.gateways.held.follow(&self.state, &self.supervisor));
        if !self.state.gateways {
            self.state.gateways = true;
            self.save()?;
        }
        let rules = self.gateway_rules(cluster).await?;
        let ensured = firewall::ensure(TABLE, rules, &self.gateways.table, &self.faults);
        let unruled = ensured.map(|table| self.gateways.table = table).err();
        self.gateways.unruled = unruled.map(|e| format!("containers do not reach the world: {e}"));
        faults.extend(self.gateways.unruled.clone());
        faults.extend(self.follow_ports().await?);
        let nets: Vec<IpNet> = self.gateway_nets().collect();
        faults.extend(
            forward::ensure(&nets).err().map(|e| {
                format!("containers may not reach the world, by the policy of FORWARD: {e}")
            }),
        );
        self.tell_gateway_faults(&faults);
        Ok(())
    }

    /// After the rules: from then on a conversation that begins anew goes the new way. Returns what
    /// is not as it should be.
    async fn follow_ports(&mut self) -> Result<Option<String>, HostError> {
        let ways = follow::ways(self.state.endpoints.values().filter(|e| self.is_gateway_of(e)));
        if ways == self.gateways.ways {
            return Ok(None);
        }
        let own: Vec<IpAddr> =
            self.net.addresses().await?.iter().map(crate::net::Address::ip).collect();
        if let Err(e) = follow::follow(&self.gateways.ways, &ways, &own) {
            return Ok(Some(format!(
                "who keeps sending to a port in UDP may not get to its container of now: {e}"
            )));
        }
        self.gateways.ways = ways;
        Ok(None)
    }

    fn gateway_nets(&self) -> impl Iterator<Item = IpNet> {
        self.state.networks.iter().filter(|n| n.gateway).flat_map(|n| &n.cidrs).copied()
    }

    async fn gateway_rules(&self, cluster: &Cluster) -> Result<String, HostError> {
        let (own, others): (Vec<_>, Vec<_>) =
            cluster.networks.iter().partition(|n| n.vni == Vni::DEFAULT);
        let nets = Nets {
            gateway: self.gateway_nets().collect(),
            // Also of those that the maps have no room for.
            overlay: own.iter().flat_map(|n| &n.cidrs).copied().collect(),
            networks: others.iter().flat_map(|n| &n.cidrs).copied().collect(),
        };
        let links = self.net.links().await?;
        let is_bridge = |link: &&Link| link.kind.as_deref() == Some("bridge");
        let bridges = links.iter().filter(is_bridge).map(|link| link.name.as_str());
        let bridges = bridges.filter(|name| is_dockers(name));
        let ports = self.state.endpoints.values().filter(|e| self.is_gateway_of(e));
        let ports = ports.flat_map(|e| e.ports.iter().map(|port| (port, e.addresses.as_slice())));
        Ok(rules::rules(&nets, &bridges.collect::<Vec<_>>(), ports))
    }

    /// Routes to the containers here, each with its MAC: none of them is to be asked for it. Returns
    /// what is wrong, by endpoint.
    pub(super) async fn ensure_ways_back(
        &self,
        me: &Node,
    ) -> Result<BTreeMap<String, String>, HostError> {
        let routes = self.net.routes().await?;
        let neighbours = self.net.neighbours().await?;
        let mut faults = BTreeMap::new();
        for (name, endpoint) in self.state.endpoints.iter().filter(|(_, e)| self.is_gateway_of(e)) {
            set(&endpoint.host.name, LOCALNET, "1");
            if let Err(e) = self.ensure_way_back(me, endpoint, &routes, &neighbours).await {
                faults.insert(name.clone(), format!("the world does not reach {name}: {e}"));
            }
        }
        Ok(faults)
    }

    async fn ensure_way_back(
        &self,
        me: &Node,
        endpoint: &Endpoint,
        routes: &[Route],
        neighbours: &HashMap<(u32, IpAddr), Neighbour>,
    ) -> Result<(), HostError> {
        let ifindex = endpoint.host.index;
        for ip in &endpoint.addresses {
            let known = neighbours.get(&(ifindex, *ip));
            if known.is_none_or(|n| !n.fixed || n.mac != Some(endpoint.mac)) {
                self.net.fix_neighbour(ifindex, *ip, endpoint.mac).await?;
            }
            let route = way_back(me, endpoint, *ip);
            if !routes.iter().any(|there| there.dst == route.dst && there.is(&route)) {
                self.net.add_route(&route).await?;
            }
        }
        Ok(())
    }
}

fn way_back(me: &Node, endpoint: &Endpoint, ip: IpAddr) -> RouteSpec {
    let blocks = me.subnets.iter().filter(|(vni, _)| vni.get() == endpoint.vni);
    let block = blocks.map(|(_, block)| *block).find(|block| block.contains(&ip));
    RouteSpec {
        dst: ip.into(),
        ifindex: endpoint.host.index,
        gateway: None,
        source: block.map(gateway),
        onlink: false,
        // The host's end takes any size, and the container's drops what is larger without a word.
        mtu: Some(endpoint.mtu),
        protocol: ROUTE_PROTOCOL,
    }
}

/// The faults' part of rules that nobody needs.
const LEFT: &str = "gateway rules";

/// Takes the rules away; routes go with their interfaces.
pub(super) fn remove(state: &State) -> Result<(), HostError> {
    let is_lost = state.node.is_empty();
    if state.gateways || is_lost && firewall::is_there(TABLE)? {
        forward::ensure(&[])?;
        firewall::remove_table(TABLE)?;
    }
    Ok(())
}

/// A bridge of Docker's, by its name: containers of one network do not reach those of another.
pub(super) fn is_dockers(name: &str) -> bool {
    let is_chosen = |name: &str| {
        let id = name.strip_prefix("br-");
        id.is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    matches!(name, "docker0" | "docker_gwbridge") || is_chosen(name)
}

/// With it the host may ask for a published port at 127.0.0.1 (at `[::1]` there is the [`proxy`]); the
/// program keeps containers from that.
const LOCALNET: &str = "route_localnet";

/// A setting of an interface of ours, for IPv4.
fn set(ifname: &str, name: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{ifname}/{name}");
    if std::fs::read(&path).is_ok_and(|now| now.trim_ascii() != value.as_bytes())
        && let Err(e) = std::fs::write(&path, value)
    {
        tracing::warn!("{path}: {e}");
    }
}

fn sysctl_faults(v6: bool) -> Vec<String> {
    let mut wanted = vec![("net.ipv4.ip_forward", "net/ipv4/ip_forward")];
    if v6 {
        wanted.push(("net.ipv6.conf.all.forwarding", "net/ipv6/conf/all/forwarding"));
    }
    let is_off = |path: &str| {
        let value = std::fs::read(format!("/proc/sys/{path}"));
        value.is_ok_and(|value| value.starts_with(b"0"))
    };
    let fault = |name: &str| {
        format!("containers do not reach the world: {name} is 0 (`sysctl -w {name}=1`)")
    };
    wanted.iter().filter(|(_, path)| is_off(path)).map(|(name, _)| fault(name)).collect()
}
