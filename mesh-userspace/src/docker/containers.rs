//! What the local containers are called, for the resolvers of all nodes; and what leaked.

use std::collections::BTreeSet;

use super::{
    Docker, api,
    driver::{DriverError, endpoint_name, is_dockers},
    saved::Note,
};
use crate::{
    config::host_name_fault,
    host::{Host, Told},
    peers::{Named, View},
};

/// A container as it was seen last.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The later look wins.
    count: u64,
    container: api::Container,
}

impl Docker {
    /// Everything that runs.
    pub(super) async fn seen_all(
        &mut self,
        host: &mut Host,
        networks: &[api::Network],
        running: &[String],
        count: u64,
    ) -> Result<(), DriverError> {
        let running: BTreeSet<&str> = running.iter().map(String::as_str).collect();
        self.containers.retain(|id, seen| seen.count > count || running.contains(id.as_str()));
        self.publish_names();
        self.remember(networks);
        self.ended.clear();
        self.collect_leaks(host, networks).await?;
        self.save(host)
    }

    pub(super) fn seen(&mut self, id: String, count: u64, container: Option<api::Container>) {
        let old = self.containers.get(&id).map_or(0, |seen| seen.count);
        if count < old {
            return;
        }
        match container.filter(|c| c.state.running) {
            Some(container) => drop(self.containers.insert(id, Seen { count, container })),
            None => drop(self.containers.remove(&id)),
        }
        self.publish_names();
    }

    pub(super) fn left(&mut self, id: &str, network: &str, count: u64) {
        if let Some(seen) = self.containers.get_mut(id) {
            seen.count = count;
            seen.container.network_settings.networks.retain(|_, a| a.network_id != network);
        }
        self.publish_names();
    }

    /// Tells who is called what in the mesh's networks.
    pub(super) fn publish_names(&self) {
        let attached = self.attached.borrow();
        let mut view = View { networks: attached.names.clone() };
        for seen in self.containers.values() {
            for attachment in seen.container.network_settings.networks.values() {
                let mut named = named(&seen.container, attachment);
                // Nobody could ask for the rest, and no other node takes it.
                named.names.retain(|name| host_name_fault(name).is_none());
                let name =
                    match (self.saved.networks.get(&attachment.network_id), &attached.bridged) {
                        (Some(local), _) => local.name.clone(),
                        (None, Some((own, addresses))) if self.is_plugin => {
                            named.addresses.retain(|ip| addresses.contains(ip));
                            Some(own.clone())
                        }
                        _ => None,
                    };
                if let (Some(name), false) =
                    (name, named.addresses.is_empty() || named.names.is_empty())
                {
                    view.networks.entry(name).or_default().push(named);
                }
            }
        }
        drop(attached);
        self.changes.send_modify(|n| *n += 1);
        self.shared.publish(|d| d.set_view(view));
    }

    /// Notes the containers that Docker has and this agent forgot.
    fn remember(&mut self, networks: &[api::Network]) {
        for network in networks {
            let pools: Vec<_> = network.ipam.config.iter().filter_map(|c| c.subnet).collect();
            for member in network.containers.values() {
                let id = &member.endpoint_id;
                if self.saved.endpoints.contains_key(id) || self.ended.contains(id) {
                    continue;
                }
                for address in member.addresses() {
                    if let Some(pool) = pools.iter().find(|pool| pool.contains(&address)) {
                        self.saved.ipam.hold(pool.trunc(), address);
                    }
                }
                let note = Note {
                    network: network.id.clone(),
                    addresses: member.addresses().collect(),
                    mac: [0; 6],
                };
                self.saved.endpoints.insert(member.endpoint_id.clone(), note);
            }
        }
    }

    /// Removes endpoints and addresses that Docker knows nothing of, in two looks one after the
    /// other: what is just being made or removed is in one of them.
    async fn collect_leaks(
        &mut self,
        host: &mut Host,
        networks: &[api::Network],
    ) -> Result<(), DriverError> {
        let members = networks.iter().flat_map(|n| n.containers.values());
        let known: BTreeSet<String> = members.map(|m| m.endpoint_id.clone()).collect();
        let noted = self.saved.endpoints.keys().filter(|id| !known.contains(*id)).cloned();
        let noted: BTreeSet<String> = noted.collect();
        let leaked: Vec<String> = noted.intersection(&self.suspects).cloned().collect();
        self.suspects = noted;
        for id in leaked {
            tracing::info!(endpoint = endpoint_name(&id), "Docker knows nothing of it: removed");
            self.leave(host, &id).await?;
            self.saved.endpoints.remove(&id);
        }
        let held: BTreeSet<_> =
            self.saved.endpoints.values().flat_map(|n| n.addresses.iter().copied()).collect();
        self.loose = self.saved.ipam.release_loose(&held, &self.loose);
        let names: BTreeSet<String> =
            self.saved.endpoints.keys().map(|id| endpoint_name(id)).collect();
        let is_loose = |name: &&String| is_dockers(name) && !names.contains(*name);
        let loose: Vec<String> = host.state.endpoints.keys().filter(is_loose).cloned().collect();
        for name in loose {
            tracing::info!(endpoint = name, "nobody's any more: removed");
            host.detach(&name).await?;
        }
        Ok(())
    }
}

/// What a container is called in one of its networks.
fn named(container: &api::Container, attachment: &api::Attachment) -> Named {
    let name = container.name.trim_start_matches('/');
    let short = container.id.get(..12).unwrap_or(&container.id);
    let mut names = vec![name.to_owned()];
    let others = attachment.dns_names.iter().chain(&attachment.aliases);
    for other in others.map(String::as_str).chain([short]) {
        if !names.iter().any(|n| n.eq_ignore_ascii_case(other)) {
            names.push(other.to_owned());
        }
    }
    Named { names, addresses: attachment.addresses().collect() }
}

/// What tells the host whose a port of a bridge is: a container in one network that may be on one.
/// The host knows which addresses are the bridge's.
pub(super) fn told(container: &api::Container) -> Vec<Told> {
    let told = |attachment: &api::Attachment| {
        Some(Told {
            pid: container.state.pid,
            container: container.name.trim_start_matches('/').to_owned(),
            addresses: attachment.addresses().collect(),
            mac: parse_mac(&attachment.mac_address)?,
        })
    };
    container.network_settings.networks.values().filter_map(told).collect()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_by_name_alias_and_short_id() {
        let container = api::Container {
            id: "3a396b612e62aaaaaaaaaa".into(),
            name: "/web".into(),
            ..api::Container::default()
        };
        let mut attachment = api::Attachment {
            ip_address: "10.0.9.2".into(),
            aliases: vec!["www".into(), "3a396b612e62".into()],
            ..api::Attachment::default()
        };
        let expected = ["web", "www", "3a396b612e62"];
        let got = named(&container, &attachment);
        assert_eq!((got.names, got.addresses.len()), (expected.map(str::to_owned).to_vec(), 1));
        attachment.dns_names = expected.map(str::to_owned).to_vec();
        assert_eq!(named(&container, &attachment).names, expected);
    }
}
