//! What arrives on the underlay: ours? a known peer? a known network? an inner source that is the
//! peer's? Only then is the outer header taken off.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6},
};
use mesh_common::{
    maps::{Addr, FibInfo, NetworkInfo, NodeInfo, PeerSource, VNI_MAX},
    verdict::{DropReason, Verdict},
    wire::{
        ECN_CE, ETH_LEN, ETH_P_IP, ETH_P_IPV6, ETH_P_TEB, Eth, GRE_FLAG_KEY, GRE_KEY_LEN, GRE_LEN,
        Gre, IPPROTO_GRE, IPV4_LEN, Ipv4,
    },
};

use crate::{
    bridge, count, deliver,
    end::{Done, NEXT, Refusal},
    fib,
    inner::{Family, V4, V6, ecn},
    maps,
    packet::Packet,
};

/// The kernel takes BPF_F_ADJ_ROOM_DECAP_L3_* (6.3, d219df60a70e). Without them an IPv6 packet
/// keeps the outer header's protocol, and must pass through the veth to get its own back.
#[unsafe(no_mangle)]
static DECAP_L3: Global<u32> = Global::new(1);

const PASS: Done = (Verdict::Pass, NEXT);
const OPTIONS_AND_FRAGMENTS: u16 = 0x3fff;
const GRE_AT: usize = ETH_LEN + IPV4_LEN;
const GRE_VERSION: u16 = 7;

/// The outer header, as far as it matters once it was checked.
struct Outer {
    source: &'static PeerSource,
    vni: u32,
    tos: u8,
}

#[inline(always)]
pub fn receive(packet: &Packet) -> Result<Done, Refusal> {
    if packet.protocol() != ETH_P_IP.to_be() || !packet.is_for_us() || packet.is_vlan() {
        return Ok(PASS);
    }
    let Ok(ip) = packet.need::<Ipv4>(ETH_LEN) else { return Ok(PASS) };
    // SAFETY: `need` checked the bounds.
    let ip = unsafe { *ip };
    if ip.proto != IPPROTO_GRE {
        return Ok(PASS);
    }
    if ip.vihl != 0x45 {
        return stranger(&ip, DropReason::UnsupportedOuter);
    }
    if u16::from_be(ip.frag) & OPTIONS_AND_FRAGMENTS != 0 {
        return stranger(&ip, DropReason::OuterFragment);
    }
    let Ok(gre) = packet.need::<Gre>(GRE_AT) else {
        return stranger(&ip, DropReason::Truncated);
    };
    // SAFETY: `need` checked the bounds.
    let gre = unsafe { *gre };
    match u16::from_be(gre.flags) {
        0 => checked(packet, &ip, gre.proto, 0, GRE_AT + GRE_LEN),
        GRE_FLAG_KEY => {
            let Ok(key) = packet.need::<[u16; 2]>(GRE_AT + GRE_LEN) else {
                return stranger(&ip, DropReason::Truncated);
            };
            // SAFETY: `need` checked the bounds.
            let [high, low] = unsafe { *key };
            let vni = u32::from(u16::from_be(high)) << 16 | u32::from(u16::from_be(low));
            // Network 0 goes without a key.
            if vni == 0 || vni > VNI_MAX {
                return stranger(&ip, DropReason::UnknownVni);
            }
            checked(packet, &ip, gre.proto, vni, GRE_AT + GRE_LEN + GRE_KEY_LEN)
        }
        // Version 1 is PPTP.
        flags if flags & GRE_VERSION != 0 => Ok(PASS),
        _ => stranger(&ip, DropReason::UnsupportedOuter),
    }
}

/// A GRE header that we read: find the peer, then the inner packet at `at`.
#[inline(always)]
fn checked(packet: &Packet, ip: &Ipv4, proto: u16, vni: u32, at: usize) -> Result<Done, Refusal> {
    let Some(source) = maps::peer_source(Addr::from_v4(ip.src), vni) else {
        return stranger(ip, DropReason::UnknownVni);
    };
    if source.local.0[3] != ip.dst {
        return Ok(PASS);
    }
    let outer = Outer { source, vni, tos: ip.tos };
    // Either form is taken from a peer, so that a change of `encap` loses nothing while one host
    // has it and the other not yet.
    match u16::from_be(proto) {
        ETH_P_IP => decap::<V4>(packet, &outer, at),
        ETH_P_IPV6 => decap::<V6>(packet, &outer, at),
        ETH_P_TEB => {
            let eth: *mut Eth = packet.need(at)?;
            // SAFETY: `need` checked the bounds.
            match u16::from_be(unsafe { (*eth).proto }) {
                ETH_P_IP => decap::<V4>(packet, &outer, at + ETH_LEN),
                ETH_P_IPV6 => decap::<V6>(packet, &outer, at + ETH_LEN),
                _ => Err(DropReason::NotIp.into()),
            }
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
    let (src, dst) = (F::src(header), F::dst(header));
    if !F::is_peers(outer.source, &src) && !is_peers_too::<F>(outer, &src) {
        return Err(DropReason::SourceNotPeers.into());
    }
    if F::is_mapped(&dst) {
        return Err(DropReason::NoEndpoint.into());
    }
    let to = match maps::endpoint(outer.vni, dst) {
        Ok(to) => to,
        Err(_) if F::is_multicast(&dst) => return Err(DropReason::Multicast.into()),
        Err(reason) => {
            let network = on_bridge::<F>(outer.vni, &dst).ok_or(reason)?;
            take_off::<F>(packet, outer, header, at)?;
            packet.front::<ETH_LEN>()?.put_eth::<0>(&[0; 3], F::PROTO);
            count::peer_rx(outer.source.peer, bytes);
            return Ok(bridge::ask::<F>(network, &dst));
        }
    };
    let protocol = take_off::<F>(packet, outer, header, at)?;
    packet.front::<ETH_LEN>()?.put_eth::<0>(&to.macs, F::PROTO);
    count::peer_rx(outer.source.peer, bytes);
    Ok(deliver::hand_over(to, bytes, F::IS_V4 || protocol))
}

/// Takes off what is in front of the inner packet. Returns whether the kernel was told its protocol.
#[inline(always)]
fn take_off<F: Family>(
    packet: &Packet,
    outer: &Outer,
    header: &mut F::Header,
    at: usize,
) -> Result<bool, DropReason> {
    if ecn(outer.tos) == ECN_CE {
        // RFC 6040, 4.2: a sender without ECN would never hear of it.
        if ecn(F::tos(header)) == 0 {
            return Err(DropReason::Congestion);
        }
        F::mark_ce(header);
    }
    let protocol = DECAP_L3.load() != 0;
    let flags = match (protocol, F::IS_V4) {
        (false, _) => 0,
        (true, true) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        (true, false) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    };
    packet.shrink((at - ETH_LEN) as u32, flags.into())?;
    Ok(protocol)
}

/// The bridge that may have an address which nobody is known to have.
#[inline(always)]
fn on_bridge<F: Family>(vni: u32, dst: &Addr) -> Option<&'static NetworkInfo> {
    // The kernel asks for IPv6 only if the packet says that it is.
    if !F::IS_V4 && DECAP_L3.load() == 0 {
        return None;
    }
    let network = bridge::of(vni)?;
    let to = fib::lookup::<F>(&network.lens, vni, dst)?;
    (to.kind == FibInfo::LOCAL).then_some(network)
}

/// A source outside the peer's first subnet: in another of its subnets?
#[inline(always)]
fn is_peers_too<F: Family>(outer: &Outer, src: &Addr) -> bool {
    if outer.source.flags & PeerSource::MORE == 0 {
        return false;
    }
    let Some(network) = maps::network(outer.vni) else { return false };
    match fib::lookup::<F>(&network.lens, outer.vni, src) {
        Some(from) => from.kind == FibInfo::PEER && from.peer == outer.source.peer,
        None => false,
    }
}

/// Not a packet that we can take off: is it ours to drop? Only if sent to our underlay address, and
/// then `reason` is for peers; GRE from anyone else is an unknown peer's, or belongs to a tunnel of
/// the host's own.
#[inline(always)]
fn stranger(ip: &Ipv4, reason: DropReason) -> Result<Done, Refusal> {
    let Some(node) = maps::node() else { return Ok(PASS) };
    if node.underlay.0[3] != ip.dst {
        return Ok(PASS);
    }
    if maps::peer_source(Addr::from_v4(ip.src), 0).is_some() {
        return Err(reason.into());
    }
    if node.flags & NodeInfo::FOREIGN_GRE != 0 {
        return Ok(PASS);
    }
    Err(DropReason::UnknownPeer.into())
}
