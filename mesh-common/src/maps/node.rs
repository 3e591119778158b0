//! This node and its networks.

use bytemuck::{Pod, Zeroable};

use super::{Addr, PrefixLens};

/// `NODE`, one entry: this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NodeInfo {
    /// Our underlay address: outer destinations that are ours to judge.
    pub underlay: Addr,
    pub flags: u32,
    /// The network namespace that all this is for, by its inode number; the programs do not read it.
    pub netns: u32,
    /// UDP ports on which encapsulated packets come; those not in use are all 0.
    pub ports: [UdpPort; NODE_PORTS],
}

/// UDP ports on which a node may receive.
pub const NODE_PORTS: usize = 4;

/// A UDP port on which encapsulated packets come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct UdpPort {
    /// Network byte order.
    pub port: u16,
    /// [`UdpPort::VXLAN`] or [`UdpPort::GENEVE`].
    pub kind: u8,
    pub flags: u8,
}

impl UdpPort {
    pub const VXLAN: u8 = 1;
    pub const GENEVE: u8 = 2;
    /// In use by this mesh and by nobody else: what no peer sent is dropped. Otherwise it is left to
    /// the stack.
    pub const OURS: u8 = 1;
}

impl NodeInfo {
    /// The host has GRE tunnels of its own: what no peer sent is left to the stack.
    pub const FOREIGN_GRE: u32 = 1;
}

/// `NETWORKS`: what is to be known of a network beyond the port's and the peer's entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NetworkInfo {
    pub lens: PrefixLens,
    pub mtu: u32,
    /// Where the host's stack takes what leads out of the network: this host is its containers'
    /// gateway. 0 for none.
    pub world: u32,
    /// The bridge that may know an address of this node's subnet that nobody has told yet; 0 for
    /// none.
    pub bridge: u32,
    /// The MAC that endpoints know all others by.
    pub gateway_mac: [u16; 3],
    pub flags: u16,
    /// Broadcast addresses of a network that carries broadcast, network byte order; 0 for none.
    pub broadcast: [u32; BROADCASTS],
}

/// Broadcast addresses of a network: of its first IPv4 prefixes.
pub const BROADCASTS: usize = 4;

impl NetworkInfo {
    /// It carries broadcast and multicast.
    pub const FLOOD: u16 = 1;
}
