//! What the stack may leave to an interface: ethtool's features, known by name, since their numbers
//! are not the same in all kernels.

use std::{io, os::fd::BorrowedFd};

use super::{
    ethtool::{ask, text},
    netns,
};

/// linux/ethtool.h
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// `enum ethtool_stringset`
const ETH_SS_FEATURES: u32 = 4;
/// ETH_GSTRING_LEN, in words
const NAME_WORDS: usize = 32 / 4;

/// Kinds of super-packets for which `bpf_skb_adjust_room` makes no room (`bpf_skb_net_grow` in
/// net/core/filter.c): those of tunnels are encapsulated already (EALREADY), those of SCTP are
/// neither of TCP nor of UDP (ENOTSUPP).
const NO_ROOM: [&str; 7] = [
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-sctp-segmentation",
];

/// Has the kernel cut super-packets that can not be encapsulated (again) before they leave by an
/// interface: one in `netns`, or in this thread's namespace if `None`. What the kernel does not know
/// of them, it does not send. Needs CAP_NET_ADMIN there.
pub fn segment_nested(netns: Option<BorrowedFd<'_>>, interface: &str) -> io::Result<()> {
    let switch_off = || switch_off(interface, &NO_ROOM);
    match netns {
        Some(ns) => netns::inside(ns, switch_off),
        None => switch_off(),
    }
}

/// Those that the kernel does not know, or the interface can not do without, stay as they are.
fn switch_off(interface: &str, unwanted: &[&str]) -> io::Result<()> {
    let names = names(interface)?;
    // struct ethtool_sfeatures: command, number of blocks; and for each 32 features a block of which
    // are meant, and which of them are wanted.
    let blocks = names.len().div_ceil(32);
    let mut words = vec![0; 2 + 2 * blocks];
    words[0] = ETHTOOL_SFEATURES;
    words[1] = blocks as u32;
    for (bit, _) in names.iter().enumerate().filter(|(_, n)| unwanted.contains(&n.as_str())) {
        words[2 + 2 * (bit / 32)] |= 1 << (bit % 32);
    }
    // SAFETY: the kernel writes as many blocks as it says it has features for, or none.
    unsafe { ask(interface, &mut words) }
}

/// Of all features that this kernel has, in the order of their bits.
fn names(interface: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: command, padding, a mask of 64 bits, and the length of the set in it.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
    info[if cfg!(target_endian = "little") { 2 } else { 3 }] = 1 << ETH_SS_FEATURES;
    // SAFETY: with one set in the mask the kernel writes one length.
    unsafe { ask(interface, &mut info) }?;
    let count = info[4] as usize;
    // struct ethtool_gstrings: command, set, number of names, names.
    let mut words = vec![0; 3 + NAME_WORDS * count];
    words[..2].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES]);
    // SAFETY: the kernel writes all names of the set, and just said how many those are.
    unsafe { ask(interface, &mut words) }?;
    Ok(words[3..].chunks_exact(NAME_WORDS).map(text).collect())
}
