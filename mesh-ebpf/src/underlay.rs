//! What arrives on the underlay: ours? a known peer? a known network? an inner source that is the
//! peer's? Only then are the outer headers taken off.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6},
};
use mesh_common::{
    maps::{Addr, FibInfo, NetworkInfo, NodeInfo, PeerKey, PeerSource, UdpPort, VNI_MAX},
    verdict::{DropReason, Hook, Verdict},
    wire::{
        ECN_CE, ECN_ECT_0, ECN_ECT_1, ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, ETH_P_TEB, Eth,
        GRE_FLAG_KEY, GRE_KEY_LEN, GRE_LEN, Gre, IPPROTO_GRE, IPPROTO_ICMPV6, IPPROTO_UDP,
        IPV6_LEN, UDP_LEN, Udp, VNI_HEADER_LEN, VXLAN_FLAG_PROTOCOL, VXLAN_FLAG_VNI, VniHeader,
    },
};

use crate::{
    bridge, count, deliver,
    end::{Done, NEXT, Refusal, end},
    fib, flood,
    inner::{Family, V4, V6, ecn},
    maps, mss, neighbour,
    packet::{self, Packet},
    switch,
};

/// The kernel takes BPF_F_ADJ_ROOM_DECAP_L3_* (6.3, d219df60a70e). Without them a packet keeps the
/// outer header's protocol, and must pass through the veth to get its own back if it is of the other.
#[unsafe(no_mangle)]
static DECAP_L3: Global<u32> = Global::new(1);

const PASS: Done = (Verdict::Pass, NEXT);
const GRE_VERSION: u16 = 7;
const GENEVE_VERSION: u8 = 0xc0;
/// Length of the options in words.
const GENEVE_OPTIONS: u8 = 0x3f;
/// A control message, or options that must be understood (RFC 8926, 3.4).
const GENEVE_REFUSED: u8 = 0xc0;

/// What a packet for this node says from outside, and what is checked of it already.
struct Tunnel {
    /// Network byte order.
    proto: u16,
    vni: u32,
    /// Where the inner packet begins.
    at: usize,
    /// Bytes in front of it that are not counted in `at`: options.
    more: u32,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Gre,
    Udp(UdpPort),
}

/// A peer that may send in this network.
struct Outer {
    source: &'static PeerSource,
    src: Addr,
    /// On the wire.
    vni: u32,
    tos: u8,
    /// The peer is a switch, and the inner packet has an Ethernet header: there is a MAC to speak of.
    is_switch: bool,
    is_v4: bool,
}

/// What is not a packet for this node, or one that it refuses.
enum Not {
    Ours,
    Good(Kind, DropReason),
}

/// Gives the kernel's code.
#[inline(always)]
pub fn receive(packet: &Packet) -> i32 {
    // From here, and not from where it is found: the two would need the stack at once.
    match judge(packet) {
        ARP => {
            let Left { key, at } = Left::of(packet);
            end(HOOK, switch::arp(packet, &key, at))
        }
        ND => {
            let Left { key, at } = Left::of(packet);
            end(HOOK, switch::nd(packet, &key, at))
        }
        GROUP => flood::go_on_receiving(packet),
        code => code,
    }
}

const HOOK: Hook = Hook::FromUnderlay;

/// An ARP or neighbour message from behind a peer that is a switch, or what is for many. None of
/// these is a code of the kernel's; with each goes what [`Left::leave`] left beside the packet.
const ARP: i32 = 1000;
const ND: i32 = 1001;
/// To all of the network, or to a group of it.
const GROUP: i32 = 1002;

/// What is known of a packet that is not done with here.
pub struct Left {
    pub key: PeerKey,
    /// Where the inner packet begins.
    pub at: usize,
}

impl Left {
    /// Beside the packet and not on the stack, where each packet would have to pay for its room: it
    /// is to be written before a function is told of it.
    #[inline(always)]
    fn leave(packet: &Packet, outer: &Outer, at: usize) {
        let [a, b, c, d] = outer.src.0;
        packet.leave([a, b, c, d, outer.vni << 8 | at as u32]);
    }

    #[inline(always)]
    pub fn of(packet: &Packet) -> Self {
        let [a, b, c, d, rest] = packet.words();
        let key = PeerKey { outer_source: Addr([a, b, c, d]), vni: rest >> 8 };
        Self { key, at: (rest & 0xff) as usize }
    }
}

#[inline(never)]
fn judge(packet: &Packet) -> i32 {
    match sort(packet) {
        Ok((_, code @ (ARP | ND | GROUP))) => code,
        outcome => end(HOOK, outcome),
    }
}

#[inline(always)]
fn sort(packet: &Packet) -> Result<Done, Refusal> {
    if !packet.is_for_us() || packet.vlan() != 0 {
        return Ok(PASS);
    }
    match u16::from_be(packet.protocol()) {
        ETH_P_IP => outer::<V4>(packet),
        ETH_P_IPV6 => outer::<V6>(packet),
        _ => Ok(PASS),
    }
}

#[inline(always)]
fn outer<O: Family>(packet: &Packet) -> Result<Done, Refusal> {
    let Ok(ip) = packet.need::<O::Header>(ETH_LEN) else { return Ok(PASS) };
    // SAFETY: `need` checked the bounds.
    let ip = unsafe { *ip };
    let read = match O::next(&ip) {
        IPPROTO_GRE => gre::<O>(packet, &ip),
        IPPROTO_UDP => udp::<O>(packet, &ip),
        _ => return Ok(PASS),
    };
    match read {
        Ok(tunnel) => known::<O>(packet, &ip, &tunnel),
        Err(Not::Ours) => Ok(PASS),
        Err(Not::Good(kind, reason)) => stranger::<O>(&ip, kind, reason),
    }
}

#[inline(always)]
fn gre<O: Family>(packet: &Packet, ip: &O::Header) -> Result<Tunnel, Not> {
    let at = ETH_LEN + O::LEN;
    let not = |reason| Not::Good(Kind::Gre, reason);
    if !O::is_plain(ip) {
        return Err(not(DropReason::UnsupportedOuter));
    }
    if O::is_fragment(ip) {
        return Err(not(DropReason::OuterFragment));
    }
    let gre: *mut Gre = packet.need(at).map_err(not)?;
    // SAFETY: `need` checked the bounds.
    let Gre { flags, proto } = unsafe { *gre };
    match u16::from_be(flags) {
        0 => Ok(Tunnel { proto, vni: 0, at: at + GRE_LEN, more: 0, kind: Kind::Gre }),
        GRE_FLAG_KEY => {
            let key: *mut [u16; 2] = packet.need(at + GRE_LEN).map_err(not)?;
            // SAFETY: `need` checked the bounds.
            let [high, low] = unsafe { *key };
            let vni = u32::from(u16::from_be(high)) << 16 | u32::from(u16::from_be(low));
            // Network 0 goes without a key.
            if vni == 0 || vni > VNI_MAX {
                return Err(not(DropReason::UnknownVni));
            }
            Ok(Tunnel { proto, vni, at: at + GRE_LEN + GRE_KEY_LEN, more: 0, kind: Kind::Gre })
        }
        // Version 1 is PPTP.
        flags if flags & GRE_VERSION != 0 => Err(Not::Ours),
        _ => Err(not(DropReason::UnsupportedOuter)),
    }
}

/// VXLAN or Geneve, if the port is one of theirs. The checksum is not looked at: the inner packet has
/// its own, and a VNI that is wrong leads nowhere.
#[inline(always)]
fn udp<O: Family>(packet: &Packet, ip: &O::Header) -> Result<Tunnel, Not> {
    let at = ETH_LEN + O::LEN;
    if !O::is_plain(ip) || O::is_later_fragment(ip) {
        return Err(Not::Ours);
    }
    let Ok(udp) = packet.need::<Udp>(at) else { return Err(Not::Ours) };
    // SAFETY: `need` checked the bounds.
    let Some(port) = udp_port(unsafe { (*udp).dst }) else { return Err(Not::Ours) };
    let not = |reason| Not::Good(Kind::Udp(port), reason);
    if O::is_fragment(ip) {
        return Err(not(DropReason::OuterFragment));
    }
    let header: *mut VniHeader = packet.need(at + UDP_LEN).map_err(not)?;
    // SAFETY: `need` checked the bounds.
    let VniHeader { word, vni } = unsafe { *header };
    let (vni, kind) = (u32::from_be(vni) >> 8, Kind::Udp(port));
    let at = at + UDP_LEN + VNI_HEADER_LEN;
    if port.kind == UdpPort::VXLAN {
        // All other bits are to be ignored (RFC 7348, 5), but one changes what follows.
        if u32::from_be(word) & (VXLAN_FLAG_VNI | VXLAN_FLAG_PROTOCOL) != VXLAN_FLAG_VNI {
            return Err(not(DropReason::UnsupportedOuter));
        }
        return Ok(Tunnel { proto: ETH_P_TEB.to_be(), vni, at, more: 0, kind });
    }
    let [first, flags, high, low] = word.to_ne_bytes();
    if first & GENEVE_VERSION != 0 || flags & GENEVE_REFUSED != 0 {
        return Err(not(DropReason::UnsupportedOuter));
    }
    let more = u32::from(first & GENEVE_OPTIONS) * 4;
    Ok(Tunnel { proto: u16::from_ne_bytes([high, low]), vni, at, more, kind })
}

/// `port`: network byte order.
#[inline(always)]
pub fn udp_port(port: u16) -> Option<UdpPort> {
    let ports = &maps::node()?.ports;
    let [a, b, c, d] = *ports;
    // Nobody sends to port 0, which those not in use have.
    match port {
        0 => None,
        p if p == a.port => Some(a),
        p if p == b.port => Some(b),
        p if p == c.port => Some(c),
        p if p == d.port => Some(d),
        _ => None,
    }
}

/// Headers that we read: find the peer, then the inner packet.
#[inline(always)]
fn known<O: Family>(packet: &Packet, ip: &O::Header, t: &Tunnel) -> Result<Done, Refusal> {
    let src = O::src(ip);
    if O::is_mapped(&src) {
        return Ok(PASS);
    }
    let Some(source) = maps::peer_source(&PeerKey { outer_source: src, vni: t.vni }) else {
        return stranger::<O>(ip, t.kind, DropReason::UnknownVni);
    };
    // A priority is not for containers.
    if !O::is_same(&source.local, &O::dst(ip)) || !packet.untag() {
        return Ok(PASS);
    }
    if t.more != 0 {
        if packet.len() < t.at as u32 + t.more {
            return Err(DropReason::Truncated.into());
        }
        // What is taken out is the front, of which all is known; then everything is in its place.
        packet.shrink(t.more, 0)?;
    }
    // Any form is taken from a peer, so that a change of `encap` loses nothing while one host has it
    // and the other not yet. From here on all are alike, and what comes after is there once.
    let (mut proto, mut at, mut switch) = (t.proto, t.at, 0);
    if proto == ETH_P_TEB.to_be() {
        let eth: *mut Eth = packet.need(packet::any_offset(packet, at))?;
        // SAFETY: `need` checked the bounds.
        proto = unsafe { (*eth).proto };
        at += ETH_LEN;
        switch = source.flags & PeerSource::SWITCH;
    }
    let at = packet::any_offset(packet, at);
    let (tos, is_switch, is_v4) = (O::tos(ip), switch != 0, O::IS_V4);
    let outer = Outer { source, src, vni: t.vni, tos, is_switch, is_v4 };
    match u16::from_be(proto) {
        ETH_P_IP => decap::<V4>(packet, &outer, at),
        ETH_P_IPV6 => decap::<V6>(packet, &outer, at),
        ETH_P_ARP if is_switch => {
            Left::leave(packet, &outer, at);
            Ok((Verdict::Learn, ARP))
        }
        _ => Err(DropReason::NotIp.into()),
    }
}

/// The inner packet at `at`: check, take off what is in front, hand over.
#[inline(always)]
fn decap<F: Family>(packet: &Packet, outer: &Outer, at: usize) -> Result<Done, Refusal> {
    let header: *mut F::Header = packet.need(at)?;
    // SAFETY: `need` checked the bounds.
    let header = unsafe { &mut *header };
    let bytes = packet.len() - at as u32;
    if !F::is_whole(header, bytes) {
        return Err(DropReason::Truncated.into());
    }
    let (source, src, dst) = (outer.source, F::src(header), F::dst(header));
    if F::may_hide_nd(header) {
        return Err(DropReason::NoReply.into());
    }
    if !F::IS_V4 && F::next(header) == IPPROTO_ICMPV6 && neighbour::is_nd(packet, at) {
        // Nodes answer what is asked there themselves.
        if !outer.is_switch {
            return Err(DropReason::NoReply.into());
        }
        Left::leave(packet, outer, at);
        return Ok((Verdict::Learn, ND));
    }
    if !is_peers::<F>(source, &src) {
        if flood::is_on_link::<F>(source, &src, &dst) {
            return group::<F>(packet, outer, header, at);
        }
        return Err(DropReason::SourceNotPeers.into());
    }
    if F::is_mapped(&dst) {
        return Err(DropReason::NoEndpoint.into());
    }
    let to = match maps::endpoint(source.vni, dst) {
        Ok(to) => to,
        Err(_) if flood::is_for_many::<F>(source, &dst) => {
            return group::<F>(packet, outer, header, at);
        }
        Err(_) if F::is_multicast(&dst) => return Err(DropReason::Multicast.into()),
        Err(reason) => {
            let network = on_bridge::<F>(outer, &dst).ok_or(reason)?;
            amend::<F>(packet, outer, header, at)?;
            take_off::<F>(packet, outer.is_v4, at, bytes)?;
            packet.front::<ETH_LEN>()?.put_eth::<0>(&[0; 3], F::PROTO);
            count::peer_rx(source.peer, bytes);
            return Ok(bridge::ask::<F>(network, &dst));
        }
    };
    amend::<F>(packet, outer, header, at)?;
    if outer.is_switch {
        switch::learn(packet, source, src, at);
    }
    take_off::<F>(packet, outer.is_v4, at, bytes)?;
    packet.front::<ETH_LEN>()?.put_eth::<0>(&to.macs, F::PROTO);
    count::peer_rx(source.peer, bytes);
    Ok(deliver::hand_over(to, bytes, keeps_protocol::<F>(outer.is_v4)))
}

/// All that [`flood::receive`] does not see any more is done here.
#[inline(always)]
fn group<F: Family>(
    packet: &Packet,
    outer: &Outer,
    header: &mut F::Header,
    at: usize,
) -> Result<Done, Refusal> {
    let src = F::src(header);
    amend::<F>(packet, outer, header, at)?;
    if outer.is_switch {
        switch::learn(packet, outer.source, src, at);
    }
    Left::leave(packet, outer, at);
    Ok((Verdict::Flood, GROUP))
}

/// Does the kernel know what the inner packet is, once all in front of it is off?
#[inline(always)]
fn keeps_protocol<F: Family>(is_outer_v4: bool) -> bool {
    DECAP_L3.load() != 0 || F::IS_V4 == is_outer_v4
}

/// What is changed inside: congestion that was met outside is told, and what a peer that needs it
/// may be sent. Moves pointers.
#[inline(always)]
fn amend<F: Family>(
    packet: &Packet,
    outer: &Outer,
    header: &mut F::Header,
    at: usize,
) -> Result<(), DropReason> {
    // RFC 6040, 4.2, figure 4. What changes anything has this bit.
    let outside = ecn(outer.tos);
    if outside & ECN_ECT_1 != 0 {
        match (outside, ecn(F::tos(header))) {
            // A sender without ECN would never hear of it.
            (ECN_CE, 0) => return Err(DropReason::Congestion),
            (ECN_CE, _) | (_, ECN_ECT_0) => F::set_ecn(packet, header, outside),
            _ => {}
        }
    }
    if outer.source.flags & PeerSource::CLAMP != 0 {
        mss::of_received::<F>(packet, header, at, outer.source.peer, outer.vni);
    }
    Ok(())
}

/// Takes off what is in front of the inner packet, of `bytes`.
#[inline(always)]
pub fn take_off<F: Family>(
    packet: &Packet,
    is_outer_v4: bool,
    at: usize,
    bytes: u32,
) -> Result<(), DropReason> {
    let flags = match (DECAP_L3.load(), F::IS_V4) {
        (0, _) => 0,
        (_, true) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        (_, false) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    };
    let mut front = (at - ETH_LEN) as u32;
    if F::IS_V4 && !keeps_protocol::<F>(is_outer_v4) && bytes < IPV6_LEN as u32 {
        // To the kernel it stays IPv6, of which it leaves no less than the header. Padding is no way out:
        // what was encapsulated on this very machine can not be made longer.
        front -= packet.become_v4()?;
    }
    packet.shrink(front, flags.into())
}

/// The bridge that may have an address which nobody is known to have.
#[inline(always)]
fn on_bridge<F: Family>(outer: &Outer, dst: &Addr) -> Option<&'static NetworkInfo> {
    // The kernel asks only for what the packet says that it is.
    if !keeps_protocol::<F>(outer.is_v4) {
        return None;
    }
    let vni = outer.source.vni;
    let network = bridge::of(vni)?;
    let to = fib::lookup::<F>(&network.lens, vni, dst)?;
    (to.kind == FibInfo::LOCAL).then_some(network)
}

/// Is the address in a subnet that the peer has in the network?
#[inline(always)]
pub fn is_peers<F: Family>(source: &PeerSource, src: &Addr) -> bool {
    F::is_peers(source, src) || is_peers_too::<F>(source, src)
}

/// A source outside the peer's first subnet: in another of its subnets?
#[inline(always)]
fn is_peers_too<F: Family>(source: &PeerSource, src: &Addr) -> bool {
    if source.flags & PeerSource::MORE == 0 {
        return false;
    }
    let Some(network) = maps::network(source.vni) else { return false };
    match fib::lookup::<F>(&network.lens, source.vni, src) {
        Some(from) => from.kind != FibInfo::LOCAL && from.peer == source.peer,
        None => false,
    }
}

/// Not a packet that we can take off: is it ours to drop? Only if sent to our underlay address, and
/// then `reason` is for peers; from anyone else it is an unknown peer's, or belongs to a tunnel of
/// the host's own.
#[inline(always)]
fn stranger<O: Family>(ip: &O::Header, kind: Kind, reason: DropReason) -> Result<Done, Refusal> {
    let Some(node) = maps::node() else { return Ok(PASS) };
    let is_shared = match kind {
        Kind::Gre => node.flags & NodeInfo::FOREIGN_GRE != 0,
        // On a port that this mesh does not use, a peer may have other things to say.
        Kind::Udp(port) if port.flags & UdpPort::OURS == 0 => return Ok(PASS),
        Kind::Udp(_) => false,
    };
    let (src, dst) = (O::src(ip), O::dst(ip));
    if node.underlay != dst || O::is_mapped(&src) {
        return Ok(PASS);
    }
    // Each peer has an entry for network 0.
    if maps::is_peer_source(&PeerKey { outer_source: src, vni: 0 }) {
        return Err(reason.into());
    }
    if is_shared {
        return Ok(PASS);
    }
    Err(DropReason::UnknownPeer.into())
}
