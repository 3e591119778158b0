//! Keeping GRO alive for tunnels in UDP.
//!
//! The kernel puts the segments of a flow together again before the programs see them, and knows
//! GRE by itself. In UDP it looks only behind a port that a tunnel of its own listens on. So there is
//! an interface for the port, up, in metadata mode and without a VNI. It never gets a packet: the
//! programs take, or drop, what comes on that port before.

use super::{ALIAS, Host, mesh0};
use crate::{
    config::{Cluster, Encap, Tunnel},
    net::{Link, NetError, Single},
};

const MAC: [u8; 6] = [0x02, 0x6d, 0, 0, 0, 3];

/// What could not be made is not tried again before the config file changes: each try is a change
/// of the network, which the agent looks at.
#[derive(Debug, Default)]
pub(super) struct Failed(Vec<Tunnel>);

impl Failed {
    pub fn forget(&mut self) {
        self.0.clear();
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
    pub(super) async fn ensure_gro(&mut self, cluster: &Cluster) -> Result<(), NetError> {
        let links = self.net.links().await?;
        let used = cluster.udp_tunnels();
        for encap in [Encap::Vxlan, Encap::Geneve] {
            let wanted = used.iter().find(|tunnel| tunnel.encap == encap);
            let there = links.iter().find(|link| link.name == name(encap));
            if there.is_some_and(|link| !mesh0::is_ours(link)) {
                continue;
            }
            let is_right = |link: &Link| {
                wanted.is_some_and(|tunnel| link.up && link.udp_port == Some(tunnel.port))
            };
            match (there, wanted) {
                (Some(link), _) if is_right(link) && !mesh0::is_unfinished(link) => continue,
                (Some(link), _) => self.net.delete_link(link.index).await?,
                (None, _) => {}
            }
            let Some(tunnel) = wanted.filter(|tunnel| !self.gro_failed.0.contains(tunnel)) else {
                continue;
            };
            let is_taken =
                |link: &Link| link.up && link.udp_port == Some(tunnel.port) && !is_listener(link);
            if links.iter().any(is_taken) {
                continue;
            }
            if let Err(e) = self.listen(tunnel).await {
                tracing::debug!("what comes by {tunnel} is not put together by the kernel: {e}");
                self.gro_failed.0.push(*tunnel);
            }
        }
        Ok(())
    }

    async fn listen(&self, tunnel: &Tunnel) -> Result<(), NetError> {
        let alias = &format!("{ALIAS}gro");
        let single = Single { name: name(tunnel.encap), mac: MAC, alias };
        let index = match tunnel.encap {
            Encap::Geneve => self.net.add_geneve(&single, tunnel.port).await?,
            _ => self.net.add_vxlan(&single, tunnel.port).await?,
        };
        let up = async {
            self.net.set_no_link_local(index).await?;
            self.net.set_up(index).await
        };
        if let Err(e) = up.await {
            self.net.delete_link(index).await?;
            return Err(e);
        }
        Ok(())
    }
}
