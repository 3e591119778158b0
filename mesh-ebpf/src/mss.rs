//! The segment size that TCP agrees on with a host that does not run mesh, kept to what fits: where
//! no ICMP comes through, the two would find out by nothing else. Only for peers with
//! [`PeerInfo::CLAMP`](mesh_common::maps::PeerInfo::CLAMP), and only for packets that open a
//! connection.

use mesh_common::wire::ETH_LEN;

use crate::{
    encap::Route,
    inner::{Family, is_tcp},
    maps,
    packet::Packet,
};

const TCP_LEN: usize = 20;
/// Where the data offset and the checksum are in the header.
const WORDS: usize = 12;
const CHECKSUM: usize = 16;
const SYN: u8 = 0x02;
/// Words of a header with one option of that size.
const WITH_OPTION: u8 = 6;

/// The kind and length of the option (RFC 9293, 3.2). It stands first, as every common stack puts
/// it; to look for it behind others would cost the verifier more than all else together.
const MSS: [u8; 2] = [2, 4];

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Opening {
    /// Data offset in words in the upper half, then the flags.
    words: u8,
    flags: u8,
    _window_sum_urgent: [u8; 6],
    option: [u8; 2],
    /// Network byte order.
    mss: u16,
}

/// Of a packet that is about to be sent by this route: what the other side may send. Moves pointers.
#[inline(always)]
pub fn of_sent<F: Family>(packet: &Packet, header: &F::Header, route: &Route<'_>, port_mtu: u32) {
    if is_open::<F>(header) {
        clamp(packet, ETH_LEN + F::header_len(header), F::LEN, route.mtu(port_mtu));
    }
}

/// Of a packet that a peer sent, `at`, with this number on the wire: what may be sent to it. Moves
/// pointers.
#[inline(always)]
pub fn of_received<F: Family>(packet: &Packet, header: &F::Header, at: usize, peer: u32, vni: u32) {
    if !is_open::<F>(header) {
        return;
    }
    let Ok(peer) = maps::peer(peer) else { return };
    clamp(packet, at + F::header_len(header), F::LEN, Route::new(peer, vni).mtu(u32::MAX));
}

/// May this be TCP's first packet, as far as IP says?
#[inline(always)]
fn is_open<F: Family>(header: &F::Header) -> bool {
    is_tcp(F::next(header)) && !F::is_later_fragment(header)
}

/// `tcp`: offset of its header. `ip`: bytes of the IP header that each segment gets. `mtu`: of the
/// path, for packets with their IP header. What can not be done is left: the packet is good.
#[inline(never)]
fn clamp(packet: &Packet, tcp: usize, ip: usize, mtu: u32) -> i32 {
    let Ok(opening) = packet.load::<Opening>(tcp + WORDS) else { return 0 };
    let Opening { words, flags, option, mss: old, .. } = opening;
    if flags & SYN == 0 || words >> 4 < WITH_OPTION || option != MSS {
        return 0;
    }
    let most = mtu.saturating_sub((ip + TCP_LEN) as u32);
    if u32::from(u16::from_be(old)) <= most {
        return 0;
    }
    let new = (most as u16).to_be();
    if packet.store(tcp + TCP_LEN + MSS.len(), &new).is_ok() {
        packet.resum(tcp + CHECKSUM, old, new);
    }
    0
}
