//! What the kernel programs and user space agree on.
//!
//! Everything that crosses the line between the two is here and nowhere else: the layouts of map
//! keys and values ([`maps`]), the numbers of verdicts and drop reasons ([`verdict`]), and the
//! bytes of the headers on the wire ([`wire`]). Both sides are compiled from these definitions;
//! [`ABI_VERSION`] is part of the folder the maps are pinned in, so that programs and maps of
//! different layouts never meet.
#![no_std]

pub mod halves;
pub mod maps;
pub mod names;
pub mod slots;
pub mod tunnel;
pub mod verdict;
pub mod wire;

/// Version of all layouts in this crate; part of the pin folder's name.
pub const ABI_VERSION: u32 = 8;
