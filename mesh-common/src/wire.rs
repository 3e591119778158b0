//! Headers on the wire, and the arithmetic on them. Pure: the same code runs in the kernel programs
//! and in the tests on the host.
//!
//! Fields are in network byte order. The structs are `packed(2)`: the front of a frame is aligned
//! to two bytes in every driver, and a stricter promise would be false, a looser one slow.

use core::net::{Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

pub const ETH_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
/// GRE without key (RFC 2784).
pub const GRE_LEN: usize = 4;
/// The key that carries the VNI (RFC 2890).
pub const GRE_KEY_LEN: usize = 4;
pub const UDP_LEN: usize = 8;
/// VXLAN (RFC 7348), and Geneve without options (RFC 8926): a word, then the VNI and a byte.
pub const VNI_HEADER_LEN: usize = 8;
/// A VLAN tag in the bytes (IEEE 802.1Q).
pub const VLAN_LEN: usize = 4;

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_ARP: u16 = 0x0806;
pub const ETH_P_8021Q: u16 = 0x8100;
pub const ETH_P_8021AD: u16 = 0x88a8;
/// Ethernet in GRE (transparent Ethernet bridging).
pub const ETH_P_TEB: u16 = 0x6558;

/// Options of IPv6 for each hop.
pub const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_IGMP: u8 = 2;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_ROUTING: u8 = 43;
pub const IPPROTO_FRAGMENT: u8 = 44;
pub const IPPROTO_GRE: u8 = 47;
pub const IPPROTO_ICMPV6: u8 = 58;
pub const IPPROTO_DSTOPTS: u8 = 60;
pub const IPPROTO_MOBILITY: u8 = 135;

/// GRE flags: a key follows (RFC 2890, 2).
pub const GRE_FLAG_KEY: u16 = 0x2000;
/// The first word of VXLAN: the VNI is valid (RFC 7348, 5).
pub const VXLAN_FLAG_VNI: u32 = 0x0800_0000;
/// The same of VXLAN-GPE, which says that what follows need not be Ethernet.
pub const VXLAN_FLAG_PROTOCOL: u32 = 0x0400_0000;
/// IANA's.
pub const VXLAN_PORT: u16 = 4789;
/// IANA's.
pub const GENEVE_PORT: u16 = 6081;

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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct Udp {
    pub src: u16,
    pub dst: u16,
    pub len: u16,
    pub sum: u16,
}

/// VXLAN and Geneve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, packed(2))]
pub struct VniHeader {
    /// VXLAN: flags. Geneve: version, length of options in words, flags, protocol.
    pub word: u32,
    /// The VNI, and a byte that says nothing.
    pub vni: u32,
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
pub const ND_OPT_SOURCE_MAC: u8 = 1;
pub const ND_OPT_TARGET_MAC: u8 = 2;

pub const ICMP_UNREACH: u8 = 3;
/// Fragmentation needed and DF set (RFC 792); the next-hop MTU is in the rest (RFC 1191).
pub const ICMP_FRAG_NEEDED: u8 = 4;
pub const ICMPV6_TOO_BIG: u8 = 2;

/// ECN field of TOS or traffic class (RFC 3168).
pub const ECN_MASK: u8 = 3;
pub const ECN_ECT_0: u8 = 2;
pub const ECN_ECT_1: u8 = 1;
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

/// Outer Ethernet and IP header of a peer, in as few words as they fit in: 34 bytes with IPv4, 54
/// with IPv6, as they go out.
pub type OuterWords = [u64; 7];

/// The first 32 bytes with IPv4. `tos`, `len`: of the outer packet. `outer_sum`: see
/// [`outer_template`].
#[inline(always)]
pub const fn front_v4(outer: &OuterWords, outer_sum: u32, tos: u8, len: u16) -> [u64; 4] {
    let len = len.to_be();
    // Byte 15; the checksum counts it with the byte before.
    let tos = u16::from_ne_bytes([0, tos]);
    let sum = fold(outer_sum + len as u32 + tos as u32);
    [outer[0], outer[1] | place(tos, 6), outer[2] | place(len, 0), outer[3] | place(sum, 0)]
}

/// The first 24 bytes with IPv6. `len`: of what follows the IPv6 header. `label`: the lower bits of
/// the flow label.
#[inline(always)]
pub const fn front_v6(outer: &OuterWords, tos: u8, len: u16, label: u16) -> [u64; 3] {
    // Bytes 14 and 15: version, traffic class, the upper bits of the flow label.
    let class = ((tos as u16) << 4).to_be();
    [outer[0], outer[1] | place(class, 6), outer[2] | place(label, 0) | place(len.to_be(), 2)]
}

/// The source port of a UDP encapsulation, so that paths and queues are chosen by the inner flow
/// (RFC 7348, 4; RFC 8926, 3.3): one of 49152 to 65535, network byte order.
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    ((hash ^ hash >> 16) as u16 | 0xc000).to_be()
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

/// Outer Ethernet and IPv4 header to a peer. `src_mac`, `dst_mac`: of this host and of the next hop.
/// `local`, `remote`: underlay addresses. `proto`: GRE or UDP. The second is the ones' complement sum
/// of the IPv4 header with length and TOS zero, before folding.
pub fn outer_v4(
    macs: [[u8; 6]; 2],
    local: Ipv4Addr,
    remote: Ipv4Addr,
    proto: u8,
    ttl: u8,
) -> (OuterWords, u32) {
    let ip = Ipv4 {
        vihl: 0x45,
        ttl,
        proto,
        frag: DF.to_be(),
        src: u32::from_ne_bytes(local.octets()),
        dst: u32::from_ne_bytes(remote.octets()),
        ..Ipv4::default()
    };
    let ip_words: [u16; IPV4_LEN / 2] = bytemuck::must_cast(ip);
    (outer_words(macs, ETH_P_IP, bytemuck::bytes_of(&ip)), sum_words(0, &ip_words))
}

/// As [`outer_v4`], with IPv6, which has no checksum.
pub fn outer_v6(
    macs: [[u8; 6]; 2],
    local: Ipv6Addr,
    remote: Ipv6Addr,
    proto: u8,
    ttl: u8,
) -> OuterWords {
    let ip = Ipv6 {
        vtf: 0x6000_0000u32.to_be(),
        next: proto,
        hops: ttl,
        src: bytemuck::must_cast(local.octets()),
        dst: bytemuck::must_cast(remote.octets()),
        ..Ipv6::default()
    };
    outer_words(macs, ETH_P_IPV6, bytemuck::bytes_of(&ip))
}

fn outer_words([dst, src]: [[u8; 6]; 2], proto: u16, ip: &[u8]) -> OuterWords {
    let eth = Eth { dst: mac_words(dst), src: mac_words(src), proto: proto.to_be() };
    let mut bytes = [0; size_of::<OuterWords>()];
    bytes[..ETH_LEN].copy_from_slice(bytemuck::bytes_of(&eth));
    bytes[ETH_LEN..ETH_LEN + ip.len()].copy_from_slice(ip);
    bytemuck::pod_read_unaligned(&bytes)
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
    fn ipv4_from_a_template_is_valid_and_carries_the_fields() {
        let macs = [[1, 2, 3, 4, 5, 6], [6; 6]];
        let (local, remote) = (Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12));
        let (outer, sum) = outer_v4(macs, local, remote, IPPROTO_GRE, 17);
        let front = front_v4(&outer, sum, 0xb9, 1500);
        let bytes = [bytemuck::bytes_of(&front), bytemuck::bytes_of(&outer[4])].concat();
        assert_eq!(bytes[..14], [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 8, 0]);
        let ip: Ipv4 = bytemuck::pod_read_unaligned(&bytes[14..34]);
        assert_eq!((ip.vihl, ip.tos, u16::from_be(ip.len)), (0x45, 0xb9, 1500));
        assert_eq!((ip.ttl, ip.proto, u16::from_be(ip.frag)), (17, IPPROTO_GRE, DF));
        let words: [u16; 10] = bytemuck::must_cast(ip);
        assert_eq!(fold(sum_words(0, &words)), 0);
    }

    #[test]
    fn ipv6_from_a_template_carries_the_fields() {
        let (local, remote) = ("fd00::11".parse().unwrap(), "fd00::12".parse().unwrap());
        let outer = outer_v6([[1; 6], [2; 6]], local, remote, IPPROTO_UDP, 9);
        let front = front_v6(&outer, 0xb9, 1460, 0x1234u16.to_be());
        let bytes = [bytemuck::bytes_of(&front), bytemuck::bytes_of(&outer)[24..].into()].concat();
        assert_eq!(bytes[12..14], [0x86, 0xdd]);
        let ip: Ipv6 = bytemuck::pod_read_unaligned(&bytes[14..54]);
        assert_eq!(u32::from_be(ip.vtf), 0x6b90_1234);
        assert_eq!((u16::from_be(ip.len), ip.next, ip.hops), (1460, IPPROTO_UDP, 9));
        let ends: [[u8; 16]; 2] = [bytemuck::must_cast(ip.src), bytemuck::must_cast(ip.dst)];
        assert_eq!(ends, [local.octets(), remote.octets()]);
    }

    #[test]
    fn source_ports_are_dynamic_ones() {
        for hash in [0, 1, 0xffff_ffff, 0x1234_5678, 0x4000_0000] {
            assert!(u16::from_be(source_port(hash)) >= 49152);
        }
        assert_ne!(source_port(0x0001_0000), source_port(0));
    }

    #[test]
    fn a_pair_of_macs_is_the_front_of_a_frame() {
        let pair = mac_pair([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]);
        assert_eq!(bytemuck::bytes_of(&pair), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
}
