//! Endpoints that go: taken off, cut short as they were made, or gone with their namespace. None is
//! forgotten before its interface is gone.

use mesh_common::verdict::Hook;

use super::{ALIAS, Host, HostError, PLAIN, attach::all, mesh0};
use crate::{
    bpf::attach::{self, Interface, Mode},
    config::{Cluster, Node},
    net::Link,
    state::Endpoint,
};

/// The host's end of an endpoint: by its mark, since somebody may rename it, and another interface may
/// have its number. One that was being made when we were killed may have no mark yet.
pub(super) fn host_end<'a>(links: &'a [Link], name: &str, endpoint: &Endpoint) -> Option<&'a Link> {
    let host = &endpoint.host;
    if endpoint.bridged.is_some() {
        return links.iter().find(|l| l.index == host.index && l.name == host.name);
    }
    let is_marked = |l: &&Link| is_marked(l, name);
    let has_number = links.iter().find(|l| l.index == host.index).filter(is_marked);
    let has_name = |l: &&Link| l.name == host.name && mesh0::looks_ours(l);
    has_number.or_else(|| links.iter().find(is_marked)).or_else(|| links.iter().find(has_name))
}

/// Whether an interface has the mark of the endpoint `name`.
fn is_marked(link: &Link, name: &str) -> bool {
    marked_name(link).is_some_and(|(marked, _)| marked == name) && mesh0::is_host_end(link)
}

/// The name in the mark of an endpoint's interface, and whether its record had no more than is to be
/// seen in the kernel.
pub(super) fn marked_name(link: &Link) -> Option<(&str, bool)> {
    let mark = link.alias.as_deref()?.strip_prefix(ALIAS)?;
    Some(mark.strip_suffix(PLAIN).map_or((mark, false), |name| (name, true)))
}

impl Host {
    pub(super) async fn remove_endpoint(
        &mut self,
        cluster: &Cluster,
        me: &Node,
        name: &str,
    ) -> Result<(), HostError> {
        let Some(endpoint) = self.state.endpoints.get(name).cloned() else { return Ok(()) };
        self.take_off(name, &endpoint).await?;
        // It is gone, whatever else is wrong; what is left of it elsewhere, the next refresh removes.
        let saved = self.save();
        let filled = self.refill(cluster, me).await;
        let routed = self.follow_routes(cluster, me).await;
        let forwarded = match endpoint.ports.is_empty() {
            true => Ok(()),
            false => self.ensure_gateways(cluster, me).await,
        };
        all([filled, routed, forwarded, saved])
    }

    /// Takes away what is left of attachments that were cut short: whoever asked for one was never
    /// told that it is there. The maps and the state still have them.
    pub(super) async fn roll_back(&mut self) {
        let endpoints = self.state.endpoints.iter();
        let cut_short = endpoints.filter(|(_, e)| e.unfinished);
        let cut_short: Vec<_> = cut_short.map(|(name, e)| (name.clone(), e.clone())).collect();
        for (name, endpoint) in cut_short {
            match self.take_off(&name, &endpoint).await {
                Ok(()) => {
                    tracing::warn!(endpoint = name, "its attachment was cut short: taken back");
                }
                // Also a fault, as long as it is there.
                Err(e) => tracing::warn!("endpoint {name}, which was cut short, stays: {e}"),
            }
        }
    }

    async fn take_off(&mut self, name: &str, endpoint: &Endpoint) -> Result<(), HostError> {
        self.drop_interface(name, endpoint).await?;
        self.state.endpoints.remove(name);
        self.revision += 1;
        self.faults.set_one("endpoint", name, None);
        Ok(())
    }

    async fn drop_interface(&self, name: &str, endpoint: &Endpoint) -> Result<(), HostError> {
        let links = self.net.links().await?;
        let Some(link) = host_end(&links, name, endpoint) else {
            self.unpin(name, endpoint);
            return Ok(());
        };
        let interface = Interface { name: link.name.clone(), index: link.index };
        let mode = match link.kind.as_deref() {
            Some("netkit") => Mode::Netkit,
            _ => self.mode(),
        };
        attach::detach(&self.pins, mode, Hook::FromContainer, &interface)?;
        Ok(self.net.delete_link(link.index).await?)
    }

    /// Removes the pin of an attachment whose interface is gone. A filter went with that.
    fn unpin(&self, name: &str, endpoint: &Endpoint) {
        let (mode, host) = (self.mode_of(endpoint), &endpoint.host);
        if self.run.looks_only() {
            return;
        }
        if mode != Mode::Clsact
            && let Err(e) = attach::detach(&self.pins, mode, Hook::FromContainer, host)
        {
            tracing::warn!("what is left of endpoint {name}: {e}");
        }
    }

    /// Removes what is left of an endpoint that is not known any more, and would be in the way of one
    /// of the same name.
    pub(super) async fn clear_away(&self, name: &str, host_ifname: &str) -> Result<(), HostError> {
        let links = self.net.links().await?;
        let is_known = |l: &Link| self.state.endpoints.values().any(|e| e.host.index == l.index);
        let is_left = |l: &&Link| is_marked(l, name) || l.name == host_ifname && mesh0::is_ours(l);
        for link in links.iter().filter(|l| is_left(l) && !is_known(l)) {
            self.net.delete_link(link.index).await?;
        }
        Ok(())
    }

    /// Forgets endpoints whose interface is gone, as it goes with its namespace. Follows those that
    /// have another name.
    pub(super) async fn forget_gone(&mut self) -> Result<(), HostError> {
        let links = self.net.links().await?;
        let mut gone = Vec::new();
        for (name, endpoint) in &mut self.state.endpoints {
            let Some(link) = host_end(&links, name, endpoint) else {
                gone.push(name.clone());
                continue;
            };
            let interface = Interface { name: link.name.clone(), index: link.index };
            if endpoint.host != interface {
                self.revision += 1;
                endpoint.host = interface;
            }
        }
        self.revision += u64::from(!gone.is_empty());
        for name in gone {
            tracing::info!(endpoint = name, "its interface is gone: detached");
            if let Some(endpoint) = self.state.endpoints.remove(&name) {
                self.unpin(&name, &endpoint);
                // It went with its interface.
                self.state.clsact.retain(|interface| *interface != endpoint.host);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, alias: Option<&str>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: Some("veth".into()),
            mac: Some([0x02, 0x6d, 0, 0, 0, 9]),
            mtu: 1500,
            up: true,
            running: true,
            ethernet: true,
            loopback: false,
            alias: alias.map(Into::into),
            peer: None,
            peer_netns: None,
            controller: None,
            udp_port: None,
        }
    }

    fn endpoint(index: u32, name: &str) -> Endpoint {
        let text = format!(
            r#"{{"vni": 0, "id": 1, "host": {{"name": "{name}", "index": {index}}}, "ifname": "eth0",
                "ifindex": 2, "mac": [2, 110, 0, 0, 0, 1], "addresses": [], "mtu": 1500,
                "netns": "?", "netns_id": [0, 0]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_host_end_is_known_by_its_mark_whatever_its_name_and_number() {
        let web = endpoint(7, "mesh00000001");
        let found = |links: &[Link]| host_end(links, "web", &web).map(|l| l.index);
        assert_eq!(found(&[link(7, "mesh00000001", Some("mesh:web"))]), Some(7));
        assert_eq!(found(&[link(7, "renamed", Some("mesh:web"))]), Some(7));
        assert_eq!(found(&[link(7, "renamed", Some("mesh:web plain"))]), Some(7));
        assert_eq!(found(&[link(9, "mesh00000001", Some("mesh:web"))]), Some(9));
        // No mark yet, or one that somebody took away.
        assert_eq!(found(&[link(9, "mesh00000001", None)]), Some(9));
        // Another's.
        assert_eq!(found(&[link(7, "eth1", None), link(8, "mesh00000002", Some("mesh:db"))]), None);
    }

    #[test]
    fn an_endpoint_called_like_a_part_of_the_mesh_is_not_taken_for_it() {
        let links = [link(3, "mesh0", Some("mesh:host")), link(4, "mesh0-end", Some("mesh:end"))];
        for name in ["host", "end"] {
            assert_eq!(host_end(&links, name, &endpoint(7, "mesh00000001")), None, "{name}");
        }
    }

    #[test]
    fn a_state_of_before_is_of_finished_endpoints() {
        let endpoint = endpoint(7, "mesh00000001");
        assert!(!endpoint.unfinished && !endpoint.found);
    }
}
