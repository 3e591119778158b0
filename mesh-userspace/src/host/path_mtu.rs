//! What was learned of the way to other nodes: packets larger than this do not arrive. Each entry
//! holds for a time, after which larger ones are tried again.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_common::{
    maps::PeerInfo,
    wire::{ETH_P_IP, ETH_P_IPV6, ETH_P_TEB, IPPROTO_GRE, IPPROTO_UDP},
};

use super::Host;
use crate::{
    compile::{ByAddress, least_path_mtu},
    net::TooBig,
};

/// The kernel's default for what it learns itself.
const HOLDS: Duration = Duration::from_secs(600);
const HOLDS_V4: &str = "/proc/sys/net/ipv4/route/mtu_expires";
const HOLDS_V6: &str = "/proc/sys/net/ipv6/route/mtu_expires";

#[derive(Debug, Default)]
pub(super) struct PathMtus(ByAddress<Learned>);

#[derive(Debug, Clone, Copy)]
pub(super) struct Learned {
    pub mtu: u32,
    pub until: Instant,
}

impl PathMtus {
    /// The MTU of the way to this node, if that is known.
    pub fn get(&self, to: IpAddr) -> Option<Learned> {
        self.0.get(&to).copied()
    }

    pub fn set(&mut self, to: IpAddr, mtu: u32, holds: Duration) {
        self.0.insert(to, Learned { mtu, until: Instant::now() + holds });
    }

    /// When the next entry ends.
    pub fn ends(&self) -> Option<Instant> {
        self.0.values().map(|learned| learned.until).min()
    }

    /// Forgets what does not hold any more. True if there was any.
    pub fn forget_old(&mut self) -> bool {
        let (before, now) = (self.0.len(), Instant::now());
        self.0.retain(|_, learned| learned.until > now);
        self.0.len() != before
    }
}

impl Host {
    /// A router says that a packet was too big. True if it was one of ours to another node, and that
    /// node's packets must be smaller from now on.
    pub fn learn_path_mtu(&mut self, told: &TooBig) -> bool {
        let Some((before, least)) = self.heard_of(told) else { return false };
        let mtu = told.mtu.max(least);
        // Said of a packet that was no larger, it is not true; and larger ones than now are tried
        // when the time is over, not because somebody says so.
        if told.mtu >= told.length || mtu > before {
            return false;
        }
        let is_new = mtu < before;
        if is_new || self.path_mtus.get(told.to).is_some() {
            self.path_mtus.set(told.to, mtu, holds(told.to));
        }
        if is_new {
            tracing::info!(to = %told.to, mtu, before, "path MTU learned");
        }
        is_new
    }

    /// The MTU of the way to the node that this packet was sent to, and the least that is believed.
    /// `None` if this host's programs can not have sent it, or if it is said where no router does.
    fn heard_of(&self, told: &TooBig) -> Option<(u32, u32)> {
        let cluster = self.cluster.as_ref()?;
        let me = cluster.nodes.iter().find(|n| n.name == self.state.node)?;
        // A router answers the packet's sender. Containers reach the host at other addresses, or by
        // other interfaces, and may send it what they like.
        let comes_from_underlay = self.state.underlay.iter().any(|i| i.index == told.ifindex);
        if me.underlay != told.from || told.told != told.from || !comes_from_underlay {
            return None;
        }
        let peer = self.sent(told)?;
        let node = cluster.nodes.iter().find(|n| n.underlay == told.to)?;
        Some((peer.underlay_mtu, least_path_mtu(cluster, me, node)))
    }

    /// The node that this packet was sent to, if it looks like one of ours.
    fn sent(&self, packet: &TooBig) -> Option<&PeerInfo> {
        let contents = self.contents.as_ref()?;
        let peer = contents.peers.values().find(|p| IpAddr::from(p.remote) == packet.to)?;
        let has = |flag| peer.flags & flag != 0;
        let is_ours = match (packet.protocol, packet.next?) {
            (IPPROTO_GRE, ETH_P_TEB) => !has(PeerInfo::UDP) && has(PeerInfo::ETHERNET),
            (IPPROTO_GRE, ETH_P_IP | ETH_P_IPV6) => !has(PeerInfo::UDP | PeerInfo::ETHERNET),
            (IPPROTO_UDP, port) => has(PeerInfo::UDP) && port == u16::from_be(peer.port),
            _ => false,
        };
        (is_ours && peer.ifindex != 0).then_some(peer)
    }

    /// When something that was learned of a path ends, and larger packets are to be tried.
    pub fn path_mtu_ends(&self) -> Option<Instant> {
        self.path_mtus.ends()
    }

    /// After that the next look at the host finds the path as the routes have it.
    pub fn forget_old_path_mtus(&mut self) {
        if self.path_mtus.forget_old() {
            self.forget_routes();
        }
    }
}

/// How long what is learned now holds, as the host's administrator set it for the kernel.
fn holds(to: IpAddr) -> Duration {
    let path = if to.is_ipv4() { HOLDS_V4 } else { HOLDS_V6 };
    // Where it is not there, the namespace is not the first one, on an old kernel.
    let seconds = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    seconds.map_or(HOLDS, Duration::from_secs)
}
