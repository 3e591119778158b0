//! Ports of a bridge that is somebody else's, such as `docker0`.
//!
//! What its containers send each other, their host and the world stays the bridge's: only what is
//! for another node is taken here. Their addresses are nobody's to tell in advance, so they are
//! learned from the first packet of each, here and at once: the packet that tells is the packet that
//! goes on, whether an agent runs or not. A port gets one address of each family, the first that it
//! sends from, within this node's subnet, and only one that nobody else has; it keeps it until the
//! agent, who may know better from Docker, says otherwise. So no container can take the address of
//! another, or fill the maps.

use aya_ebpf::bindings::BPF_NOEXIST;
use mesh_common::{
    maps::{
        Addr, EndpointInfo, EndpointKey, FibInfo, LearnedInfo, LearnedKey, NetworkInfo, PortInfo,
    },
    verdict::{DropReason, Verdict},
    wire::{Eth, mac_bytes, mac_pair},
};

use crate::{
    end::{Done, NEXT},
    fib,
    inner::Family,
    maps,
    packet::{self, Packet},
};

/// On to the bridge.
pub const PASS: Done = (Verdict::Pass, NEXT);

#[inline(always)]
pub fn is_port(port: &PortInfo) -> bool {
    port.flags & PortInfo::BRIDGED != 0
}

/// What a container's own port may not send, and a bridge's may: that is the bridge's to judge.
#[inline(always)]
pub fn pass_or(port: &PortInfo, reason: DropReason) -> Result<Done, DropReason> {
    if is_port(port) { Ok(PASS) } else { Err(reason) }
}

/// Whose address a port sends from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Its own, or learned to be.
    Own,
    /// Another's, or one that it may not have.
    Others,
    /// One that the mesh has nothing to do with.
    Unknown,
}

/// Whose is a source that is not in the port's own entry?
#[inline(never)]
pub fn source<F: Family>(packet: &Packet, port: &PortInfo, src: &Addr) -> Source {
    if F::is_mapped(src) {
        return Source::Others;
    }
    if let Ok(owner) = maps::endpoint(port.vni, *src) {
        return of_owner(owner, port);
    }
    if !is_port(port) {
        return Source::Unknown;
    }
    match fib::lookup::<F>(&port.lens, port.vni, src) {
        Some(from) if from.kind == FibInfo::LOCAL => learn::<F>(packet, port, src),
        Some(_) => Source::Others,
        None => Source::Unknown,
    }
}

#[inline(always)]
fn of_owner(owner: &EndpointInfo, port: &PortInfo) -> Source {
    if owner.ifindex == port.ifindex { Source::Own } else { Source::Others }
}

/// Binds a free address of this node's subnet to the port, unless it has one.
#[inline(always)]
fn learn<F: Family>(packet: &Packet, port: &PortInfo, src: &Addr) -> Source {
    let bound = if F::IS_V4 { PortInfo::BOUND4 } else { PortInfo::BOUND6 };
    let Ok(eth) = packet.load::<Eth>(0) else { return Source::Others };
    if port.flags & bound != 0 {
        return Source::Others;
    }
    let endpoint = EndpointKey { vni: port.vni, addr: *src };
    let key = LearnedKey { ifindex: port.ifindex, family: if F::IS_V4 { 4 } else { 6 } };
    let told = LearnedInfo { endpoint, mac: eth.src, _pad: 0 };
    let is_new = maps::LEARNED.insert(key, told, BPF_NOEXIST.into()).is_ok();
    // The first packet tells, also when it is another CPU's.
    let Some(told) = maps::learned(&key).filter(|told| told.endpoint == endpoint) else {
        return Source::Others;
    };
    let info = EndpointInfo {
        ifindex: port.ifindex,
        id: port.id,
        flags: EndpointInfo::BRIDGED,
        macs: mac_pair(mac_bytes(told.mac), mac_bytes(port.gateway_mac)),
        identity: 0,
    };
    if maps::learn_endpoint(endpoint, F::IS_V4, info) {
        return Source::Own;
    }
    // Somebody has it by now: this port, by another CPU, or another.
    if let Ok(owner) = maps::endpoint(port.vni, *src)
        && owner.ifindex == port.ifindex
    {
        return Source::Own;
    }
    if is_new {
        // Failing means that it is gone already.
        let _ = maps::LEARNED.remove(key);
    }
    Source::Others
}

/// Who is to take what a port of a bridge sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Taker {
    Bridge,
    Mesh,
    Nobody,
}

#[inline(never)]
pub fn taker<F: Family>(packet: &Packet, port: &PortInfo, dst: &Addr) -> Taker {
    let Ok(eth) = packet.load::<Eth>(0) else { return Taker::Nobody };
    // Broadcast and multicast on Ethernet.
    if eth.dst[0].to_ne_bytes()[0] & 1 != 0 {
        return Taker::Bridge;
    }
    match fib::lookup::<F>(&port.lens, port.vni, dst) {
        Some(to) if to.kind == FibInfo::LOCAL && is_its_own(port.vni, dst) => Taker::Bridge,
        Some(_) => Taker::Mesh,
        // It was answered for once: nobody on the bridge has this MAC, and all would get it.
        None if eth.dst == port.gateway_mac => Taker::Nobody,
        None => Taker::Bridge,
    }
}

/// Is an address of this node's subnet on a bridge, or the host's, as opposed to one that only the
/// mesh can reach?
#[inline(always)]
pub fn is_its_own(vni: u32, addr: &Addr) -> bool {
    match maps::endpoint(vni, *addr) {
        Ok(endpoint) => endpoint.flags & (EndpointInfo::HOST | EndpointInfo::BRIDGED) != 0,
        Err(_) => true,
    }
}

/// The bridge that may have addresses of this node's subnet which nobody has told yet.
#[inline(always)]
pub fn of(vni: u32) -> Option<&'static NetworkInfo> {
    maps::network(vni).filter(|network| network.bridge != 0)
}

/// To an address that has not been learned: the kernel asks for it on the bridge. The answer is
/// learned from, so this is for the first packets to a container that never spoke.
#[inline(always)]
pub fn ask<F: Family>(network: &NetworkInfo, dst: &Addr) -> Done {
    (Verdict::Host, packet::redirect_neigh(network.bridge, F::IS_V4, dst))
}
