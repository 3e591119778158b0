//! What should become of a frame that comes in on the underlay.

use std::net::IpAddr;

use mesh_common::verdict::{
    DropReason::{self, *},
    Verdict,
};
use mesh_userspace::config::Encap;

use super::super::{
    counters::Counter::{EndpointRx, PeerRx},
    packet::{ARP, IPV4, IPV6, Mac, TEB},
    spec::{BLUE_VNI, Peer, SIX_VNI, UNDERLAY_MAC},
    wire::{Carried, Tunnel},
};
use super::{
    Expected, Frame, Ip, Model, Place, advertisement, arp, be16, endpoint, handed_to, is_multicast,
    is_neighbour_message, may_hide_nd, parse, v4, v6,
};

/// The outer IP header, and what follows it.
struct Outer<'a> {
    src: IpAddr,
    dst: IpAddr,
    ecn: u8,
    protocol: u8,
    /// Nothing but the header that every packet has.
    is_plain: bool,
    more_fragments: bool,
    offset: u16,
    body: &'a [u8],
}

/// What stands between outer and inner.
struct Around<'a> {
    outer: &'a Outer<'a>,
    tunnel: Tunnel,
    /// A GRE key of 0, or one of more than 24 bits.
    is_no_vni: bool,
    proto: u16,
    /// Options are cut off.
    is_cut: bool,
    has_options: bool,
    inner: &'a [u8],
}

enum Not {
    Ours,
    Good(DropReason),
}

impl Model<'_> {
    /// A frame that comes in on the underlay.
    pub fn receives(&self, frame: &[u8], gso_size: usize) -> Expected {
        let pass =
            || Expected { frame: Frame::Bytes(frame.to_vec()), ..Expected::ok(Verdict::Pass, &[]) };
        let Some(outer) = parse_outer(be16(frame, 12), &frame[14..]) else { return pass() };
        if frame[..6] != UNDERLAY_MAC {
            return pass();
        }
        let mut port = None;
        let read = match outer.protocol {
            47 => read_gre(&outer),
            17 => match self.udp_port(&outer) {
                Some(found) => {
                    port = Some(found);
                    read_udp(&outer, found.1)
                }
                None => Err(Not::Ours),
            },
            _ => Err(Not::Ours),
        };
        let peer = self.spec.peers().iter().copied().find(|p| p.at(self.spec) == outer.src);
        let refused = |reason| match (peer, port) {
            _ if outer.dst != self.spec.me() => pass(),
            (_, Some((_, _, false))) => pass(),
            (Some(_), _) => Expected::drop(reason),
            (None, None) if self.spec.foreign_gre => pass(),
            (None, _) => Expected::drop(UnknownPeer),
        };
        match read {
            Err(Not::Ours) => pass(),
            Err(Not::Good(reason)) => refused(reason),
            Ok(around) => match peer.and_then(|p| Some((p, self.network(p, &around)?))) {
                None => refused(UnknownVni),
                Some(_) if outer.dst != self.spec.me() => pass(),
                Some((peer, vni)) => self.decap(peer, vni, &around, gso_size),
            },
        }
    }

    fn udp_port(&self, outer: &Outer<'_>) -> Option<(u16, Encap, bool)> {
        if !outer.is_plain || outer.offset != 0 || outer.body.len() < 8 {
            return None;
        }
        let to = be16(outer.body, 2);
        self.spec.ports().into_iter().find(|(port, ..)| *port == to)
    }

    /// The network that a peer means with its number. 0 is always told from one that is nobody's.
    fn network(&self, peer: Peer, around: &Around<'_>) -> Option<u32> {
        let wire = around.tunnel.vni;
        let means = |vni: &&u32| self.spec.tunnel(peer, **vni).vni == wire;
        let found = [0, BLUE_VNI, SIX_VNI].iter().find(means).copied();
        found.or((wire == 0).then_some(u32::MAX)).filter(|_| !around.is_no_vni)
    }

    fn decap(&self, peer: Peer, vni: u32, around: &Around<'_>, gso_size: usize) -> Expected {
        let Around { outer, inner, .. } = *around;
        if around.is_cut {
            return Expected::drop(Truncated);
        }
        if around.has_options && gso_size != 0 {
            return Expected::drop(NoRoom);
        }
        let (proto, packet, macs) = match (around.proto, inner.first_chunk::<14>()) {
            (TEB, None) => return Expected::drop(Truncated),
            (TEB, Some(eth)) => (be16(eth, 12), &inner[14..], Some(&inner[..12])),
            (proto, _) => (proto, inner, None),
        };
        // It may have no such network, but 0.
        let is_switch = self.spec.is_switch(peer) && vni != u32::MAX;
        let source = macs.filter(|_| is_switch).map(|m| *m[6..].first_chunk::<6>().unwrap());
        match (proto, source) {
            (ARP, Some(_)) => return self.said_by_arp(peer, vni, around, packet),
            (IPV4 | IPV6, _) => {}
            _ => return Expected::drop(NotIp),
        }
        let Some(ip) = parse(proto, packet) else { return Expected::drop(Truncated) };
        if may_hide_nd(packet) {
            return Expected::drop(NoReply);
        }
        if is_neighbour_message(packet) {
            let Some(mac) = source else { return Expected::drop(NoReply) };
            return self.said_by_nd(peer, vni, around, mac, packet);
        }
        let is_flooded = vni != u32::MAX && self.is_flooded(vni, ip.dst);
        let is_on_link = |src| matches!(src, IpAddr::V6(src) if src.is_unicast_link_local());
        if !(self.is_of(peer, vni, ip.src) || is_flooded && is_on_link(ip.src)) {
            return Expected::drop(SourceNotPeers);
        }
        if is_flooded && endpoint(vni, ip.dst).is_none() {
            let learned = source.and_then(|mac| heard(vni, ip.src, peer, mac));
            return self.flooded(peer, vni, &ip, (outer.ecn, gso_size), packet, learned);
        }
        let to = match endpoint(vni, ip.dst) {
            None if is_multicast(ip.dst) => return Expected::drop(Multicast),
            None => return Expected::drop(NoEndpoint),
            Some(_) if outer.ecn == 3 && ip.ecn == 0 => return Expected::drop(Congestion),
            Some(to) => to,
        };
        let learned = source.and_then(|mac| heard(vni, ip.src, peer, mac));
        // The kernel cuts no super-packet that a test makes.
        if gso_size != 0 {
            return Expected { learned, ..Expected::drop(NoRoom) };
        }
        let packet = marked(&ip, packet, outer.ecn);
        let packet = self.clamped_from(peer, vni, &packet);
        let frame = Frame::Bytes(self.to_endpoint(to, &packet));
        let counted = [EndpointRx(to.id), PeerRx(peer.index)];
        Expected { frame, learned, ..Expected::ok(handed_to(to), &counted) }
    }

    fn is_of(&self, peer: Peer, vni: u32, addr: IpAddr) -> bool {
        vni != u32::MAX && matches!(self.place(vni, addr), Some(Place::Peer(p)) if p == peer)
    }

    fn said_by_arp(&self, peer: Peer, vni: u32, around: &Around<'_>, said: &[u8]) -> Expected {
        let Some(said) = said.first_chunk::<28>() else { return Expected::drop(Truncated) };
        if said[..6] != [0, 1, 8, 0, 6, 4] {
            return Expected::drop(NoReply);
        }
        let mac: Mac = *said[8..].first_chunk().unwrap();
        let (sender, target) = (v4(&said[14..]), v4(&said[24..]));
        let mut learned = None;
        if !sender.is_unspecified() {
            if !self.is_of(peer, vni, sender.into()) {
                return Expected::drop(SourceNotPeers);
            }
            learned = heard(vni, sender.into(), peer, mac);
        }
        let outcome = if be16(said, 6) == 1 && endpoint(vni, target.into()).is_some() {
            let own = self.spec.gateway_mac();
            let inner = arp(2, (own, target), (mac, sender));
            self.answer_to(peer, vni, around, [mac, own], ARP, inner)
        } else {
            Expected::ok(Verdict::Learn, &[])
        };
        Expected { learned, ..outcome }
    }

    fn said_by_nd(
        &self,
        peer: Peer,
        vni: u32,
        around: &Around<'_>,
        mac: Mac,
        said: &[u8],
    ) -> Expected {
        let (src, kind) = (v6(&said[8..]), said[40]);
        if said[7] != 255 || kind != 135 && kind != 136 {
            return Expected::drop(NoReply);
        }
        let Some(target) = said.get(48..64).map(v6) else { return Expected::drop(Truncated) };
        let is_asked = kind == 135;
        let subject = if is_asked { src } else { target };
        let mut learned = None;
        if self.is_of(peer, vni, subject.into()) {
            learned = heard(vni, subject.into(), peer, mac);
        } else if !is_asked || !src.is_unicast_link_local() {
            return Expected::drop(SourceNotPeers);
        }
        let outcome = if is_asked && endpoint(vni, target.into()).is_some() {
            let own = self.spec.gateway_mac();
            let inner = advertisement(own, src, target);
            self.answer_to(peer, vni, around, [mac, own], IPV6, inner)
        } else {
            Expected::ok(Verdict::Learn, &[])
        };
        Expected { learned, ..outcome }
    }

    /// Back to the peer, the way that it is sent to.
    fn answer_to(
        &self,
        peer: Peer,
        vni: u32,
        around: &Around<'_>,
        macs: [Mac; 2],
        proto: u16,
        inner: Vec<u8>,
    ) -> Expected {
        let tunnel = Tunnel { vni: around.tunnel.vni, ..self.spec.tunnel(peer, vni) };
        let carried = Carried { peer, vni, tunnel, macs, proto, inner };
        Expected::ok(Verdict::Answer, &[]).to(carried)
    }
}

/// A group's MAC is nobody's.
fn heard(vni: u32, addr: IpAddr, peer: Peer, mac: Mac) -> Option<(u32, IpAddr, Peer, Mac)> {
    (mac[0] & 1 == 0).then_some((vni, addr, peer, mac))
}

fn parse_outer(ethertype: u16, packet: &[u8]) -> Option<Outer<'_>> {
    match ethertype {
        IPV4 => {
            let (fixed, body) = packet.split_first_chunk::<20>()?;
            Some(Outer {
                src: v4(&fixed[12..]).into(),
                dst: v4(&fixed[16..]).into(),
                ecn: fixed[1] & 3,
                protocol: fixed[9],
                is_plain: fixed[0] == 0x45,
                more_fragments: fixed[6] & 0x20 != 0,
                offset: be16(fixed, 6) & 0x1fff,
                body,
            })
        }
        IPV6 => {
            let (fixed, body) = packet.split_first_chunk::<40>()?;
            let (src, dst) = (v6(&fixed[8..]), v6(&fixed[24..]));
            // What looks like an IPv4 address there is none of anybody's.
            src.to_ipv4_mapped().is_none().then_some(Outer {
                src: src.into(),
                dst: dst.into(),
                ecn: fixed[1] >> 4 & 3,
                protocol: fixed[6],
                is_plain: fixed[0] >> 4 == 6,
                more_fragments: false,
                offset: 0,
                body,
            })
        }
        _ => None,
    }
}

fn read_gre<'a>(outer: &'a Outer<'_>) -> Result<Around<'a>, Not> {
    let gre = outer.body;
    if !outer.is_plain {
        return Err(Not::Good(UnsupportedOuter));
    }
    if outer.more_fragments || outer.offset != 0 {
        return Err(Not::Good(OuterFragment));
    }
    if gre.len() < 4 {
        return Err(Not::Good(Truncated));
    }
    let (key, inner) = match (be16(gre, 0), gre.get(4..8)) {
        (0, _) => (None, &gre[4..]),
        (0x2000, None) => return Err(Not::Good(Truncated)),
        (0x2000, Some(key)) => (Some(u32::from_be_bytes(key.try_into().unwrap())), &gre[8..]),
        (flags, _) if flags & 7 != 0 => return Err(Not::Ours),
        _ => return Err(Not::Good(UnsupportedOuter)),
    };
    Ok(Around {
        outer,
        tunnel: Tunnel::new(Encap::Gre, key.unwrap_or_default()),
        is_no_vni: key.is_some_and(|key| key == 0 || key >> 24 != 0),
        proto: be16(gre, 2),
        is_cut: false,
        has_options: false,
        inner,
    })
}

fn read_udp<'a>(outer: &'a Outer<'_>, encap: Encap) -> Result<Around<'a>, Not> {
    if outer.more_fragments {
        return Err(Not::Good(OuterFragment));
    }
    let Some((head, rest)) = outer.body[8..].split_first_chunk::<8>() else {
        return Err(Not::Good(Truncated));
    };
    let vni = u32::from_be_bytes([0, head[4], head[5], head[6]]);
    let is_geneve = encap == Encap::Geneve;
    let is_refused = match is_geneve {
        // The version, control messages, critical options.
        true => head[0] >> 6 != 0 || head[1] & 0xc0 != 0,
        // The flag for a VNI, and the one of VXLAN-GPE for a protocol.
        false => head[0] & 0x0c != 8,
    };
    if is_refused {
        return Err(Not::Good(UnsupportedOuter));
    }
    let options = if is_geneve { usize::from(head[0] & 0x3f) * 4 } else { 0 };
    Ok(Around {
        outer,
        tunnel: Tunnel::new(encap, vni),
        is_no_vni: false,
        proto: if is_geneve { be16(head, 2) } else { TEB },
        is_cut: rest.len() < options,
        has_options: options != 0,
        inner: rest.get(options..).unwrap_or_default(),
    })
}

/// With the ECN field that it gets by what was outside (RFC 6040, figure 4), and the checksum of IPv4 by
/// RFC 1624, equation 3.
pub fn marked(ip: &Ip, packet: &[u8], outer_ecn: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let ecn = match (ip.ecn, outer_ecn) {
        (1 | 2, 3) => 3,
        (2, 1) => 1,
        _ => return packet,
    };
    if ip.src.is_ipv6() {
        packet[1] = packet[1] & 0xcf | ecn << 4;
        return packet;
    }
    let (old, sum) = (be16(&packet, 0), be16(&packet, 10));
    packet[1] = packet[1] & 0xfc | ecn;
    let all = u32::from(!sum) + u32::from(!old) + u32::from(be16(&packet, 0));
    let folded = (all & 0xffff) + (all >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}
