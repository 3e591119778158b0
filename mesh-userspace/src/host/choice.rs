//! What an endpoint is given where the user does not say: name, addresses, number, MAC.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
};

use ipnet::IpNet;

use super::{AttachRequest, Host, HostError, endpoint::id_of};
use crate::{
    compile::fnv1a,
    config::{Cluster, Network, Node, Vni, bits, from_bits, gateway},
    near,
    net::{own_netns, same_netns},
};

/// Endpoints on one host; `ENDPOINT_STATS` has a row for each, and one for the host.
const MAX_ENDPOINTS: usize = 4095;

impl Host {
    /// The name: as given, else the namespace's own, with the network's if that is taken.
    pub(super) fn name_for(
        &self,
        request: &AttachRequest,
        network: &Network,
        netns: BorrowedFd<'_>,
    ) -> Result<String, HostError> {
        if same_netns(netns, own_netns()?.as_fd()) {
            return Err(HostError::User(
                "that is the namespace of this host, which has mesh0; give a container's".into(),
            ));
        }
        let id = id_of(netns);
        let vni = network.vni.get();
        let mut endpoints = self.state.endpoints.iter();
        if let Some((name, _)) = endpoints.find(|(_, e)| e.netns_id == id && e.vni == vni) {
            return Err(HostError::User(format!(
                "that namespace is attached to network {} already, as {name:?}; \
                 `mesh detach {name}` takes it off",
                network.name
            )));
        }
        if let Some(name) = &request.name {
            check_name(name)?;
            return match self.state.endpoints.get(name) {
                Some(e) => Err(HostError::User(format!(
                    "there is an endpoint {name:?} already, for {}; give another --name",
                    e.netns
                ))),
                None => Ok(name.clone()),
            };
        }
        let base = default_name(&request.netns);
        let candidates = [base.clone(), format!("{base}-{}", network.name)];
        let free = candidates.into_iter().find(|n| !self.state.endpoints.contains_key(n));
        let name = free.ok_or_else(|| {
            HostError::User(format!("there is an endpoint {base:?} already; give a --name"))
        })?;
        check_name(&name)?;
        Ok(name)
    }

    /// The addresses asked for, checked, and for each other family of the network the first free.
    pub(super) fn addresses_for(
        &self,
        me: &Node,
        network: &Network,
        request: &AttachRequest,
    ) -> Result<Vec<IpAddr>, HostError> {
        let subnets: Vec<&IpNet> =
            me.subnets.iter().filter(|(vni, _)| *vni == network.vni).map(|(_, n)| n).collect();
        let taken: HashSet<IpAddr> = self
            .state
            .endpoints
            .values()
            .filter(|e| e.vni == network.vni.get())
            .flat_map(|e| e.addresses.iter().copied())
            .chain(subnets.iter().map(|net| gateway(**net)))
            .chain(request.reserved.iter().copied())
            .collect();
        let mut chosen = Vec::new();
        for v4 in [true, false] {
            // Whoever owns a bridge gives out the first ones.
            let highest = self.bridges.share_subnet(v4);
            let of_family = |ip: &&IpAddr| ip.is_ipv4() == v4;
            let subnets = || subnets.iter().copied().filter(|net| net.addr().is_ipv4() == v4);
            match request.addresses.iter().filter(of_family).collect::<Vec<_>>().as_slice() {
                [] if subnets().next().is_none() => {}
                [] => {
                    let ranges: Vec<_> =
                        request.ranges.iter().filter(|(first, _)| first.is_ipv4() == v4).collect();
                    let found = subnets().find_map(|net| match ranges.as_slice() {
                        [] => free(net, &taken, highest),
                        some => some.iter().find_map(|range| free_in(net, range, &taken, highest)),
                    });
                    chosen.push(found.ok_or_else(|| none_free(subnets(), &ranges))?);
                }
                [ip] => chosen.push(check_asked(**ip, subnets(), &taken, me, network)?),
                _ => {
                    return Err(HostError::User(
                        "at most one address of each family can be asked for".into(),
                    ));
                }
            }
        }
        if chosen.is_empty() {
            return Err(HostError::User(format!(
                "node {} has no subnet in network {}: add one to the config file",
                me.name, network.name
            )));
        }
        Ok(chosen)
    }

    pub(super) fn free_id(&self) -> Result<u32, HostError> {
        let used: HashSet<u32> = self.state.endpoints.values().map(|e| e.id).collect();
        (1..=MAX_ENDPOINTS as u32).find(|id| !used.contains(id)).ok_or_else(|| {
            HostError::User(format!("{MAX_ENDPOINTS} endpoints on one host is all there can be"))
        })
    }
}

pub(super) fn find_network<'a>(
    cluster: &'a Cluster,
    name: Option<&str>,
) -> Result<&'a Network, HostError> {
    let Some(name) = name else {
        return cluster.networks.first().ok_or_else(|| HostError::User("no network".into()));
    };
    cluster.networks.iter().find(|n| n.name == name).ok_or_else(|| {
        let known = near::closest(name, cluster.networks.iter().map(|n| n.name.as_str()));
        HostError::User(format!("there is no network {name:?}; there are {known}"))
    })
}

fn check_asked<'a>(
    ip: IpAddr,
    mut subnets: impl Iterator<Item = &'a IpNet>,
    taken: &HashSet<IpAddr>,
    me: &Node,
    network: &Network,
) -> Result<IpAddr, HostError> {
    let Some(net) = subnets.find(|net| net.contains(&ip)) else {
        return Err(HostError::User(format!(
            "{ip} is not in a subnet that node {} has in network {}; leave --ip out to have one \
             chosen",
            me.name, network.name
        )));
    };
    let is_edge = ip == net.network() || net.addr().is_ipv4() && ip == net.broadcast();
    if is_edge || ip == gateway(*net) {
        return Err(HostError::User(format!(
            "{ip} is not for a container: the first address of {net} is the host's own, and the \
             network and broadcast addresses are nobody's"
        )));
    }
    if taken.contains(&ip) {
        return Err(HostError::User(format!("{ip} is taken by another endpoint of this host")));
    }
    Ok(ip)
}

fn none_free<'a>(
    subnets: impl Iterator<Item = &'a IpNet>,
    ranges: &[&(IpAddr, IpAddr)],
) -> HostError {
    let full: Vec<_> = subnets.map(IpNet::to_string).collect();
    let of: Vec<_> = ranges.iter().map(|(first, last)| format!("{first} to {last}")).collect();
    HostError::User(match of.as_slice() {
        [] => format!(
            "no address is free in {}: detach an endpoint or give the node a larger subnet",
            full.join(", ")
        ),
        of => format!(
            "no address of the range {} is free in this node's part of the network, {}",
            of.join(", "),
            full.join(", ")
        ),
    })
}

/// The lowest free address, or the highest, neither the network's, the gateway's nor the broadcast
/// address.
fn free(net: &IpNet, taken: &HashSet<IpAddr>, highest: bool) -> Option<IpAddr> {
    free_in(net, &(net.network(), net.broadcast()), taken, highest)
}

/// The same within a range.
fn free_in(
    net: &IpNet,
    (low, high): &(IpAddr, IpAddr),
    taken: &HashSet<IpAddr>,
    highest: bool,
) -> Option<IpAddr> {
    let v4 = net.addr().is_ipv4();
    let first = (bits(net.network()) + 2).max(bits(*low));
    let last = bits(net.broadcast()).checked_sub(u128::from(v4))?.min(bits(*high));
    // One more candidate than are taken is enough.
    let candidates = (0..=taken.len() as u128).filter(|n| *n <= last.wrapping_sub(first));
    let mut candidates =
        candidates.map(|n| from_bits(if highest { last - n } else { first + n }, v4));
    if first <= last { candidates.find(|ip| !taken.contains(ip)) } else { None }
}

fn check_name(name: &str) -> Result<(), HostError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(fine) {
        return Err(HostError::User(format!(
            "an endpoint cannot be named {name:?}: give a --name of letters, digits, '-', '_' and \
             '.', at most 128"
        )));
    }
    Ok(())
}

/// The last part of the path, or of a pid "pid-1234".
fn default_name(netns: &str) -> String {
    if netns.bytes().all(|b| b.is_ascii_digit()) {
        return format!("pid-{netns}");
    }
    let mut parts = netns.rsplit('/').filter(|p| !p.is_empty());
    match (parts.next(), parts.next(), parts.next()) {
        (Some("net"), Some("ns"), Some(pid)) => format!("pid-{pid}"),
        (Some(last), ..) => last.to_owned(),
        (None, ..) => "endpoint".to_owned(),
    }
}

/// A name for the host's end that the same endpoint always has: FNV-1a of its name.
pub(super) fn host_ifname(name: &str) -> String {
    format!("mesh{:08x}", fnv1a(name.as_bytes()))
}

/// A MAC that follows from network and address: the same container, the same MAC.
pub(super) fn container_mac(vni: Vni, addresses: &[IpAddr]) -> [u8; 6] {
    let mut bytes = vni.get().to_be_bytes().to_vec();
    match addresses.first() {
        Some(IpAddr::V4(ip)) => bytes.extend(ip.octets()),
        Some(IpAddr::V6(ip)) => bytes.extend(ip.octets()),
        None => {}
    }
    let [a, b, c, d] = fnv1a(&bytes).to_be_bytes();
    [0x02, 0x6e, a, b, c, d]
}

/// RFC 4291, appendix A.
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ips: &[&str]) -> HashSet<IpAddr> {
        ips.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_free_address_skips_gateway_and_taken() {
        let net = "10.42.0.0/24".parse().unwrap();
        let got = free(&net, &taken(&["10.42.0.1", "10.42.0.2", "10.42.0.4"]), false);
        assert_eq!(got, Some("10.42.0.3".parse().unwrap()));
        let net = "fd00::/64".parse().unwrap();
        assert_eq!(free(&net, &taken(&["fd00::1"]), false), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn the_last_free_address_is_the_highest_that_is_not_the_broadcast() {
        let net = "10.42.0.0/24".parse().unwrap();
        let got = free(&net, &taken(&["10.42.0.1", "10.42.0.254"]), true);
        assert_eq!(got, Some("10.42.0.253".parse().unwrap()));
        let one = "10.42.0.0/30".parse().unwrap();
        assert_eq!(free(&one, &taken(&["10.42.0.1", "10.42.0.2"]), true), None);
    }

    #[test]
    fn a_range_is_kept_to() {
        let net = "10.42.0.0/24".parse().unwrap();
        let within = |low: &str, high: &str, gone: &[&str]| {
            let range = (low.parse().unwrap(), high.parse().unwrap());
            free_in(&net, &range, &taken(gone), false).map(|ip| ip.to_string())
        };
        assert_eq!(within("10.42.0.9", "10.42.0.10", &[]).unwrap(), "10.42.0.9");
        assert_eq!(within("10.42.0.9", "10.42.0.10", &["10.42.0.9"]).unwrap(), "10.42.0.10");
        assert_eq!(within("10.42.0.9", "10.42.0.10", &["10.42.0.9", "10.42.0.10"]), None);
        assert_eq!(within("10.42.0.0", "10.42.0.1", &[]), None);
        assert_eq!(within("10.41.0.0", "10.43.0.0", &[]).unwrap(), "10.42.0.2");
        assert_eq!(within("10.42.0.255", "10.43.0.0", &[]), None);
    }

    #[test]
    fn a_full_subnet_has_no_free_address() {
        let net = "10.42.0.0/30".parse().unwrap();
        assert_eq!(free(&net, &taken(&["10.42.0.1", "10.42.0.2"]), false), None);
    }

    #[test]
    fn a_large_subnet_is_not_walked() {
        let net = "fd00::/8".parse().unwrap();
        assert_eq!(free(&net, &taken(&[]), false), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn names_come_from_what_the_user_typed() {
        assert_eq!(default_name("c1"), "c1");
        assert_eq!(default_name("/run/netns/c1"), "c1");
        assert_eq!(default_name("4711"), "pid-4711");
        assert_eq!(default_name("/proc/4711/ns/net"), "pid-4711");
    }

    #[test]
    fn link_local_address_follows_from_the_mac() {
        let mac = [0x02, 0x6e, 0x12, 0x34, 0x56, 0x78];
        assert_eq!(link_local(mac), "fe80::6e:12ff:fe34:5678".parse::<Ipv6Addr>().unwrap());
    }
}
