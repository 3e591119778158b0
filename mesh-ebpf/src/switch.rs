//! Peers without mesh that are a switch: a bridge or Open vSwitch behind VXLAN, Geneve or GRETAP.
//!
//! Who is behind one asks by ARP and neighbour discovery for our endpoints, and is told the gateway's
//! MAC, as our own containers are. Who of ours sends there needs the MAC of the very destination:
//! it is learned from all that comes from there, and asked for when it is not known.

use mesh_common::{
    maps::{Addr, NeighbourInfo, NeighbourKey, PeerInfo, PeerKey, PeerSource, PortInfo},
    verdict::{DropReason, Verdict},
    wire::{
        ARP_ETH_IPV4, ARP_REPLY, ARP_REQUEST, Arp, ETH_P_ARP, ETH_P_IPV6, IPV6_LEN, ND_ADVERT,
        ND_SOLICIT,
    },
};

use aya_ebpf::bindings::TC_ACT_SHOT;

use crate::{
    count,
    encap::{self, Inner, REST, Route},
    end::{Done, Refusal},
    inner::{Family, V4, V6},
    maps,
    neighbour::{self, MESSAGE_LEN, ND_HOPS},
    packet::{self, Packet},
    underlay::is_peers,
};

/// After so long without a word from it, an address is asked for again, while packets still go to
/// the MAC that it had.
const FRESH_SECONDS: u32 = 30;

const NOTED: Done = (Verdict::Learn, TC_ACT_SHOT);
const BROADCAST: [u16; 3] = [0xffff; 3];
/// Of an Ethernet header's MACs, before what follows the header.
const SOURCE_MAC_BEFORE: usize = 8;
/// In an IPv6 header, and in a neighbour message.
const HOPS_AT: usize = 7;
const SOURCE_AT: usize = 8;
const TARGET_AT: usize = 8;
/// The lowest bit of the first byte.
const GROUP_MAC: u16 = 0x0100u16.to_be();

/// To an address behind the peer with this index.
#[inline(always)]
pub fn send<F: Family>(
    packet: &Packet,
    port: &PortInfo,
    index: u32,
    route: &Route<'_>,
    inner: Inner<'_>,
    dst: Addr,
) -> Result<Done, Refusal> {
    let key = NeighbourKey { vni: port.vni, addr: dst };
    let Some(known) = maps::neighbour(&key).filter(|known| known.peer() == index) else {
        // All who are behind the switch hear each question.
        let now = packet::seconds();
        if maps::is_asked(&key, now) {
            return Err(DropReason::Unresolved.into());
        }
        let (_, code) = ask::<F>(packet, port, route, &dst)?;
        maps::set_asked(&key, now);
        return Err(Refusal { reason: DropReason::Unresolved, code });
    };
    let (heard, asked) = (known.heard(), known.asked());
    let macs = toward(&route.peer.inner_macs, known.mac);
    let inner = Inner { macs: &macs, ..inner };
    let now = packet::seconds();
    // A copy of it goes where it would have, and it asks. A super-packet is one, and the next may not
    // be.
    let asks = now.wrapping_sub(heard) > FRESH_SECONDS
        && now != asked
        && route.peer.flags & PeerInfo::MAC_KNOWN != 0
        && packet.gso_size() == 0;
    let done = encap::send(packet, route, &inner, !asks)?;
    count::peer_tx(index, inner.bytes);
    if !asks {
        return Ok(done);
    }
    known.set_asked(now);
    packet.copy_to(route.peer.ifindex, false);
    // If it can not ask, the copy is on its way all the same.
    let code = ask::<F>(packet, port, route, &dst).map_or(TC_ACT_SHOT, |(_, code)| code);
    Ok((Verdict::Encap, code))
}

/// Turns the packet into the question who has `target`.
#[inline(never)]
fn ask<F: Family>(
    packet: &Packet,
    port: &PortInfo,
    route: &Route<'_>,
    target: &Addr,
) -> Result<Done, DropReason> {
    let (own, mac) = (&route.peer.inner_macs, port.gateway_mac);
    if F::IS_V4 {
        let (htype, ptype, hlen, plen) = ARP_ETH_IPV4;
        let body = Arp {
            htype: htype.to_be(),
            ptype: ptype.to_be(),
            hlen,
            plen,
            op: ARP_REQUEST.to_be(),
            sender_mac: mac,
            sender_ip: port.addr4,
            target_mac: [0; 3],
            target_ip: target.0[3],
        };
        let at = encap::precede(packet, route, size_of::<Arp>())?;
        packet.store(at, &body)?;
        let macs = toward(own, BROADCAST);
        return encap::send_own(packet, route, macs, ETH_P_ARP, size_of::<Arp>() + REST);
    }
    // RFC 2464, 7: 33:33:ff and the rest of the solicited-node address.
    let [high, low] = packet::word_halves(target.0[3] | 0xff00_0000u32.to_be());
    let group = toward(own, [0x3333, high, low]);
    let at = encap::precede(packet, route, MESSAGE_LEN)?;
    // Of a bridge's port no address is known here, and one is needed to say the MAC (RFC 4861, 4.3).
    let asker = if port.addr6 == [0; 4] { port.gateway6 } else { port.addr6 };
    neighbour::solicit(packet, at, mac, asker, target.0)?;
    encap::send_own(packet, route, group, ETH_P_IPV6, MESSAGE_LEN + REST)
}

/// An ARP message at `at` from behind a peer.
#[inline(never)]
pub fn arp(packet: &Packet, key: &PeerKey, at: usize) -> Result<Done, DropReason> {
    let source = maps::peer_source_by_number(key).ok_or(DropReason::UnknownPeer)?;
    let said: Arp = packet.load(at)?;
    let kind = (u16::from_be(said.htype), u16::from_be(said.ptype), said.hlen, said.plen);
    if kind != ARP_ETH_IPV4 {
        return Err(DropReason::NoReply);
    }
    // 0 asks whether an address is free (RFC 5227).
    if said.sender_ip != 0 {
        let sender = Addr::from_v4(said.sender_ip);
        if !is_peers::<V4>(source, &sender) {
            return Err(DropReason::SourceNotPeers);
        }
        note(source, sender, said.sender_mac);
    }
    let target = Addr::from_v4(said.target_ip);
    if u16::from_be(said.op) != ARP_REQUEST || !has::<V4>(source, &target) {
        return Ok(NOTED);
    }
    let peer = maps::peer(source.peer)?;
    let macs = toward(&peer.inner_macs, said.sender_mac);
    let reply = Arp {
        op: ARP_REPLY.to_be(),
        sender_mac: source_mac(&macs),
        sender_ip: said.target_ip,
        target_mac: said.sender_mac,
        target_ip: said.sender_ip,
        ..said
    };
    let route = Route::new(peer, key.vni);
    let at = encap::resize(packet, &route, size_of::<Arp>())?;
    packet.store(at, &reply)?;
    let (_, code) = encap::send_own(packet, &route, macs, ETH_P_ARP, size_of::<Arp>())?;
    Ok((Verdict::Answer, code))
}

/// A neighbour message, whose IPv6 header is at `at`, from behind a peer.
#[inline(never)]
pub fn nd(packet: &Packet, key: &PeerKey, at: usize) -> Result<Done, DropReason> {
    let source = maps::peer_source_by_number(key).ok_or(DropReason::UnknownPeer)?;
    // Field by field: the stack is small.
    let hops: u8 = packet.load(at + HOPS_AT)?;
    let src = Addr(packet.load(at + SOURCE_AT)?);
    let kind: u8 = packet.load(at + IPV6_LEN)?;
    let is_asked = kind == ND_SOLICIT;
    // Those to and from routers are shorter.
    if hops != ND_HOPS || !is_asked && kind != ND_ADVERT {
        return Err(DropReason::NoReply);
    }
    let target = Addr(packet.load(at + IPV6_LEN + TARGET_AT)?);
    let mac = inner_source_mac(packet, at)?;
    // Whose MAC it says. A question may come from a link-local address, or from none if it is whether
    // an address is free (RFC 4862, 5.4): that is for who has it, and silence is an answer.
    let subject = if is_asked { src } else { target };
    if is_peers::<V6>(source, &subject) {
        note(source, subject, mac);
    } else if !is_asked || !neighbour::is_link_local(&src) {
        return Err(DropReason::SourceNotPeers);
    }
    if !is_asked || !has::<V6>(source, &target) {
        return Ok(NOTED);
    }
    let peer = maps::peer(source.peer)?;
    let macs = toward(&peer.inner_macs, mac);
    let route = Route::new(peer, key.vni);
    let at = encap::resize(packet, &route, MESSAGE_LEN)?;
    neighbour::advertise(packet, at, source_mac(&macs), src.0, target.0)?;
    let (_, code) = encap::send_own(packet, &route, macs, ETH_P_IPV6, MESSAGE_LEN)?;
    Ok((Verdict::Answer, code))
}

/// An inner packet at `at`, after its Ethernet header, came from `addr`.
#[inline(always)]
pub fn learn(packet: &Packet, source: &PeerSource, addr: Addr, at: usize) {
    if let Ok(mac) = inner_source_mac(packet, at) {
        note(source, addr, mac);
    }
}

#[inline(always)]
fn note(source: &PeerSource, addr: Addr, mac: [u16; 3]) {
    if mac[0] & GROUP_MAC != 0 {
        return;
    }
    let key = NeighbourKey { vni: source.vni, addr };
    let heard = packet::seconds();
    let known = maps::neighbour(&key);
    if let Some(known) = known.filter(|known| known.mac == mac && known.peer() == source.peer) {
        if known.heard() != heard {
            known.set_heard(heard);
        }
        return;
    }
    maps::learn(&key, &NeighbourInfo::new(&key, mac, source.peer, heard, 0));
}

/// Is it an endpoint's here?
#[inline(always)]
fn has<F: Family>(source: &PeerSource, target: &Addr) -> bool {
    !F::is_mapped(target) && maps::endpoint(source.vni, *target).is_ok()
}

#[inline(always)]
fn inner_source_mac(packet: &Packet, at: usize) -> Result<[u16; 3], DropReason> {
    packet.load(at - SOURCE_MAC_BEFORE)
}

/// The pair with another destination.
#[inline(always)]
pub fn toward(macs: &[u32; 3], dst: [u16; 3]) -> [u32; 3] {
    let [_, own] = packet::word_halves(macs[1]);
    [packet::word_of([dst[0], dst[1]]), packet::word_of([dst[2], own]), macs[2]]
}

/// The source of a pair.
#[inline(always)]
fn source_mac(macs: &[u32; 3]) -> [u16; 3] {
    let [_, a] = packet::word_halves(macs[1]);
    let [b, c] = packet::word_halves(macs[2]);
    [a, b, c]
}
