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
/// Where flags and checksum are in the header.
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;
const SYN: u8 = 0x02;

/// Kinds of options (RFC 9293, 3.2).
const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
/// All options together are 40 bytes; the one that is looked for comes first, or nearly.
const OPTIONS: usize = 10;

/// The first four bytes of an option.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Opt {
    kind: u8,
    len: u8,
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
    let Ok([words, flags]) = packet.load::<[u8; 2]>(tcp + FLAGS - 1) else { return 0 };
    if flags & SYN == 0 {
        return 0;
    }
    let most = mtu.saturating_sub((ip + TCP_LEN) as u32);
    let (mut at, end) = (tcp + TCP_LEN, tcp + (words >> 4) as usize * 4);
    let mut seen = 0;
    while seen < OPTIONS && at + size_of::<Opt>() <= end {
        let Ok(option) = packet.load::<Opt>(at) else { return 0 };
        match option.kind {
            END => return 0,
            NOP => at += 1,
            MSS => {
                if u32::from(u16::from_be(option.mss)) > most {
                    replace(packet, tcp, at, option, most as u16);
                }
                return 0;
            }
            // Shorter than itself: nothing that follows can be found.
            _ if option.len < 2 => return 0,
            _ => at += option.len as usize,
        }
        seen += 1;
    }
    0
}

#[inline(always)]
fn replace(packet: &Packet, tcp: usize, at: usize, old: Opt, mss: u16) {
    let new = Opt { mss: mss.to_be(), ..old };
    // At an odd offset the number lies across two words of the checksum: one byte further.
    let odd = (at - tcp) & 1 != 0;
    let word = |mss: u16| if odd { mss.swap_bytes() } else { mss };
    if packet.store(at, &new).is_ok() {
        packet.resum(tcp + CHECKSUM, word(old.mss), word(new.mss));
    }
}
