//! One set of networks on all hosts: what is made with the local Docker is told to the other agents,
//! and what they tell of is made here.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{
    Docker,
    api::{self, ApiError},
    driver::{DriverError, endpoint_name},
    options::{self, Options},
    pools::Taken,
    protocol::ip,
    saved::Local,
    watch::Event,
};
use crate::{
    compile::fnv1a,
    faults::Of,
    host::{AddedNetwork, Host},
    peers::{NetworkSpec, Subnet},
    supervise::caught,
};

/// Driver and IPAM driver, as Docker calls them: the name of the plugin's socket.
pub const DRIVER: &str = "mesh";

/// Networks that are named in faults because they can not be on this host.
const FAULTS_MAX: usize = 16;

/// VNIs that are chosen begin here; those below are left to people.
const CHOSEN_VNI: u32 = 0x80_0000;

impl Docker {
    /// Brings the mesh's networks and those of the local Docker together.
    pub(super) async fn reconcile(
        &mut self,
        host: &mut Host,
        networks: api::Networks,
    ) -> Result<(), DriverError> {
        let api::Networks { engine, mut list } = networks;
        // A list from before they were deleted has them still.
        self.deleted.retain(|id| list.iter().any(|n| n.id == *id));
        list.retain(|n| !self.deleted.contains(&n.id));
        let is_other =
            engine.is_some() && self.saved.engine.is_some() && engine != self.saved.engine;
        self.saved.engine = engine.or(self.saved.engine.take());
        self.forget_gone(&list, is_other);
        for network in &list {
            self.learn(network);
        }
        self.keep_used(host);
        self.forget_troubles(&list);
        self.apply_networks(host).await?;
        self.mirror(&list);
        self.save(host)
    }

    /// Networks that Docker had and has no more: removed while this agent was away. `is_other`: it is
    /// another Docker, which never had them.
    fn forget_gone(&mut self, list: &[api::Network], is_other: bool) {
        let ids: BTreeSet<&str> = list.iter().map(|n| n.id.as_str()).collect();
        // A network that was made just now is in no list before its name is known.
        let is_gone = |id: &str, local: &Local| local.name.is_some() && !ids.contains(id);
        let gone = self.saved.networks.iter().filter(|(id, local)| is_gone(id, local));
        let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            let Some(local) = self.saved.networks.remove(&id) else { continue };
            for subnet in &local.subnets {
                if self.network_of(subnet.net).is_none() {
                    self.saved.ipam.remove(subnet.net);
                }
            }
            let name = local.name.unwrap_or_default();
            if !is_other && !list.iter().any(|n| n.name == name) {
                self.removed_here(&name);
            }
        }
    }

    /// A network that is not known by Docker's id, which no call but the first one tells about: by an
    /// address in it, with the length of its prefix. Networks of one mesh do not overlap.
    pub(super) fn recognise(&mut self, id: &str, address: IpNet) {
        let subnet = address.trunc();
        if self.saved.networks.contains_key(id) {
            return;
        }
        let Some((name, spec)) = self.shared_network_of(subnet) else { return };
        tracing::info!(network = name, "recognised by its subnet {subnet}");
        let local = Local {
            name: Some(name),
            subnets: spec.subnets.clone(),
            options: spec.options.clone(),
            spec: Some(spec),
        };
        self.saved.networks.insert(id.to_owned(), local);
    }

    /// The network of the mesh that has this subnet.
    pub(super) fn shared_network_of(&self, subnet: IpNet) -> Option<(String, NetworkSpec)> {
        let directory = self.shared.lock();
        let mut networks = directory.networks();
        let found = networks.find(|(_, spec)| spec.subnets.iter().any(|s| s.net == subnet));
        found.map(|(name, spec)| (name.to_owned(), spec.clone()))
    }

    /// Makes the data plane carry all networks.
    pub(super) async fn apply_networks(&mut self, host: &mut Host) -> Result<(), DriverError> {
        let networks = self.shared.lock().networks().map(|(n, s)| added(n, s)).collect::<Vec<_>>();
        let mut added: Vec<_> = networks.into_iter().flatten().collect();
        self.leave_out(host, &mut added).await?;
        host.set_networks(added.clone()).await?;
        self.applied = added;
        Ok(())
    }

    /// Takes out what can not be on this host, which is a fault. What is carried already stays, unless
    /// the config file has changed.
    async fn leave_out(
        &self,
        host: &Host,
        added: &mut Vec<AddedNetwork>,
    ) -> Result<(), DriverError> {
        let is_new = |network: &AddedNetwork| !self.applied.contains(network);
        let taken = match added.iter().any(is_new) {
            true => Some(Taken::look(host).await?),
            false => None,
        };
        let rules = self.shared.rules();
        let fault = |network: &AddedNetwork| {
            let of_file = rules.as_ref().and_then(|rules| network.fault(rules.cluster()));
            of_file.or_else(|| {
                let taken = taken.as_ref().filter(|_| is_new(network))?;
                network.cidrs.iter().find_map(|net| taken.fault(*net, self.me()))
            })
        };
        let mut faults = Vec::new();
        added.retain(|network| {
            let fault = fault(network);
            faults.extend(fault.as_ref().map(|why| format!("network {}: {why}", network.name)));
            fault.is_none()
        });
        let faults = faults.into_iter().take(FAULTS_MAX).map(|fault| (Of::Docker, fault));
        host.faults().set_all_of("networks left out", faults);
        Ok(())
    }

    /// Takes up a network of the local Docker, and tells the others if they do not know it.
    fn learn(&mut self, network: &api::Network) {
        let local = self.saved.networks.entry(network.id.clone()).or_insert_with(|| local(network));
        let is_new = local.name.replace(network.name.clone()).is_none();
        let directory = self.shared.lock();
        let known = directory.network(&network.name).cloned();
        match known {
            Some(spec) => {
                let nets =
                    |subnets: &[Subnet]| -> BTreeSet<_> { subnets.iter().map(|s| s.net).collect() };
                if nets(&spec.subnets) != nets(&local.subnets) {
                    let name = &network.name;
                    let node = spec.first;
                    let error = format!("another network of this name was made on node {node}");
                    drop(directory);
                    self.trouble(name, &error);
                    return;
                }
                local.spec = Some(spec);
            }
            None if is_new || !directory.is_removed(&network.name) => {
                let taken: BTreeSet<u32> = directory.networks().map(|(_, s)| s.vni).collect();
                let options = Options::parse(&local.options).unwrap_or_default();
                let spec = NetworkSpec {
                    vni: options.vni.unwrap_or_else(|| choose_vni(&network.name, &taken)),
                    subnets: local.subnets.clone(),
                    first: options.first.unwrap_or_else(|| directory.me().to_owned()),
                    internal: network.internal,
                    options: plain(&local.options),
                    labels: network.labels.clone(),
                };
                drop(directory);
                if let Some(fault) = self.shared.fault_of(&network.name, &spec) {
                    let error = format!("{fault}; the other nodes do not take it, remove it here");
                    self.trouble(&network.name, &error);
                    return;
                }
                local.spec = Some(spec.clone());
                let (name, vni) = (&network.name, spec.vni);
                tracing::info!(network = name, vni, "made here; the other nodes are told");
                self.shared.publish(|d| d.set_network(name, Some(spec)));
            }
            None => {}
        }
    }

    /// A network that the local Docker does not have any more: nobody has it, unless containers of
    /// another node are in it, or some here that are none of Docker's.
    pub(super) fn removed_here(&mut self, name: &str) {
        let elsewhere = self.shared.lock().user(name).map(str::to_owned);
        let here = || self.attached.borrow().names.contains_key(name).then(|| self.node.clone());
        if let Some(node) = elsewhere.or_else(here) {
            tracing::warn!(
                "network {name} is in use on node {node}: it stays, and comes back here"
            );
            self.look.notify_one();
            return;
        }
        self.shared.publish(|d| d.set_network(name, None));
    }

    /// A network that another node removed, though containers here are in it, is there still.
    pub(super) fn keep_used(&mut self, host: &Host) {
        for (id, local) in &self.saved.networks {
            let (Some(name), Some(spec)) = (&local.name, &local.spec) else { continue };
            let mut notes = self.saved.endpoints.iter().filter(|(_, note)| note.network == *id);
            let is_used = notes
                .any(|(endpoint, _)| host.state.endpoints.contains_key(&endpoint_name(endpoint)));
            if is_used && self.shared.lock().is_removed(name) {
                tracing::warn!(
                    "network {name} was removed elsewhere, but containers here are in it"
                );
                self.shared.publish(|d| d.set_network(name, Some(spec.clone())));
            }
        }
    }

    /// Lets Docker make what it does not have, and remove what nobody has.
    fn mirror(&mut self, list: &[api::Network]) {
        let directory = self.shared.lock();
        let absent = |name: &str| !list.iter().any(|n| n.name == name);
        let missing: Vec<api::Network> = directory
            .networks()
            .filter(|(name, _)| absent(name) && !self.busy.contains(*name))
            .map(|(name, spec)| mirrored(name, spec))
            .collect();
        let left: Vec<(String, String)> = list
            .iter()
            .filter(|n| directory.is_removed(&n.name) && !self.busy.contains(&n.name))
            .map(|n| (n.id.clone(), n.name.clone()))
            .collect();
        drop(directory);
        for network in missing {
            let (api, events) = (self.api.clone(), self.events.clone());
            self.busy.insert(network.name.clone());
            self.supervisor.runtime().spawn(async move {
                let name = network.name.clone();
                let made = caught(async move { api.create_network(&network).await }).await;
                let result = made.unwrap_or_else(|e| Err(ApiError::Interrupted(e)));
                let _ = events.send(Event::Made { name, result }).await;
            });
        }
        for (id, name) in left {
            let (api, events) = (self.api.clone(), self.events.clone());
            self.busy.insert(name.clone());
            self.supervisor.runtime().spawn(async move {
                let removed = caught(async move { api.remove_network(&id).await }).await;
                let result = removed.unwrap_or_else(|e| Err(ApiError::Interrupted(e)));
                let _ = events.send(Event::Removed { name, result }).await;
            });
        }
    }

    pub(super) fn made(&mut self, name: &str, result: Result<(), ApiError>) {
        self.busy.remove(name);
        match result {
            Ok(()) => {
                tracing::info!(network = name, "made here as well");
                self.troubles.remove(name);
            }
            Err(e) => self
                .trouble(name, &format!("Docker here does not make it, and is asked again: {e}")),
        }
    }

    pub(super) fn removed(&mut self, name: &str, result: Result<(), ApiError>) {
        self.busy.remove(name);
        match result {
            Ok(()) | Err(ApiError::NotFound(_)) => {
                tracing::info!(network = name, "removed here as well");
                self.troubles.remove(name);
            }
            Err(e) => self
                .trouble(name, &format!("Docker here does not remove it, and is asked again: {e}")),
        }
    }

    /// Those of networks that nobody has any more, or that are as they should be by now.
    fn forget_troubles(&mut self, list: &[api::Network]) {
        let directory = self.shared.lock();
        let is_here = |name: &str| list.iter().any(|n| n.name == name);
        self.troubles.retain(|name, _| match directory.network(name) {
            Some(spec) => {
                let same = |n: &&api::Network| n.name == *name && has_subnets(n, spec);
                !list.iter().any(|n| same(&n))
            }
            None => is_here(name),
        });
    }

    fn trouble(&mut self, name: &str, error: &str) {
        self.troubles.insert(name.to_owned(), error.to_owned());
    }
}

/// The network that a record describes.
///
/// # Errors
///
/// Its options make no sense.
pub(crate) fn added(name: &str, spec: &NetworkSpec) -> Result<AddedNetwork, String> {
    let options = Options::parse(&spec.options)?;
    Ok(AddedNetwork {
        name: name.to_owned(),
        vni: spec.vni,
        cidrs: spec.subnets.iter().map(|s| s.net).collect(),
        first: spec.first.clone(),
        gateway: options.gateway,
        flood: options.flood,
    })
}

fn has_subnets(network: &api::Network, spec: &NetworkSpec) -> bool {
    let nets = |subnets: &[Subnet]| -> BTreeSet<_> { subnets.iter().map(|s| s.net).collect() };
    nets(&local(network).subnets) == nets(&spec.subnets)
}

/// From Docker's own description, where the agent has forgotten it.
fn local(network: &api::Network) -> Local {
    let subnet = |c: &api::IpamConfig| {
        Some(Subnet { net: c.subnet?.trunc(), gateway: c.gateway.as_deref().and_then(ip) })
    };
    Local {
        name: None,
        subnets: network.ipam.config.iter().filter_map(subnet).collect(),
        options: network.options.clone(),
        spec: None,
    }
}

/// The options of a network as its maker gave them.
fn plain(options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = [options::NETWORK, options::FIRST, options::VNI];
    options
        .iter()
        .filter(|(k, _)| !own.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// The network as another host's Docker gets it.
fn mirrored(name: &str, spec: &NetworkSpec) -> api::Network {
    let mut options = spec.options.clone();
    options.insert(options::NETWORK.into(), name.to_owned());
    options.insert(options::FIRST.into(), spec.first.clone());
    options.insert(options::VNI.into(), spec.vni.to_string());
    let config = spec.subnets.iter().map(|s| api::IpamConfig {
        subnet: Some(s.net),
        gateway: s.gateway.map(|g| g.to_string()),
    });
    api::Network {
        name: name.to_owned(),
        driver: DRIVER.into(),
        internal: spec.internal,
        enable_ipv6: spec.subnets.iter().any(|s| s.net.addr().is_ipv6()),
        ipam: api::Ipam {
            driver: DRIVER.into(),
            options: BTreeMap::from([(options::NETWORK.to_owned(), name.to_owned())]),
            config: config.collect(),
        },
        options,
        labels: spec.labels.clone(),
        ..api::Network::default()
    }
}

/// The same for the same name everywhere, but for one that is taken.
fn choose_vni(name: &str, taken: &BTreeSet<u32>) -> u32 {
    let hash = fnv1a(name.as_bytes());
    let place = |n: u32| CHOSEN_VNI + hash.wrapping_add(n) % CHOSEN_VNI;
    (0..).map(place).find(|vni| !taken.contains(vni)).unwrap_or(CHOSEN_VNI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_follows_from_the_name_and_is_nobody_elses() {
        let first = choose_vni("my-net", &BTreeSet::new());
        assert_eq!(choose_vni("my-net", &BTreeSet::new()), first);
        assert!((CHOSEN_VNI..=mesh_common::maps::VNI_MAX).contains(&first));
        let second = choose_vni("my-net", &BTreeSet::from([first]));
        assert_ne!(first, second);
        assert!((CHOSEN_VNI..=mesh_common::maps::VNI_MAX).contains(&second));
    }

    #[test]
    fn a_mirrored_network_tells_what_the_first_one_is() {
        let spec = NetworkSpec {
            vni: 700,
            subnets: vec![Subnet {
                net: "10.0.9.0/24".parse().unwrap(),
                gateway: Some("10.0.9.1".parse().unwrap()),
            }],
            first: "h1".into(),
            internal: true,
            options: BTreeMap::from([("mtu".to_owned(), "1400".to_owned())]),
            labels: BTreeMap::new(),
        };
        let network = mirrored("my-net", &spec);
        assert_eq!((network.ipam.driver.as_str(), network.internal), ("mesh", true));
        let options = Options::parse(&network.options).unwrap();
        assert_eq!((options.vni, options.mtu), (Some(700), Some(1400)));
        assert_eq!(options.first.as_deref(), Some("h1"));
        let again = local(&network);
        assert_eq!((again.subnets, plain(&again.options)), (spec.subnets, spec.options));
    }
}
