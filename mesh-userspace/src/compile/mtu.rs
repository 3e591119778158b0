//! How large a container's packet may be.

use crate::config::{Cluster, Encap, Vni};

/// The container MTU that mesh chooses leaves what this takes of the underlay's, or the overhead if
/// that is more: so `gre` and `gretap` are interchangeable, and segments are such that more fit into
/// a super-packet than with the arithmetic maximum of GRE.
const CHOSEN_ENCAP: Encap = Encap::Gretap;

/// Container MTU of a network: the file's, or what mesh chooses for this underlay. The same for all
/// containers, so the way to the node with the largest overhead counts.
///
/// # Errors
///
/// The largest that would fit, if the file's does not.
pub fn container_mtu(cluster: &Cluster, vni: Vni, underlay_mtu: u32) -> Result<u32, u32> {
    Outer::of(cluster, vni).container_mtu(cluster.mtu, underlay_mtu)
}

/// Bytes around a container's packet of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outer {
    /// [`Cluster::overhead`].
    overhead: u32,
    /// What mesh leaves for it if the file sets no MTU.
    chosen: u32,
}

impl Outer {
    pub(super) fn of(cluster: &Cluster, vni: Vni) -> Self {
        let overhead = cluster.overhead(vni);
        let chosen = CHOSEN_ENCAP.overhead(Vni::DEFAULT, cluster.has_ipv6_underlay());
        Self { overhead: overhead as u32, chosen: overhead.max(chosen) as u32 }
    }

    pub(super) fn container_mtu(self, set: Option<u16>, underlay_mtu: u32) -> Result<u32, u32> {
        let largest = underlay_mtu.saturating_sub(self.overhead);
        match set.map(u32::from) {
            Some(mtu) if mtu > largest => Err(largest),
            Some(mtu) => Ok(mtu),
            None => Ok(underlay_mtu.saturating_sub(self.chosen)),
        }
    }
}
