//! `mesh0`: the host's own interface to the overlay, with the first address of its subnets.
//!
//! One end of a veth pair. What the host sends there is taken by `from_endpoint` at its egress and never
//! reaches the other end; what is for the host is put in at its ingress.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{ALIAS, Host, HostError, ROUTE_PROTOCOL};
use crate::{
    bpf::attach::Interface,
    compile::{self, Attachment, AttachmentKind},
    config::{Cluster, Node, Vni, gateway},
    net::{Link, PairKind, Route, RouteSpec, Veth},
};

pub const NAME: &str = "mesh0";
const OTHER_END: &str = "mesh0-end";

impl Host {
    /// This node's own addresses: the first of each of its subnets in the cluster's own network,
    /// one for each family.
    pub(super) fn host_addresses(&self, me: &Node) -> Vec<IpAddr> {
        let own = || me.subnets.iter().filter(|(vni, _)| *vni == Vni::DEFAULT).map(|(_, net)| net);
        let first =
            |v4: bool| own().find(|net| net.addr().is_ipv4() == v4).map(|net| gateway(*net));
        [first(true), first(false)].into_iter().flatten().collect()
    }

    /// Makes `mesh0`, or makes right what is there of it.
    pub(super) async fn ensure_mesh0(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        underlay_mtu: u32,
    ) -> Result<(), HostError> {
        let mtu = compile::container_mtu(cluster, Vni::DEFAULT, underlay_mtu).unwrap_or_else(|m| m);
        let mac = compile::node_mac(me.underlay);
        let link = match self.net.link_by_name(NAME).await? {
            Some(link) if is_unfinished(&link) => {
                self.net.delete_link(link.index).await?;
                self.make_mesh0(mac, mtu).await?
            }
            Some(link) if is_ours(&link) => link,
            Some(_) => {
                return Err(HostError::User(format!(
                    "there is an interface {NAME} that mesh did not make: rename it \
                     (`ip link set {NAME} name OTHER`)"
                )));
            }
            None => {
                self.clear_away_renamed().await?;
                self.make_mesh0(mac, mtu).await?
            }
        };
        if link.mac != Some(mac) {
            self.net.set_mac(link.index, mac).await?;
        }
        if link.mtu != mtu {
            self.net.set_mtu(link.index, mtu).await?;
        }
        let host = Some(Interface { name: NAME.into(), index: link.index });
        if self.state.host != host {
            self.state.host = host;
            self.note();
        }
        self.ensure_up(&link).await?;
        self.ensure_addresses(link.index, me).await
    }

    /// Removes what is left of the pair where somebody gave one of its ends another name.
    async fn clear_away_renamed(&self) -> Result<(), HostError> {
        let ends = [format!("{ALIAS}host"), format!("{ALIAS}end")];
        let links = self.net.links().await?;
        let is_end = |l: &&Link| l.alias.as_ref().is_some_and(|alias| ends.contains(alias));
        match links.iter().find(is_end) {
            Some(link) => Ok(self.net.delete_link(link.index).await?),
            None => Ok(()),
        }
    }

    async fn make_mesh0(&self, mac: [u8; 6], mtu: u32) -> Result<Link, HostError> {
        let veth = Veth {
            name: NAME,
            mac,
            mtu,
            alias: Some(&format!("{ALIAS}host")),
            peer_name: OTHER_END,
            peer_mac: [0x02, 0x6d, 0, 0, 0, 0],
            peer_mtu: mtu,
            peer_netns: None,
        };
        let pair = self.net.add_veth(PairKind::Veth, &veth).await?;
        self.net.set_alias(pair.peer_ifindex, &format!("{ALIAS}end")).await?;
        let made = self.net.link(pair.ifindex).await?;
        made.ok_or_else(|| HostError::User(format!("somebody removed {NAME} just now")))
    }

    /// Both ends up, also where whoever made them did not come this far.
    async fn ensure_up(&self, link: &Link) -> Result<(), HostError> {
        if !link.up {
            // Nobody is to be asked for a MAC: the program knows them all.
            self.net.set_no_arp(link.index).await?;
            self.net.set_up(link.index).await?;
        }
        let Some(end) = link.peer else { return Ok(()) };
        if self.net.link(end).await?.is_some_and(|end| !end.up) {
            self.net.set_up(end).await?;
        }
        Ok(())
    }

    async fn ensure_addresses(&self, ifindex: u32, me: &Node) -> Result<(), HostError> {
        let mut wanted = self.host_addresses(me);
        wanted.extend(self.gateways(me));
        let mut there = self.net.addresses().await?;
        there.retain(|address| address.ifindex == ifindex);
        let mut faults = BTreeMap::new();
        for address in there.iter().filter(|address| !wanted.contains(&address.ip())) {
            let (ip, len) = (address.ip(), address.net.prefix_len());
            if let Err(e) = self.net.remove_address(ifindex, ip, len).await {
                faults.insert(ip.to_string(), e.to_string());
            }
        }
        wanted.retain(|ip| !there.iter().any(|address| address.ip() == *ip));
        for ip in wanted {
            if let Err(e) = self.net.add_address(ifindex, ip, full_len(ip)).await {
                faults.insert(ip.to_string(), e.to_string());
            } else if !self.net.wait_until_local(ip).await? {
                tracing::warn!(address = %ip, "{NAME} can not be reached at it yet");
            }
        }
        // One family that this host has not stops no other.
        self.faults.set_all("mesh0", faults);
        Ok(())
    }

    /// Routes to the cluster's own network, from our own address in it.
    fn host_routes(&self, cluster: &Cluster, me: &Node, ifindex: u32) -> Vec<RouteSpec> {
        let addresses = self.host_addresses(me);
        let source =
            |net: &IpNet| addresses.iter().find(|a| a.is_ipv4() == net.addr().is_ipv4()).copied();
        let networks = cluster.networks.iter().filter(|n| n.vni == Vni::DEFAULT);
        let cidrs = networks.flat_map(|n| &n.cidrs);
        cidrs
            .flat_map(|net| self.beside_bridges(*net, me))
            .filter_map(|net| {
                Some(RouteSpec {
                    dst: net,
                    ifindex,
                    gateway: None,
                    source: Some(source(&net)?),
                    onlink: false,
                    mtu: None,
                    protocol: ROUTE_PROTOCOL,
                })
            })
            .collect()
    }

    /// Fails if somebody else has a route to a prefix of ours, before anything was changed. Where ours
    /// is there too, it came later: that is a fault, and stops nothing.
    pub(super) async fn check_routes(&self, cluster: &Cluster, me: &Node) -> Result<(), HostError> {
        let routes = self.net.routes().await?;
        let is_new = |spec: &RouteSpec| {
            !routes.iter().any(|r| r.dst == spec.dst && r.protocol == ROUTE_PROTOCOL)
        };
        let mut new = self.host_routes(cluster, me, 0).into_iter().filter(is_new);
        match new.find_map(|spec| taken(&routes, &spec)) {
            Some(fault) => Err(HostError::User(fault)),
            None => Ok(()),
        }
    }

    pub(super) async fn ensure_host_routes(
        &self,
        cluster: &Cluster,
        me: &Node,
    ) -> Result<(), HostError> {
        let Some(host) = &self.state.host else { return Ok(()) };
        let wanted = self.host_routes(cluster, me, host.index);
        let routes = self.net.routes().await?;
        let mut faults = BTreeMap::new();
        for route in &routes {
            let ours = route.ifindex == Some(host.index) && route.protocol == ROUTE_PROTOCOL;
            if ours && !wanted.iter().any(|w| w.dst == route.dst) {
                let old = RouteSpec {
                    dst: route.dst,
                    ifindex: host.index,
                    gateway: None,
                    source: None,
                    onlink: false,
                    mtu: None,
                    protocol: ROUTE_PROTOCOL,
                };
                if let Err(e) = self.net.remove_route(&old).await {
                    faults.insert(route.dst.to_string(), e.to_string());
                }
            }
        }
        for spec in wanted {
            let added = self.net.add_route(&spec).await.map_err(|e| e.to_string());
            let fault = taken(&routes, &spec).or_else(|| added.err());
            faults.extend(fault.map(|fault| (spec.dst.to_string(), fault)));
        }
        self.faults.set_all("route", faults);
        Ok(())
    }

    /// Everything that is attached here, `mesh0` first.
    pub(super) fn attachments(&self, cluster: &Cluster, me: &Node) -> Vec<Attachment> {
        let host = self.state.host.iter().map(|host| Attachment {
            vni: Vni::DEFAULT,
            ifindex: host.index,
            id: 0,
            addresses: self.all_host_addresses(me),
            mac: compile::node_mac(me.underlay),
            kind: AttachmentKind::Host,
        });
        let known = |vni: u32| cluster.networks.iter().find(|n| n.vni.get() == vni).map(|n| n.vni);
        // Of one that was cut short there may be no interface.
        let made = self.state.endpoints.values().filter(|e| e.host.index != 0);
        let containers = made.filter_map(|e| {
            Some(Attachment {
                vni: known(e.vni)?,
                ifindex: e.host.index,
                id: e.id,
                addresses: e.addresses.clone(),
                mac: e.mac,
                kind: match e.bridged {
                    Some(_) => AttachmentKind::Bridged,
                    None if e.netkit => AttachmentKind::Netkit,
                    None => AttachmentKind::Container,
                },
            })
        });
        host.chain(containers).collect()
    }
}

/// Somebody else's route to the same prefix, and the way out.
fn taken(routes: &[Route], spec: &RouteSpec) -> Option<String> {
    let is_taken = |r: &&Route| r.dst == spec.dst && r.protocol != ROUTE_PROTOCOL;
    routes.iter().find(is_taken).map(|route| {
        format!(
            "this host has a route to {} already: {route}; remove it (`ip route del {}`), give the \
             cluster another cidr, or, if it is a bridge's, attach that (`attach.bridges`)",
            spec.dst, spec.dst
        )
    })
}

/// The index of the end that `mesh0` is not.
pub(super) fn other_end(links: &[Link]) -> Option<u32> {
    links.iter().find(|l| l.name == OTHER_END && is_ours(l)).map(|l| l.index)
}

pub(super) fn is_ours(link: &Link) -> bool {
    match &link.alias {
        Some(alias) => alias.starts_with(ALIAS),
        None => is_unfinished(link),
    }
}

/// The kernel takes an alias only of an interface that exists: one that we were making when we were
/// killed has none yet, but its name and its MAC from the start.
pub(super) fn is_unfinished(link: &Link) -> bool {
    link.alias.is_none() && looks_ours(link)
}

/// By name and MAC, which it has from the start.
pub(super) fn looks_ours(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "netkit" | "bridge" | "vxlan" | "geneve"))
        && link.name.starts_with("mesh")
        && link.mac.is_some_and(|mac| mac.starts_with(&compile::MAC_PREFIX))
}

/// May be the host's end of an endpoint, by its kind.
pub(super) fn is_host_end(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "netkit"))
        && link.name != NAME
        && link.name != OTHER_END
}

/// The prefix length of a single address.
pub(super) fn full_len(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}
