//! What is kept over a reboot. Networks are: Docker asks for them by its own ids before it can be asked
//! what they are. Containers are not, nor what they were given: none lives through a reboot, and Docker
//! asks anew for each that it starts.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    ipam::Ipam,
    saved::{Local, Saved},
};
use crate::{
    host::Host,
    peers::{NetworkRecord, Version},
    state_dir::{DOCKER, HOST, StateDir},
};

/// Which node this host was last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Identity {
    cluster: String,
    node: String,
    /// Agents that were started here.
    starts: u32,
}

/// The lasting part of [`Saved`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Lasting {
    networks: BTreeMap<String, Local>,
    records: Vec<NetworkRecord>,
    engine: Option<String>,
}

/// The state folder, as far as it is Docker's.
#[derive(Debug, Default)]
pub struct Kept {
    /// `None`: nothing can be kept, which is a fault.
    dir: Option<StateDir>,
    /// As it is on the disk.
    written: Option<Lasting>,
}

impl Kept {
    /// Opens the folder, counts this start, and takes up what was saved: all of it where this agent
    /// follows another, the lasting part after a reboot.
    pub fn take_up(dir: &Path, host: &Host, cluster: &str) -> (Self, Saved) {
        let opened = StateDir::open(dir, host.faults().clone());
        let fault = opened.as_ref().err().map(|e| {
            format!("{e}; until then, nothing of Docker's networks is known after a reboot")
        });
        host.faults().set("state folder", fault);
        let dir = opened.ok();
        let read = |dir: &StateDir| (dir.read::<Identity>(HOST), dir.read::<Lasting>(DOCKER));
        let (identity, lasting) = dir.as_ref().map(read).unwrap_or_default();
        let (identity, lasting) = (identity.unwrap_or_default(), lasting.unwrap_or_default());
        let mut kept = Self { dir, written: None };

        let of_run: Option<Saved> = host.docker();
        let before = of_run.as_ref().map_or(0, |saved| Version::starts(saved.epoch));
        let starts = identity.starts.max(before).saturating_add(1);
        let is_other = !identity.cluster.is_empty() && identity.cluster != cluster;
        let mut saved = of_run.unwrap_or_else(|| lasting.saved(is_other));
        let life = RandomState::new().hash_one(starts) as u32;
        saved.epoch = Version::epoch(starts, life);

        let now = Identity { cluster: cluster.into(), node: host.state.node.clone(), starts };
        if !identity.node.is_empty() && (is_other || identity.node != now.node) {
            let (node, cluster) = (&identity.node, &identity.cluster);
            tracing::info!("this host was node {node} of cluster {cluster} before");
        }
        if let Some(dir) = &kept.dir {
            dir.write(HOST, &now);
        }
        kept.save(&saved);
        (kept, saved)
    }

    /// As [`StateDir::forget_removed`].
    pub fn forget_removed(&self) {
        self.dir.iter().for_each(StateDir::forget_removed);
    }

    /// Writes what lasts, if it is not on the disk as it is.
    pub fn save(&mut self, saved: &Saved) {
        self.forget_removed();
        let Some(dir) = &self.dir else { return };
        let now = Lasting {
            networks: saved.networks.clone(),
            records: saved.records.clone(),
            engine: saved.engine.clone(),
        };
        if self.written.as_ref() != Some(&now) {
            self.written = dir.write(DOCKER, &now).then_some(now);
        }
    }
}

impl Lasting {
    /// What an agent begins with after a reboot. `is_other`: in another cluster, where nobody is to
    /// hear of this one's networks but by a Docker that has them.
    fn saved(mut self, is_other: bool) -> Saved {
        if is_other {
            self.records.clear();
            self.networks.values_mut().for_each(|local| local.spec = None);
        }
        let mut ipam = Ipam::default();
        for subnet in self.networks.values().flat_map(|local| &local.subnets) {
            ipam.add(subnet.net);
            if subnet.gateway.is_some() {
                ipam.gateway(subnet.net, subnet.gateway);
            }
        }
        Saved {
            networks: self.networks,
            ipam,
            records: self.records,
            engine: self.engine,
            ..Saved::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{NetworkSpec, Subnet};

    fn lasting() -> Lasting {
        let subnet = |net: &str, gateway: &str| Subnet {
            net: net.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        let subnets = vec![subnet("10.0.9.0/24", "10.0.9.1"), subnet("fd00:9::/64", "")];
        let spec = NetworkSpec {
            vni: 700,
            subnets: subnets.clone(),
            first: "h1".into(),
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        let local = Local {
            name: Some("my-net".into()),
            subnets,
            options: BTreeMap::new(),
            spec: Some(spec.clone()),
        };
        let record = NetworkRecord {
            name: "my-net".into(),
            version: 3,
            node: "h1".into(),
            spec: Some(spec),
        };
        Lasting { networks: [("id".into(), local)].into(), records: vec![record], engine: None }
    }

    #[test]
    fn after_a_reboot_networks_and_their_pools_are_known_and_no_address_is_taken() {
        let lasting = lasting();
        let saved = lasting.clone().saved(false);
        assert_eq!((&saved.networks, &saved.records), (&lasting.networks, &lasting.records));
        assert!(saved.ipam.contains("10.0.9.0/24".parse().unwrap()));
        assert!(saved.ipam.contains("fd00:9::/64".parse().unwrap()));
        let held: Vec<_> = saved.ipam.addresses().map(|ip| ip.to_string()).collect();
        assert_eq!(held, ["10.0.9.1"]);
        assert!(saved.endpoints.is_empty());
    }

    #[test]
    fn another_cluster_does_not_hear_of_this_ones_networks() {
        let saved = lasting().saved(true);
        assert_eq!(saved.records, []);
        assert_eq!(saved.networks["id"].spec, None);
        assert_eq!(saved.networks["id"].name.as_deref(), Some("my-net"));
    }
}
