//! Packets that are too big: told to the sender, by the program itself.

use aya_ebpf::{bindings::TC_ACT_SHOT, helpers::bpf_csum_diff};
use mesh_common::{
    maps::PortInfo,
    verdict::DropReason,
    wire::{
        ETH_LEN, ETH_P_IP, ETH_P_IPV6, Eth, ICMP_FRAG_NEEDED, ICMP_UNREACH, ICMPV6_TOO_BIG,
        IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN, Ipv4, Ipv6, OUTER_TTL, fold, sum_words,
    },
};

use crate::{
    end::Refusal,
    inner::{Family, is_tcp},
    neighbour::{back, front},
    packet::Packet,
};

/// Bytes of the offending packet that are sent back. Any packet that is too big has them, since
/// no MTU is smaller; more than the 28 that RFC 792 asks for, and enough for IPv6 extension headers.
const QUOTE: usize = 128;

/// Unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
/// Set in the types of ICMPv6 that are no errors.
const ICMPV6_INFORMATION: u8 = 128;

/// Eight bytes: type, code, checksum, and a word that ends in the MTU (RFC 1191; RFC 4443, 3.2).
#[derive(Clone, Copy, Default)]
#[repr(C, packed(2))]
struct Icmp {
    kind: u8,
    code: u8,
    sum: u16,
    mtu: u32,
}

/// Refuses a packet of more than `mtu` bytes, or one whose segments will be.
#[inline(always)]
pub fn fits<F: Family>(
    packet: &Packet,
    port: &PortInfo,
    header: &F::Header,
    mtu: u32,
) -> Result<(), Refusal> {
    if is_fitting::<F>(packet, header, mtu) {
        return Ok(());
    }
    if !may_be_answered::<F>(packet, header) {
        return Err(DropReason::TooBig.into());
    }
    let code = if F::IS_V4 { v4(packet, port, mtu) } else { v6(packet, port, mtu) };
    Err(Refusal { reason: DropReason::TooBig, code })
}

#[inline(always)]
pub fn is_fitting<F: Family>(packet: &Packet, header: &F::Header, mtu: u32) -> bool {
    if packet.l3_len() <= mtu {
        return true;
    }
    let segment = packet.gso_size();
    segment != 0 && segment + headers_len::<F>(packet, header) <= mtu
}

/// No error is sent about an error, nor about any but the first fragment (RFC 1122, 3.2.2; RFC 4443,
/// 2.4).
#[inline(always)]
fn may_be_answered<F: Family>(packet: &Packet, header: &F::Header) -> bool {
    if F::is_later_fragment(header) {
        return false;
    }
    let icmp = if F::IS_V4 { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
    if F::next(header) != icmp {
        return true;
    }
    let kind: u8 = packet.load(ETH_LEN + F::header_len(header)).unwrap_or(ICMP_UNREACH);
    if F::IS_V4 { !ICMP_ERRORS.contains(&kind) } else { kind & ICMPV6_INFORMATION != 0 }
}

/// Bytes of IP and transport header, which each segment of a super-packet gets.
#[inline(always)]
fn headers_len<F: Family>(packet: &Packet, header: &F::Header) -> u32 {
    let ip = F::header_len(header);
    let transport = if is_tcp(F::next(header)) {
        // The data offset, in words, in the upper half of byte 12.
        let offset: u8 = packet.load(ETH_LEN + ip + 12).unwrap_or(0x50);
        u32::from(offset >> 4) * 4
    } else {
        8
    };
    ip as u32 + transport
}

/// Turns the packet into "fragmentation needed", from the gateway.
#[inline(never)]
fn v4(packet: &Packet, port: &PortInfo, mtu: u32) -> i32 {
    // Not the result itself: the verifier would not know that it is never the one for "it fits".
    needed(packet, port, mtu).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn needed(packet: &Packet, port: &PortInfo, mtu: u32) -> Result<i32, DropReason> {
    const ROOM: usize = IPV4_LEN + size_of::<Icmp>();
    let (to, sender): (Eth, Ipv4) = (packet.load(0)?, packet.load(ETH_LEN)?);
    packet.trim((ETH_LEN + QUOTE) as u32)?;
    packet.grow(ROOM as u32, 0)?;
    let mut ip = Ipv4 {
        vihl: 0x45,
        len: ((ROOM + QUOTE) as u16).to_be(),
        ttl: OUTER_TTL,
        proto: IPPROTO_ICMP,
        src: port.gateway4,
        dst: sender.src,
        ..Ipv4::default()
    };
    ip.sum = fold(sum_words(0, &bytemuck_words(&ip)));
    let mut icmp =
        Icmp { kind: ICMP_UNREACH, code: ICMP_FRAG_NEEDED, sum: 0, mtu: (mtu & 0xffff).to_be() };
    packet.store(ETH_LEN + IPV4_LEN, &icmp)?;
    icmp.sum = fold(body_sum(packet, ETH_LEN + IPV4_LEN, 0)?);
    packet.store(ETH_LEN + IPV4_LEN, &icmp)?;
    packet.store(ETH_LEN, &ip)?;
    packet.store(0, &front(port, to.src, ETH_P_IP))?;
    Ok(back(packet, port))
}

/// Turns the packet into "packet too big", from the gateway.
#[inline(never)]
fn v6(packet: &Packet, port: &PortInfo, mtu: u32) -> i32 {
    // Not the result itself: the verifier would not know that it is never the one for "it fits".
    too_big(packet, port, mtu).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn too_big(packet: &Packet, port: &PortInfo, mtu: u32) -> Result<i32, DropReason> {
    const ROOM: usize = IPV6_LEN + size_of::<Icmp>();
    let (to, sender): (Eth, Ipv6) = (packet.load(0)?, packet.load(ETH_LEN)?);
    packet.trim((ETH_LEN + QUOTE) as u32)?;
    packet.grow(ROOM as u32, 0)?;
    let len = (size_of::<Icmp>() + QUOTE) as u16;
    let ip = Ipv6 {
        vtf: 0x6000_0000u32.to_be(),
        len: len.to_be(),
        next: IPPROTO_ICMPV6,
        hops: OUTER_TTL,
        src: port.gateway6,
        dst: sender.src,
    };
    let mut icmp = Icmp { kind: ICMPV6_TOO_BIG, code: 0, sum: 0, mtu: mtu.to_be() };
    packet.store(ETH_LEN + IPV6_LEN, &icmp)?;
    icmp.sum = fold(body_sum(packet, ETH_LEN + IPV6_LEN, pseudo_sum(&ip))?);
    packet.store(ETH_LEN + IPV6_LEN, &icmp)?;
    packet.store(ETH_LEN, &ip)?;
    packet.store(0, &front(port, to.src, ETH_P_IPV6))?;
    Ok(back(packet, port))
}

/// Sum of the ICMP header and the quote that follow at `at`, on top of `sum`.
#[inline(always)]
fn body_sum(packet: &Packet, at: usize, sum: u32) -> Result<u32, DropReason> {
    let body: *mut [u8; size_of::<Icmp>() + QUOTE] = packet.need(at)?;
    // SAFETY: `need` checked the bounds; the length is a multiple of four.
    let r = unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            body.cast(),
            (size_of::<Icmp>() + QUOTE) as u32,
            sum,
        )
    };
    // The helper gives a 32-bit sum that is not folded.
    if r < 0 { Err(DropReason::Truncated) } else { Ok(half(r as u32)) }
}

/// Sum of the pseudo-header of IPv6 (RFC 8200, 8.1).
#[inline(always)]
pub fn pseudo_sum(ip: &Ipv6) -> u32 {
    let mut sum = u32::from(ip.len) + u32::from(u16::from(ip.next).to_be());
    let mut i = 0;
    while i < 4 {
        sum += half(ip.src[i]) + half(ip.dst[i]);
        i += 1;
    }
    sum
}

/// The two 16-bit halves of a word, added.
#[inline(always)]
fn half(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

#[inline(always)]
fn bytemuck_words(ip: &Ipv4) -> [u16; IPV4_LEN / 2] {
    // SAFETY: the same size, and any bytes are words.
    unsafe { core::mem::transmute(*ip) }
}
