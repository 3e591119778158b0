//! The data plane: three programs, named by where the packet comes from, and two in which the first
//! two go on where it is for many.
//!
//! ```text
//! from_endpoint  tcx ingress, host side of a container's veth  \  overlay.rs -> encap.rs
//!                tcx egress,  mesh0, the host's own            /             -> deliver.rs
//! from_underlay  tcx ingress, underlay network card            -> underlay.rs -> deliver.rs
//! from_forward   tcx egress,  underlay network card            -> forward.rs
//! flood_send     broadcast and multicast, from the first       \  flood.rs -> group.rs
//! flood_receive  broadcast and multicast, from the second      /
//! ```
//!
//! Where the veth is a port of somebody else's bridge, `bridge.rs` says what stays the bridge's.
#![no_std]
#![no_main]
// Inline BPF assembly, for stores wider than the compiler dares.
#![feature(asm_experimental_arch)]

use aya_ebpf::{macros::classifier, programs::TcContext};
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

/// The kernel is told where the inner headers are, for the card that cuts a super-packet.
const TELL_INNER: bool = true;

#[classifier]
#[inline(always)]
pub fn from_endpoint(ctx: TcContext) -> i32 {
    overlay::send(&Packet::new(&ctx))
}

#[classifier]
#[inline(always)]
pub fn from_underlay(ctx: TcContext) -> i32 {
    underlay::receive(&Packet::new(&ctx))
}

#[classifier]
#[inline(always)]
pub fn from_forward(ctx: TcContext) -> i32 {
    forward::leave(&Packet::new(&ctx))
}

#[classifier]
#[inline(always)]
pub fn flood_send(ctx: TcContext) -> i32 {
    flood::send(&Packet::new(&ctx))
}

#[classifier]
#[inline(always)]
pub fn flood_receive(ctx: TcContext) -> i32 {
    flood::receive(&Packet::new(&ctx))
}
