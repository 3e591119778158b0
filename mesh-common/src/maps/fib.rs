//! Where a prefix of a network is.

use bytemuck::{Pod, Zeroable};

use super::Addr;

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
