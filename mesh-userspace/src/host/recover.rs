//! Endpoints, found again where the run folder was lost but not what is in the kernel: the interfaces
//! are known by their marks, the rest is in the maps.

use std::net::IpAddr;

use mesh_common::{
    maps::{Addr, PortInfo},
    wire::mac_bytes,
};

use super::{ALIAS, Host, HostError, mesh0};
use crate::{
    bpf::{attach::Interface, sync},
    net::Link,
    state::Endpoint,
};

impl Host {
    /// Takes up every endpoint whose interface and maps are still there.
    pub(super) async fn recover(&mut self) -> Result<(), HostError> {
        let ports = sync::ports(self.tables()?)?;
        for link in self.net.links().await?.iter().filter(|l| mesh0::is_ours(l)) {
            let name = link.alias.as_deref().and_then(|a| a.strip_prefix(ALIAS));
            let (Some(name), Some(port)) = (name, ports.get(&link.index)) else { continue };
            if self.state.host.as_ref().is_some_and(|host| host.index == link.index) {
                continue;
            }
            tracing::warn!(endpoint = name, "found again: the run folder knew nothing of it");
            self.state.endpoints.insert(name.to_owned(), endpoint(link, port));
        }
        Ok(())
    }
}

fn endpoint(link: &Link, port: &PortInfo) -> Endpoint {
    let v4 = (port.addr4 != 0).then(|| IpAddr::from(Addr::from_v4(port.addr4)));
    let v6 = (port.addr6 != [0; 4]).then(|| IpAddr::from(Addr(port.addr6)));
    Endpoint {
        vni: port.vni,
        id: port.id,
        host: Interface { name: link.name.clone(), index: link.index },
        // Known only in the container's namespace, and that only by the one who attached it.
        ifname: "?".into(),
        ifindex: link.peer.unwrap_or(0),
        mac: mac_bytes(port.mac),
        addresses: [v4, v6].into_iter().flatten().collect(),
        mtu: port.mtu,
        mtu_max: None,
        netns: "?".into(),
        netns_id: (0, 0),
        names: Vec::new(),
        cni: None,
        netkit: link.kind.as_deref() == Some("netkit"),
        bridged: None,
        ports: Vec::new(),
    }
}
