//! What differs between IPv4 and IPv6, inside and outside. The rest of the programs is written once,
//! over [`Family`], and compiled for each.

use mesh_common::{
    maps::{Addr, FibKey, PeerSource, PortInfo, PrefixLens, mask_word},
    wire::{
        ECN_MASK, ETH_P_IP, ETH_P_IPV6, IPPROTO_DSTOPTS, IPPROTO_HOPOPTS, IPPROTO_ROUTING,
        IPPROTO_TCP, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, resum,
    },
};

use crate::{neighbour::ND_HOPS, packet::Packet};

pub trait Family {
    type Header: Copy;
    /// Ethernet type and GRE protocol, network byte order.
    const PROTO: u16;
    const IS_V4: bool;
    /// Bytes of the fixed header.
    const LEN: usize;

    /// Is this a header of the family, all of it within `bytes`? Its fixed part is.
    fn is_whole(h: &Self::Header, bytes: u32) -> bool;
    fn src(h: &Self::Header) -> Addr;
    fn dst(h: &Self::Header) -> Addr;
    /// TOS or traffic class.
    fn tos(h: &Self::Header) -> u8;
    /// TCP or UDP or whatever follows directly.
    fn next(h: &Self::Header) -> u8;
    /// Bytes of the header.
    fn header_len(h: &Self::Header) -> usize;
    /// A header of the family and no more than its fixed part, so that it is known where it ends.
    fn is_plain(h: &Self::Header) -> bool;
    fn is_fragment(h: &Self::Header) -> bool;
    /// A fragment without the transport header.
    fn is_later_fragment(h: &Self::Header) -> bool;
    /// May there be a neighbour message behind an extension header? Who gets it believes one with this
    /// hop limit (RFC 4861, 7.1) behind any but a fragment's (RFC 6980).
    fn may_hide_nd(h: &Self::Header) -> bool;
    /// Gives an ECN-capable packet another ECN field. Its header is in `packet`.
    fn set_ecn(packet: &Packet, h: &mut Self::Header, ecn: u8);
    fn is_multicast(dst: &Addr) -> bool;
    /// An IPv6 address that in our tables is an IPv4 one. None is ever on the wire, but who sends
    /// one must not reach the IPv4 address with it.
    #[inline(always)]
    fn is_mapped(addr: &Addr) -> bool {
        !Self::IS_V4 && addr.0[0] | addr.0[1] == 0 && addr.0[2] == 0xffffu32.to_be()
    }

    /// Are these the same, where both are of the family?
    fn is_same(a: &Addr, b: &Addr) -> bool;
    /// Is this the port's own address?
    fn is_own(port: &PortInfo, src: &Addr) -> bool;
    /// Is this the gateway's address?
    fn is_gateway(port: &PortInfo, target: &Addr) -> bool;
    /// Is this in the one subnet that the peer's entry holds?
    fn is_peers(source: &PeerSource, src: &Addr) -> bool;
    fn lens(lens: &PrefixLens) -> &[u8; 4];
    fn fib_key(vni: u32, len: u8, dst: &Addr) -> FibKey;
}

pub struct V4;
pub struct V6;

impl Family for V4 {
    type Header = Ipv4;
    const PROTO: u16 = ETH_P_IP.to_be();
    const IS_V4: bool = true;
    const LEN: usize = IPV4_LEN;

    #[inline(always)]
    fn is_whole(h: &Ipv4, bytes: u32) -> bool {
        let len = Self::header_len(h);
        h.vihl == 0x45 || h.vihl & 0xf0 == 0x40 && len > IPV4_LEN && len as u32 <= bytes
    }

    #[inline(always)]
    fn src(h: &Ipv4) -> Addr {
        Addr::from_v4(h.src)
    }

    #[inline(always)]
    fn dst(h: &Ipv4) -> Addr {
        Addr::from_v4(h.dst)
    }

    #[inline(always)]
    fn tos(h: &Ipv4) -> u8 {
        h.tos
    }

    #[inline(always)]
    fn next(h: &Ipv4) -> u8 {
        h.proto
    }

    #[inline(always)]
    fn header_len(h: &Ipv4) -> usize {
        (h.vihl & 0xf) as usize * 4
    }

    #[inline(always)]
    fn is_plain(h: &Ipv4) -> bool {
        h.vihl == 0x45
    }

    #[inline(always)]
    fn is_fragment(h: &Ipv4) -> bool {
        // More fragments, or an offset.
        u16::from_be(h.frag) & 0x3fff != 0
    }

    #[inline(always)]
    fn is_later_fragment(h: &Ipv4) -> bool {
        u16::from_be(h.frag) & 0x1fff != 0
    }

    #[inline(always)]
    fn may_hide_nd(_: &Ipv4) -> bool {
        false
    }

    #[inline(always)]
    fn set_ecn(_packet: &Packet, h: &mut Ipv4, ecn: u8) {
        let old = u16::from_ne_bytes([h.vihl, h.tos]);
        h.tos = h.tos & !ECN_MASK | ecn;
        h.sum = resum(h.sum, old, u16::from_ne_bytes([h.vihl, h.tos]));
    }

    #[inline(always)]
    fn is_multicast(dst: &Addr) -> bool {
        // 224.0.0.0/4, and 255.255.255.255 in the reserved range above it.
        u32::from_be(dst.0[3]) >= 0xe000_0000
    }

    #[inline(always)]
    fn is_same(a: &Addr, b: &Addr) -> bool {
        a.0[3] == b.0[3]
    }

    #[inline(always)]
    fn is_own(port: &PortInfo, src: &Addr) -> bool {
        src.0[3] == port.addr4 && port.addr4 != 0
    }

    #[inline(always)]
    fn is_gateway(port: &PortInfo, target: &Addr) -> bool {
        target.0[3] == port.gateway4 && port.gateway4 != 0
    }

    #[inline(always)]
    fn is_peers(source: &PeerSource, src: &Addr) -> bool {
        src.0[3] & source.mask4 == source.net4
    }

    #[inline(always)]
    fn lens(lens: &PrefixLens) -> &[u8; 4] {
        &lens.v4
    }

    #[inline(always)]
    fn fib_key(vni: u32, len: u8, dst: &Addr) -> FibKey {
        let mask = (u32::MAX << ((128 - u32::from(len)) & 31)).to_be();
        FibKey { len_vni: u32::from(len) << 24 | vni, addr: Addr::from_v4(dst.0[3] & mask) }
    }
}

impl Family for V6 {
    type Header = Ipv6;
    const PROTO: u16 = ETH_P_IPV6.to_be();
    const IS_V4: bool = false;
    const LEN: usize = IPV6_LEN;

    #[inline(always)]
    fn is_whole(h: &Ipv6, _: u32) -> bool {
        u32::from_be(h.vtf) >> 28 == 6
    }

    #[inline(always)]
    fn src(h: &Ipv6) -> Addr {
        Addr(h.src)
    }

    #[inline(always)]
    fn dst(h: &Ipv6) -> Addr {
        Addr(h.dst)
    }

    #[inline(always)]
    fn tos(h: &Ipv6) -> u8 {
        (u32::from_be(h.vtf) >> 20) as u8
    }

    #[inline(always)]
    fn next(h: &Ipv6) -> u8 {
        h.next
    }

    #[inline(always)]
    fn header_len(_: &Ipv6) -> usize {
        IPV6_LEN
    }

    #[inline(always)]
    fn is_plain(h: &Ipv6) -> bool {
        // Extension headers are protocols of their own.
        u32::from_be(h.vtf) >> 28 == 6
    }

    #[inline(always)]
    fn is_fragment(_: &Ipv6) -> bool {
        false
    }

    #[inline(always)]
    fn is_later_fragment(_: &Ipv6) -> bool {
        // Told by an extension header; RFC 4443 lets it be answered.
        false
    }

    #[inline(always)]
    fn may_hide_nd(h: &Ipv6) -> bool {
        let is_extension = matches!(h.next, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS);
        h.hops == ND_HOPS && is_extension
    }

    #[inline(always)]
    fn set_ecn(packet: &Packet, h: &mut Ipv6, ecn: u8) {
        let old = h.vtf;
        h.vtf = old & !in_ipv6(ECN_MASK) | in_ipv6(ecn);
        // No checksum of its own makes up for it.
        packet.word_changed(old, h.vtf);
    }

    #[inline(always)]
    fn is_multicast(dst: &Addr) -> bool {
        u32::from_be(dst.0[0]) >> 24 == 0xff
    }

    #[inline(always)]
    fn is_same(a: &Addr, b: &Addr) -> bool {
        a.0 == b.0
    }

    #[inline(always)]
    fn is_own(port: &PortInfo, src: &Addr) -> bool {
        let own = &port.addr6;
        src.0 == *own && (own[0] | own[1] | own[2] | own[3]) != 0
    }

    #[inline(always)]
    fn is_gateway(port: &PortInfo, target: &Addr) -> bool {
        target.0 == port.gateway6 && target.0 != [0; 4]
    }

    #[inline(always)]
    fn is_peers(source: &PeerSource, src: &Addr) -> bool {
        let (net, mask, a) = (&source.net6, &source.mask6, &src.0);
        a[0] & mask[0] == net[0]
            && a[1] & mask[1] == net[1]
            && a[2] & mask[2] == net[2]
            && a[3] & mask[3] == net[3]
    }

    #[inline(always)]
    fn lens(lens: &PrefixLens) -> &[u8; 4] {
        &lens.v6
    }

    #[inline(always)]
    fn fib_key(vni: u32, len: u8, dst: &Addr) -> FibKey {
        let ([a, b, c, d], [p, q, r, s]) = (dst.0, MASKS[usize::from(len.wrapping_sub(1)) & 127]);
        FibKey { len_vni: u32::from(len) << 24 | vni, addr: Addr([a & p, b & q, c & r, d & s]) }
    }
}

/// The mask of each length from 1, in network byte order. To compute one takes a branch for each word,
/// and the verifier follows both ways of each.
static MASKS: [[u32; 4]; 128] = {
    let (mut masks, mut len) = ([[0; 4]; 128], 1);
    while len <= 128 {
        masks[len as usize - 1] =
            [mask_word(len, 0), mask_word(len, 1), mask_word(len, 2), mask_word(len, 3)];
        len += 1;
    }
    masks
};

/// The ECN field of a TOS byte.
#[inline(always)]
pub fn ecn(tos: u8) -> u8 {
    tos & ECN_MASK
}

/// An ECN field where the first word of an IPv6 header has it.
#[inline(always)]
fn in_ipv6(ecn: u8) -> u32 {
    (u32::from(ecn) << 20).to_be()
}

/// TCP, whose header says its own length.
#[inline(always)]
pub fn is_tcp(next: u8) -> bool {
    next == IPPROTO_TCP
}
