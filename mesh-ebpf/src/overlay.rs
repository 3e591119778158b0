//! What an endpoint sends: a container, or the host itself on `mesh0`.

use mesh_common::{
    maps::{Addr, FibInfo, PeerInfo, PortInfo},
    verdict::{DropReason, Hook, Verdict},
    wire::{ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Eth, IPPROTO_ICMPV6},
};

use crate::{
    bridge::{self, Source, Taker},
    count, deliver,
    encap::{self, Inner},
    end::{Done, Refusal, end},
    fib, flood, icmp,
    inner::{Family, V4, V6},
    maps, mss, neighbour,
    packet::{self, Packet},
    switch,
};

/// Gives the kernel's code.
#[inline(always)]
pub fn send(packet: &Packet) -> i32 {
    match judge(packet) {
        // From here, and not from where it is found: the two would need the stack at once.
        NEIGHBOUR => neighbour::answer(packet),
        GROUP => flood::go_on_sending(packet),
        code => code,
    }
}

/// ARP or neighbour discovery. No code of the kernel's.
const NEIGHBOUR: i32 = 1000;
const ASKED: Done = (Verdict::Answer, NEIGHBOUR);
/// To all of the network, or to a group of it. No code of the kernel's.
const GROUP: i32 = 1001;
const GROUPED: Done = (Verdict::Flood, GROUP);

#[inline(never)]
fn judge(packet: &Packet) -> i32 {
    let port = match maps::port(packet.ifindex()) {
        Ok(port) => port,
        Err(reason) => return end(Hook::FromContainer, Err(reason)),
    };
    match sort(packet, port) {
        Ok((_, code @ (NEIGHBOUR | GROUP))) => code,
        outcome => end(maps::hook(port), outcome),
    }
}

#[inline(always)]
fn sort(packet: &Packet, port: &PortInfo) -> Result<Done, Refusal> {
    // The tag is not in the bytes: encapsulated with it, the packet would enter a VLAN of the
    // underlay.
    if packet.is_vlan() {
        return Ok(bridge::pass_or(port, DropReason::VlanTagged)?);
    }
    let eth: *mut Eth = packet.need(0)?;
    // SAFETY: `need` checked the bounds.
    match u16::from_be(unsafe { (*eth).proto }) {
        ETH_P_IP => forward::<V4>(packet, port),
        ETH_P_IPV6 => forward::<V6>(packet, port),
        ETH_P_ARP => Ok(ASKED),
        _ => Ok(bridge::pass_or(port, DropReason::NotIp)?),
    }
}

#[inline(always)]
fn forward<F: Family>(packet: &Packet, port: &PortInfo) -> Result<Done, Refusal> {
    let at: *mut F::Header = packet.need(ETH_LEN)?;
    // SAFETY: `need` checked the bounds.
    let header = unsafe { &*at };
    let bytes = packet.l3_len();
    if !F::is_whole(header, bytes) {
        return Err(DropReason::Truncated.into());
    }
    if !F::IS_V4 && F::next(header) == IPPROTO_ICMPV6 && neighbour::is_nd(packet, ETH_LEN) {
        return Ok(ASKED);
    }
    if F::may_hide_nd(header) {
        return Ok(bridge::pass_or(port, DropReason::NoReply)?);
    }
    let (src, dst) = (F::src(header), F::dst(header));
    if !F::is_own(port, &src) {
        let source = bridge::source::<F>(packet, port, &src);
        if bridge::is_port(port) && source != Source::Others {
            match bridge::taker::<F>(packet, port, &dst) {
                Taker::Bridge => return Ok(bridge::PASS),
                Taker::Mesh => {}
                Taker::Nobody => return Err(DropReason::NoRoute.into()),
            }
        }
        if source != Source::Own {
            // Group membership reports and the like come from other addresses, and are nothing to
            // worry about.
            let multicast = F::is_multicast(&dst) && !bridge::is_port(port);
            if flood::is_carried::<F>(&dst) && flood::is_own_link_local::<F>(port, &src) {
                count::endpoint_tx(port.id, bytes);
                return Ok(GROUPED);
            }
            return Err(
                if multicast { DropReason::Multicast } else { DropReason::SpoofedSource }.into()
            );
        }
    }
    count::endpoint_tx(port.id, bytes);

    let Some(to) = fib::lookup::<F>(&port.lens, port.vni, &dst) else {
        let multicast = F::is_multicast(&dst);
        if flood::is_on(port) && flood::is_to_many::<F>(port.vni, &dst) {
            return Ok(GROUPED);
        }
        let reason = if multicast { DropReason::Multicast } else { DropReason::NoRoute };
        return Ok(world::<F>(port, &dst).ok_or(reason)?);
    };
    // The way to a peer is to be compared once, whatever kinds there are.
    if to.kind != FibInfo::PEER {
        if to.kind == FibInfo::LOCAL {
            return here::<F>(packet, port, header, &dst);
        }
        if flood::is_broadcast::<F>(port.vni, &dst) {
            let is_on = flood::is_on(port);
            return if is_on { Ok(GROUPED) } else { Err(DropReason::Multicast.into()) };
        }
    }
    let peer = maps::peer(to.peer)?;
    let route = encap::Route::new(peer, to.vni);
    icmp::fits::<F>(packet, port, header, route.limit::<F>(port.mtu))?;
    let inner = Inner { proto: F::PROTO, tos: F::tos(header), bytes, macs: &peer.inner_macs };
    if peer.flags & PeerInfo::CLAMP != 0 {
        mss::of_sent::<F>(packet, header, &route, port.mtu);
    }
    if peer.flags & PeerInfo::SWITCH != 0 {
        return switch::send::<F>(packet, port, to.peer, &route, inner, dst);
    }
    let done = encap::send(packet, &route, &inner, true)?;
    count::peer_tx(to.peer, bytes);
    Ok(done)
}

/// To an address of this node's subnet.
#[inline(always)]
fn here<F: Family>(
    packet: &Packet,
    port: &PortInfo,
    header: &F::Header,
    dst: &Addr,
) -> Result<Done, Refusal> {
    let endpoint = match maps::endpoint(port.vni, *dst) {
        Ok(endpoint) => endpoint,
        Err(_) if flood::is_on(port) && flood::is_broadcast::<F>(port.vni, dst) => {
            return Ok(GROUPED);
        }
        Err(_)
            if F::is_gateway(port, dst)
                && let Some(done) = world::<F>(port, dst) =>
        {
            return Ok(done);
        }
        Err(reason) => {
            let network = bridge::of(port.vni).ok_or(reason)?;
            icmp::fits::<F>(packet, port, header, port.mtu)?;
            return Ok(bridge::ask::<F>(network, dst));
        }
    };
    if endpoint.ifindex == port.ifindex {
        return Err(DropReason::Hairpin.into());
    }
    icmp::fits::<F>(packet, port, header, port.mtu)?;
    Ok(deliver::local(packet, port, endpoint, packet.l3_len())?)
}

/// To the host's stack, where this host is the network's gateway. The frame has its MAC already.
#[inline(never)]
fn world<F: Family>(port: &PortInfo, dst: &Addr) -> Option<Done> {
    let network = maps::network(port.vni).filter(|network| network.world != 0)?;
    // What listens at 127.0.0.1 is the host's alone, and there the stack may take that from outside.
    let is_inside = F::IS_V4 && dst.0[3].to_ne_bytes()[0] == 127;
    if is_inside || F::is_multicast(dst) {
        return None;
    }
    Some((Verdict::Host, packet::redirect_ingress(network.world)))
}
