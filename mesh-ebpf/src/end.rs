//! Where every packet ends: one verdict, one count, one return code.

use aya_ebpf::bindings::TC_ACT_SHOT;
use mesh_common::verdict::{DropReason, Hook, Verdict};

use crate::count;

/// How a packet ends well: the verdict, and the kernel's return code for it.
pub type Done = (Verdict, i32);

/// How it ends otherwise. `code` is a redirect where the packet was turned into an ICMP error for
/// its sender.
pub struct Refusal {
    pub reason: DropReason,
    pub code: i32,
}

impl From<DropReason> for Refusal {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self { reason, code: TC_ACT_SHOT }
    }
}

/// To the next program of this hook, or to the stack. TCX_NEXT and TC_ACT_UNSPEC are both -1.
pub const NEXT: i32 = -1;

#[inline(always)]
pub fn end(hook: Hook, outcome: Result<Done, impl Into<Refusal>>) -> i32 {
    match outcome.map_err(Into::into) {
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
