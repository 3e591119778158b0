//! ARP and neighbour discovery, answered here: every address of the overlay is behind the gateway's
//! MAC. No question is ever flooded.

use mesh_common::{
    maps::{Addr, FibInfo, PortInfo},
    verdict::{DropReason, Hook, Verdict},
    wire::{
        ARP_ETH_IPV4, ARP_REPLY, ARP_REQUEST, Arp, ETH_LEN, ETH_P_ARP, ETH_P_IPV6, Eth,
        IPPROTO_ICMPV6, IPV6_LEN, Ipv6, ND_ADVERT, ND_FLAGS_REPLY, ND_OPT_SOURCE_MAC,
        ND_OPT_TARGET_MAC, ND_SOLICIT, NeighbourMessage, fold, sum_words,
    },
};

use crate::{
    bridge::{self, Source},
    encap::REST,
    end::{Done, end},
    fib,
    icmp::pseudo_sum,
    inner::{Family, V4, V6},
    maps,
    packet::{self, Packet},
};

/// Neighbour messages come from on link: hop limit 255 (RFC 4861, 7.1.1).
pub const ND_HOPS: u8 = 255;
const ND_AT: usize = ETH_LEN + IPV6_LEN;

/// A message of either protocol, from an endpoint. Gives the kernel's code.
#[inline(always)]
pub fn answer(packet: &Packet) -> i32 {
    match maps::port(packet.ifindex()) {
        Ok(port) => end(maps::hook(port), reply(packet, port)),
        Err(reason) => end(Hook::FromContainer, Err(reason)),
    }
}

#[inline(always)]
fn reply(packet: &Packet, port: &PortInfo) -> Result<Done, DropReason> {
    let eth: Eth = packet.load(0)?;
    match u16::from_be(eth.proto) {
        ETH_P_ARP => arp(packet, port),
        _ => nd(packet, port),
    }
}

/// Answers an ARP request for an address of the overlay.
#[inline(never)]
fn arp(packet: &Packet, port: &PortInfo) -> Result<Done, DropReason> {
    let ask: Arp = packet.load(ETH_LEN)?;
    let kind = (u16::from_be(ask.htype), u16::from_be(ask.ptype), ask.hlen, ask.plen);
    let is_request = u16::from_be(ask.op) == ARP_REQUEST;
    if kind != ARP_ETH_IPV4 || !is_request && !bridge::is_port(port) {
        return bridge::pass_or(port, DropReason::NoReply);
    }
    let (sender, target) = (Addr::from_v4(ask.sender_ip), Addr::from_v4(ask.target_ip));
    // 0 asks whether an address is free (RFC 5227).
    if ask.sender_ip != 0 && !V4::is_own(port, &sender) {
        match bridge::source::<V4>(packet, port, &sender) {
            Source::Own => {}
            Source::Others => return Err(DropReason::SpoofedSource),
            Source::Unknown => return bridge::pass_or(port, DropReason::SpoofedSource),
        }
    }
    if !is_request || !is_somebodys::<V4>(port, &target) {
        return bridge::pass_or(port, DropReason::NoReply);
    }
    let reply = Arp {
        op: ARP_REPLY.to_be(),
        sender_mac: port.gateway_mac,
        sender_ip: ask.target_ip,
        target_mac: ask.sender_mac,
        target_ip: ask.sender_ip,
        ..ask
    };
    packet.store(ETH_LEN, &reply)?;
    packet.store(0, &front(port, ask.sender_mac, ETH_P_ARP))?;
    Ok((Verdict::Answer, back(packet, port)))
}

/// An IPv6 packet at `at` that is ICMPv6: a neighbour message, or the rest of that protocol?
#[inline(always)]
pub fn is_nd(packet: &Packet, at: usize) -> bool {
    match packet.load::<u8>(at + IPV6_LEN) {
        // Router solicitation and advertisement, neighbour ditto, redirect.
        Ok(kind) => (133..=137).contains(&kind),
        Err(_) => false,
    }
}

/// Answers a neighbour solicitation for an address of the overlay.
#[inline(never)]
fn nd(packet: &Packet, port: &PortInfo) -> Result<Done, DropReason> {
    let ip: Ipv6 = packet.load(ETH_LEN)?;
    let kind: u8 = packet.load(ND_AT)?;
    let from = Addr(ip.src);
    // From :: it asks whether an address is free (RFC 4862, 5.4): silence says yes, and only the
    // endpoint itself may have it.
    if kind != ND_SOLICIT || ip.hops != ND_HOPS || { ip.src } == [0; 4] {
        return bridge::pass_or(port, DropReason::NoReply);
    }
    if !V6::is_own(port, &from) && !is_link_local(&from) {
        match bridge::source::<V6>(packet, port, &from) {
            Source::Own => {}
            Source::Others => return Err(DropReason::SpoofedSource),
            Source::Unknown => return bridge::pass_or(port, DropReason::SpoofedSource),
        }
    }
    let target: [u32; 4] = packet.load(ND_AT + 8)?;
    if !is_somebodys::<V6>(port, &Addr(target)) {
        return bridge::pass_or(port, DropReason::NoReply);
    }
    let eth: Eth = packet.load(0)?;
    packet.trim((ND_AT + size_of::<NeighbourMessage>()) as u32)?;
    advertise(packet, ETH_LEN, port.gateway_mac, ip.src, target)?;
    packet.store(0, &front(port, eth.src, ETH_P_IPV6))?;
    Ok((Verdict::Answer, back(packet, port)))
}

/// Bytes of a neighbour message with its IPv6 header.
pub const MESSAGE_LEN: usize = IPV6_LEN + size_of::<NeighbourMessage>();

/// Writes the advertisement to `asker` that `target` has this MAC, and its IPv6 header, at `at`.
#[inline(always)]
pub fn advertise(
    packet: &Packet,
    at: usize,
    mac: [u16; 3],
    asker: [u32; 4],
    target: [u32; 4],
) -> Result<(), DropReason> {
    let message = NeighbourMessage {
        kind: ND_ADVERT,
        flags: ND_FLAGS_REPLY.to_be(),
        target,
        option: ND_OPT_TARGET_MAC,
        option_len: 1,
        mac,
        ..NeighbourMessage::default()
    };
    put(packet, at, target, asker, message, None)
}

/// Writes the solicitation of `asker`, which has this MAC, for that of `target`. The [`REST`] bytes
/// behind it, all 0, become an option that says nothing (253, for experiments, RFC 4727, and ignored by
/// all, RFC 4861, 4.6): as bytes beyond the message the receiver would cut them off, and the kernel
/// refuses that where a checksum is still to be written there. Written it leaves their sum as it was.
#[inline(always)]
pub fn solicit(
    packet: &Packet,
    at: usize,
    mac: [u16; 3],
    asker: [u32; 4],
    target: [u32; 4],
) -> Result<(), DropReason> {
    let message = NeighbourMessage {
        kind: ND_SOLICIT,
        target,
        option: ND_OPT_SOURCE_MAC,
        option_len: 1,
        mac,
        ..NeighbourMessage::default()
    };
    // The solicited-node address (RFC 4291, 2.7.1).
    let group = 0xff00_0000u32.to_be() | target[3] & 0x00ff_ffffu32.to_be();
    let filler = u16::from_ne_bytes([ND_OPT_FILLER, (REST / 8) as u8]);
    packet.store(at + MESSAGE_LEN, &filler)?;
    let dst = [0xff02_0000u32.to_be(), 0, 1u32.to_be(), group];
    put(packet, at, asker, dst, message, Some(filler))
}

const ND_OPT_FILLER: u8 = 253;

/// The header first: the two need not be on the stack at once. `filler`: the first word of [`REST`]
/// bytes more.
#[inline(always)]
fn put(
    packet: &Packet,
    at: usize,
    src: [u32; 4],
    dst: [u32; 4],
    mut message: NeighbourMessage,
    filler: Option<u16>,
) -> Result<(), DropReason> {
    let more = if filler.is_some() { REST } else { 0 };
    let sum = {
        let ip = Ipv6 {
            vtf: 0x6000_0000u32.to_be(),
            len: ((size_of::<NeighbourMessage>() + more) as u16).to_be(),
            next: IPPROTO_ICMPV6,
            hops: ND_HOPS,
            src,
            dst,
        };
        packet.store(at, &ip)?;
        pseudo_sum(&ip)
    };
    // SAFETY: it is as long, as aligned, and any bytes are words.
    let words: &[u16; size_of::<NeighbourMessage>() / 2] = unsafe { &*(&raw const message).cast() };
    message.sum = fold(sum_words(sum + u32::from(filler.unwrap_or_default()), words));
    packet.store(at + IPV6_LEN, &message)
}

/// The gateway, another node's subnet, or an endpoint here that is not the one that asks. For a port
/// of a bridge, only what is not on the bridge.
#[inline(always)]
fn is_somebodys<F: Family>(port: &PortInfo, target: &Addr) -> bool {
    if !bridge::is_port(port) && F::is_gateway(port, target) {
        return true;
    }
    match fib::lookup::<F>(&port.lens, port.vni, target) {
        Some(to) if to.kind == FibInfo::LOCAL && bridge::is_port(port) => {
            !bridge::is_its_own(port.vni, target)
        }
        Some(to) if to.kind == FibInfo::LOCAL => match maps::endpoint(port.vni, *target) {
            Ok(endpoint) => endpoint.ifindex != port.ifindex,
            Err(_) => bridge::of(port.vni).is_some(),
        },
        Some(_) => true,
        None => false,
    }
}

#[inline(always)]
pub fn is_link_local(addr: &Addr) -> bool {
    u32::from_be(addr.0[0]) >> 22 == 0xfe80 >> 6
}

/// Of an answer to an endpoint. `proto`: host byte order.
#[inline(always)]
pub fn front(port: &PortInfo, dst: [u16; 3], proto: u16) -> Eth {
    Eth { dst, src: port.gateway_mac, proto: proto.to_be() }
}

/// Sends the packet back to where it came from.
#[inline(always)]
pub fn back(packet: &Packet, port: &PortInfo) -> i32 {
    match maps::hook(port) {
        Hook::FromHost => packet::redirect_ingress(packet.ifindex()),
        _ => packet::redirect(packet.ifindex()),
    }
}
