//! The pair of interfaces that joins a container: of veth or of netkit, as the config file says and
//! the kernel can.

use super::{Host, HostError};
use crate::{
    config::{Cluster, Flood, Interfaces, Network},
    doctor::release_numbers,
    net::{self, NetError, PairKind, Veth, VethPair},
};

/// The first with netkit.
const NETKIT: (u32, u32) = (6, 7);

impl Host {
    /// Makes the pair, of whatever kind; and whether it is of netkit. The container's end gets no
    /// super-packets that the program could only drop: without that, a tunnel within containers, as
    /// Docker in Docker or Kubernetes in containers has it, hardly carries TCP.
    pub(super) async fn add_pair(
        &mut self,
        cluster: &Cluster,
        network: &Network,
        pair: &Veth<'_>,
    ) -> Result<(VethPair, bool), HostError> {
        let made = self.add_either(cluster, network, pair).await?;
        if let Err(e) = net::segment_nested(pair.peer_netns, pair.peer_name) {
            let name = pair.peer_name;
            tracing::warn!(
                "super-packets that {name} sends in tunnels or of SCTP will be dropped (no_room): {e}"
            );
        }
        Ok(made)
    }

    /// In a network that floods it is of veth: what is copied is put in once more at the host's end,
    /// where netkit has no program.
    async fn add_either(
        &mut self,
        cluster: &Cluster,
        network: &Network,
        pair: &Veth<'_>,
    ) -> Result<(VethPair, bool), HostError> {
        let wanted = match cluster.interfaces {
            _ if network.flood != Flood::None => false,
            Interfaces::Veth => false,
            Interfaces::Netkit => true,
            Interfaces::Auto => !self.no_netkit,
        };
        if wanted {
            match self.net.add_veth(PairKind::Netkit, pair).await {
                Ok(made) => return Ok((made, true)),
                Err(e) if !is_unknown(&e) => return Err(e.into()),
                Err(_) if cluster.interfaces == Interfaces::Netkit => {
                    let release = rustix::system::uname().release().to_string_lossy().into_owned();
                    return Err(HostError::User(no_netkit(&release)));
                }
                Err(_) => self.no_netkit = true,
            }
        }
        Ok((self.net.add_veth(PairKind::Veth, pair).await?, false))
    }
}

/// The kernel knows no such kind of interface.
fn is_unknown(e: &NetError) -> bool {
    e.errno() == Some(libc::EOPNOTSUPP)
}

/// What to say where a kernel of that release knows no netkit.
fn no_netkit(release: &str) -> String {
    let why = match release_numbers(release) {
        Some(numbers) if numbers >= NETKIT => {
            format!("{release} is built without CONFIG_NETKIT here")
        }
        _ => format!("it is of Linux 6.7 and later, and this is {release}"),
    };
    format!("this kernel has no netkit: {why}; set attach.interfaces to \"auto\" or leave it out")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_kernel_without_netkit_is_not_called_old() {
        let old = no_netkit("6.1.0-56-amd64");
        assert!(old.contains("Linux 6.7 and later, and this is 6.1.0-56-amd64"), "{old}");
        let new = no_netkit("6.18.44-fc-v669");
        assert!(new.contains("built without CONFIG_NETKIT") && !new.contains("6.7"), "{new}");
    }
}
