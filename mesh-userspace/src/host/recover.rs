//! Endpoints, found again where the run folder was lost but not what is in the kernel: the interfaces
//! are known by their marks, addresses are in the maps, and the container's namespace is the one where
//! the other end is.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    os::fd::AsFd,
};

use mesh_common::{
    maps::{Addr, PortInfo},
    wire::mac_bytes,
};

use super::{Host, HostError, endpoint::id_of, mesh0, removal::marked_name};
use crate::{
    bpf::attach::Interface,
    net::{Link, Net, netns_paths, open_netns},
    plan::Entries,
    state::Endpoint,
};

/// What is not known of a namespace or an interface.
const UNKNOWN: &str = "?";

/// The container's end of a pair.
struct Inside {
    netns: String,
    netns_id: (u64, u64),
    ifname: String,
    mtu: u32,
}

impl Host {
    /// Takes up every endpoint that is not known, and whose interface and maps are still there.
    /// `ports`: of the maps that were in use until now.
    pub(super) async fn recover(
        &mut self,
        ports: &Entries<u32, PortInfo>,
    ) -> Result<(), HostError> {
        let links = self.net.links().await?;
        let is_known = |l: &Link| self.state.endpoints.values().any(|e| e.host.index == l.index);
        let lost = links.iter().filter(|l| mesh0::is_host_end(l) && !is_known(l));
        let lost: Vec<_> =
            lost.filter_map(|l| Some((marked_name(l)?, l, ports.get(&l.index)?))).collect();
        if lost.is_empty() {
            return Ok(());
        }
        let insides = self.look_inside(lost.iter().map(|(_, link, _)| *link)).await;
        for ((name, is_plain), link, port) in lost {
            if self.state.endpoints.contains_key(name) {
                continue;
            }
            tracing::warn!(endpoint = name, "found again: the run folder knew nothing of it");
            let inside = insides.get(&link.index);
            let mut endpoint = endpoint(link, port, inside);
            endpoint.found = !is_plain || inside.is_none();
            if self.state.endpoints.values().any(|e| e.id == endpoint.id) {
                endpoint.id = self.free_id()?;
            }
            self.state.endpoints.insert(name.to_owned(), endpoint);
        }
        self.revision += 1;
        Ok(())
    }

    /// The other ends of these, by the number of this one; those that can be found.
    async fn look_inside(&self, links: impl Iterator<Item = &Link>) -> BTreeMap<u32, Inside> {
        let mut wanted: Vec<(u32, u32, i32)> =
            links.filter_map(|l| Some((l.index, l.peer?, l.peer_netns?))).collect();
        let (mut found, mut seen) = (BTreeMap::new(), HashSet::new());
        for path in netns_paths() {
            if wanted.is_empty() {
                break;
            }
            let path = path.display().to_string();
            let Ok(netns) = open_netns(&path) else { continue };
            let netns_id = id_of(netns.as_fd());
            if !seen.insert(netns_id) {
                continue;
            }
            let number = self.net.netns_number(netns.as_fd()).await.ok().flatten();
            let is_here = |of: &(u32, u32, i32)| Some(of.2) == number;
            if !wanted.iter().any(is_here) {
                continue;
            }
            let inside = Net::in_netns(netns.as_fd());
            for (index, peer, _) in wanted.extract_if(.., |of| is_here(of)) {
                let Ok(inside) = &inside else { continue };
                let Ok(Some(link)) = inside.link(peer).await else { continue };
                let (netns, ifname, mtu) = (path.clone(), link.name, link.mtu);
                found.insert(index, Inside { netns, netns_id, ifname, mtu });
            }
        }
        found
    }

    /// What of a lost record is nowhere else, as a fault of the endpoint.
    pub(super) fn lost_with_record(&self, name: &str, endpoint: &Endpoint) -> Option<String> {
        if !endpoint.found {
            return None;
        }
        let lost = match crate::docker::is_dockers(name) {
            // The rest is Docker's to tell.
            true if !self.is_gateway_of(endpoint) => return None,
            true => "the ports that it publishes",
            false if endpoint.netns == UNKNOWN => {
                "its namespace, its names for other containers and its CNI network"
            }
            false => "its names for other containers and its CNI network",
        };
        Some(format!(
            "it was found again without its record: {lost} are not known; start its \
             container anew, or detach and attach it again"
        ))
    }
}

fn endpoint(link: &Link, port: &PortInfo, inside: Option<&Inside>) -> Endpoint {
    let v4 = (port.addr4 != 0).then(|| IpAddr::from(Addr::from_v4(port.addr4)));
    let v6 = (port.addr6 != [0; 4]).then(|| IpAddr::from(Addr(port.addr6)));
    let unknown = || UNKNOWN.to_owned();
    Endpoint {
        vni: port.vni,
        id: port.id,
        host: Interface { name: link.name.clone(), index: link.index },
        ifname: inside.map_or_else(unknown, |inside| inside.ifname.clone()),
        ifindex: link.peer.unwrap_or(0),
        mac: mac_bytes(port.mac),
        addresses: [v4, v6].into_iter().flatten().collect(),
        mtu: inside.map_or(port.mtu, |inside| inside.mtu),
        mtu_max: None,
        netns: inside.map_or_else(unknown, |inside| inside.netns.clone()),
        netns_id: inside.map_or((0, 0), |inside| inside.netns_id),
        names: Vec::new(),
        cni: None,
        netkit: link.kind.as_deref() == Some("netkit"),
        bridged: None,
        ports: Vec::new(),
        floods: None,
        unfinished: false,
        found: true,
    }
}
