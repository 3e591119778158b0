//! Nobody speaks as this host but the host.
//!
//! Nodes know each other by the underlay address, agents and `mesh0` by the overlay's. What a host
//! forwards and masquerades, as Docker does for its bridges and mesh for networks with `gateway=mesh`,
//! has these addresses too: a container could put an outer header in front of what it sends, send into
//! the cluster's own network as the host, or tell other agents what is not so.
//!
//! Tunnel packets to nodes the program at the underlay's egress drops ([`Hook::FromForward`]), which
//! needs nobody. The rest takes a look at connections. Where a host forwards, a table of our own drops,
//! of what is forwarded:
//!
//! - what has an address of the host's own already (of IPv4 the kernel drops it by itself);
//! - what would get to `mesh0`, but for answers: a port that Docker publishes can be asked for by the
//!   overlay address of its host.
//!
//! [`Hook::FromForward`]: mesh_common::verdict::Hook::FromForward
//!
//! A host that forwards nothing has no such table: its rules have the kernel follow connections.

use std::{fmt::Write as _, fs, path::PathBuf};

use ipnet::IpNet;

use super::{
    Host, HostError,
    firewall::{self, of_family},
    mesh0,
};
use crate::{config::Node, state::State};

const TABLE: &str = "mesh_guard";

impl Host {
    /// Makes the rules be there if this host forwards, and not be there otherwise.
    pub(super) fn ensure_guard(&mut self, me: &Node) {
        let chains = is_forwarding().then(|| {
            let mut own = self.all_host_addresses(me);
            own.extend(self.gateways(me));
            own.push(me.underlay);
            let own: Vec<IpNet> = own.into_iter().map(IpNet::from).collect();
            rules(&own)
        });
        let outcome =
            "containers whose packets this host masquerades can speak to the mesh as the host";
        let is_lost = self.state.node.is_empty();
        let outcome = (outcome, &self.faults);
        self.guard.follow(TABLE, chains, (&mut self.state.guard, is_lost), outcome);
    }
}

impl Host {
    /// Whether this news of forwarding is news to the guard.
    pub(super) fn heeds_forwarding(&self, on: bool) -> bool {
        self.guard.is_there() != on
    }
}

/// Takes the rules away.
pub(super) fn remove(state: &State) -> Result<(), HostError> {
    firewall::remove_noted(TABLE, state.guard, state.node.is_empty())
}

/// Whether the host forwards anything. IPv4 may be forwarded from one interface alone, and IPv6 too
/// since Linux 6.17.
fn is_forwarding() -> bool {
    let is_on = |path: PathBuf| fs::read(path).is_ok_and(|value| !value.starts_with(b"0"));
    let is_any_on = |family: &str, name: &str| {
        let interfaces = fs::read_dir(format!("/proc/sys/net/{family}/conf"));
        interfaces.into_iter().flatten().flatten().any(|i| is_on(i.path().join(name)))
    };
    is_on("/proc/sys/net/ipv6/conf/all/forwarding".into())
        || is_any_on("ipv4", "forwarding")
        || is_any_on("ipv6", "force_forwarding")
}

/// `own`: the host's addresses.
fn rules(own: &[IpNet]) -> String {
    let mut spoofed = String::new();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        if let Some(own) = of_family(own, v4) {
            let _ = writeln!(spoofed, "{family} saddr {{ {own} }} drop");
        }
    }
    let mesh0 = mesh0::NAME;
    format!(
        "chain forward {{
            type filter hook forward priority -10; policy accept;
            {spoofed}
            iifname != \"{mesh0}\" oifname \"{mesh0}\" ct state != {{ established, related }} drop
        }}
        "
    )
}
