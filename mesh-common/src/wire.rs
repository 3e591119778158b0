//! Headers on the wire, and the arithmetic on them. Pure: the same code runs in the kernel programs
//! and in the tests on the host.
//!
//! Fields are in network byte order. The structs are `packed(2)`: the front of a frame is aligned
//! to two bytes in every driver, and a stricter promise would be false, a looser one slow.

use bytemuck::{Pod, Zeroable};

pub const ETH_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
/// GRE without key (RFC 2784).
pub const GRE_LEN: usize = 4;
/// The key that carries the VNI (RFC 2890).
pub const GRE_KEY_LEN: usize = 4;

/// Ethernet, IPv4 and GRE without key.
pub const OUTER_LEN: usize = ETH_LEN + IPV4_LEN + GRE_LEN;

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_ARP: u16 = 0x0806;
/// Ethernet in GRE (transparent Ethernet bridging).
pub const ETH_P_TEB: u16 = 0x6558;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_GRE: u8 = 47;
pub const IPPROTO_ICMPV6: u8 = 58;

/// GRE flags: a key follows (RFC 2890, 2).
pub const GRE_FLAG_KEY: u16 = 0x2000;

/// Bytes that GRE adds in front of an inner IP packet on an IPv4 underlay.
pub const fn gre_overhead(vni: u32, ethernet: bool) -> usize {
    IPV4_LEN + GRE_LEN + if vni == 0 { 0 } else { GRE_KEY_LEN } + if ethernet { ETH_LEN } else { 0 }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Eth {
    pub dst: [u16; 3],
    pub src: [u16; 3],
    pub proto: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Ipv4 {
    /// Version 4 bits, header length in words 4 bits; then TOS.
    pub vihl: u8,
    pub tos: u8,
    pub len: u16,
    pub id: u16,
    /// Reserved, DF, MF, then the fragment offset in units of 8 bytes.
    pub frag: u16,
    pub ttl: u8,
    pub proto: u8,
    pub sum: u16,
    pub src: u32,
    pub dst: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Ipv6 {
    /// Version 4 bits, traffic class 8 bits, flow label 20 bits.
    pub vtf: u32,
    pub len: u16,
    pub next: u8,
    pub hops: u8,
    pub src: [u32; 4],
    pub dst: [u32; 4],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Gre {
    pub flags: u16,
    pub proto: u16,
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Arp {
    pub htype: u16,
    pub ptype: u16,
    pub hlen: u8,
    pub plen: u8,
    pub op: u16,
    pub sender_mac: [u16; 3],
    pub sender_ip: u32,
    pub target_mac: [u16; 3],
    pub target_ip: u32,
}

/// Hardware type Ethernet, protocol IPv4, address lengths 6 and 4, as they stand in the header.
pub const ARP_ETH_IPV4: (u16, u16, u8, u8) = (1, ETH_P_IP, 6, 4);
pub const ARP_REQUEST: u16 = 1;
pub const ARP_REPLY: u16 = 2;

/// Neighbour solicitation and advertisement with one link-layer address option (RFC 4861, 4.3 and
/// 4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct NeighbourMessage {
    pub kind: u8,
    pub code: u8,
    pub sum: u16,
    pub flags: u32,
    pub target: [u32; 4],
    pub option: u8,
    pub option_len: u8,
    pub mac: [u16; 3],
}

pub const ND_SOLICIT: u8 = 135;
pub const ND_ADVERT: u8 = 136;
/// Router, solicited and override.
pub const ND_FLAGS_REPLY: u32 = 0xe000_0000;
pub const ND_OPT_TARGET_MAC: u8 = 2;

pub const ICMP_UNREACH: u8 = 3;
/// Fragmentation needed and DF set (RFC 792); the next-hop MTU is in the rest (RFC 1191).
pub const ICMP_FRAG_NEEDED: u8 = 4;
pub const ICMPV6_TOO_BIG: u8 = 2;

/// ECN field of TOS or traffic class (RFC 3168).
pub const ECN_MASK: u8 = 3;
pub const ECN_CE: u8 = 3;

/// Adds the 16-bit words to an unfolded ones' complement sum (RFC 1071). Word order does not
/// matter, nor does byte order as long as it is the same throughout.
#[inline(always)]
pub const fn sum_words(mut sum: u32, words: &[u16]) -> u32 {
    let mut i = 0;
    while i < words.len() {
        sum += words[i] as u32;
        i += 1;
    }
    sum
}

/// Folds a sum into the 16 bits that go into the header.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The checksum after one 16-bit word changed (RFC 1624, equation 3).
#[inline(always)]
pub const fn resum(sum: u16, old: u16, new: u16) -> u16 {
    fold((!sum) as u32 + (!old) as u32 + new as u32)
}

/// The outer headers in as few words as they fit in, so that writing them is six stores: the first
/// [`OUTER_LEN`] bytes as they go out, and two that do not.
pub type OuterWords = [u64; 5];

/// The front of a packet to a peer: what [`crate::maps::PeerInfo`] holds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterTemplate {
    pub outer: OuterWords,
    pub outer_sum: u32,
}

/// What the outer headers take from the packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct OuterFields {
    pub tos: u8,
    /// Bytes of the outer IP packet.
    pub len: u16,
    /// GRE flags and protocol, network byte order; the protocol is 0 if the template has it.
    pub flags: u16,
    pub proto: u16,
}

/// The template with the packet's fields and the checksum filled in.
#[inline(always)]
pub const fn outer_headers(outer: &OuterWords, outer_sum: u32, f: OuterFields) -> OuterWords {
    let len = f.len.to_be();
    // Byte 15; the checksum counts it with the byte before.
    let tos = u16::from_ne_bytes([0, f.tos]);
    let sum = fold(outer_sum + len as u32 + tos as u32);
    [
        outer[0],
        outer[1] | place(tos, 6),
        outer[2] | place(len, 0),
        outer[3] | place(sum, 0),
        outer[4] | place(f.flags, 2) | place(f.proto, 4),
    ]
}

/// 16 bits at byte `at` of a word in memory.
#[inline(always)]
const fn place(v: u16, at: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (v as u64) << (8 * at)
    } else {
        (v as u64) << (48 - 8 * at)
    }
}

/// Outer TTL.
pub const OUTER_TTL: u8 = 64;
/// Don't fragment: a packet that is too big is answered, never cut (and its ID may stay 0,
/// RFC 6864).
pub const DF: u16 = 0x4000;

/// Builds the outer headers for a peer. `src_mac`, `dst_mac`: of this host and of the next hop.
/// `local`, `remote`: underlay addresses, octets in order. The GRE protocol is left 0 for GRE, where
/// it follows the inner packet, and is `ETH_P_TEB` for GRETAP.
pub fn outer_template(
    dst_mac: [u8; 6],
    src_mac: [u8; 6],
    local: [u8; 4],
    remote: [u8; 4],
    ethernet: bool,
) -> OuterTemplate {
    let eth = Eth { dst: mac_words(dst_mac), src: mac_words(src_mac), proto: ETH_P_IP.to_be() };
    let ip = Ipv4 {
        vihl: 0x45,
        ttl: OUTER_TTL,
        proto: IPPROTO_GRE,
        frag: DF.to_be(),
        src: u32::from_ne_bytes(local),
        dst: u32::from_ne_bytes(remote),
        ..Ipv4::default()
    };
    let proto = if ethernet { ETH_P_TEB } else { 0 };
    let gre = Gre { flags: 0, proto: proto.to_be() };
    let mut bytes = [0; size_of::<OuterWords>()];
    bytes[..ETH_LEN].copy_from_slice(bytemuck::bytes_of(&eth));
    bytes[ETH_LEN..ETH_LEN + IPV4_LEN].copy_from_slice(bytemuck::bytes_of(&ip));
    bytes[ETH_LEN + IPV4_LEN..OUTER_LEN].copy_from_slice(bytemuck::bytes_of(&gre));
    let ip_words: [u16; IPV4_LEN / 2] = bytemuck::must_cast(ip);
    OuterTemplate {
        outer: bytemuck::pod_read_unaligned(&bytes),
        outer_sum: sum_words(0, &ip_words),
    }
}

/// Two MACs, destination first, as they stand at the front of a frame.
pub const fn mac_pair(dst: [u8; 6], src: [u8; 6]) -> [u32; 3] {
    [
        u32::from_ne_bytes([dst[0], dst[1], dst[2], dst[3]]),
        u32::from_ne_bytes([dst[4], dst[5], src[0], src[1]]),
        u32::from_ne_bytes([src[2], src[3], src[4], src[5]]),
    ]
}

/// A MAC as the words of a header.
pub const fn mac_words(mac: [u8; 6]) -> [u16; 3] {
    [
        u16::from_ne_bytes([mac[0], mac[1]]),
        u16::from_ne_bytes([mac[2], mac[3]]),
        u16::from_ne_bytes([mac[4], mac[5]]),
    ]
}

/// The words of a header as a MAC.
pub const fn mac_bytes(words: [u16; 3]) -> [u8; 6] {
    let [a, b, c] = [words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes()];
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example header of RFC 1071's usual illustration.
    const HEADER: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn known_header_has_the_known_checksum() {
        let words: [u16; 10] = bytemuck::must_cast(HEADER);
        assert_eq!(fold(sum_words(0, &words)), 0xb861u16.to_be());
    }

    #[test]
    fn changing_a_word_keeps_the_checksum_right() {
        let mut words: [u16; 10] = bytemuck::must_cast(HEADER);
        let before = fold(sum_words(0, &words));
        for new in [0u16, 1, 0x8000, 0xffff, 0x1234] {
            let updated = resum(before, words[1], new);
            let old = core::mem::replace(&mut words[1], new);
            let full = fold(sum_words(0, &words));
            // 0 and 0xffff are the same number in ones' complement.
            assert!(updated == full || updated ^ full == 0xffff && (full == 0 || updated == 0));
            words[1] = old;
        }
    }

    #[test]
    fn headers_from_a_template_are_valid_and_carry_the_fields() {
        let dst = [1, 2, 3, 4, 5, 6];
        let t = outer_template(dst, [6; 6], [192, 0, 2, 11], [192, 0, 2, 12], false);
        let fields = OuterFields {
            tos: 0xb9,
            len: 1500,
            flags: GRE_FLAG_KEY.to_be(),
            proto: ETH_P_IP.to_be(),
        };
        let words = outer_headers(&t.outer, t.outer_sum, fields);
        let bytes = bytemuck::bytes_of(&words);
        assert_eq!(bytes[..14], [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 8, 0]);
        let ip: Ipv4 = bytemuck::pod_read_unaligned(&bytes[14..34]);
        assert_eq!((ip.vihl, ip.tos, u16::from_be(ip.len)), (0x45, 0xb9, 1500));
        let words: [u16; 10] = bytemuck::must_cast(ip);
        assert_eq!(fold(sum_words(0, &words)), 0);
        assert_eq!(bytes[34..], [0x20, 0, 8, 0, 0, 0]);
    }

    #[test]
    fn a_pair_of_macs_is_the_front_of_a_frame() {
        let pair = mac_pair([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        assert_eq!(bytemuck::bytes_of(&pair), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}
