//! Broadcast and multicast: who gets copies, and who asked for a group.

use bytemuck::{Pod, Zeroable};

use super::Addr;

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
