//! What is kept over a reboot. Networks are: Docker asks for them by its own ids before it can be asked
//! what they are. Containers are not, nor what they were given: none lives through a reboot, and Docker
//! asks anew for each that it starts.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    ipam::Ipam,
    saved::{Local, Saved},
};
use crate::{
    faults::Faults,
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

/// Between two tries to open the folder.
const AGAIN: Duration = Duration::from_secs(30);

/// The state folder, as far as it is Docker's.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    /// `None`: nothing can be kept, which is a fault.
    dir: Option<StateDir>,
    /// When it was last tried to open it.
    tried: Instant,
    identity: Identity,
    /// As it is on the disk.
    written: Option<Lasting>,
}

impl Kept {
    /// Opens the folder, counts this start, and takes up what was saved: all of it where this agent
    /// follows another, the lasting part after a reboot.
    pub fn take_up(dir: &Path, host: &Host, cluster: &str) -> (Self, Saved) {
        let path = dir.to_owned();
        let dir = open(&path, host.faults());
        let read = |dir: &StateDir| (dir.read::<Identity>(HOST), dir.read::<Lasting>(DOCKER));
        let (identity, lasting) = dir.as_ref().map(read).unwrap_or_default();
        let (identity, lasting) = (identity.unwrap_or_default(), lasting.unwrap_or_default());
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
        let mut kept = Self { path, dir, tried: Instant::now(), identity: now, written: None };
        kept.write_all(&saved);
        (kept, saved)
    }

    /// Makes the folder anew if somebody removed it, or if it could not be made until now.
    pub fn keep(&mut self, saved: &Saved, faults: &Faults) {
        match &self.dir {
            Some(dir) if dir.is_in_place() => return,
            Some(_) => tracing::warn!("somebody removed {}: it is made anew", self.path.display()),
            // To open one that another agent has takes a while.
            None if self.tried.elapsed() < AGAIN => return,
            None => {}
        }
        self.dir = None;
        self.tried = Instant::now();
        self.dir = open(&self.path, faults);
        self.write_all(saved);
    }

    fn write_all(&mut self, saved: &Saved) {
        if let Some(dir) = &self.dir {
            dir.write(HOST, &self.identity);
        }
        self.written = None;
        self.save(saved);
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

fn open(path: &Path, faults: &Faults) -> Option<StateDir> {
    let opened = StateDir::open(path, faults.clone());
    let fault = opened
        .as_ref()
        .err()
        .map(|e| format!("{e}; until then, nothing of Docker's networks is known after a reboot"));
    faults.set("state folder", fault);
    opened.ok()
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
