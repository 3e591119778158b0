//! What the file says, value by value, before anything is compared.

use std::{net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::{
    Dscp, Encap, Flood, Interfaces, Vni,
    fields::{Reader, Value},
    overrides::{ForeignSpec, LinkSpec},
    syntax::{Kind, Section, TABLES, join, unknown},
    text::{At, Findings, Place},
    value, wire,
};
use crate::near;

pub(super) const CLUSTER_KEYS: [&str; 8] =
    ["name", "cidr", "encap", "mtu", "port", "ttl", "dscp", "flood"];
pub(super) const ATTACH_KEYS: [&str; 2] = ["bridges", "interfaces"];
pub(super) const DOCKER_KEYS: [&str; 3] = ["plugin", "socket", "plugin_socket"];
pub(super) const NETWORK_KEYS: [&str; 4] = ["name", "vni", "cidr", "flood"];
pub(super) const NODE_KEYS: [&str; 10] = [
    "name",
    "underlay",
    "subnet",
    "subnets",
    "managed",
    "encap",
    "vni",
    "port",
    "mac",
    "clamp_mss",
];

/// The file's content. What is missing or can not be read is `None` or empty, and a fault.
#[derive(Debug, Default)]
pub(super) struct Spec {
    pub cluster: Option<ClusterSpec>,
    pub networks: Vec<NetworkSpec>,
    pub nodes: Vec<NodeSpec>,
    pub links: Vec<LinkSpec>,
    pub attach: Option<AttachSpec>,
    pub docker: Option<DockerSpec>,
    /// Given, but as something that is no table.
    unreadable: Vec<Kind>,
}

#[derive(Debug)]
pub(super) struct ClusterSpec {
    pub name: Option<At<String>>,
    pub cidr: Vec<At<IpNet>>,
    pub encap: Option<At<Encap>>,
    pub mtu: Option<At<u16>>,
    pub port: Option<At<u16>>,
    pub ttl: Option<At<u8>>,
    pub dscp: Option<At<Dscp>>,
    pub flood: Option<At<Flood>>,
}

#[derive(Debug)]
pub(super) struct AttachSpec {
    pub bridges: Vec<At<String>>,
    pub interfaces: Option<At<Interfaces>>,
}

#[derive(Debug)]
pub(super) struct DockerSpec {
    pub plugin: Option<At<bool>>,
    pub socket: Option<At<PathBuf>>,
    pub plugin_socket: Option<At<PathBuf>>,
}

#[derive(Debug)]
pub(super) struct NetworkSpec {
    pub name: Option<At<String>>,
    pub vni: Option<At<Vni>>,
    pub cidr: Vec<At<IpNet>>,
    pub flood: Option<At<Flood>>,
}

#[derive(Debug)]
pub(super) struct NodeSpec {
    pub place: Place,
    pub name: Option<At<String>>,
    pub underlay: Option<At<IpAddr>>,
    /// Its part of the cluster's own network; `None` if the file does not give one.
    pub subnet: Option<Vec<At<IpNet>>>,
    /// Its parts of further networks, by their names.
    pub subnets: Vec<(At<String>, Vec<At<IpNet>>)>,
    /// `None` if it is managed. Few are not, and the others shall be small.
    pub foreign: Option<Box<ForeignSpec>>,
    /// As in [`Section`].
    pub is_whole: bool,
}

impl Spec {
    pub fn read(sections: &[Section<'_>], findings: &mut Findings<'_>) -> Self {
        let mut spec = Self::default();
        for section in sections {
            let mut reader = Reader { findings, base: section.base, is_whole: section.is_whole };
            spec.read_section(section, &mut reader);
        }
        let is_missing = |kind| {
            sections.iter().all(|s| s.kind != Kind::Root || s.is_whole)
                && !spec.unreadable.contains(&kind)
        };
        if spec.cluster.is_none() && is_missing(Kind::Cluster) {
            findings.add(&Place::new(0, "cluster"), "missing table [cluster]");
        }
        if spec.nodes.is_empty() && is_missing(Kind::Node) {
            findings.add(&Place::new(0, "node"), "no node: write a [[node]] for each host");
        }
        spec
    }

    fn read_section(&mut self, section: &Section<'_>, reader: &mut Reader<'_, '_>) {
        let (place, body) = (&section.place, &section.body);
        match section.kind {
            Kind::Root => self.read_root(body, reader),
            Kind::Cluster => self.set_cluster(body, place, section.is_list, reader),
            Kind::Attach => self.set_attach(body, place, section.is_list, reader),
            Kind::Docker => self.set_docker(body, place, section.is_list, reader),
            Kind::Link | Kind::Network | Kind::Node => {
                if !section.is_list {
                    reader.findings.add(place, brackets(&place.key));
                }
                self.push(section.kind, body, place.clone(), reader);
            }
            Kind::Subnets => match self.nodes.last_mut() {
                Some(node) => {
                    if section.is_list || !node.subnets.is_empty() {
                        let message =
                            "a node has one: write [node.subnets] once, in single brackets";
                        reader.findings.add(place, message);
                    }
                    node.subnets.extend(read_subnets(body, &place.key, reader));
                    node.is_whole &= section.is_whole;
                }
                None => reader.findings.add(place, "it belongs below the [[node]] that it is of"),
            },
            // Told when the file was cut.
            Kind::Unknown => {}
        }
    }

    fn read_root(&mut self, root: &DeTable<'_>, reader: &mut Reader<'_, '_>) {
        for (key, value) in root {
            let name: &str = key.get_ref();
            let kind = match near::nearest(name, TABLES) {
                Some("cluster") => Kind::Cluster,
                Some("attach") => Kind::Attach,
                Some("docker") => Kind::Docker,
                Some("link") => Kind::Link,
                Some("network") => Kind::Network,
                Some("node") => Kind::Node,
                _ => Kind::Unknown,
            };
            if !TABLES.contains(&name) {
                let at = Place::new(reader.base + key.span().start, join("", name));
                reader.findings.add(&at, unknown(name, TABLES));
            }
            match kind {
                Kind::Cluster => self.read_cluster(value, reader),
                Kind::Attach | Kind::Docker => self.read_single(kind, value, reader),
                Kind::Link | Kind::Network | Kind::Node => self.read_list(kind, value, reader),
                _ => {}
            }
        }
    }

    fn read_single(&mut self, kind: Kind, value: &Value<'_>, reader: &mut Reader<'_, '_>) {
        let name = if kind == Kind::Attach { "attach" } else { "docker" };
        let place = reader.place(value, name.into());
        match value.get_ref() {
            DeValue::Table(table) if kind == Kind::Attach => {
                self.set_attach(table, &place, false, reader);
            }
            DeValue::Table(table) => self.set_docker(table, &place, false, reader),
            _ => reader.wrong_type(value, &place, &format!("a table: [{name}]")),
        }
    }

    fn read_cluster(&mut self, value: &Value<'_>, reader: &mut Reader<'_, '_>) {
        let place = reader.place(value, "cluster".into());
        match value.get_ref() {
            DeValue::Table(table) => self.set_cluster(table, &place, false, reader),
            DeValue::Array(list) if list.iter().all(|v| v.get_ref().is_table()) => {
                for item in list.iter() {
                    let place = reader.place(item, "cluster".into());
                    if let DeValue::Table(table) = item.get_ref() {
                        self.set_cluster(table, &place, true, reader);
                    }
                }
            }
            _ => {
                self.unreadable.push(Kind::Cluster);
                reader.wrong_type(value, &place, "a table: [cluster]");
            }
        }
    }

    fn set_cluster(
        &mut self,
        table: &DeTable<'_>,
        place: &Place,
        is_list: bool,
        reader: &mut Reader<'_, '_>,
    ) {
        if self.cluster.is_some() {
            reader.findings.add(place, "[cluster] is given twice: keep one");
        } else if is_list {
            reader.findings.add(place, "there is one cluster: write [cluster], in single brackets");
        }
        let [name, cidr, encap, mtu, port, ttl, dscp, flood] =
            reader.fields(table, place, CLUSTER_KEYS, 6);
        let key = |name: &str| format!("cluster.{name}");
        let spec = ClusterSpec {
            name: name.and_then(|v| read_name(v, key("name"), value::name_fault, reader)),
            cidr: cidr.map_or_else(Vec::new, |v| reader.prefixes(v, "cluster.cidr")),
            encap: encap.and_then(|v| reader.string(v, key("encap"), wire::parse_encap)),
            mtu: mtu.and_then(|v| reader.integer(v, key("mtu"), value::parse_mtu)),
            port: port.and_then(|v| reader.integer(v, key("port"), wire::parse_port)),
            ttl: ttl.and_then(|v| reader.integer(v, key("ttl"), wire::parse_ttl)),
            dscp: dscp.and_then(|v| read_dscp(v, key("dscp"), reader)),
            flood: flood.and_then(|v| reader.string(v, key("flood"), wire::parse_flood)),
        };
        self.cluster.get_or_insert(spec);
    }

    fn set_attach(
        &mut self,
        table: &DeTable<'_>,
        place: &Place,
        is_list: bool,
        reader: &mut Reader<'_, '_>,
    ) {
        if self.attach.is_some() || is_list {
            reader.findings.add(place, "there is one: write [attach] once, in single brackets");
        }
        let [bridges, interfaces] = reader.fields(table, place, ATTACH_KEYS, 2);
        let bridges = bridges
            .map_or_else(Vec::new, |v| reader.strings(v, "attach.bridges", value::parse_ifname));
        let interfaces = interfaces
            .and_then(|v| reader.string(v, "attach.interfaces".into(), value::parse_interfaces));
        self.attach.get_or_insert(AttachSpec { bridges, interfaces });
    }

    fn set_docker(
        &mut self,
        table: &DeTable<'_>,
        place: &Place,
        is_list: bool,
        reader: &mut Reader<'_, '_>,
    ) {
        if self.docker.is_some() || is_list {
            reader.findings.add(place, "there is one: write [docker] once, in single brackets");
        }
        let [plugin, socket, plugin_socket] = reader.fields(table, place, DOCKER_KEYS, 3);
        let mut path = |v, key: &str| reader.string(v, format!("docker.{key}"), value::parse_path);
        let spec = DockerSpec {
            socket: socket.and_then(|v| path(v, "socket")),
            plugin_socket: plugin_socket.and_then(|v| path(v, "plugin_socket")),
            plugin: plugin.and_then(|v| reader.boolean(v, "docker.plugin".into())),
        };
        self.docker.get_or_insert(spec);
    }

    fn read_list(&mut self, kind: Kind, value: &Value<'_>, reader: &mut Reader<'_, '_>) {
        let name = match kind {
            Kind::Link => "link",
            Kind::Node => "node",
            _ => "network",
        };
        match value.get_ref() {
            DeValue::Array(list) => {
                for (i, item) in list.iter().enumerate() {
                    let place = reader.place(item, format!("{name}[{i}]"));
                    match item.get_ref() {
                        DeValue::Table(table) => self.push(kind, table, place, reader),
                        _ => {
                            self.unreadable.push(kind);
                            reader.wrong_type(item, &place, "a table");
                        }
                    }
                }
            }
            DeValue::Table(table) => {
                let place = reader.place(value, format!("{name}[0]"));
                reader.findings.add(&place, brackets(name));
                self.push(kind, table, place, reader);
            }
            _ => {
                self.unreadable.push(kind);
                let place = reader.place(value, name.to_owned());
                reader.wrong_type(value, &place, &format!("a list of tables: [[{name}]]"));
            }
        }
    }

    fn push(&mut self, kind: Kind, table: &DeTable<'_>, place: Place, reader: &mut Reader<'_, '_>) {
        match kind {
            Kind::Link => self.links.push(LinkSpec::read(table, place, reader)),
            Kind::Node => self.nodes.push(NodeSpec::read(table, place, reader)),
            _ => self.networks.push(NetworkSpec::read(table, &place, reader)),
        }
    }
}

fn brackets(key: &str) -> String {
    let name = key.split('[').next().unwrap_or(key);
    format!("there may be several: write [[{name}]], in double brackets")
}

impl NetworkSpec {
    fn read(table: &DeTable<'_>, place: &Place, reader: &mut Reader<'_, '_>) -> Self {
        let [name, vni, cidr, flood] = reader.fields(table, place, NETWORK_KEYS, 1);
        let path = &place.key;
        Self {
            name: name.and_then(|v| {
                read_name(v, format!("{path}.name"), value::network_name_fault, reader)
            }),
            vni: vni.and_then(|v| reader.integer(v, format!("{path}.vni"), value::parse_vni)),
            cidr: cidr.map_or_else(Vec::new, |v| reader.prefixes(v, &format!("{path}.cidr"))),
            flood: flood.and_then(|v| reader.string(v, format!("{path}.flood"), wire::parse_flood)),
        }
    }
}

impl NodeSpec {
    fn read(table: &DeTable<'_>, place: Place, reader: &mut Reader<'_, '_>) -> Self {
        let [name, underlay, subnet, subnets, managed, foreign @ ..] =
            reader.fields(table, &place, NODE_KEYS, 8);
        let path = &place.key;
        let name =
            name.and_then(|v| read_name(v, format!("{path}.name"), value::name_fault, reader));
        let underlay = underlay
            .and_then(|v| reader.string(v, format!("{path}.underlay"), value::parse_underlay));
        if let Some(at) = &underlay
            && let Some(message) = value::underlay_fault(at.value)
        {
            reader.findings.add(&at.place, message);
        }
        let subnet = subnet.map(|v| reader.prefixes(v, &format!("{path}.subnet")));
        let subnets = subnets.map_or_else(Vec::new, |v| {
            let key = format!("{path}.subnets");
            if let DeValue::Table(table) = v.get_ref() {
                return read_subnets(table, &key, reader);
            }
            let at = reader.place(v, key);
            let wanted = "a table of networks (the part of the cluster's own network is `subnet`)";
            reader.wrong_type(v, &at, wanted);
            Vec::new()
        });
        let foreign = ForeignSpec::read(managed, foreign, path, reader);
        Self { name, underlay, subnet, subnets, foreign, is_whole: reader.is_whole, place }
    }
}

fn read_subnets(
    table: &DeTable<'_>,
    path: &str,
    reader: &mut Reader<'_, '_>,
) -> Vec<(At<String>, Vec<At<IpNet>>)> {
    table
        .iter()
        .map(|(network, value)| {
            let key = join(path, network.get_ref());
            let place = Place::new(reader.base + network.span().start, key.clone());
            let name = At { value: network.get_ref().to_string(), place };
            (name, reader.prefixes(value, &key))
        })
        .collect()
}

/// A word or a number.
fn read_dscp(value: &Value<'_>, key: String, reader: &mut Reader<'_, '_>) -> Option<At<Dscp>> {
    match value.get_ref() {
        DeValue::String(_) => reader.string(value, key, wire::parse_dscp),
        DeValue::Integer(_) => reader.integer(value, key, wire::dscp_of),
        _ => {
            let place = reader.place(value, key);
            reader.wrong_type(value, &place, wire::DSCP_WANTED);
            None
        }
    }
}

/// A name, also one that may not be used.
fn read_name(
    value: &Value<'_>,
    key: String,
    fault: impl Fn(&str) -> Option<String>,
    reader: &mut Reader<'_, '_>,
) -> Option<At<String>> {
    let name = reader.string(value, key, |text| Ok(text.to_owned()))?;
    if let Some(message) = fault(&name.value) {
        reader.findings.add(&name.place, message);
    }
    Some(name)
}
