//! What another node may say of networks and names: the config file's own rules, and bounds of length
//! and number. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Directory, Named, NetworkRecord, NetworkSpec, View, directory::RECORDS_MAX, protocol::News,
};
use crate::{
    config::{Cluster, host_name_fault, node_name_fault},
    docker::added,
    host::{ADDED_MAX, AddedNetwork},
};

/// Of these, those that one node made. All nodes that the config file does not name count as one.
const OF_NODE_MAX: usize = 256;
/// Steps by which a record may be ahead of what is known: one for each time that it was made or removed.
const AHEAD_MAX: u64 = 1 << 32;
/// A network's subnets.
const SUBNETS_MAX: usize = 4;
/// Of a network's options and labels together: number, and bytes.
const TEXTS_MAX: usize = 128;
const TEXT_BYTES_MAX: usize = 4096;
/// Containers of a node in one network: as many as the data plane has ports.
const CONTAINERS_MAX: usize = 4095;
/// Of a container in a network.
const NAMES_MAX: usize = 64;
const ADDRESSES_MAX: usize = 16;
/// Networks in which a node has containers.
const VIEWS_MAX: usize = 4096;

/// The rules of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// As the config file has it.
    cluster: Cluster,
}

/// What was taken out of a message.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// The first reason, and how many there are.
    pub records: Option<(String, usize)>,
    pub names: Option<(String, usize)>,
    /// Containers of a network that is not known, or not known as the sender knows it.
    pub is_partial: bool,
}

fn count(refused: &mut Option<(String, usize)>, why: impl FnOnce() -> String) {
    match refused {
        Some((_, n)) => *n += 1,
        None => *refused = Some((why(), 1)),
    }
}

impl Rules {
    /// `cluster`: without the networks that were made while it runs.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Leaves in records what may be taken of them.
    pub fn admit(&self, records: Vec<NetworkRecord>) -> (Vec<NetworkRecord>, Option<String>) {
        let mut refused = None;
        let records =
            self.sift_records(&Directory::new(String::new(), 0, vec![]), records, &mut refused);
        (records, refused.map(|(why, n)| text(&why, n)))
    }

    /// Why a network may not be made, besides those that are.
    pub(super) fn fault(
        &self,
        directory: &Directory,
        name: &str,
        spec: &NetworkSpec,
    ) -> Option<String> {
        Living::of(directory, &self.cluster).fault(self, directory.me(), name, spec)
    }

    /// Leaves in a message what may be taken of it.
    pub(super) fn sift(
        &self,
        directory: &Directory,
        peer: &str,
        mut news: News,
    ) -> (News, Refused) {
        let mut refused = Refused::default();
        let records = std::mem::take(&mut news.networks);
        news.networks = self.sift_records(directory, records, &mut refused.records);
        if let Some(view) = news.view.take() {
            let told = news.networks.iter().map(|r| (r.name.as_str(), r.spec.as_ref()));
            let told: HashMap<&str, Option<&NetworkSpec>> = told.collect();
            let spec = |name: &str| match told.get(name) {
                Some(spec) => *spec,
                None => directory.network(name),
            };
            news.view = Some(self.sift_view(peer, view, spec, &mut refused));
        }
        (news, refused)
    }

    fn sift_records(
        &self,
        directory: &Directory,
        mut records: Vec<NetworkRecord>,
        refused: &mut Option<(String, usize)>,
    ) -> Vec<NetworkRecord> {
        let all = records.len();
        records.truncate(RECORDS_MAX);
        records.retain(|record| directory.is_news(record));
        if all > RECORDS_MAX {
            count(refused, || {
                format!("{all} networks at once: at most {RECORDS_MAX} are looked at")
            });
        }
        if records.is_empty() {
            return records;
        }
        let mut living = Living::of(directory, &self.cluster);
        records.retain(|record| {
            let known = directory.version_of(&record.name);
            let fault = self
                .record_fault(record, known)
                .or_else(|| living.fault(self, &record.node, &record.name, record.spec.as_ref()?));
            match fault {
                Some(fault) => count(refused, || format!("network {}: {fault}", record.name)),
                None => {
                    living.put(&record.name, &record.node, record.spec.as_ref());
                    return true;
                }
            }
            false
        });
        records
    }

    /// Of a record as such. A network outlives the node that made it, which the file need not name.
    fn record_fault(&self, record: &NetworkRecord, known: u64) -> Option<String> {
        let NetworkRecord { name, version, node, spec } = record;
        if let Some(fault) = node_name_fault(name).or_else(|| node_name_fault(node)) {
            return Some(fault);
        }
        if version.saturating_sub(known) > AHEAD_MAX {
            return Some(format!("its version {version} is too far ahead of {known}"));
        }
        let spec = spec.as_ref()?;
        let texts = || [&spec.options, &spec.labels].into_iter().flatten();
        let bytes: usize = texts().map(|(key, value)| key.len() + value.len()).sum();
        if texts().count() > TEXTS_MAX || bytes > TEXT_BYTES_MAX {
            return Some(format!(
                "its options and labels have {bytes} bytes together: give it fewer labels, at most \
                 {TEXTS_MAX} of {TEXT_BYTES_MAX} bytes are taken"
            ));
        }
        if !(1..=SUBNETS_MAX).contains(&spec.subnets.len()) {
            return Some(format!(
                "it has {} subnets: give it 1 to {SUBNETS_MAX}",
                spec.subnets.len()
            ));
        }
        let odd = spec.subnets.iter().find(|s| s.gateway.is_some_and(|ip| !s.net.contains(&ip)));
        odd.map(|s| format!("the gateway of {} is outside it", s.net))
            .or_else(|| node_name_fault(&spec.first))
    }

    fn sift_view<'d>(
        &self,
        peer: &str,
        view: View,
        spec: impl Fn(&str) -> Option<&'d NetworkSpec>,
        refused: &mut Refused,
    ) -> View {
        let mut networks = BTreeMap::new();
        for (network, mut containers) in view.networks.into_iter().take(VIEWS_MAX) {
            let Some(parts) = self.parts(peer, &network, spec(&network)) else {
                refused.is_partial = true;
                continue;
            };
            if containers.len() > CONTAINERS_MAX {
                let n = containers.len();
                count(&mut refused.names, || format!("{n} containers in network {network}"));
                containers.truncate(CONTAINERS_MAX);
            }
            containers.retain_mut(|named| sift_named(named, &parts, refused));
            networks.insert(network, containers);
        }
        View { networks }
    }

    /// A node's parts of a network; `None` if there is no such network.
    fn parts(&self, node: &str, network: &str, spec: Option<&NetworkSpec>) -> Option<Vec<IpNet>> {
        if let Some(network) = self.cluster.network(network) {
            let node = self.cluster.node(node)?;
            return Some(node.subnets_of(network.vni).collect());
        }
        Some(added(network, spec?).ok()?.blocks(&self.cluster, node))
    }
}

/// Leaves of a container what it may be called, and the addresses that its node has. Whether that is
/// anything.
fn sift_named(named: &mut Named, parts: &[IpNet], refused: &mut Refused) -> bool {
    if named.names.len() > NAMES_MAX || named.addresses.len() > ADDRESSES_MAX {
        let (names, addresses) = (named.names.len(), named.addresses.len());
        count(&mut refused.names, || {
            format!("a container has {names} names, {addresses} addresses")
        });
    }
    named.names.truncate(NAMES_MAX);
    named.addresses.truncate(ADDRESSES_MAX);
    named.names.retain(|name| {
        let fault = host_name_fault(name);
        let is_sound = fault.is_none();
        if let Some(fault) = fault {
            count(&mut refused.names, || format!("a container's name: {fault}"));
        }
        is_sound
    });
    let is_own = |ip: &IpAddr| parts.iter().any(|part| part.contains(ip));
    named.addresses.retain(|ip| {
        if !is_own(ip) {
            // Its config file may be another than ours for a moment.
            refused.is_partial = true;
            let name = named.names.first();
            count(&mut refused.names, || {
                let name = name.map_or("a container", String::as_str);
                format!("{name} has {ip}, which is not of that node's part of its network")
            });
        }
        is_own(ip)
    });
    !named.names.is_empty() && !named.addresses.is_empty()
}

/// The networks that are, besides the file's.
struct Living<'d> {
    cluster: &'d Cluster,
    networks: BTreeMap<String, Lives>,
}

struct Lives {
    vni: u32,
    nets: Vec<IpNet>,
    /// `None`: one that the file does not name.
    node: Option<String>,
}

impl<'d> Living<'d> {
    fn of(directory: &Directory, cluster: &'d Cluster) -> Self {
        let mut living = Self { cluster, networks: BTreeMap::new() };
        for (name, node, spec) in directory.living() {
            living.put(name, node, Some(spec));
        }
        living
    }

    fn node(&self, name: &str) -> Option<String> {
        self.cluster.node(name).map(|node| node.name.clone())
    }

    fn put(&mut self, name: &str, node: &str, spec: Option<&NetworkSpec>) {
        let Some(spec) = spec else {
            self.networks.remove(name);
            return;
        };
        let nets = spec.subnets.iter().map(|s| s.net).collect();
        let lives = Lives { vni: spec.vni, nets, node: self.node(node) };
        self.networks.insert(name.to_owned(), lives);
    }

    /// Why this can not be a network besides the others.
    fn fault(&self, rules: &Rules, node: &str, name: &str, spec: &NetworkSpec) -> Option<String> {
        let network: AddedNetwork = match added(name, spec) {
            Ok(network) => network,
            Err(fault) => return Some(fault),
        };
        let others = || self.networks.iter().filter(|(other, _)| *other != name);
        let all = others().count();
        if all >= ADDED_MAX {
            return Some(format!(
                "the mesh has {all} networks, as many as it may have: remove some"
            ));
        }
        let node = self.node(node);
        if others().filter(|(_, lives)| lives.node == node).count() >= OF_NODE_MAX {
            return Some(format!(
                "one node made {OF_NODE_MAX} networks, as many as it may: remove some"
            ));
        }
        network.fault(&rules.cluster).or_else(|| {
            others().find_map(|(other, lives)| {
                if lives.vni == network.vni {
                    return Some(format!("network {other} has VNI {}", network.vni));
                }
                let overlap =
                    |net: &&IpNet| lives.nets.iter().any(|o| o.contains(*net) || net.contains(o));
                let net = network.cidrs.iter().find(overlap)?;
                Some(format!("{net} overlaps network {other}: choose another subnet"))
            })
        })
    }
}

/// A reason and the number of such, for people.
pub(super) fn text(why: &str, n: usize) -> String {
    if n > 1 { format!("{why} (and {} more)", n - 1) } else { why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        peers::{Subnet, Version},
    };

    fn rules() -> Rules {
        let node = |n| format!("[[node]]\nname='h{n}'\nunderlay='192.0.2.{n}'\n");
        let nodes: String = (1..=2).map(node).collect();
        let file = format!("[cluster]\nname='c'\ncidr='10.42.0.0/16'\n{nodes}");
        Rules::new(config::parse(file.as_bytes()).unwrap())
    }

    fn record(name: &str, vni: u32, net: &str) -> NetworkRecord {
        let spec = NetworkSpec {
            vni,
            subnets: vec![Subnet { net: net.parse().unwrap(), gateway: None }],
            first: "h2".into(),
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        NetworkRecord { name: name.into(), version: 1, node: "h2".into(), spec: Some(spec) }
    }

    fn many(n: u32) -> Vec<NetworkRecord> {
        let net = |n: u32| format!("10.{}.{}.0/24", 100 + n / 256 % 100, n % 256);
        (0..n).map(|n| record(&format!("n{n}"), 1000 + n, &net(n))).collect()
    }

    fn empty() -> Directory {
        Directory::new("h1".into(), 1, vec![])
    }

    fn fault(record: NetworkRecord) -> Option<String> {
        rules().admit(vec![record]).1
    }

    #[test]
    fn a_record_is_bounded_in_each_of_its_parts() {
        let sound = || record("net", 501, "10.50.0.0/24");
        assert_eq!(fault(sound()), None);
        let with = |change: &dyn Fn(&mut NetworkSpec)| {
            let mut record = sound();
            record.spec.iter_mut().for_each(change);
            fault(record)
        };
        let of = |key: &str, value: String| BTreeMap::from([(key.to_owned(), value)]);
        let refused = [
            with(&|spec| spec.options = of("gateway", "x".into())),
            with(&|spec| spec.options = of("no such", "x".into())),
            with(&|spec| spec.labels = of("label", "x".repeat(5000))),
            with(&|spec| spec.labels = (0..200).map(|n| (n.to_string(), String::new())).collect()),
            with(&|spec| spec.subnets.clear()),
            with(&|spec| spec.subnets = spec.subnets.repeat(5)),
            with(&|spec| spec.subnets[0].gateway = Some("10.51.0.1".parse().unwrap())),
            with(&|spec| spec.first = "\x1b[31m".into()),
            fault(NetworkRecord { node: "a\nb".into(), ..sound() }),
            fault(NetworkRecord { name: "a\nb".into(), spec: None, ..sound() }),
            fault(NetworkRecord { version: u64::MAX, ..sound() }),
        ];
        assert!(refused.iter().all(Option::is_some), "{refused:?}");
    }

    #[test]
    fn a_network_is_apart_from_the_others() {
        let two = |second: NetworkRecord| {
            rules().admit(vec![record("a", 501, "10.50.0.0/24"), second]).0.len()
        };
        assert_eq!(two(record("b", 502, "10.50.1.0/24")), 2);
        assert_eq!(two(record("b", 501, "10.50.1.0/24")), 1);
        assert_eq!(two(record("b", 502, "10.50.0.128/25")), 1);
        // The same network with another subnet.
        let again = NetworkRecord { version: 2, ..record("a", 502, "10.50.0.128/25") };
        assert_eq!(two(again), 2);
    }

    #[test]
    fn there_are_no_more_networks_than_the_mesh_can_have() {
        let (kept, why) = rules().admit(many(20_000));
        assert_eq!(kept.len(), OF_NODE_MAX);
        assert!(why.is_some_and(|why| why.len() < 300));
        let mut of_all = many(1000);
        for (n, record) in of_all.iter_mut().enumerate() {
            record.node = ["h1", "h2", "gone"][n % 3].into();
        }
        assert_eq!(rules().admit(of_all).0.len(), ADDED_MAX);
    }

    #[test]
    fn the_version_of_a_record_can_still_be_passed() {
        let mut directory = empty();
        directory.set_network("net", record("net", 501, "10.50.0.0/24").spec);
        let told = |version| News {
            networks: vec![NetworkRecord { version, ..record("net", 501, "10.51.0.0/24") }],
            ..News::default()
        };
        let taken = |version| rules().sift(&directory, "h2", told(version)).0.networks.len();
        assert_eq!((taken(2), taken(u64::MAX), taken(AHEAD_MAX + 2)), (1, 0, 0));
        let poisoned = NetworkRecord { version: u64::MAX, ..record("x", 7, "10.52.0.0/24") };
        let mut directory = Directory::new("h1".into(), 1, vec![poisoned]);
        assert!(directory.set_network("x", None));
    }

    #[test]
    fn a_node_names_what_is_its_own() {
        let named = |names: &[&str], addresses: &[&str]| Named {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        // Halves: 10.42.128.0/17 and, where h2 is the first, 10.50.0.0/25 are h2's.
        let own = vec![
            named(&["web", "*", "10.42.128.9", "\x1b"], &["10.42.128.9", "6.6.6.6"]),
            named(&["google"], &["127.0.0.1", "10.42.0.9"]),
            named(&["*"], &["10.42.128.10"]),
        ];
        let added = vec![named(&["db"], &["10.50.0.9", "10.50.0.200"])];
        let networks = [("default", own), ("net", added), ("other", vec![named(&["x"], &[])])];
        let networks = networks.map(|(name, all)| (name.to_owned(), all)).into();
        let news = News {
            view: Some(View { networks }),
            version: Version { epoch: 1, count: 1 },
            networks: vec![record("net", 501, "10.50.0.0/24")],
            ..News::default()
        };
        let (news, refused) = rules().sift(&empty(), "h2", news);
        let view = news.view.unwrap().networks;
        assert_eq!(view["default"], [named(&["web"], &["10.42.128.9"])]);
        assert_eq!(view["net"], [named(&["db"], &["10.50.0.9"])]);
        assert!(!view.contains_key("other") && refused.is_partial && refused.names.is_some());
    }

    #[test]
    fn names_are_bounded_in_number() {
        let ip: IpAddr = "10.42.128.9".parse().unwrap();
        let one = |n: usize| Named { names: vec![format!("n{n}")], addresses: vec![ip] };
        let mut all: Vec<Named> = (0..5000).map(one).collect();
        all[0].names = (0..1000).map(|n| n.to_string() + "x").collect();
        let view = View { networks: [("default".to_owned(), all)].into() };
        let (news, refused) =
            rules().sift(&empty(), "h2", News { view: Some(view), ..News::default() });
        let kept = &news.view.unwrap().networks["default"];
        assert_eq!((kept.len(), kept[0].names.len()), (CONTAINERS_MAX, NAMES_MAX));
        assert!(refused.names.is_some());
    }
}
