//! What single nodes and pairs of nodes have otherwise than the cluster: foreign nodes and links.

use std::collections::HashMap;

use rustc_hash::FxHashMap;
use toml::de::{DeTable, DeValue};

use super::{
    Encap, Foreign, Link,
    fields::{Fields, Reader, Value},
    spec::{NodeSpec, Spec},
    syntax::join,
    text::{At, Findings, Place},
    wire,
};
use crate::near;

pub(super) const LINK_KEYS: [&str; 3] = ["nodes", "encap", "port"];
/// Those of a node that only a foreign one may have.
pub(super) const FOREIGN_KEYS: [&str; 5] = ["encap", "vni", "port", "mac", "clamp_mss"];

#[derive(Debug)]
pub(super) struct LinkSpec {
    pub place: Place,
    pub nodes: Option<[At<String>; 2]>,
    pub encap: Option<At<Encap>>,
    pub port: Option<At<u16>>,
}

/// Of a node with `managed = false`.
#[derive(Debug, Default)]
pub(super) struct ForeignSpec {
    pub encap: Option<At<Encap>>,
    pub vni: Option<At<u32>>,
    pub port: Option<At<u16>>,
    pub mac: Option<At<[u8; 6]>>,
    pub clamp_mss: Option<At<bool>>,
}

impl LinkSpec {
    pub fn read(table: &DeTable<'_>, place: Place, reader: &mut Reader<'_, '_>) -> Self {
        let [nodes, encap, port] = reader.fields(table, &place, LINK_KEYS, 2);
        let path = &place.key;
        if encap.is_none() && port.is_none() && reader.is_whole {
            reader.findings.add(&place, NOTHING_OVERRIDDEN);
        }
        Self {
            nodes: nodes.and_then(|v| read_pair(v, format!("{path}.nodes"), reader)),
            encap: encap.and_then(|v| reader.string(v, format!("{path}.encap"), wire::parse_encap)),
            port: port.and_then(|v| reader.integer(v, format!("{path}.port"), wire::parse_port)),
            place,
        }
    }
}

const NOTHING_OVERRIDDEN: &str = "it changes nothing: give the link an encap, a port or both";

fn read_pair(
    value: &Value<'_>,
    key: String,
    reader: &mut Reader<'_, '_>,
) -> Option<[At<String>; 2]> {
    let place = reader.place(value, key);
    let DeValue::Array(list) = value.get_ref() else {
        reader.wrong_type(value, &place, "a list of two node names");
        return None;
    };
    if list.len() != 2 {
        let message = format!("it names {} nodes: a link is between two", list.len());
        reader.findings.add(&place, message);
        return None;
    }
    let mut name = |i: usize| {
        let key = format!("{}[{i}]", place.key);
        reader.string(&list[i], key, |text| Ok(text.to_owned()))
    };
    let (first, second) = (name(0), name(1));
    Some([first?, second?])
}

impl ForeignSpec {
    /// `None` if the node is managed. `fields`: in the order of [`FOREIGN_KEYS`].
    pub fn read(
        managed: Option<&Value<'_>>,
        fields: Fields<'_, '_, 5>,
        path: &str,
        reader: &mut Reader<'_, '_>,
    ) -> Option<Box<Self>> {
        let is_given = managed.is_some();
        let managed = managed.and_then(|v| reader.boolean(v, format!("{path}.managed")));
        // One that can not be read may be either.
        if managed.as_ref().map_or(!is_given && reader.is_whole, |at| at.value) {
            for (key, value) in FOREIGN_KEYS.iter().zip(fields) {
                if let Some(value) = value {
                    let place = reader.place(value, join(path, key));
                    reader.findings.add(&place, only_foreign(key));
                }
            }
        }
        if managed.is_none_or(|at| at.value) {
            return None;
        }
        let [encap, vni, port, mac, clamp_mss] = fields;
        let key = |name: &str| format!("{path}.{name}");
        Some(Box::new(Self {
            encap: encap.and_then(|v| reader.string(v, key("encap"), wire::parse_encap)),
            vni: vni.and_then(|v| reader.integer(v, key("vni"), wire::parse_wire_vni)),
            port: port.and_then(|v| reader.integer(v, key("port"), wire::parse_port)),
            mac: mac.and_then(|v| reader.string(v, key("mac"), wire::parse_mac)),
            clamp_mss: clamp_mss.and_then(|v| reader.boolean(v, key("clamp_mss"))),
        }))
    }

    pub fn foreign(&self) -> Foreign {
        Foreign {
            encap: self.encap.as_ref().map(|at| at.value),
            vni: self.vni.as_ref().map(|at| at.value),
            port: self.port.as_ref().map(|at| at.value),
            mac: self.mac.as_ref().map(|at| at.value),
            clamp_mss: self.clamp_mss.as_ref().is_some_and(|at| at.value),
        }
    }
}

fn only_foreign(key: &str) -> String {
    format!(
        "only a node that does not run mesh has its own `{key}`: write `managed = false` too, or \
         take it away{}",
        match key {
            "encap" | "port" => " and write a [[link]] for a pair of nodes",
            _ => "",
        }
    )
}

/// Of a sound file: each pair in the order of the names, as the nodes have them.
pub(super) fn links(spec: &Spec) -> Option<Vec<Link>> {
    let nodes = by_name(spec);
    let name = |at: &At<String>| {
        let node = &spec.nodes[*nodes.get(&*at.value.to_ascii_lowercase())?];
        Some(node.name.as_ref()?.value.clone())
    };
    let link = |link: &LinkSpec| {
        let [a, b] = link.nodes.as_ref()?;
        let mut nodes = [name(a)?, name(b)?];
        nodes.sort();
        let (encap, port) = (link.encap.as_ref(), link.port.as_ref());
        Some(Link { nodes, encap: encap.map(|at| at.value), port: port.map(|at| at.value) })
    };
    let mut links = spec.links.iter().map(link).collect::<Option<Vec<_>>>()?;
    links.sort_by(|a, b| a.nodes.cmp(&b.nodes));
    Some(links)
}

/// As [`super::Cluster::encaps`].
pub(super) fn encaps(spec: &Spec) -> impl Iterator<Item = Encap> {
    let links = spec.links.iter().filter_map(|link| link.encap.as_ref());
    let foreign = spec.nodes.iter().filter_map(|node| node.foreign.as_ref()?.encap.as_ref());
    let own = std::iter::once(Own::of_cluster(spec).encap);
    own.chain(links.chain(foreign).map(|at| at.value))
}

/// Places of the nodes in the file, by their names in small letters. Empty if there is no link.
fn by_name(spec: &Spec) -> HashMap<String, usize> {
    let named =
        |(i, node): (usize, &NodeSpec)| Some((node.name.as_ref()?.value.to_ascii_lowercase(), i));
    let all = spec.nodes.iter().enumerate().filter(|_| !spec.links.is_empty());
    // Of two of the same name, which is a fault, the first counts.
    all.rev().filter_map(named).collect()
}

pub(super) fn check(spec: &Spec, findings: &mut Findings<'_>) {
    let mut ports = Ports { seen: FxHashMap::default(), is_port_used: false };
    let cluster = Own::of_cluster(spec);
    ports.add(&cluster, findings);
    check_links(spec, &cluster, &mut ports, findings);
    for node in &spec.nodes {
        if let Some(foreign) = &node.foreign {
            check_foreign(spec, foreign, &cluster, &mut ports, findings);
        }
    }
    if let Some(at) = cluster.port.filter(|_| !ports.is_port_used) {
        findings.add(&at.place, no_ports(cluster.encap, "the cluster"));
    }
    let is_foreign = |node: &NodeSpec| node.foreign.is_some();
    if let Some(node) = spec.nodes.first().filter(|_| spec.nodes.iter().all(is_foreign)) {
        let message = "no node is managed: there must be one that runs mesh";
        findings.add(&Place::new(node.place.offset, &*node.place.key), message);
    }
}

/// The encapsulation and port of the cluster, a link or a foreign node.
struct Own<'s> {
    encap: Encap,
    /// The nearest that is given.
    port: Option<&'s At<u16>>,
}

impl<'s> Own<'s> {
    fn of_cluster(spec: &'s Spec) -> Self {
        let cluster = spec.cluster.as_ref();
        let encap = cluster.and_then(|c| c.encap.as_ref());
        Self {
            encap: encap.map_or_else(Encap::default, |at| at.value),
            port: cluster.and_then(|c| c.port.as_ref()),
        }
    }

    /// With what is given nearer.
    fn with(&self, encap: Option<&At<Encap>>, port: Option<&'s At<u16>>) -> Self {
        Self { encap: encap.map_or(self.encap, |at| at.value), port: port.or(self.port) }
    }
}

fn no_ports(encap: Encap, whose: &str) -> String {
    format!(
        "{encap}, the encapsulation of {whose}, has no ports: leave it out, or write \"vxlan\" \
             or \"geneve\""
    )
}

/// A receiver tells VXLAN from Geneve by the port alone.
struct Ports<'s> {
    /// What each carries, and where it is given unless it is the default.
    seen: FxHashMap<u16, (Encap, Option<&'s At<u16>>)>,
    is_port_used: bool,
}

impl<'s> Ports<'s> {
    fn add(&mut self, own: &Own<'s>, findings: &mut Findings<'_>) {
        let Some(default) = own.encap.default_port() else { return };
        self.is_port_used = true;
        let port = own.port.map_or(default, |at| at.value);
        let (encap, at) = *self.seen.entry(port).or_insert((own.encap, own.port));
        if encap == own.encap {
            return;
        }
        // One of the two is given, since the defaults differ.
        if let Some(place) = own.port.or(at).map(|at| &at.place) {
            let message = format!(
                "port {port} would carry both {encap} and {}: give one of them another port",
                own.encap
            );
            findings.add(place, message);
        }
    }
}

fn check_links<'s>(
    spec: &'s Spec,
    cluster: &Own<'s>,
    ports: &mut Ports<'s>,
    findings: &mut Findings<'_>,
) {
    let nodes = by_name(spec);
    let mut seen = HashMap::<[usize; 2], &Place>::new();
    for link in &spec.links {
        let mut ends = [None, None];
        for (end, at) in ends.iter_mut().zip(link.nodes.iter().flatten()) {
            *end = nodes.get(&*at.value.to_ascii_lowercase()).copied();
            // It may be the one whose name can not be read.
            if end.is_none() && spec.nodes.iter().all(|n| n.name.is_some()) {
                findings.add(&at.place, unknown_node(&at.value, spec));
            }
        }
        let mut foreign = None;
        if let [Some(a), Some(b)] = ends {
            check_pair(spec, link, [a.min(b), a.max(b)], &mut seen, findings);
            foreign = spec.nodes[a].foreign.as_ref().or(spec.nodes[b].foreign.as_ref());
        }
        // As in Cluster::tunnel.
        let below = match foreign {
            Some(foreign) => cluster.with(foreign.encap.as_ref(), foreign.port.as_ref()),
            None => cluster.with(None, None),
        };
        let own = below.with(link.encap.as_ref(), link.port.as_ref());
        ports.add(&own, findings);
        if let Some(at) = link.port.as_ref().filter(|_| !own.encap.is_udp()) {
            findings.add(&at.place, no_ports(own.encap, "the link"));
        }
    }
}

fn check_pair<'s>(
    spec: &Spec,
    link: &'s LinkSpec,
    pair: [usize; 2],
    seen: &mut HashMap<[usize; 2], &'s Place>,
    findings: &mut Findings<'_>,
) {
    let Some([first, second]) = &link.nodes else { return };
    if pair[0] == pair[1] {
        let message = format!("{} is both ends: a link is between two nodes", second.value);
        findings.add(&second.place, message);
    } else if pair.iter().all(|i| spec.nodes[*i].foreign.is_some()) {
        let message = "neither of the two nodes runs mesh: what is between them is not mesh's";
        findings.add(&link.place, message);
    } else if let Some(other) = seen.insert(pair, &link.place) {
        let line = findings.line(other.offset);
        let (a, b) = (&first.value, &second.value);
        let message = format!("{a} and {b} have a link already, {} (line {line})", other.key);
        findings.add(&link.place, message);
    }
}

fn unknown_node(name: &str, spec: &Spec) -> String {
    let names = spec.nodes.iter().filter_map(|n| n.name.as_ref()).map(|n| n.value.as_str());
    match near::nearest(name, names.take(32)) {
        Some(near) => format!("there is no node {name:?}: did you mean {near:?}?"),
        None => format!("there is no node {name:?}: add a [[node]] of that name"),
    }
}

fn check_foreign<'s>(
    spec: &'s Spec,
    foreign: &'s ForeignSpec,
    cluster: &Own<'s>,
    ports: &mut Ports<'s>,
    findings: &mut Findings<'_>,
) {
    let own = cluster.with(foreign.encap.as_ref(), foreign.port.as_ref());
    ports.add(&own, findings);
    if let Some(at) = foreign.port.as_ref().filter(|_| !own.encap.is_udp()) {
        findings.add(&at.place, no_ports(own.encap, "the node"));
    }
    if let Some(at) = foreign.mac.as_ref().filter(|_| !own.encap.has_ethernet()) {
        let message = format!(
            "{} carries no Ethernet header that a MAC could stand in: leave it out, or give the \
             node another encap",
            own.encap
        );
        findings.add(&at.place, message);
    }
    let vnis = spec.networks.iter().filter_map(|network| network.vni.as_ref());
    if let Some(at) = &foreign.vni
        && let Some(taken) = vnis.clone().find(|vni| vni.value.get() == at.value)
    {
        let line = findings.line(taken.place.offset);
        let message = format!(
            "{} is also {} (line {line}): packets of the two networks could not be told apart",
            at.value, taken.place.key
        );
        findings.add(&at.place, message);
    }
}
