//! UDP ports of the mesh on which this host has something else too, which is left there.

use std::collections::BTreeSet;

use super::{Host, gro};
use crate::{config::Tunnel, net, net::Link};

/// Who listens on a UDP port in this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    Nobody,
    /// The interface that is there for GRO.
    Mesh,
    /// A tunnel of the host's own, Docker's whose interface is in another namespace, or a program.
    Other,
}

/// `taken`: ports that are listened on, by whoever. While our own interface has a port nobody else
/// can have it: the kernel's tunnels share a socket only if their modes are the same, of those in
/// metadata mode there is one to a port (EEXIST), and all others get EADDRINUSE.
pub fn holder(port: u16, links: &[Link], taken: &BTreeSet<u16>) -> Holder {
    let mut on_it = links.iter().filter(|l| l.up && l.udp_port == Some(port));
    match on_it.next() {
        Some(link) if gro::is_listener(link) => Holder::Mesh,
        None if !taken.contains(&port) => Holder::Nobody,
        _ => Holder::Other,
    }
}

/// Ports of `used`, in their order, that somebody else has.
pub(super) fn foreign(used: &[Tunnel], links: &[Link]) -> Vec<u16> {
    if used.is_empty() {
        return Vec::new();
    }
    let taken = net::udp_listeners().unwrap_or_else(|e| {
        tracing::debug!("the UDP ports that are listened on can not be seen: {e}");
        BTreeSet::new()
    });
    let ports = used.iter().map(|tunnel| tunnel.port);
    ports.filter(|port| holder(*port, links, &taken) == Holder::Other).collect()
}

impl Host {
    /// [`foreign`], and says so of each when it becomes one.
    pub(super) fn follow_foreign_ports(&mut self, used: &[Tunnel], links: &[Link]) -> Vec<u16> {
        let ports = foreign(used, links);
        for port in ports.iter().filter(|port| !self.foreign_ports.contains(port)) {
            tracing::info!(
                "UDP port {port} is another's too, who gets what is not of the mesh; `mesh doctor` \
                 says more"
            );
        }
        self.foreign_ports.clone_from(&ports);
        ports
    }
}
