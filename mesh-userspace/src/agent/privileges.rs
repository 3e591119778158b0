//! What the agent keeps of root's powers once it runs.

use caps::{CapSet, Capability, CapsHashSet};

/// Each with its reason.
const KEPT: [Capability; 7] = [
    // Links, routes, neighbours, attaching programs.
    Capability::CAP_NET_ADMIN,
    // Maps, programs, pins.
    Capability::CAP_BPF,
    // Programs without the verifier's barriers against speculation, which cost on every packet.
    Capability::CAP_PERFMON,
    // Entering the namespaces of containers; unmounting our bpf file system.
    Capability::CAP_SYS_ADMIN,
    // Finding the namespace of a container again by its pid, when the MTU changes: a process may
    // not look at one that has powers it gave up itself.
    Capability::CAP_SYS_PTRACE,
    // Answering for names on port 53.
    Capability::CAP_NET_BIND_SERVICE,
    // Reading the config file, whoever owns it.
    Capability::CAP_DAC_READ_SEARCH,
];

/// Gives up the rest, for good.
pub fn drop_the_rest() -> Result<(), caps::errors::CapsError> {
    let have = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = KEPT.into_iter().filter(|c| have.contains(c)).collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    // Nothing that is run later gets them back.
    rustix::thread::set_no_new_privs(true).map_err(|e| caps::errors::CapsError::from(e.to_string()))
}
