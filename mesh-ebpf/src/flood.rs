//! Broadcast and multicast within a network: a copy to each other node, and one to each endpoint here.
//!
//! ```text
//! send     an endpoint's packet -> one copy for each endpoint here, as it is
//!                               -> one copy for each peer, marked with its number, to where the
//!                                  packet came from: it goes through the program once more, and
//!                                  there to that peer
//! receive  a peer's packet      -> one copy for each endpoint here
//! ```
//!
//! What comes from a peer never goes to another, so nothing goes round. Copies are no more than the
//! lists in `FLOOD` are long. The packet itself ends here: its verdict is [`Verdict::Flood`].

use aya_ebpf::bindings::TC_ACT_SHOT;
use mesh_common::{
    maps::{
        Addr, BROADCASTS, EndpointInfo, FLOOD_MARK, FLOOD_MARK_MASK, FloodInfo, FloodKey, GroupKey,
        NetworkInfo, PeerKey, PeerSource, PortInfo, TAIL_FLOOD_RECEIVE, TAIL_FLOOD_SEND,
    },
    verdict::{DropReason, Hook, Verdict},
    wire::{ETH_LEN, mac_bytes, mac_pair},
};

use crate::{
    bridge, count,
    encap::{self, Inner, Route},
    end::{Done, end},
    group::{self, Report},
    icmp,
    inner::{Family, V4, V6},
    maps, neighbour,
    packet::{self, Packet},
    switch::toward,
    underlay::{self, Left},
};

const SENT: Done = (Verdict::Flood, TC_ACT_SHOT);
const NOTED: Done = (Verdict::Learn, TC_ACT_SHOT);

/// Does the port's network carry broadcast and multicast? What ports of a bridge send stays on it.
#[inline(always)]
pub fn is_on(port: &PortInfo) -> bool {
    port.flags & PortInfo::FLOOD != 0 && !bridge::is_port(port)
}

/// Is this a broadcast address of a network that carries broadcast?
#[inline(always)]
pub fn is_broadcast<F: Family>(vni: u32, dst: &Addr) -> bool {
    if !F::IS_V4 {
        return false;
    }
    let Some(network) = maps::network(vni) else { return false };
    let mut i = 0;
    while i < BROADCASTS {
        if network.broadcast[i] == dst.0[3] && dst.0[3] != 0 {
            return true;
        }
        i += 1;
    }
    false
}

/// Multicast that may leave the sender, or the limited broadcast. Not the reserved addresses between
/// the two, nor IPv6 of less than link-local scope (RFC 4291, 2.7).
#[inline(always)]
pub fn is_carried<F: Family>(dst: &Addr) -> bool {
    if F::IS_V4 {
        let dst = u32::from_be(dst.0[3]);
        return dst >> 28 == 0xe || dst == u32::MAX;
    }
    let first = u32::from_be(dst.0[0]);
    first >> 24 == 0xff && first >> 16 & 0xf >= 2
}

#[inline(always)]
pub fn is_to_many<F: Family>(vni: u32, dst: &Addr) -> bool {
    is_carried::<F>(dst) || is_broadcast::<F>(vni, dst)
}

/// From a peer: is this for all of the network, or for a group of it, and carried?
#[inline(always)]
pub fn is_for_many<F: Family>(source: &PeerSource, dst: &Addr) -> bool {
    source.flags & PeerSource::FLOOD != 0 && is_to_many::<F>(source.vni, dst)
}

/// From a peer: what its endpoints send by [`is_own_link_local`].
#[inline(always)]
pub fn is_on_link<F: Family>(source: &PeerSource, src: &Addr, dst: &Addr) -> bool {
    !F::IS_V4 && neighbour::is_link_local(src) && is_for_many::<F>(source, dst)
}

/// A link-local address that follows from the port's own MAC (RFC 4291, appendix A), from which
/// multicast on the link comes: mDNS, and the membership reports of MLD. Of others nobody can tell
/// whose they are.
#[inline(always)]
pub fn is_own_link_local<F: Family>(port: &PortInfo, src: &Addr) -> bool {
    if F::IS_V4 || !is_on(port) {
        return false;
    }
    let [a, b, c, d, e, f] = mac_bytes(port.mac);
    let id = [u32::from_ne_bytes([a ^ 2, b, c, 0xff]), u32::from_ne_bytes([0xfe, d, e, f])];
    src.0 == [0xfe80_0000u32.to_be(), 0, id[0], id[1]]
}

/// Goes on with what an endpoint sends to many, in [`send`].
#[inline(always)]
pub fn go_on_sending(packet: &Packet) -> i32 {
    packet.go_on(TAIL_FLOOD_SEND);
    end(hook(packet), NOT_CARRIED)
}

/// Goes on with what a peer sent to many, in [`receive`].
#[inline(always)]
pub fn go_on_receiving(packet: &Packet) -> i32 {
    packet.go_on(TAIL_FLOOD_RECEIVE);
    end(Hook::FromUnderlay, NOT_CARRIED)
}

/// From where an endpoint's packet is. It was looked up once, so it is there.
#[inline(always)]
fn hook(packet: &Packet) -> Hook {
    maps::port_by_number(packet.ifindex()).map_or(Hook::FromContainer, maps::hook)
}

/// The program to go on in is not there.
const NOT_CARRIED: Result<Done, DropReason> = Err(DropReason::Multicast);

/// What an endpoint sends to many: the packet itself, or a copy of it for one peer.
#[inline(always)]
pub fn send(packet: &Packet) -> i32 {
    let is_copy = packet.mark() & FLOOD_MARK_MASK == FLOOD_MARK;
    let done = if is_copy { send_copy(packet) } else { send_all(packet) };
    // Only now: what comes before would be followed for each hook.
    end(hook(packet), done)
}

/// What a peer sent to many.
#[inline(always)]
pub fn receive(packet: &Packet) -> i32 {
    let Left { key, at } = Left::of(packet);
    end(Hook::FromUnderlay, receive_all(packet, &key, at))
}

/// Sends a copy to its peer.
#[inline(never)]
fn send_copy(packet: &Packet) -> Result<Done, DropReason> {
    let port = maps::port_by_number(packet.ifindex())?;
    let proto: u16 = packet.load(ETH_LEN - 2)?;
    let index = packet.mark() & !FLOOD_MARK_MASK;
    packet.set_mark(0);
    // It was counted when it was the packet itself.
    count::endpoint_tx_back(port.id, packet.l3_len());
    let (mac, tos) = if proto == V4::PROTO { face::<V4>(packet)? } else { face::<V6>(packet)? };
    to_peer(packet, port, proto, mac, tos, index)
}

/// The MAC that it is for, and its TOS.
#[inline(always)]
fn face<F: Family>(packet: &Packet) -> Result<([u16; 3], u8), DropReason> {
    let at: *mut F::Header = packet.need(ETH_LEN)?;
    // SAFETY: `need` checked the bounds.
    let header = unsafe { &*at };
    Ok((mac_of::<F>(&F::dst(header)), F::tos(header)))
}

/// Copies for all who get what an endpoint sends.
#[inline(never)]
fn send_all(packet: &Packet) -> Result<Done, DropReason> {
    let port = maps::port_by_number(packet.ifindex())?;
    let proto: u16 = packet.load(ETH_LEN - 2)?;
    let (to, fits) = if proto == V4::PROTO {
        look::<V4>(packet, port.mtu)?
    } else {
        look::<V6>(packet, port.mtu)?
    };
    if !fits {
        return Err(DropReason::TooBig);
    }
    let (mark, bytes) = (packet.mark(), packet.l3_len());
    let mut here = 0;
    if to.report.is_some() {
        if !group::note(packet, &to.report, port.vni, port.ifindex) {
            return Ok(NOTED);
        }
    } else {
        let macs = mac_pair(mac_bytes(to.mac), mac_bytes(port.gateway_mac));
        packet.front::<ETH_LEN>()?.put_macs::<0>(&macs);
        here = deliver(packet, &to.wanted(port.vni), port.ifindex, bytes);
    }
    let away = spread(packet, &to.wanted(port.vni), maps::hook(port));
    packet.set_mark(mark);
    match here + away {
        0 if to.report.is_some() => Ok(NOTED),
        0 => Err(DropReason::NoMember),
        _ => Ok(SENT),
    }
}

/// What all copies need to know of a packet.
struct To {
    /// The group's, or everybody's.
    mac: [u16; 3],
    group: Addr,
    /// Not 0: only who asked for it gets it.
    is_limited: u32,
    /// It is about groups itself.
    report: Report,
}

impl To {
    #[inline(always)]
    fn wanted(&self, vni: u32) -> Wanted {
        let is_limited = if self.report.is_some() { 0 } else { self.is_limited };
        Wanted { vni, group: self.group, is_limited }
    }
}

/// Who is to get copies.
struct Wanted {
    vni: u32,
    group: Addr,
    is_limited: u32,
}

impl Wanted {
    #[inline(always)]
    fn by(&self, member: u32) -> bool {
        self.is_limited == 0
            || group::wants(&mut GroupKey { vni: self.vni, member, group: self.group })
    }
}

/// And does it fit `mtu`?
#[inline(always)]
fn look<F: Family>(packet: &Packet, mtu: u32) -> Result<(To, bool), DropReason> {
    let at: *mut F::Header = packet.need(ETH_LEN)?;
    // SAFETY: `need` checked the bounds.
    let header = unsafe { *at };
    let to = read::<F>(packet, &header, ETH_LEN);
    Ok((to, icmp::is_fitting::<F>(packet, &header, mtu)))
}

#[inline(always)]
fn read<F: Family>(packet: &Packet, header: &F::Header, at: usize) -> To {
    let group = F::dst(header);
    let [a, b, c] = mac_of::<F>(&group);
    // In a form in which the verifier need not follow what comes after for each kind alone.
    let any = |n: u32| packet::any_count(packet, n);
    let half = |n: u16| any(n.into()) as u16;
    To {
        mac: [half(a), half(b), half(c)],
        group: Addr(group.0.map(any)),
        is_limited: any(group::is_limited::<F>(&group).into()),
        report: group::report::<F>(packet, header, at),
    }
}

/// RFC 1112, 6.4; RFC 2464, 7.
#[inline(always)]
fn mac_of<F: Family>(dst: &Addr) -> [u16; 3] {
    let [high, low] = packet::word_halves(dst.0[3]);
    if !F::IS_V4 {
        return [0x3333, high, low];
    }
    if u32::from_be(dst.0[3]) >> 28 != 0xe {
        return [0xffff; 3];
    }
    [0x0100u16.to_be(), 0x5e00u16.to_be() | high & 0x007fu16.to_be(), low]
}

/// A copy to each endpoint here, but for the one behind the interface `but`. How many got one?
#[inline(never)]
fn deliver(packet: &Packet, wanted: &Wanted, but: u32, bytes: u32) -> u32 {
    let (mut i, mut copies) = (0, packet::any_count(packet, 0));
    while i < FloodKey::LOCAL_MAX {
        let key = FloodKey::new(FloodKey::LOCAL, wanted.vni, i);
        let Some(to) = maps::flood(&key) else { break };
        i += 1;
        if to.target == but || !wanted.by(to.target) {
            continue;
        }
        if packet.copy_to(to.target, to.flags & EndpointInfo::HOST != 0) {
            count::endpoint_rx(to.vni_or_id, bytes);
            copies = packet::any_count(packet, copies + 1);
        }
    }
    copies
}

/// A copy for each peer that wants one, back to where the packet is. How many are there?
#[inline(never)]
fn spread(packet: &Packet, wanted: &Wanted, hook: Hook) -> u32 {
    let (mut i, mut copies) = (0, packet::any_count(packet, 0));
    let ingress = packet::any_count(packet, packet::copy_flags(hook != Hook::FromHost));
    while i < FloodKey::PEERS_MAX {
        let key = FloodKey::new(FloodKey::PEERS, wanted.vni, i);
        let Some(to) = maps::flood(&key) else { break };
        packet.set_mark(FLOOD_MARK | i);
        i += 1;
        if to.flags & FloodInfo::EVERY_GROUP == 0 && !wanted.by(GroupKey::PEER | to.target) {
            continue;
        }
        if packet.copy_by(packet.ifindex(), ingress) {
            copies = packet::any_count(packet, copies + 1);
        }
    }
    copies
}

/// `index`: of the peer, in the list of the network.
#[inline(always)]
fn to_peer(
    packet: &Packet,
    port: &PortInfo,
    proto: u16,
    mac: [u16; 3],
    tos: u8,
    index: u32,
) -> Result<Done, DropReason> {
    let key = FloodKey::new(FloodKey::PEERS, port.vni, index);
    let entry = maps::flood(&key).ok_or(DropReason::NoMember)?;
    let peer = maps::peer(entry.target)?;
    let route = Route::new(peer, entry.vni_or_id);
    let bytes = packet.l3_len();
    // The sender is not told: to a group no error is sent (RFC 1122, 3.2.2). So of the two limits it
    // is the larger one for both families.
    if bytes > route.limit::<V6>(port.mtu) && packet.gso_size() == 0 {
        return Err(DropReason::TooBig);
    }
    let macs = toward(&peer.inner_macs, mac);
    let inner = Inner { proto, tos, bytes, macs: &macs };
    let done = encap::send(packet, &route, &inner, true)?;
    count::peer_tx(entry.target, bytes);
    Ok(done)
}

/// Copies for all who get what a peer sent, of which the inner packet is at `at`, checked.
#[inline(never)]
fn receive_all(packet: &Packet, key: &PeerKey, at: usize) -> Result<Done, DropReason> {
    let source = maps::peer_source_by_number(key).ok_or(DropReason::UnknownPeer)?;
    let network = maps::network(source.vni).ok_or(DropReason::UnknownVni)?;
    let bytes = packet.len() - at as u32;
    let version: u8 = packet.load(at)?;
    let to =
        if version >> 4 == 4 { look_at::<V4>(packet, at)? } else { look_at::<V6>(packet, at)? };
    if to.report.is_some() {
        count::peer_rx(source.peer, bytes);
        group::note(packet, &to.report, source.vni, GroupKey::PEER | source.peer);
        return Ok(NOTED);
    }
    if version >> 4 == 4 {
        take_off::<V4>(packet, network, &to, at, bytes)?;
    } else {
        take_off::<V6>(packet, network, &to, at, bytes)?;
    }
    count::peer_rx(source.peer, bytes);
    match deliver(packet, &to.wanted(source.vni), 0, bytes) {
        0 => Err(DropReason::NoMember),
        _ => Ok(SENT),
    }
}

#[inline(always)]
fn look_at<F: Family>(packet: &Packet, at: usize) -> Result<To, DropReason> {
    let header: F::Header = packet.load(at)?;
    Ok(read::<F>(packet, &header, at))
}

/// Leaves a frame for all who get one here.
#[inline(always)]
fn take_off<F: Family>(
    packet: &Packet,
    network: &NetworkInfo,
    to: &To,
    at: usize,
    bytes: u32,
) -> Result<(), DropReason> {
    underlay::take_off::<F>(packet, packet.protocol() == V4::PROTO, at, bytes)?;
    let macs = mac_pair(mac_bytes(to.mac), mac_bytes(network.gateway_mac));
    packet.front::<ETH_LEN>()?.put_eth::<0>(&macs, F::PROTO);
    Ok(())
}
