//! Programs for the tests, in an object of their own.
//!
//! `perf_*` are for the table of ns per packet. BPF_PROG_TEST_RUN repeats a program on one packet
//! and never restores it, so each of these puts back what it did; the others measure what that
//! costs; how many bytes, the test says by the packet's mark. `cut_*` and `tagged_*` run the real thing
//! on packets that BPF_PROG_TEST_RUN does not make.
#![no_std]
#![no_main]
#![allow(dead_code, reason = "the modules are those of main.rs, whose programs need more of them")]
// Inline BPF assembly, for stores wider than the compiler dares.
#![feature(asm_experimental_arch)]

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT},
    helpers::bpf_skb_vlan_push,
    macros::classifier,
    programs::TcContext,
};
use mesh_common::{
    verdict::DropReason,
    wire::{ETH_LEN, ETH_P_8021Q},
};
use packet::Packet;

mod bridge;
mod count;
mod deliver;
mod encap;
mod end;
mod fib;
mod flood;
mod forward;
mod group;
mod icmp;
mod inner;
mod maps;
mod mss;
mod neighbour;
mod overlay;
mod packet;
mod switch;
mod underlay;

/// A packet stays marked as encapsulated when the outer header is off again, and is then not
/// encapsulated a second time. So here the kernel is not told.
const TELL_INNER: bool = false;

/// What encapsulation overwrites.
type Ethernet = [u16; ETH_LEN / 2];
/// What decapsulation takes out, at most: Ethernet, IPv4, UDP, VXLAN, Ethernet. For IPv6 around these
/// the stack has no room on Linux 5.10.
type Outer = [u16; 32];

/// A run of no program at all.
#[classifier]
#[inline(always)]
pub fn perf_empty(_: TcContext) -> i32 {
    TC_ACT_OK
}

/// `from_endpoint` to a peer, and then `from_underlay` on what it made: the packet is as before.
#[classifier]
#[inline(always)]
pub fn perf_pair(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let code = overlay::send(&packet);
    if code == TC_ACT_SHOT {
        return code;
    }
    underlay::receive(&packet)
}

/// `from_endpoint` to a peer, and back.
#[classifier]
#[inline(always)]
pub fn perf_encap(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    code(restored::<Ethernet>(&packet, || {
        let before = packet.len();
        let code = overlay::send(&packet);
        packet.shrink(packet.len() - before, 0)?;
        Ok(code)
    }))
}

/// The way back of [`perf_encap`] alone. Its packet gets shorter with each run.
#[classifier]
#[inline(always)]
pub fn perf_encap_undo(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    code(restored::<Ethernet>(&packet, || {
        packet.shrink(packet.mark(), 0)?;
        Ok(TC_ACT_OK)
    }))
}

/// `from_underlay` to an endpoint, and back.
#[classifier]
#[inline(always)]
pub fn perf_decap(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    code(restored::<Outer>(&packet, || {
        let before = packet.len();
        let code = underlay::receive(&packet);
        packet.grow(before - packet.len(), 0)?;
        Ok(code)
    }))
}

/// The way back of [`perf_decap`], and the [`perf_shrink`] without which there is nothing to grow.
#[classifier]
#[inline(always)]
pub fn perf_decap_undo(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    code(restored::<Outer>(&packet, || {
        packet.shrink(packet.mark(), 0)?;
        packet.grow(packet.mark(), 0)?;
        Ok(TC_ACT_OK)
    }))
}

/// Making room for the outer header and taking it out again, without a header.
#[classifier]
#[inline(always)]
pub fn perf_grow_shrink(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let bytes = packet.mark();
    code(packet.grow(bytes, 0).and_then(|()| packet.shrink(bytes, 0)).map(|()| TC_ACT_OK))
}

/// Taking out the outer header alone. Its packet gets shorter with each run.
#[classifier]
#[inline(always)]
pub fn perf_shrink(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    code(packet.shrink(packet.mark(), 0).map(|()| TC_ACT_OK))
}

/// `from_endpoint` on the first bytes of the packet, as many as its mark says.
#[classifier]
#[inline(always)]
pub fn cut_from_endpoint(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match packet.trim(packet.mark()) {
        Ok(()) => overlay::send(&packet),
        Err(_) => TC_ACT_OK,
    }
}

/// `from_underlay` on the first bytes of the packet, as many as its mark says.
#[classifier]
#[inline(always)]
pub fn cut_from_underlay(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    match packet.trim(packet.mark()) {
        Ok(()) => underlay::receive(&packet),
        Err(_) => TC_ACT_OK,
    }
}

/// `from_endpoint` on a packet with a VLAN tag beside its bytes.
#[classifier]
#[inline(always)]
pub fn tagged_from_endpoint(ctx: TcContext) -> i32 {
    tag(&ctx);
    overlay::send(&Packet::new(&ctx))
}

/// `from_underlay` on a packet with a VLAN tag beside its bytes.
#[classifier]
#[inline(always)]
pub fn tagged_from_underlay(ctx: TcContext) -> i32 {
    tag(&ctx);
    underlay::receive(&Packet::new(&ctx))
}

/// What `from_forward` does with a forwarded packet, on kernels whose BPF_PROG_TEST_RUN forwards none.
#[classifier]
#[inline(always)]
pub fn forwarded(ctx: TcContext) -> i32 {
    forward::judge(&Packet::new(&ctx))
}

/// [`forwarded`] on a packet with a VLAN tag beside its bytes.
#[classifier]
#[inline(always)]
pub fn tagged_forwarded(ctx: TcContext) -> i32 {
    tag(&ctx);
    forward::judge(&Packet::new(&ctx))
}

/// Saves the front of the packet, runs `f`, and writes the front back: word by word, since after
/// the kernel's copying of bytes the next run would wait for them.
#[inline(always)]
fn restored<T: Copy>(
    packet: &Packet,
    f: impl FnOnce() -> Result<i32, DropReason>,
) -> Result<i32, DropReason> {
    let front: *mut T = packet.need(0)?;
    // SAFETY: `need` checked the bounds.
    let saved = unsafe { *front };
    let code = f()?;
    let front: *mut T = packet.need(0)?;
    // SAFETY: as above.
    unsafe { *front = saved };
    Ok(code)
}

#[inline(always)]
fn code(outcome: Result<i32, DropReason>) -> i32 {
    outcome.unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn tag(ctx: &TcContext) {
    // SAFETY: a helper call with a valid context.
    unsafe { bpf_skb_vlan_push(ctx.skb.skb, ETH_P_8021Q.to_be(), 5) };
}
