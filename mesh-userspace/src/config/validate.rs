//! What the values of a file must be to each other, and the [`Cluster`] that they make.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
    path::PathBuf,
};

use ipnet::IpNet;
use mesh_common::maps::FloodKey;
use rustc_hash::FxHashMap;

use super::{
    Cluster, DEFAULT_NETWORK, DEFAULT_TTL, Docker, Document, Encap, Flood, Network, Node, Vni,
    overrides,
    prefixes::{Cover, overlaps, share, share_len},
    spec::{NodeSpec, Spec},
    syntax::join,
    text::{At, Findings, Place},
    value,
};
use crate::near;

/// Subnets of all nodes in all networks: as many fit into 100 MB.
const MAX_SUBNETS: usize = 1 << 22;

/// A network with what each node gives for it.
struct Segment<'s> {
    /// `None` if it is missing or a duplicate.
    vni: Option<Vni>,
    name: &'s str,
    cidrs: &'s [At<IpNet>],
    flood: Option<&'s At<Flood>>,
    /// In the nodes' order; `None` if the node gives nothing.
    given: Vec<Option<&'s [At<IpNet>]>>,
}

impl Segment<'_> {
    /// No node says what its part is, so all get even shares.
    fn is_divided(&self) -> bool {
        self.given.iter().all(Option::is_none)
    }

    fn is_own(&self) -> bool {
        self.vni == Some(Vni::DEFAULT)
    }
}

/// `None` if there are faults, also from before.
pub(super) fn validate(spec: &Spec, findings: &mut Findings<'_>) -> Option<Document> {
    check_duplicates(spec, findings);
    let segments = segments(spec, findings);
    for segment in &segments {
        check_overlaps(segment.cidrs.iter(), findings);
        check_subnets(segment, findings);
        check_all_or_none(spec, segment, findings);
        check_shares(segment, findings);
        check_flood(segment, findings);
    }
    check_family(spec, findings);
    check_underlays(spec, &segments, findings);
    overrides::check(spec, findings);
    check_mtu(spec, findings);
    check_size(spec, findings);
    if !findings.is_empty() {
        return None;
    }
    document(spec, &segments)
}

fn check_duplicates(spec: &Spec, findings: &mut Findings<'_>) {
    let (nodes, networks) = (&spec.nodes, &spec.networks);
    check_unique(nodes.iter().filter_map(|n| n.name.as_ref()), host_name, findings);
    check_unique(nodes.iter().filter_map(|n| n.underlay.as_ref()), |at| at.value, findings);
    check_unique(networks.iter().filter_map(|n| n.name.as_ref()), host_name, findings);
    check_unique(networks.iter().filter_map(|n| n.vni.as_ref()), |at| at.value, findings);
    let bridges = spec.attach.iter().flat_map(|attach| &attach.bridges);
    check_unique(bridges, |at| &at.value, findings);
}

/// Host names are the same in capitals (RFC 4343).
fn host_name(at: &At<String>) -> Cow<'_, str> {
    match at.value.bytes().any(|b| b.is_ascii_uppercase()) {
        true => at.value.to_ascii_lowercase().into(),
        false => Cow::Borrowed(&at.value),
    }
}

fn check_unique<'s, T: 's + std::fmt::Display, K: Eq + Hash>(
    values: impl Iterator<Item = &'s At<T>>,
    identity: impl Fn(&'s At<T>) -> K,
    findings: &mut Findings<'_>,
) {
    let mut seen = FxHashMap::<K, &At<T>>::default();
    seen.reserve(values.size_hint().1.unwrap_or_default());
    for at in values {
        match seen.entry(identity(at)) {
            Entry::Vacant(free) => {
                free.insert(at);
            }
            Entry::Occupied(taken) => {
                let first = &taken.get().place;
                let line = findings.line(first.offset);
                findings
                    .add(&at.place, format!("{} is also {} (line {line})", at.value, first.key));
            }
        }
    }
}

/// The cluster's own network, then the others in file order.
fn segments<'s>(spec: &'s Spec, findings: &mut Findings<'_>) -> Vec<Segment<'s>> {
    let own = Segment {
        vni: Some(Vni::DEFAULT),
        name: DEFAULT_NETWORK,
        cidrs: spec.cluster.as_ref().map_or(&[], |c| &c.cidr),
        flood: spec.cluster.as_ref().and_then(|c| c.flood.as_ref()),
        given: spec.nodes.iter().map(|n| n.subnet.as_deref().or(unread(n))).collect(),
    };
    let mut segments = vec![own];
    let mut by_name = HashMap::new();
    for network in &spec.networks {
        let name = network.name.as_ref().map_or("", |name| &name.value);
        by_name.entry(name).or_insert(segments.len());
        let vni = network.vni.as_ref().map(|vni| vni.value);
        let given = spec.nodes.iter().map(unread).collect();
        let flood = network.flood.as_ref();
        segments.push(Segment { vni, name, cidrs: &network.cidr, flood, given });
    }
    for (i, node) in spec.nodes.iter().enumerate() {
        for (name, subnets) in &node.subnets {
            match by_name.get(name.value.as_str()) {
                Some(network) => segments[*network].given[i] = Some(subnets),
                // It may be the one whose name can not be read.
                None if by_name.contains_key("") => {}
                None => findings.add(&name.place, unknown_network(&name.value, spec)),
            }
        }
    }
    segments
}

/// What a node gives may stand where the file can not be read.
fn unread(node: &NodeSpec) -> Option<&[At<IpNet>]> {
    (!node.is_whole).then_some(&[])
}

fn unknown_network(name: &str, spec: &Spec) -> String {
    if name == DEFAULT_NETWORK {
        return "the part of the cluster's own network is the node's `subnet`".into();
    }
    let names = spec.networks.iter().filter_map(|n| n.name.as_ref()).map(|n| n.value.as_str());
    match near::nearest(name, names.take(32)) {
        Some(near) => format!("there is no network {name:?}: did you mean {near:?}?"),
        None => format!("there is no network {name:?}: add a [[network]] of that name"),
    }
}

fn check_overlaps<'s>(nets: impl Iterator<Item = &'s At<IpNet>>, findings: &mut Findings<'_>) {
    let mut nets: Vec<_> = nets.collect();
    nets.sort_by_key(|at| at.place.offset);
    let plain: Vec<_> = nets.iter().map(|at| at.value).collect();
    for (first, second) in overlaps(&plain) {
        let (first, second) = (nets[first], nets[second]);
        let line = findings.line(first.place.offset);
        let message = format!(
            "{} overlaps {}, which is {} (line {line})",
            second.value, first.value, first.place.key
        );
        findings.add(&second.place, message);
    }
}

fn check_subnets(segment: &Segment<'_>, findings: &mut Findings<'_>) {
    let subnets = || segment.given.iter().flatten().copied().flatten();
    check_overlaps(subnets(), findings);
    let cover = Cover::new(segment.cidrs.iter().map(|at| (at.value, ())));
    if cover.is_empty() {
        return;
    }
    for at in subnets().filter(|at| cover.holder(at.value).is_none()) {
        let cidrs: Vec<_> = segment.cidrs.iter().take(4).map(|c| c.value.to_string()).collect();
        let of = if segment.is_own() {
            "the cluster's cidr".to_owned()
        } else {
            format!("the cidr of network {:?}", segment.name)
        };
        findings.add(&at.place, format!("{} is outside {of}, {}", at.value, cidrs.join(", ")));
    }
}

/// Either each node says what its part of a network is, or none.
fn check_all_or_none(spec: &Spec, segment: &Segment<'_>, findings: &mut Findings<'_>) {
    let gives = |(node, given): &(&NodeSpec, &Option<&[At<IpNet>]>)| {
        given.is_some_and(|given| node.is_whole || !given.is_empty())
    };
    let Some((giver, _)) = spec.nodes.iter().zip(&segment.given).find(gives) else { return };
    let line = findings.line(giver.place.offset);
    let (key, what) = if segment.is_own() {
        ("subnet".to_owned(), "a subnet".to_owned())
    } else {
        (join("subnets", segment.name), format!("a subnet of {:?}", segment.name))
    };
    for (node, _) in spec.nodes.iter().zip(&segment.given).filter(|(_, given)| given.is_none()) {
        let message = format!(
            "missing: {} (line {line}) has {what}, so each node needs one; without any, the cidr \
             is divided evenly",
            giver.place.key
        );
        findings.add(&Place::new(node.place.offset, format!("{}.{key}", node.place.key)), message);
    }
}

fn check_shares(segment: &Segment<'_>, findings: &mut Findings<'_>) {
    let nodes = segment.given.len();
    if !segment.is_divided() || segment.name.is_empty() {
        return;
    }
    for at in segment.cidrs.iter().filter(|at| share_len(at.value, nodes).is_none()) {
        let (net, longest) = (at.value, value::longest(at.value));
        if net.prefix_len() <= longest {
            let message = format!(
                "{net} is too small to be divided among {nodes} nodes: each needs at least a \
                 /{longest}; write a shorter prefix"
            );
            findings.add(&at.place, message);
        }
    }
}

/// Each packet to all becomes a copy for each node.
fn check_flood(segment: &Segment<'_>, findings: &mut Findings<'_>) {
    let most = FloodKey::NODES_MAX;
    // A node may give nothing for a network, where it has no part of it.
    let has_part = |given: &&Option<&[At<IpNet>]>| given.is_none_or(|given| !given.is_empty());
    let nodes = segment.given.iter().filter(has_part).count();
    if let Some(at) = segment.flood.filter(|at| at.value == Flood::All && nodes > most) {
        let message = format!(
            "{nodes} nodes are in this network, and broadcast goes to at most {most}: leave it out, \
             or make a smaller network for what needs it"
        );
        findings.add(&at.place, message);
    }
}

/// The agent sends from one address, and every node must reach every other.
fn check_family(spec: &Spec, findings: &mut Findings<'_>) {
    let mut underlays = spec.nodes.iter().filter_map(|n| n.underlay.as_ref());
    let Some(first) = underlays.next() else { return };
    let family = |at: &At<IpAddr>| if at.value.is_ipv4() { "IPv4" } else { "IPv6" };
    for at in underlays.filter(|at| at.value.is_ipv4() != first.value.is_ipv4()) {
        let line = findings.line(first.place.offset);
        let message = format!(
            "{} is {}, and {} (line {line}) is {}: an underlay is of one family, write addresses \
             of the same for all nodes",
            at.value,
            family(at),
            first.place.key,
            family(first),
        );
        findings.add(&at.place, message);
    }
}

fn check_underlays(spec: &Spec, segments: &[Segment<'_>], findings: &mut Findings<'_>) {
    let cidrs = segments.iter().flat_map(|s| s.cidrs.iter().map(|at| (at.value, &at.place)));
    let cover = Cover::new(cidrs);
    for at in spec.nodes.iter().filter_map(|n| n.underlay.as_ref()) {
        if let Some((net, place)) = cover.holder(IpNet::from(at.value)) {
            let line = findings.line(place.offset);
            let message = format!(
                "{} is inside the overlay, {net} of {} (line {line}): tunnel packets would go \
                 into the tunnel; the two must be apart",
                at.value, place.key
            );
            findings.add(&at.place, message);
        }
    }
}

fn check_mtu(spec: &Spec, findings: &mut Findings<'_>) {
    let Some(cluster) = &spec.cluster else { return };
    let Some(mtu) = &cluster.mtu else { return };
    let is_ipv6 = |at: &At<IpNet>| at.value.addr().is_ipv6();
    let mut cidrs = cluster.cidr.iter().chain(spec.networks.iter().flat_map(|n| &n.cidr));
    if mtu.value < value::MTU_MIN_IPV6
        && let Some(ipv6) = cidrs.find(|at| is_ipv6(at))
    {
        let message = format!(
            "{} is too small: IPv6 needs at least {}, and {} has {}",
            mtu.value,
            value::MTU_MIN_IPV6,
            ipv6.place.key,
            ipv6.value
        );
        findings.add(&mtu.place, message);
    }
    let vnis = spec.networks.iter().filter_map(|n| n.vni.as_ref()).map(|at| at.value);
    let wire = |node: &NodeSpec| Vni::new(node.foreign.as_ref()?.vni.as_ref()?.value);
    let vni = vnis.chain(spec.nodes.iter().filter_map(wire)).max().unwrap_or_default();
    let is_ipv6 = spec.nodes.iter().filter_map(|n| n.underlay.as_ref()).any(|u| u.value.is_ipv6());
    let overheads = overrides::encaps(spec).map(|encap| (encap.overhead(vni, is_ipv6), encap));
    let (overhead, encap) = overheads.max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    let most = usize::from(u16::MAX) - overhead;
    if usize::from(mtu.value) > most {
        let message = format!(
            "{} can not fit: {encap} adds {overhead} bytes, so at most {most} are left of the \
             longest IP packet",
            mtu.value
        );
        findings.add(&mtu.place, message);
    }
}

fn check_size(spec: &Spec, findings: &mut Findings<'_>) {
    let subnets = spec.nodes.len().saturating_mul(1 + spec.networks.len());
    if let Some(node) = spec.nodes.first().filter(|_| subnets > MAX_SUBNETS) {
        let message = format!(
            "{} nodes in {} networks have more than {MAX_SUBNETS} subnets: make it several clusters",
            spec.nodes.len(),
            1 + spec.networks.len()
        );
        findings.add(&Place::new(node.place.offset, "node"), message);
    }
}

/// `None` can not be: it would have been a fault.
fn document(spec: &Spec, segments: &[Segment<'_>]) -> Option<Document> {
    let cluster = spec.cluster.as_ref()?;
    let networks = segments.iter().map(|s| {
        let cidrs = s.cidrs.iter().map(|at| at.value).collect();
        let flood = s.flood.map(|at| at.value).unwrap_or_default();
        Some(Network { name: s.name.to_owned(), vni: s.vni?, cidrs, flood })
    });
    let nodes = spec.nodes.iter().enumerate().map(|(i, node)| make_node(i, node, segments));
    let divided: HashSet<Vni> =
        segments.iter().filter(|s| s.is_divided()).filter_map(|s| s.vni).collect();
    Some(Document {
        cluster: Cluster {
            name: cluster.name.as_ref()?.value.clone(),
            encap: cluster.encap.as_ref().map_or_else(Encap::default, |at| at.value),
            mtu: cluster.mtu.as_ref().map(|at| at.value),
            port: cluster.port.as_ref().map(|at| at.value),
            ttl: cluster.ttl.as_ref().map_or(DEFAULT_TTL, |at| at.value),
            dscp: cluster.dscp.as_ref().map(|at| at.value).unwrap_or_default(),
            links: overrides::links(spec)?,
            networks: networks.collect::<Option<_>>()?,
            nodes: nodes.collect::<Option<_>>()?,
            docker: docker(spec),
            bridges: bridges(spec),
            interfaces: spec
                .attach
                .as_ref()
                .and_then(|attach| attach.interfaces.as_ref())
                .map_or_else(Default::default, |at| at.value),
        },
        divided,
        mtu_at: None,
    })
}

fn bridges(spec: &Spec) -> Vec<String> {
    let bridges = spec.attach.iter().flat_map(|attach| &attach.bridges);
    bridges.map(|at| at.value.clone()).collect()
}

fn docker(spec: &Spec) -> Docker {
    let default = Docker::default();
    let Some(docker) = &spec.docker else { return default };
    let path = |given: &Option<At<PathBuf>>, default| {
        given.as_ref().map_or(default, |at| at.value.clone())
    };
    Docker {
        plugin: docker.plugin.as_ref().is_none_or(|at| at.value),
        socket: path(&docker.socket, default.socket),
        plugin_socket: path(&docker.plugin_socket, default.plugin_socket),
    }
}

fn make_node(index: usize, node: &NodeSpec, segments: &[Segment<'_>]) -> Option<Node> {
    let given =
        |segment: &Segment<'_>| segment.given[index].map_or(segment.cidrs.len(), <[_]>::len);
    let mut subnets = Vec::with_capacity(segments.iter().map(given).sum());
    for segment in segments {
        let vni = segment.vni?;
        match segment.given[index] {
            Some(given) => subnets.extend(given.iter().map(|at| (vni, at.value))),
            None => {
                for cidr in segment.cidrs {
                    subnets.push((vni, share(cidr.value, segment.given.len(), index)?));
                }
            }
        }
    }
    Some(Node {
        name: node.name.as_ref()?.value.clone(),
        underlay: node.underlay.as_ref()?.value,
        subnets,
        foreign: node.foreign.as_ref().map(|foreign| foreign.foreign()),
    })
}
