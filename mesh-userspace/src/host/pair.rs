//! The pair of interfaces that joins a container: of veth or of netkit, as the config file says and
//! the kernel can.

use super::{Host, HostError};
use crate::{
    config::{Cluster, Interfaces},
    net::{NetError, PairKind, Veth, VethPair},
};

impl Host {
    /// Makes the pair, of whatever kind; and whether it is of netkit.
    pub(super) async fn add_pair(
        &mut self,
        cluster: &Cluster,
        pair: &Veth<'_>,
    ) -> Result<(VethPair, bool), HostError> {
        if cluster.interfaces == Interfaces::Netkit
            || cluster.interfaces == Interfaces::Auto && !self.no_netkit
        {
            match self.net.add_veth(PairKind::Netkit, pair).await {
                Ok(made) => return Ok((made, true)),
                Err(e) if !is_unknown(&e) => return Err(e.into()),
                Err(_) if cluster.interfaces == Interfaces::Netkit => {
                    return Err(HostError::User(
                        "this kernel has no netkit (since Linux 6.7, CONFIG_NETKIT): set \
                         attach.interfaces to \"auto\" or leave it out"
                            .into(),
                    ));
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
