//! The prefix lengths in use in each network, which tell the programs what to look for.

use std::collections::HashMap;

use ipnet::IpNet;
use mesh_common::maps::PrefixLens;
use rustc_hash::FxBuildHasher;

use crate::config::{Cluster, Vni};

/// The prefix lengths in use in each network.
pub(super) type Lens = HashMap<Vni, PrefixLens>;

/// A prefix length of the 128-bit form.
pub(super) fn long_len(net: &IpNet) -> u8 {
    net.prefix_len() + if net.addr().is_ipv4() { 96 } else { 0 }
}

/// The lengths in use in each network.
pub(super) fn prefix_lens(cluster: &Cluster) -> Lens {
    // How often each length occurs, IPv4 and IPv6.
    let mut counts = HashMap::<Vni, [[usize; 129]; 2], FxBuildHasher>::default();
    for (vni, net) in cluster.nodes.iter().flat_map(|n| &n.subnets) {
        let of = counts.entry(*vni).or_insert([[0; 129]; 2]);
        of[usize::from(net.addr().is_ipv6())][usize::from(long_len(net))] += 1;
    }
    let lens = |[v4, v6]: [[usize; 129]; 2]| PrefixLens {
        v4: commonest_first(v4),
        // Both families are in one map: with a length of both, who sends to an IPv6 address that is
        // an IPv4 one in there would find it. The way by the trie looks.
        v6: if v4.iter().zip(v6).any(|(a, b)| *a > 0 && b > 0) {
            [PrefixLens::LPM, 0, 0, 0]
        } else {
            commonest_first(v6)
        },
    };
    counts.into_iter().map(|(vni, counts)| (vni, lens(counts))).collect()
}

/// The commonest length first; or the mark for more than fit. `counts`: by length.
fn commonest_first(counts: [usize; 129]) -> [u8; 4] {
    let mut lens: Vec<(u8, usize)> = (0..).zip(counts).filter(|(_, n)| *n > 0).collect();
    lens.sort_by_key(|(len, n)| (std::cmp::Reverse(*n), *len));
    let mut list = [0; 4];
    if lens.len() > list.len() {
        list[0] = PrefixLens::LPM;
    } else {
        list.iter_mut().zip(lens).for_each(|(slot, (len, _))| *slot = len);
    }
    list
}
