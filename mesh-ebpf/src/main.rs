//! The data plane: three programs, named by where the packet comes from.
//!
//! ```text
//! from_container  tcx ingress, host side of a container's veth  \  overlay.rs -> encap.rs
//! from_host       tcx egress,  mesh0                            /             -> deliver.rs
//! from_underlay   tcx ingress, underlay network card            -> underlay.rs -> deliver.rs
//! ```
//!
//! This page is where every packet ends: one verdict, one count, one return code.
#![no_std]
#![no_main]

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use mesh_common::verdict::{DropReason, Hook, Verdict};
use packet::Packet;

mod count;
mod deliver;
mod encap;
mod fib;
mod icmp;
mod inner;
mod maps;
mod neighbour;
mod overlay;
mod packet;
mod underlay;

/// How a packet ends well: the verdict, and the kernel's return code for it.
type Done = (Verdict, i32);

/// How it ends otherwise. `code` is a redirect where the packet was turned into an ICMP error for
/// its sender.
struct Refusal {
    reason: DropReason,
    code: i32,
}

impl From<DropReason> for Refusal {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self { reason, code: TC_ACT_SHOT }
    }
}

/// To the next program of this hook, or to the stack. TCX_NEXT and TC_ACT_UNSPEC are both -1.
const NEXT: i32 = -1;

#[classifier]
pub fn from_container(ctx: TcContext) -> i32 {
    end(Hook::FromContainer, overlay::send(&Packet::new(&ctx), Hook::FromContainer))
}

#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    end(Hook::FromHost, overlay::send(&Packet::new(&ctx), Hook::FromHost))
}

#[classifier]
pub fn from_underlay(ctx: TcContext) -> i32 {
    end(Hook::FromUnderlay, underlay::receive(&Packet::new(&ctx)))
}

#[inline(always)]
fn end(hook: Hook, outcome: Result<Done, Refusal>) -> i32 {
    match outcome {
        Ok((verdict, code)) => {
            count::verdict(hook, verdict);
            code
        }
        Err(Refusal { reason, code }) => {
            count::verdict(hook, Verdict::Drop);
            count::drop(hook, reason);
            code
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// GPL-compatible for the helpers that ask for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
