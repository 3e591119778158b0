//! Layouts of map keys and values.
//!
//! All are plain old data without padding. Addresses and MACs are in network byte order, every
//! other number in the host's.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

/// A network's number, 0..=0xff_ffff. 0 is the cluster's own network, which GRE carries without a
/// key.
pub const VNI_MAX: u32 = 0xff_ffff;

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2): four words, each in
/// network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

/// Word by word, as it was stored. The derived one reads pairs of words, and such a read of what was
/// stored just now waits until all stores before have reached the cache: to put a key into a table
/// took 190 ns instead of 60.
impl core::hash::Hash for Addr {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|word| state.write_u32(*word));
    }
}

impl Addr {
    /// `v4`: in network byte order, as it stands in the header.
    #[inline(always)]
    pub const fn from_v4(v4: u32) -> Self {
        Self([0, 0, 0xffffu32.to_be(), v4])
    }

    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// `len`: bits of the 128 that are kept, so 96 more than the prefix length of an IPv4 address.
    #[inline(always)]
    pub fn masked(self, len: u8) -> Self {
        Self([
            self.0[0] & mask_word(len, 0),
            self.0[1] & mask_word(len, 1),
            self.0[2] & mask_word(len, 2),
            self.0[3] & mask_word(len, 3),
        ])
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        let o = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(a: Addr) -> Self {
        core::net::Ipv6Addr::from(a.octets()).to_canonical()
    }
}

/// The part of a 128-bit mask of `len` bits that covers word `i`, in network byte order.
#[inline(always)]
pub const fn mask_word(len: u8, i: u8) -> u32 {
    let (len, start) = (len as u32, i as u32 * 32);
    if len <= start {
        0
    } else if len >= start + 32 {
        u32::MAX
    } else {
        (u32::MAX << (32 - (len - start))).to_be()
    }
}

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

/// Prefix lengths in use in a network, the commonest first, 0 ends the list. Lengths are of the
/// 128-bit form: an IPv4 /24 is 120.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PrefixLens {
    pub v4: [u8; 4],
    pub v6: [u8; 4],
}

impl PrefixLens {
    /// In the first place of a list: more lengths than fit, look in `FIB_LPM`.
    pub const LPM: u8 = 255;
}

/// `PORTS` (by ifindex) and `PORT_SLOTS` (by ifindex modulo [`PORT_SLOTS`]): what stands behind an
/// interface, and what it may send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PortInfo {
    /// Repeated here since slots are shared; 0 is an empty slot.
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

/// Entries of `PORT_SLOTS`.
pub const PORT_SLOTS: u32 = 4096;

/// `FIB`: prefix length in the top byte, VNI below, then the masked address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FibKey {
    pub len_vni: u32,
    pub addr: Addr,
}

impl FibKey {
    /// `addr` is masked here. `len`: of the 128-bit form.
    #[inline(always)]
    pub fn new(vni: u32, len: u8, addr: Addr) -> Self {
        Self { len_vni: (len as u32) << 24 | vni, addr: addr.masked(len) }
    }
}

/// `FIB_LPM`: the data part of the key, after the kernel's `u32` of bits (32 + prefix length).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct LpmKey {
    /// Network byte order, so that the trie sees its bits first to last.
    pub vni_be: u32,
    pub addr: Addr,
}

/// `FIB`: where a prefix is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FibInfo {
    /// [`FibInfo::LOCAL`], [`FibInfo::PEER`] or [`FibInfo::EDGE`].
    pub kind: u32,
    /// Index into `PEERS`, if it is another node's.
    pub peer: u32,
    /// Room for a second way, taken when the first is down.
    pub backup: u32,
    /// The network's number on the wire to that peer.
    pub vni: u32,
}

impl FibInfo {
    /// This node's own subnet: look in `ENDPOINTS`.
    pub const LOCAL: u32 = 1;
    /// Another node's: encapsulate for `peer`.
    pub const PEER: u32 = 2;
    /// As [`FibInfo::PEER`], but one address in it is the broadcast address of a network that carries
    /// broadcast. Of a kind of its own, so that only packets to this prefix are compared with it.
    pub const EDGE: u32 = 3;
}

/// `PEERS`: how to send to another node. An index is never given to another node while an entry of
/// `FIB` may still name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PeerInfo {
    /// Interface of the underlay; 0 while there is no route.
    pub ifindex: u32,
    pub flags: u32,
    /// Largest outer IP packet on the way there, in bytes.
    pub underlay_mtu: u32,
    /// Room for a number that counts the changes of this entry.
    pub generation: u32,
    /// The other node's underlay address, also while there is no route to it.
    pub remote: Addr,
    /// For `redirect_neigh` while the next hop's MAC is not known: its address.
    pub next_hop: Addr,
    /// BPF_F_ADJ_ROOM_*: what the kernel is to make of the outer headers, for segmentation and
    /// offloads.
    pub room: u64,
    /// Outer Ethernet and IP header, all but what the packet decides.
    pub outer: crate::wire::OuterWords,
    /// IPv4: see [`crate::wire::outer_v4`].
    pub outer_sum: u32,
    /// The first word of the tunnel's header, network byte order: of GRE without the inner packet's
    /// protocol and the flag for a key.
    pub tunnel: u32,
    /// UDP: the destination port, network byte order.
    pub port: u16,
    /// Bytes that the outer IP packet is longer than the inner one, in network 0.
    pub overhead: u16,
    /// Bits of the inner TOS that are copied, and bits that are set.
    pub tos_mask: u8,
    pub tos_set: u8,
    pub _pad: u16,
    /// Ethernet inside: its two MACs.
    pub inner_macs: [u32; 3],
    pub _pad2: u32,
}

impl PeerInfo {
    /// The MACs in `outer` are good: plain `redirect`. Otherwise `redirect_neigh` resolves.
    pub const MAC_KNOWN: u32 = 1;
    /// Ethernet inside: GRETAP, VXLAN, Geneve.
    pub const ETHERNET: u32 = 2;
    /// IPv6 outside.
    pub const IPV6: u32 = 4;
    /// UDP, and a header with the VNI: VXLAN, Geneve.
    pub const UDP: u32 = 8;
    /// No mesh behind it but a switch: the inner destination MAC is the destination's own, from
    /// `NEIGHBOURS`.
    pub const SWITCH: u32 = 16;
    /// The segment size of TCP is kept to what fits.
    pub const CLAMP: u32 = 32;
}

/// `PEER_BY_ADDR`: who may send to us. The exact VNI is part of the key, so that one lookup
/// answers whether this host may speak for this network at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct PeerKey {
    pub outer_source: Addr,
    pub vni: u32,
}

/// `PEER_BY_ADDR`: what a peer may send in a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PeerSource {
    /// Index into `PEERS` and `PEER_STATS`.
    pub peer: u32,
    pub flags: u32,
    /// The network that this is; the key has its number on the wire.
    pub vni: u32,
    /// The outer destination it must use: our underlay address.
    pub local: Addr,
    /// Its subnet of each family in this network; never matches when it has none.
    pub net4: u32,
    pub mask4: u32,
    pub net6: [u32; 4],
    pub mask6: [u32; 4],
}

impl PeerSource {
    /// More than one subnet of a family: a source outside the one here may still be in the FIB.
    pub const MORE: u32 = 1;
    /// As [`PeerInfo::SWITCH`]: it asks by ARP and neighbour discovery, and MACs are learned.
    pub const SWITCH: u32 = 2;
    /// As [`PeerInfo::CLAMP`].
    pub const CLAMP: u32 = 4;
    /// The network carries broadcast and multicast.
    pub const FLOOD: u32 = 8;
}

/// `NEIGHBOURS`: an address behind a peer that is a switch.
pub type NeighbourKey = EndpointKey;

/// `NEIGHBOURS`: its MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NeighbourInfo {
    /// The peer that said so.
    pub peer: u32,
    pub mac: [u16; 3],
    pub _pad: u16,
    /// When it was last heard of, and asked for, in seconds since boot.
    pub heard: u32,
    pub asked: u32,
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

/// `FLOOD`: a list for each network, of what gets a copy of broadcast and multicast. It ends where an
/// index is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct FloodKey {
    /// [`FloodKey::PEERS`] or [`FloodKey::LOCAL`] in the top byte, VNI below.
    pub list_vni: u32,
    pub index: u32,
}

impl FloodKey {
    /// Other nodes.
    pub const PEERS: u32 = 1;
    /// Endpoints of this host.
    pub const LOCAL: u32 = 2;
    /// As many of each list get copies.
    pub const PEERS_MAX: u32 = 64;
    pub const LOCAL_MAX: u32 = 64;
    /// So many a network has at most that carries broadcast.
    pub const NODES_MAX: usize = Self::PEERS_MAX as usize + 1;

    #[inline(always)]
    pub const fn new(list: u32, vni: u32, index: u32) -> Self {
        Self { list_vni: list << 24 | vni, index }
    }
}

/// `FLOOD`: one that gets copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FloodInfo {
    /// Index into `PEERS`, or the interface of an endpoint.
    pub target: u32,
    /// The network's number on the wire to the peer, or the index of the endpoint's counters.
    pub vni_or_id: u32,
    /// Of an endpoint: as those of [`EndpointInfo`]. Of a peer: [`FloodInfo::EVERY_GROUP`].
    pub flags: u32,
}

impl FloodInfo {
    /// Gets every multicast group: nobody asks those behind a node without mesh which they want, or
    /// passes on what they say to the end.
    pub const EVERY_GROUP: u32 = 1;
}

/// `GROUPS`: who asked for a multicast group, by IGMP or MLD.
///
/// ```text
/// member, group        it is a member
/// member, ANY          how many groups it asked for, and when it last said anything; or
///                      BEYOND the most, and when it last asked for more than is noted; or
///                      SPOKEN_SINCE beyond it, where it said something else since, and when as before
/// 0,      group        how many members are endpoints here
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct GroupKey {
    pub vni: u32,
    /// The interface of an endpoint here, or with [`GroupKey::PEER`] the index of a peer.
    pub member: u32,
    pub group: Addr,
}

impl GroupKey {
    pub const PEER: u32 = 1 << 31;
    /// No group's address. Of words that differ: equal ones the compiler would write in a loop.
    pub const ANY: Addr = Addr([1, 2, 3, 4]);
    /// Groups that are noted of one member. One that asks for more gets all, as if nobody had looked.
    pub const ENDPOINT_MAX: u32 = 64;
    pub const PEER_MAX: u32 = 1024;
    /// Added to the most, the count of a member that asked for more, and of one that said something
    /// within the limit after that.
    pub const BEYOND: u32 = 1;
    pub const SPOKEN_SINCE: u32 = 2;

    /// Of this member.
    #[inline(always)]
    pub const fn most(member: u32) -> u32 {
        if member & Self::PEER == 0 { Self::ENDPOINT_MAX } else { Self::PEER_MAX }
    }
}

/// `GROUPS`: of a member, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct GroupInfo {
    /// Seconds since boot.
    pub heard: u32,
    pub count: u32,
}

/// `TAILS`: programs that others go on in, by a tail call.
pub const TAILS: u32 = 2;
pub const TAIL_FLOOD_SEND: u32 = 0;
pub const TAIL_FLOOD_RECEIVE: u32 = 1;

/// `skb->mark` of a copy that goes through the program once more, to be sent to the peer whose index in
/// `FLOOD` is in the lower half. What a container sends has no mark: it leaves its namespace without.
pub const FLOOD_MARK: u32 = 0x6d66_0000;
pub const FLOOD_MARK_MASK: u32 = 0xffff_0000;

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

/// `ENDPOINT_STATS` and `PEER_STATS`, per CPU. rx and tx are as seen from the endpoint, and from
/// this host for a peer. Bytes are those of inner packets without Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Traffic {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

const _: () = {
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<EndpointInfo>() == 28);
    assert!(size_of::<PortInfo>() == 84);
    assert!(size_of::<LearnedKey>() == 8);
    assert!(size_of::<LearnedInfo>() == 28);
    assert!(size_of::<FibKey>() == 20);
    assert!(size_of::<LpmKey>() == 20);
    assert!(size_of::<FibInfo>() == 16);
    assert!(size_of::<PeerInfo>() == 144);
    assert!(size_of::<PeerKey>() == 20);
    assert!(size_of::<PeerSource>() == 68);
    assert!(size_of::<NeighbourInfo>() == 20);
    assert!(size_of::<NetworkInfo>() == 44);
    assert!(size_of::<FloodKey>() == 8);
    assert!(size_of::<FloodInfo>() == 12);
    assert!(size_of::<GroupKey>() == 24);
    assert!(size_of::<GroupInfo>() == 8);
    assert!(size_of::<NodeInfo>() == 40);
    assert!(size_of::<Traffic>() == 32);
};

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn addr(s: &str) -> Addr {
        Addr::from(s.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_address_survives_the_way_there_and_back() {
        for s in ["10.42.0.1", "255.255.255.255", "fd00:42::1", "::1"] {
            assert_eq!(IpAddr::from(addr(s)), s.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn an_ipv4_header_word_makes_the_same_address() {
        let word = u32::from_ne_bytes([10, 42, 0, 1]);
        assert_eq!(Addr::from_v4(word), addr("10.42.0.1"));
    }

    #[test]
    fn masks_cut_where_the_prefix_ends() {
        assert_eq!(addr("10.42.191.7").masked(96 + 18), addr("10.42.128.0"));
        assert_eq!(addr("fd00:42:ffff::1").masked(33), addr("fd00:42:8000::"));
        assert_eq!(addr("10.42.191.7").masked(128), addr("10.42.191.7"));
        assert_eq!(addr("fd00::1").masked(0), Addr::default());
    }
}
