//! Where a destination is: exact-length hash lookups, the commonest length first.

use mesh_common::maps::{Addr, FibInfo, PrefixLens};

use crate::{inner::Family, maps};

/// Subnets of a network do not overlap, so the first hit is the only one.
#[inline(always)]
pub fn lookup<F: Family>(lens: &PrefixLens, vni: u32, dst: &Addr) -> Option<FibInfo> {
    let lens = F::lens(lens);
    let mut i = 0;
    while i < lens.len() {
        let len = lens[i];
        if len == 0 {
            return None;
        }
        if len == PrefixLens::LPM {
            // Both families are in the one trie.
            return if F::is_mapped(dst) { None } else { maps::fib_lpm(vni, *dst) };
        }
        if let Some(info) = maps::fib(&F::fib_key(vni, len, dst)) {
            return Some(info);
        }
        i += 1;
    }
    None
}
