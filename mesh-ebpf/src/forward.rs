//! What leaves by an underlay interface, of which this host is not the sender: nobody's tunnel packet
//! goes to a node with this host's own address.
//!
//! Nodes know each other by the underlay address, and what a host masquerades has it too. So a tunnel
//! packet that was forwarded, and that has this host's address, is dropped: GRE, or UDP to a tunnel's
//! port, in any form. What other hosts send by this one has their addresses, and passes. So does what
//! the kernel's own tunnels make of forwarded packets, since it forgets where those came in
//! (skb_scrub_packet).
//!
//! What our own programs send also came in somewhere. It is known by [`Packet::set_sent`].

use mesh_common::{
    maps::PeerKey,
    verdict::{DropReason, Hook, Verdict},
    wire::{
        ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Eth, IPPROTO_DSTOPTS,
        IPPROTO_FRAGMENT, IPPROTO_GRE, IPPROTO_HOPOPTS, IPPROTO_MOBILITY, IPPROTO_ROUTING,
        IPPROTO_UDP, Ipv4, Ipv6, UDP_LEN, Udp, VLAN_LEN,
    },
};

use crate::{
    end::{Done, NEXT, end},
    inner::{Family, V4, V6},
    maps,
    packet::{self, Packet},
    underlay::udp_port,
};

const PASS: Done = (Verdict::Pass, NEXT);
/// VLAN tags in the bytes that are looked behind. Nothing forwards a packet with more.
const TAGS_MAX: u32 = 2;
/// Extension headers of IPv6 that are looked behind. A packet with more is for no good.
const HEADERS_MAX: u32 = 8;
/// The offset of a fragment, in the third and fourth byte of its header.
const FRAGMENT_OFFSET: u16 = 0xfff8;

/// Gives the kernel's code. Packets of the host itself and of our programs are not counted.
#[inline(always)]
pub fn leave(packet: &Packet) -> i32 {
    if packet.ingress_ifindex() == 0 || packet.is_sent() {
        return NEXT;
    }
    judge(packet)
}

/// Of a forwarded packet.
#[inline(always)]
pub fn judge(packet: &Packet) -> i32 {
    end(Hook::FromForward, sort(packet))
}

#[inline(always)]
fn sort(packet: &Packet) -> Result<Done, DropReason> {
    let (proto, at) = untagged(packet)?;
    let is_forged = match proto {
        ETH_P_IP => is_forged_v4(packet, at)?,
        ETH_P_IPV6 => is_forged_v6(packet, at)?,
        _ => false,
    };
    if is_forged { Err(DropReason::ForgedTunnel) } else { Ok(PASS) }
}

/// The Ethernet type, host byte order, and where what it tells of begins.
#[inline(always)]
fn untagged(packet: &Packet) -> Result<(u16, usize), DropReason> {
    let eth: *mut Eth = packet.need(0)?;
    // SAFETY: `need` checked the bounds.
    let mut proto = u16::from_be(unsafe { (*eth).proto });
    let (mut at, mut tags) = (ETH_LEN, 0);
    while tags < TAGS_MAX && matches!(proto, ETH_P_8021Q | ETH_P_8021AD) {
        // Of the tag, and then the type behind it.
        let [_, next]: [u16; 2] = packet.load(at)?;
        (proto, at, tags) = (u16::from_be(next), at + VLAN_LEN, tags + 1);
    }
    Ok((proto, packet::any_offset(packet, at)))
}

#[inline(always)]
fn is_forged_v4(packet: &Packet, at: usize) -> Result<bool, DropReason> {
    let ip: *mut Ipv4 = packet.need(at)?;
    // SAFETY: `need` checked the bounds.
    let ip = unsafe { *ip };
    match V4::next(&ip) {
        // The protocol is in every fragment.
        IPPROTO_GRE => {}
        // The first fragment has the ports, since it has at least eight bytes. Nobody puts the others
        // together without it.
        IPPROTO_UDP if !V4::is_later_fragment(&ip) => {}
        _ => return Ok(false),
    }
    if !is_own::<V4>(&ip) {
        return Ok(false);
    }
    let is_gre = V4::next(&ip) == IPPROTO_GRE;
    let at = at + V4::header_len(&ip);
    let is_tunnel = if is_gre { Ok(true) } else { is_tunnel_port(packet, at) };
    // Nodes last: all else costs less, and most that is masqueraded is for no tunnel.
    if is_tunnel == Ok(false) || !is_to_node::<V4>(&ip) {
        return Ok(false);
    }
    is_tunnel
}

#[inline(always)]
fn is_forged_v6(packet: &Packet, at: usize) -> Result<bool, DropReason> {
    let ip: *mut Ipv6 = packet.need(at)?;
    // SAFETY: `need` checked the bounds.
    let ip = unsafe { *ip };
    let is_ours = is_own::<V6>(&ip) && is_to_node::<V6>(&ip);
    Ok(is_ours && is_tunnel_v6(packet, V6::next(&ip), at + V6::LEN)?)
}

/// Does it have this host's underlay address?
#[inline(always)]
fn is_own<F: Family>(ip: &F::Header) -> bool {
    let src = F::src(ip);
    maps::node().is_some_and(|node| node.underlay == src) && !F::is_mapped(&src)
}

/// Is it for another node?
#[inline(always)]
fn is_to_node<F: Family>(ip: &F::Header) -> bool {
    let dst = F::dst(ip);
    // Each peer has an entry for network 0.
    let key = PeerKey { outer_source: dst, vni: 0 };
    !F::is_mapped(&dst) && maps::is_peer_source(&key)
}

/// Is there a tunnel behind a header that says `next` for what is at `at`?
#[inline(always)]
fn is_tunnel_v6(packet: &Packet, mut next: u8, mut at: usize) -> Result<bool, DropReason> {
    let mut headers = 0;
    while headers < HEADERS_MAX {
        match next {
            IPPROTO_GRE => return Ok(true),
            IPPROTO_UDP => return is_tunnel_port(packet, at),
            IPPROTO_FRAGMENT => {
                let [first, place]: [u16; 2] = packet.load(at)?;
                next = first.to_ne_bytes()[0];
                if u16::from_be(place) & FRAGMENT_OFFSET != 0 {
                    // As with IPv4; what is behind further headers can not be seen here.
                    return Ok(next == IPPROTO_GRE || is_extension(next));
                }
                at += 8;
            }
            _ if is_extension(next) => {
                // The next header, and the length in units of 8 bytes beyond the first.
                let [after, more]: [u8; 2] = packet.load(at)?;
                (next, at) = (after, at + 8 + usize::from(more) * 8);
            }
            _ => return Ok(false),
        }
        headers += 1;
    }
    Ok(true)
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_MOBILITY)
}

/// Is the UDP header at `at` one to a port of a tunnel?
#[inline(always)]
fn is_tunnel_port(packet: &Packet, at: usize) -> Result<bool, DropReason> {
    const { assert!(size_of::<Udp>() == UDP_LEN) };
    let udp: Udp = packet.load(at)?;
    Ok(udp_port(udp.dst).is_some())
}
