//! The plain form of a config file, read in one pass.
//!
//! The parser of all of TOML spends 25 times as long, most of it on where things stand. But nearly
//! every file, and each large one, which a program wrote, has a key to a line, strings without
//! escapes and lists on one line. What is not so, or has any fault, is left to that parser, which
//! knows what to say. Both make the same of what they take; a test holds them together.

use std::{net::IpAddr, str::Lines};

use ipnet::IpNet;

use super::{
    Dscp, Flood,
    overrides::{FOREIGN_KEYS, ForeignSpec, LINK_KEYS, LinkSpec},
    spec::{ClusterSpec, NetworkSpec, NodeSpec, Spec},
    text::{At, Place},
    value, wire,
};

/// The file's content, or `None` if it is not of the plain form.
pub(super) fn read(text: &str) -> Option<Spec> {
    // Folded, not ended at the first: the compiler makes wide instructions of it.
    let is_odd = |b: u8| !matches!(b, b'\n' | b'\t' | b' '..=b'~');
    if text.bytes().fold(false, |odd, b| odd | is_odd(b)) {
        return None;
    }
    let mut reader = Reader { text, lines: text.lines(), header: None };
    let mut spec = Spec::default();
    // At once: to make room for some more again and again was a sixth of the time.
    spec.nodes.reserve_exact(text.len() / NODE_BYTES);
    // Nothing may stand above the first header.
    match reader.next() {
        Some(Line::Header) => {}
        _ => return None,
    }
    while let Some(header) = reader.header.take() {
        match header {
            "[cluster]" if spec.cluster.is_none() => spec.cluster = Some(cluster(&mut reader)?),
            "[[network]]" => spec.networks.push(network(&mut reader)?),
            "[[node]]" => spec.nodes.push(node(&mut reader)?),
            "[[link]]" => spec.links.push(link(&mut reader)?),
            _ => return None,
        }
    }
    (spec.cluster.is_some() && !spec.nodes.is_empty()).then_some(spec)
}

struct Reader<'t> {
    text: &'t str,
    lines: Lines<'t>,
    /// Where the table before ended.
    header: Option<&'t str>,
}

enum Line<'t> {
    /// See [`Reader::header`].
    Header,
    Pair(&'t str, &'t str),
    Odd,
}

impl<'t> Reader<'t> {
    /// The next line that is not empty.
    fn next(&mut self) -> Option<Line<'t>> {
        let mut lines = self.lines.by_ref().map(trim);
        let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'))?;
        if line.starts_with('[') {
            self.header = Some(without_comment(line));
            return Some(Line::Header);
        }
        let Some(equals) = line.bytes().position(|b| b == b'=') else { return Some(Line::Odd) };
        Some(Line::Pair(trim(&line[..equals]), trim(&line[equals + 1..])))
    }

    /// The values of the table's keys, `None` where they are missing. Each key must be one of
    /// `known` and may be there once.
    fn table<const N: usize>(&mut self, known: [&str; N]) -> Option<[Option<&'t str>; N]> {
        let mut values = [None; N];
        while let Some(line) = self.next() {
            let Line::Pair(key, value) = line else {
                return self.header.is_some().then_some(values);
            };
            let place = known.iter().position(|known| *known == key)?;
            if values[place].replace(value).is_some() {
                return None;
            }
        }
        Some(values)
    }

    /// With its offset, and without its key, which only faults show.
    fn at<T>(&self, part: &str, value: T) -> At<T> {
        let offset = part.as_ptr() as usize - self.text.as_ptr() as usize;
        At { value, place: Place::new(offset, "") }
    }

    /// `None` if what is there can not be taken.
    fn optional<T>(
        &self,
        text: Option<&str>,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Option<At<T>>> {
        match text {
            Some(text) => Some(Some(self.at(text, parse(text)?))),
            None => Some(None),
        }
    }

    fn name(
        &self,
        value: &str,
        fault: impl Fn(&str) -> Option<String>,
    ) -> Option<Option<At<String>>> {
        let name = string(value)?;
        fault(name).is_none().then(|| Some(self.at(value, name.to_owned())))
    }

    fn underlay(&self, value: &str) -> Option<Option<At<IpAddr>>> {
        let address = string(value)?.parse().ok()?;
        value::underlay_fault(address).is_none().then(|| Some(self.at(value, address)))
    }

    /// A prefix, or a list of them on one line.
    fn prefixes(&self, value: &str) -> Option<Vec<At<IpNet>>> {
        if !value.starts_with('[') {
            return Some(vec![self.prefix(value)?]);
        }
        let mut prefixes = Vec::with_capacity(value.len() / PREFIX_BYTES + 1);
        for item in list(value)?.split(',') {
            prefixes.push(self.prefix(trim(item))?);
        }
        Some(prefixes)
    }

    fn prefix(&self, value: &str) -> Option<At<IpNet>> {
        let (address, len) = string(value)?.split_once('/')?;
        let net = IpNet::new(address.parse().ok()?, prefix_len(len)?).ok()?;
        let is_fine = net == net.trunc() && value::prefix_fault(net).is_none();
        is_fine.then(|| self.at(value, net))
    }
}

fn cluster(reader: &mut Reader<'_>) -> Option<ClusterSpec> {
    let [name, cidr, encap, mtu, port, ttl, dscp, flood] =
        reader.table(super::spec::CLUSTER_KEYS)?;
    Some(ClusterSpec {
        name: reader.name(name?, value::name_fault)?,
        cidr: reader.prefixes(cidr?)?,
        encap: reader.optional(encap, |text| wire::parse_encap(string(text)?).ok())?,
        mtu: reader.optional(mtu, |text| value::parse_mtu(integer(text)?).ok())?,
        port: reader.optional(port, |text| wire::parse_port(integer(text)?).ok())?,
        ttl: reader.optional(ttl, |text| wire::parse_ttl(integer(text)?).ok())?,
        dscp: reader.optional(dscp, parse_dscp)?,
        flood: reader.optional(flood, parse_flood)?,
    })
}

fn parse_dscp(text: &str) -> Option<Dscp> {
    match string(text) {
        Some(word) => wire::parse_dscp(word).ok(),
        None => wire::dscp_of(integer(text)?).ok(),
    }
}

fn parse_flood(text: &str) -> Option<Flood> {
    wire::parse_flood(string(text)?).ok()
}

fn link(reader: &mut Reader<'_>) -> Option<LinkSpec> {
    let [nodes, encap, port] = reader.table(LINK_KEYS)?;
    let (first, second) = list(nodes?)?.split_once(',')?;
    let name = |text| Some(reader.at(text, string(text)?.to_owned()));
    // One that changes nothing is a fault.
    encap.or(port)?;
    Some(LinkSpec {
        place: reader.at(nodes?, ()).place,
        nodes: Some([name(trim(first))?, name(trim(second))?]),
        encap: reader.optional(encap, |text| wire::parse_encap(string(text)?).ok())?,
        port: reader.optional(port, |text| wire::parse_port(integer(text)?).ok())?,
    })
}

fn network(reader: &mut Reader<'_>) -> Option<NetworkSpec> {
    let [name, vni, cidr, flood] = reader.table(super::spec::NETWORK_KEYS)?;
    let name = reader.name(name?, value::network_name_fault)?;
    let vni = Some(reader.at(vni?, value::parse_vni(integer(vni?)?).ok()?));
    let flood = reader.optional(flood, parse_flood)?;
    Some(NetworkSpec { name, vni, cidr: reader.prefixes(cidr?)?, flood })
}

fn node(reader: &mut Reader<'_>) -> Option<NodeSpec> {
    let [name, underlay, subnet, managed, foreign @ ..] = reader.table(PLAIN_NODE_KEYS)?;
    let place = reader.at(name?, ()).place;
    let name = reader.name(name?, value::name_fault)?;
    let underlay = reader.underlay(underlay?)?;
    let subnet = match subnet {
        Some(text) => Some(reader.prefixes(text)?),
        None => None,
    };
    let foreign = foreign_of(reader, managed, foreign)?;
    Some(NodeSpec { place, name, underlay, subnet, subnets: Vec::new(), foreign, is_whole: true })
}

/// All but the table of a node's parts of further networks.
const PLAIN_NODE_KEYS: [&str; 9] = {
    let [encap, vni, port, mac, clamp_mss] = FOREIGN_KEYS;
    ["name", "underlay", "subnet", "managed", encap, vni, port, mac, clamp_mss]
};

fn boolean(text: &str) -> Option<bool> {
    match without_comment(text) {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn foreign_of(
    reader: &Reader<'_>,
    managed: Option<&str>,
    fields: [Option<&str>; 5],
) -> Option<Option<Box<ForeignSpec>>> {
    if managed.is_none_or(|text| boolean(text) == Some(true)) {
        // None of them is a managed node's.
        return fields.iter().all(Option::is_none).then_some(None);
    }
    let [encap, vni, port, mac, clamp_mss] = fields;
    let is_foreign = managed.is_some_and(|text| boolean(text) == Some(false));
    is_foreign.then_some(Some(Box::new(ForeignSpec {
        encap: reader.optional(encap, |text| wire::parse_encap(string(text)?).ok())?,
        vni: reader.optional(vni, |text| wire::parse_wire_vni(integer(text)?).ok())?,
        port: reader.optional(port, |text| wire::parse_port(integer(text)?).ok())?,
        mac: reader.optional(mac, |text| wire::parse_mac(string(text)?).ok())?,
        clamp_mss: reader.optional(clamp_mss, boolean)?,
    })))
}

/// Without the blanks at both ends. The text is ASCII.
fn trim(text: &str) -> &str {
    let is_blank = |b: &u8| matches!(b, b' ' | b'\t');
    let bytes = text.as_bytes();
    let start = bytes.iter().take_while(|b| is_blank(b)).count();
    let end = bytes[start..].iter().rev().take_while(|b| is_blank(b)).count();
    &text[start..text.len() - end]
}

/// Of what has no `#` but in a comment: no name, address or prefix has one.
fn without_comment(text: &str) -> &str {
    let end = text.bytes().position(|b| b == b'#').unwrap_or(text.len());
    trim(&text[..end])
}

/// What is between the brackets of a list on one line.
fn list(value: &str) -> Option<&str> {
    let list = trim(without_comment(value.strip_prefix('[')?).strip_suffix(']')?);
    // A comma after the last one is allowed.
    Some(list.strip_suffix(',').unwrap_or(list))
}

/// A string in either kind of quotes that means what stands there.
fn string(value: &str) -> Option<&str> {
    let quote = *value.as_bytes().first()?;
    if !matches!(quote, b'"' | b'\'') {
        return None;
    }
    let rest = &value[1..];
    let end = rest.bytes().position(|b| matches!(b, b'"' | b'\'' | b'\\'))?;
    let (inner, after) = rest.split_at(end);
    let is_closed = after.as_bytes()[0] == quote && without_comment(&after[1..]).is_empty();
    is_closed.then_some(inner)
}

/// The shortest node takes this much of the file.
const NODE_BYTES: usize = "[[node]]\nname=\"a\"\nunderlay=\"::1\"\n".len();
/// The shortest prefix in a list takes this much of its line.
const PREFIX_BYTES: usize = r#""1.0.0.0/8","#.len();

/// What is behind the slash of a prefix.
fn prefix_len(text: &str) -> Option<u8> {
    let is_odd = text.starts_with('+') || text.len() > 1 && text.starts_with('0');
    text.parse().ok().filter(|_| !is_odd)
}

/// A number as most people write it.
fn integer(value: &str) -> Option<i128> {
    let digits = without_comment(value);
    let is_number =
        digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| is_number && digits.len() < 20)
}
