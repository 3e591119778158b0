//! The data plane over maps that are plain `HashMap`s: what mesh-ebpf's `overlay.rs`, `underlay.rs`
//! and `fib.rs` decide about a packet, without its bytes.

use std::net::IpAddr;

use mesh_common::maps::{Addr, EndpointKey, FibInfo, FibKey, PeerKey, PeerSource, PrefixLens};

use crate::{
    bpf::tables::LpmPrefix,
    plan::{Map, ORDER, Observed, Plan},
};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// To the local endpoint behind this interface.
    Delivered(u32),
    /// To the node with this underlay address.
    Encapsulated(IpAddr),
    UnknownPort,
    Spoofed,
    NoRoute,
    NoEndpoint,
    PeerIncomplete,
    UnknownVni,
    NotForUs,
    SourceNotPeers,
}

/// A packet that arrives on the underlay.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    pub from: IpAddr,
    pub to: IpAddr,
    pub vni: u32,
}

/// `fib.rs`: one exact lookup for each length in use, or the trie.
pub fn lookup(maps: &Observed, lens: &PrefixLens, vni: u32, ip: IpAddr) -> Option<FibInfo> {
    let addr = Addr::from(ip);
    for len in if ip.is_ipv4() { lens.v4 } else { lens.v6 } {
        match len {
            0 => return None,
            PrefixLens::LPM => return longest(maps, vni, addr),
            len => {
                if let Some(info) = maps.fib.get(&FibKey::new(vni, len, addr)) {
                    return Some(*info);
                }
            }
        }
    }
    None
}

/// The kernel's trie.
fn longest(maps: &Observed, vni: u32, addr: Addr) -> Option<FibInfo> {
    let covers = |p: &LpmPrefix| {
        let len = (p.bits - 32) as u8;
        p.key.vni_be == vni.to_be() && p.key.addr == addr.masked(len)
    };
    let covering = maps.fib_lpm.iter().filter(|(p, _)| covers(p));
    covering.max_by_key(|(p, _)| p.bits).map(|(_, info)| *info)
}

/// `overlay.rs`: what the endpoint behind `ifindex` sends.
pub fn send(maps: &Observed, ifindex: u32, src: IpAddr, dst: IpAddr) -> Fate {
    let Some(port) = maps.ports.get(&ifindex) else { return Fate::UnknownPort };
    let own = match src {
        IpAddr::V4(_) => port.addr4 != 0 && Addr::from(src) == Addr::from_v4(port.addr4),
        IpAddr::V6(_) => port.addr6 != [0; 4] && Addr::from(src).0 == port.addr6,
    };
    if !own {
        return Fate::Spoofed;
    }
    match lookup(maps, &port.lens, port.vni, dst) {
        None => Fate::NoRoute,
        Some(to) if to.kind == FibInfo::LOCAL => deliver(maps, port.vni, dst),
        Some(to) => match maps.peers.get(&to.peer).filter(|p| p.ifindex != 0) {
            // The address that the packet really goes to is the one in the template.
            Some(peer) => {
                let outer = bytemuck::bytes_of(&peer.outer);
                Fate::Encapsulated(IpAddr::from([outer[30], outer[31], outer[32], outer[33]]))
            }
            None => Fate::PeerIncomplete,
        },
    }
}

fn deliver(maps: &Observed, vni: u32, dst: IpAddr) -> Fate {
    let key = EndpointKey { vni, addr: Addr::from(dst) };
    maps.endpoints.get(&key).map_or(Fate::NoEndpoint, |e| Fate::Delivered(e.ifindex))
}

/// `underlay.rs`: what arrives from another host.
pub fn receive(maps: &Observed, outer: Outer, src: IpAddr, dst: IpAddr) -> Fate {
    let key = PeerKey { outer_source: Addr::from(outer.from), vni: outer.vni };
    let Some(source) = maps.peer_by_addr.get(&key) else { return Fate::UnknownVni };
    if source.local != Addr::from(outer.to) {
        return Fate::NotForUs;
    }
    if !may_send(maps, source, outer.vni, src) {
        return Fate::SourceNotPeers;
    }
    deliver(maps, outer.vni, dst)
}

/// The inner source check.
pub fn may_send(maps: &Observed, source: &PeerSource, vni: u32, src: IpAddr) -> bool {
    let addr = Addr::from(src);
    let first = match src {
        IpAddr::V4(_) => addr.0[3] & source.mask4 == source.net4,
        IpAddr::V6(_) => (0..4).all(|i| addr.0[i] & source.mask6[i] == source.net6[i]),
    };
    let lens = |vni| maps.networks.get(&vni).map(|n| n.lens);
    first
        || source.flags & PeerSource::MORE != 0
            && lens(vni)
                .and_then(|lens| lookup(maps, &lens, vni, src))
                .is_some_and(|from| from.kind == FibInfo::PEER && from.peer == source.peer)
}

/// Carries out a plan as `bpf::sync::apply` does, and calls `look` after each single entry. The
/// kernel's batches are such sequences of entries, in some order.
pub fn apply(maps: &mut Observed, plan: &Plan, mut look: impl FnMut(&Observed)) {
    macro_rules! set {
        ($map:ident) => {
            for (k, v) in &plan.$map.set {
                maps.$map.insert(*k, *v);
                look(maps);
            }
        };
    }
    macro_rules! remove {
        ($map:ident) => {
            for k in &plan.$map.remove {
                maps.$map.remove(k);
                look(maps);
            }
        };
    }
    macro_rules! each {
        ($change:ident, $map:expr) => {
            match $map {
                Map::Node => $change!(node),
                Map::Peers => $change!(peers),
                Map::Fib => $change!(fib),
                Map::FibLpm => $change!(fib_lpm),
                Map::Networks => $change!(networks),
                Map::PeerByAddr => $change!(peer_by_addr),
                Map::Flood => $change!(flood),
                Map::Endpoints => $change!(endpoints),
                Map::Ports => $change!(ports),
            }
        };
    }
    for map in ORDER {
        each!(set, map);
    }
    for map in ORDER.into_iter().rev() {
        each!(remove, map);
    }
}
