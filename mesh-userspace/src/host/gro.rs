//! Keeping GRO alive for tunnels in UDP.
//!
//! The kernel puts the segments of a flow together again before the programs see them, and knows
//! GRE by itself. In UDP it looks only behind a port that a tunnel of its own listens on. So there is
//! an interface for the port, up, in metadata mode, which takes every VNI from everybody, at all
//! addresses of the host and on all its interfaces. What gets to it passed `from_underlay`, or came
//! where that is not attached (IP options, another address of the host, a container's interface), and
//! was judged by nobody: `from_endpoint`, to which it is a port that is not there, drops all of it.

use mesh_common::verdict::Hook;

use super::{ALIAS, Host, HostError, attach::all, mesh0, ports};
use crate::{
    bpf::attach::{self, Interface, Mode},
    config::{Cluster, Encap, Tunnel},
    net::{Link, Single},
};

const MAC: [u8; 6] = [0x02, 0x6d, 0, 0, 0, 3];

/// What this process knows of them.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    interfaces: Vec<Interface>,
    /// What could not be made is not tried again before the config file changes: each try is a change
    /// of the network, which the agent looks at.
    failed: Vec<Tunnel>,
}

impl Listeners {
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    pub fn forget_failed(&mut self) {
        self.failed.clear();
    }
}

fn name(encap: Encap) -> &'static str {
    if encap == Encap::Vxlan { "mesh-gro-vxlan" } else { "mesh-gro-geneve" }
}

/// One of those that [`Host::ensure_gro`] makes.
pub(super) fn is_listener(link: &Link) -> bool {
    mesh0::is_ours(link) && [Encap::Vxlan, Encap::Geneve].iter().any(|e| link.name == name(*e))
}

impl Host {
    /// Makes an interface for the first port of VXLAN and of Geneve that the cluster uses, and takes
    /// others away. A port that somebody has, or a kernel without the tunnel, is no error: the mesh
    /// works, and receives more slowly.
    pub(super) async fn ensure_gro(&mut self, cluster: &Cluster) -> Result<(), HostError> {
        let links = self.net.links().await?;
        let used = cluster.udp_tunnels();
        self.listeners.interfaces.clear();
        for encap in [Encap::Vxlan, Encap::Geneve] {
            let wanted = used.iter().find(|tunnel| tunnel.encap == encap);
            let there = links.iter().find(|link| link.name == name(encap));
            if there.is_some_and(|link| !mesh0::is_ours(link)) {
                continue;
            }
            let is_right = |link: &Link| {
                wanted.is_some_and(|tunnel| link.up && link.udp_port == Some(tunnel.port))
            };
            if let Some(link) = there {
                let interface = Interface { name: link.name.clone(), index: link.index };
                if is_right(link) && !mesh0::is_unfinished(link) && self.close(&interface).is_ok() {
                    self.listeners.interfaces.push(interface);
                    continue;
                }
                if let Err(e) = self.remove_listener(&interface).await {
                    tracing::debug!("{}: {e}", interface.name);
                    continue;
                }
            }
            let Some(tunnel) = wanted.filter(|tunnel| !self.listeners.failed.contains(tunnel))
            else {
                continue;
            };
            if ports::foreign(&[*tunnel], &links).contains(&tunnel.port) {
                continue;
            }
            match self.listen(tunnel).await {
                Ok(interface) => self.listeners.interfaces.push(interface),
                Err(e) => {
                    tracing::debug!(
                        "what comes by {tunnel} is not put together by the kernel: {e}"
                    );
                    self.listeners.failed.push(*tunnel);
                }
            }
        }
        Ok(())
    }

    /// Takes the programs off as those of the other kind are there.
    pub(super) fn detach_gro(&self, old: Mode) -> Result<(), HostError> {
        let listeners = self.listeners.interfaces.iter();
        all(listeners.map(|i| Ok(attach::detach(&self.pins, old, Hook::FromContainer, i)?)))
    }

    async fn listen(&self, tunnel: &Tunnel) -> Result<Interface, HostError> {
        let alias = &format!("{ALIAS}gro");
        let single = Single { name: name(tunnel.encap), mac: MAC, alias };
        let index = match tunnel.encap {
            Encap::Geneve => self.net.add_geneve(&single, tunnel.port).await?,
            _ => self.net.add_vxlan(&single, tunnel.port).await?,
        };
        let interface = Interface { name: single.name.to_owned(), index };
        let up = async {
            self.net.set_no_link_local(index).await?;
            // Before it is up nothing gets to it.
            self.close(&interface)?;
            self.net.set_up(index).await?;
            Ok(())
        };
        match up.await {
            Ok(()) => Ok(interface),
            Err(e) => {
                self.remove_listener(&interface).await?;
                Err(e)
            }
        }
    }

    async fn remove_listener(&self, interface: &Interface) -> Result<(), HostError> {
        self.net.delete_link(interface.index).await?;
        attach::detach(&self.pins, self.mode(), Hook::FromContainer, interface)?;
        Ok(())
    }

    /// Has everything dropped that comes in by it.
    fn close(&self, interface: &Interface) -> Result<(), HostError> {
        attach::attach(&self.pins, self.mode(), Hook::FromContainer, interface)?;
        Ok(())
    }
}
