//! What an endpoint sends: a container (`from_container`) or the host itself (`from_host`).

use mesh_common::{
    maps::{FibInfo, PeerInfo, PortInfo},
    verdict::{DropReason, Hook},
    wire::{ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Eth, IPPROTO_ICMPV6},
};

use crate::{
    count, deliver,
    encap::{self, Inner},
    end::{Done, Refusal},
    fib, icmp,
    inner::{Family, V4, V6},
    maps, neighbour,
    packet::Packet,
    switch,
};

#[inline(always)]
pub fn send(packet: &Packet, hook: Hook) -> Result<Done, Refusal> {
    let port = maps::port(packet.ifindex())?;
    // The tag is not in the bytes: encapsulated with it, the packet would enter a VLAN of the
    // underlay.
    if packet.is_vlan() {
        return Err(DropReason::VlanTagged.into());
    }
    let eth: *mut Eth = packet.need(0)?;
    // SAFETY: `need` checked the bounds.
    match u16::from_be(unsafe { (*eth).proto }) {
        ETH_P_IP => forward::<V4>(packet, hook, port),
        ETH_P_IPV6 => forward::<V6>(packet, hook, port),
        ETH_P_ARP => neighbour::arp(packet, hook, port).map_err(Refusal::from),
        _ => Err(DropReason::NotIp.into()),
    }
}

#[inline(always)]
fn forward<F: Family>(packet: &Packet, hook: Hook, port: &PortInfo) -> Result<Done, Refusal> {
    let at: *mut F::Header = packet.need(ETH_LEN)?;
    // SAFETY: `need` checked the bounds.
    let header = unsafe { &*at };
    let bytes = packet.l3_len();
    if !F::is_whole(header, bytes) {
        return Err(DropReason::Truncated.into());
    }
    if !F::IS_V4 && F::next(header) == IPPROTO_ICMPV6 && neighbour::is_nd(packet, ETH_LEN) {
        return neighbour::nd(packet, hook, port).map_err(Refusal::from);
    }
    let (src, dst) = (F::src(header), F::dst(header));
    if !F::is_own(port, &src) {
        // Group membership reports and the like come from other addresses, and are nothing to
        // worry about.
        let multicast = F::is_multicast(&dst);
        return Err(
            if multicast { DropReason::Multicast } else { DropReason::SpoofedSource }.into()
        );
    }
    count::endpoint_tx(port.id, bytes);

    let Some(to) = fib::lookup::<F>(&port.lens, port.vni, &dst) else {
        let multicast = F::is_multicast(&dst);
        return Err(if multicast { DropReason::Multicast } else { DropReason::NoRoute }.into());
    };
    if to.kind == FibInfo::LOCAL {
        let endpoint = maps::endpoint(port.vni, dst)?;
        if endpoint.ifindex == port.ifindex {
            return Err(DropReason::Hairpin.into());
        }
        icmp::fits::<F>(packet, hook, port, header, port.mtu)?;
        return Ok(deliver::local(packet, hook, endpoint, bytes)?);
    }
    let peer = maps::peer(to.peer)?;
    let route = encap::Route::new(peer, to.vni);
    icmp::fits::<F>(packet, hook, port, header, route.mtu(port.mtu))?;
    let mut inner = Inner { proto: F::PROTO, tos: F::tos(header), bytes, macs: peer.inner_macs };
    if peer.flags & PeerInfo::SWITCH != 0 {
        return switch::send::<F>(packet, port, to.peer, &route, &mut inner, &dst);
    }
    let done = encap::send(packet, &route, &inner, true)?;
    count::peer_tx(to.peer, bytes);
    Ok(done)
}
