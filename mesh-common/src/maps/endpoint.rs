//! Who is on this host: the endpoint that has an address, and the port that it sends from.

use bytemuck::{Pod, Zeroable};

use super::{Addr, PrefixLens};

/// `ENDPOINTS`: who has an address on this host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct EndpointKey {
    pub vni: u32,
    pub addr: Addr,
}

/// `ENDPOINTS`: how to hand it a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EndpointInfo {
    /// Host side of the veth; `mesh0` with [`EndpointInfo::HOST`].
    pub ifindex: u32,
    /// Index into `ENDPOINT_STATS`.
    pub id: u32,
    pub flags: u32,
    /// The front of a frame for it: its own MAC, then the gateway's.
    pub macs: [u32; 3],
    /// Room for an identity that policy will look at.
    pub identity: u32,
}

impl EndpointInfo {
    /// The host itself: deliver by ingress on `mesh0`.
    pub const HOST: u32 = 1;
    /// Behind a bridge of somebody else's: what its neighbours there send it is the bridge's.
    pub const BRIDGED: u32 = 2;
}

/// `PORTS` (by ifindex): what stands behind an interface, and what it may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PortInfo {
    /// The key.
    pub ifindex: u32,
    pub vni: u32,
    /// Index into `ENDPOINT_STATS`.
    pub id: u32,
    /// Largest packet without its Ethernet header, in bytes.
    pub mtu: u32,
    /// The endpoint's own address, network byte order; 0 for none.
    pub addr4: u32,
    /// The endpoint's own address; all 0 for none.
    pub addr6: [u32; 4],
    /// The MAC that ARP and neighbour discovery are answered with.
    pub gateway_mac: [u16; 3],
    /// The endpoint's MAC.
    pub mac: [u16; 3],
    pub lens: PrefixLens,
    /// The gateways' addresses, which are answered for though no endpoint may have them.
    pub gateway4: u32,
    pub gateway6: [u32; 4],
    /// Room for an identity that policy will look at.
    pub identity: u32,
    pub flags: u32,
}

impl PortInfo {
    /// A port of somebody else's bridge: what is not for another node is the bridge's. Its addresses
    /// are in `ENDPOINTS` alone, where they may have been learned; none stand here, so that nothing
    /// it sends takes the short way of a container's own port.
    pub const BRIDGED: u32 = 1;
    /// The agent knows its IPv4 address: no other is learned.
    pub const BOUND4: u32 = 2;
    pub const BOUND6: u32 = 4;
    /// A netkit pair: the program runs while the container sends, and not where its packets arrive.
    pub const NETKIT: u32 = 8;
    /// Its network carries broadcast and multicast.
    pub const FLOOD: u32 = 16;
    /// `mesh0`: the program is at its egress, and what it sends is the host's own.
    pub const HOST: u32 = 32;
}

/// `LEARNED`: whose traffic told its address. One of each family for each port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct LearnedKey {
    pub ifindex: u32,
    /// 4 or 6.
    pub family: u32,
}

/// `LEARNED`: the address, and the MAC that it was sent from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LearnedInfo {
    pub endpoint: EndpointKey,
    pub mac: [u16; 3],
    pub _pad: u16,
}
