//! What the agent keeps of root's powers. The rest goes before there is a second thread: each thread has
//! powers of its own, and those of its maker.

use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::filter;
use crate::{host::Querier, net::Icmp};

/// What takes more rights to open than are kept.
#[derive(Debug)]
pub struct Sockets {
    pub(super) icmp: Option<Icmp>,
    pub(super) querier: Option<Querier>,
}

impl Sockets {
    /// Opens what can be. The mesh works without, but for paths that are narrower than their ends, and
    /// for groups that nobody asks for. Must be called in a tokio runtime.
    pub fn open(query_interval: Duration) -> Self {
        let querier = Querier::open(query_interval)
            .inspect_err(|e| tracing::warn!("multicast groups are not asked for: {e}"));
        let icmp = Icmp::listen().inspect_err(|e| tracing::warn!("path MTUs are not learned: {e}"));
        Self { icmp: icmp.ok(), querier: querier.ok() }
    }
}

/// Each with its reason.
const KEPT: [Capability; 5] = [
    // Links, routes, neighbours, attaching programs; nftables and iptables, which are run for it.
    Capability::CAP_NET_ADMIN,
    // Entering the network namespaces of containers; mounting and unmounting the bpf file system; and it
    // stands for CAP_BPF and CAP_PERFMON.
    Capability::CAP_SYS_ADMIN,
    // Finding the namespace of a container by its pid, when the MTU changes, or for a port of a bridge: a
    // process may not look at one that has powers it gave up itself.
    Capability::CAP_SYS_PTRACE,
    // Answering for names on port 53.
    Capability::CAP_NET_BIND_SERVICE,
    // Reading the config file, whoever owns it.
    Capability::CAP_DAC_READ_SEARCH,
];

/// Without CAP_SYS_ADMIN: maps, programs and pins; and programs without the verifier's barriers against
/// speculation, which cost on every packet.
const INSTEAD: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];

/// Gives up the rest, for good, for this thread and those that it makes.
///
/// # Errors
///
/// Those of capset(2) and prctl(2). That the kernel has no filter for system calls is only warned of.
pub fn drop_the_rest() -> Result<(), caps::errors::CapsError> {
    let have = caps::read(None, CapSet::Permitted)?;
    let mut keep: CapsHashSet = KEPT.into_iter().filter(|c| have.contains(c)).collect();
    if !keep.contains(&Capability::CAP_SYS_ADMIN) {
        keep.extend(INSTEAD.into_iter().filter(|c| have.contains(c)));
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    // What root runs may have what is in here. Without CAP_SETPCAP it stays as whoever started us left it.
    if have.contains(&Capability::CAP_SETPCAP) {
        let bounding = caps::read(None, CapSet::Bounding)?;
        for gone in bounding.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *gone)?;
        }
    }
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    // Nothing that is run later gets them back.
    rustix::thread::set_no_new_privs(true)
        .map_err(|e| caps::errors::CapsError::from(e.to_string()))?;
    if let Err(e) = filter::apply() {
        tracing::warn!("system calls are not filtered: {e}");
    }
    Ok(())
}

/// Leaves the calling process what nft and iptables need, of what it has. Async-signal-safe, as is needed
/// between fork and exec.
pub(crate) fn keep_for_nft() -> std::io::Result<()> {
    let (have, none) = (capabilities(None)?.permitted, CapabilitySet::empty());
    // An iptables of before nftables opens a raw socket.
    let kept = have & (CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: none };
    Ok(set_capabilities(None, sets)?)
}
