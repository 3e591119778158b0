//! The pair of interfaces that joins a container: of veth or of netkit, as the config file says and
//! the kernel can.

use super::{Host, HostError};
use crate::{
    config::{Cluster, Flood, Interfaces, Network, Node},
    doctor::release_numbers,
    net::{self, NetError, PairKind, Veth, VethPair},
    state::Endpoint,
};

/// The first with netkit.
const NETKIT: (u32, u32) = (6, 7);

impl Host {
    /// Notes that an endpoint is about to be made, and makes its pair: should this process end now, the
    /// next one knows what to take back.
    pub(super) async fn make_pair(
        &mut self,
        cluster: &Cluster,
        network: &Network,
        name: &str,
        veth: &Veth<'_>,
    ) -> Result<VethPair, HostError> {
        self.save()?;
        let (pair, netkit) = self.add_pair(cluster, network, veth).await?;
        if let Some(endpoint) = self.state.endpoints.get_mut(name) {
            endpoint.host.index = pair.ifindex;
            endpoint.ifindex = pair.peer_ifindex;
            endpoint.netkit = netkit;
        }
        Ok(pair)
    }

    /// Notes that an endpoint is whole, or takes back what was made of it.
    pub(super) async fn conclude(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        name: &str,
        made: Result<(), HostError>,
    ) -> Result<Endpoint, HostError> {
        let whole = made.and_then(|()| self.finished(name));
        if whole.is_err()
            && let Err(e) = self.remove_endpoint(cluster, me, name).await
        {
            // The first error is the one that matters. What stays is a fault.
            tracing::debug!("taking {name} back: {e}");
            if let Some(endpoint) = self.state.endpoints.get_mut(name) {
                endpoint.unfinished = true;
            }
        }
        self.say_endpoints();
        whole
    }

    fn finished(&mut self, name: &str) -> Result<Endpoint, HostError> {
        let Some(endpoint) = self.state.endpoints.get_mut(name) else {
            return Err(HostError::Unknown(format!("{name} was taken off as it was made")));
        };
        endpoint.unfinished = false;
        let endpoint = endpoint.clone();
        self.save()?;
        Ok(endpoint)
    }

    /// Makes the pair, of whatever kind; and whether it is of netkit. The container's end gets no
    /// super-packets that the program could only drop: without that, a tunnel within containers, as
    /// Docker in Docker or Kubernetes in containers has it, hardly carries TCP.
    async fn add_pair(
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
