//! `mesh check`

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use comfy_table::{Table, presets};
use ipnet::IpNet;
use serde::Serialize;

use super::{path, peer_commands, print};
use crate::{
    compile,
    config::{self, Cluster, Document, Fault, Faults, Network, Node, ReadError, Tunnel, Vni},
    docker::OVERLAY_PORT,
    net::{Address, Net},
};

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The cluster's config file; `-` is stdin
    #[arg(long, default_value = super::DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    /// Print the JSON schema of the config file instead
    #[arg(long)]
    pub schema: bool,
    /// Print what to type on a node that does not run mesh, for its end of the tunnels
    #[arg(long, value_name = "NODE", conflicts_with = "schema")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub peer_commands: Option<String>,
}

pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    if args.schema {
        print(&json(&config::file::schema())?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (bytes, path) = match path::is_standard(&args.config) {
        true => (config::read_stdin(), PathBuf::from("stdin")),
        false => (config::read_bytes(&args.config), args.config),
    };
    match check(bytes).await {
        Ok(document) => {
            let report = match &args.peer_commands {
                Some(node) => peer_commands::report(&document.cluster, node, args.json)?,
                None if args.json => json(&Report::new(&document))?,
                None => table(&document),
            };
            print(&report)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            if args.json {
                print(&json(&FaultReport { ok: false, faults: &failure.faults.0 })?)?;
            } else {
                io::stderr().write_all(quote(&path, &failure).as_bytes())?;
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What is wrong with a file, and its text to quote from.
struct Failure {
    faults: Faults,
    text: String,
}

async fn check(read: Result<Vec<u8>, ReadError>) -> Result<Document, Failure> {
    let bytes = read.map_err(|e| {
        let fault = Fault { line: 0, column: 0, key: String::new(), message: e.to_string() };
        Failure { faults: Faults(vec![fault]), text: String::new() }
    })?;
    let text = || String::from_utf8_lossy(&bytes).into_owned();
    let document =
        config::parse_document(&bytes).map_err(|faults| Failure { faults, text: text() })?;
    match mtu_fault(&document).await {
        Some(fault) => Err(Failure { faults: Faults(vec![fault]), text: text() }),
        None => Ok(document),
    }
}

/// If this machine is a node of the cluster: does the file's MTU fit its underlay?
async fn mtu_fault(document: &Document) -> Option<Fault> {
    let (line, column) = document.mtu_at?;
    let cluster = &document.cluster;
    let net = Net::here().ok()?;
    let addresses = net.addresses().await.ok()?;
    let managed = || cluster.nodes.iter().filter(|node| node.is_managed());
    let is_underlay = |a: &&Address| managed().any(|n| a.ip() == n.underlay);
    let link = net.link(addresses.iter().find(is_underlay)?.ifindex).await.ok()??;
    let largest = cluster
        .networks
        .iter()
        .filter_map(|n| compile::container_mtu(cluster, n.vni, link.mtu).err())
        .min()?;
    let message = format!(
        "{} does not fit this host: its underlay {} has an MTU of {}, which leaves {largest}",
        cluster.mtu?, link.name, link.mtu
    );
    Some(Fault { line, column, key: "cluster.mtu".into(), message })
}

fn json(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n")
}

#[derive(Serialize)]
struct FaultReport<'a> {
    ok: bool,
    faults: &'a [Fault],
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    cluster: ClusterReport<'a>,
    networks: Vec<NetworkReport<'a>>,
    nodes: Vec<NodeReport<'a>>,
    /// Pairs of nodes with a tunnel of their own.
    links: Vec<LinkReport<'a>>,
}

#[derive(Serialize)]
struct ClusterReport<'a> {
    name: &'a str,
    encap: String,
    /// Container MTU in bytes; `null` if each node chooses it.
    mtu: Option<u16>,
    ttl: u8,
    dscp: String,
    /// Attached on each host.
    bridges: &'a [String],
}

#[derive(Serialize)]
struct NetworkReport<'a> {
    name: &'a str,
    vni: u32,
    cidr: Vec<String>,
    overhead_bytes: usize,
    divided_evenly: bool,
}

#[derive(Serialize)]
struct NodeReport<'a> {
    name: &'a str,
    underlay: String,
    /// The host's own, in the cluster's own network.
    addresses: Vec<String>,
    subnets: Vec<SubnetReport<'a>>,
    /// It runs mesh.
    managed: bool,
    /// To nodes that it has no link with.
    #[serde(flatten)]
    tunnel: TunnelReport,
}

#[derive(Serialize)]
struct LinkReport<'a> {
    nodes: [&'a str; 2],
    #[serde(flatten)]
    tunnel: TunnelReport,
}

#[derive(Serialize)]
struct TunnelReport {
    encap: String,
    /// UDP destination port; `null` for GRE.
    port: Option<u16>,
}

impl From<Tunnel> for TunnelReport {
    fn from(Tunnel { encap, port }: Tunnel) -> Self {
        Self { encap: encap.to_string(), port: encap.is_udp().then_some(port) }
    }
}

#[derive(Serialize)]
struct SubnetReport<'a> {
    network: &'a str,
    vni: u32,
    subnet: String,
}

impl<'a> Report<'a> {
    fn new(document: &'a Document) -> Self {
        let cluster = &document.cluster;
        let network = |network: &'a Network| NetworkReport {
            name: &network.name,
            vni: network.vni.get(),
            cidr: strings(&network.cidrs),
            overhead_bytes: cluster.overhead(network.vni),
            divided_evenly: document.divided.contains(&network.vni),
        };
        let node = |node: &'a Node| NodeReport {
            name: &node.name,
            underlay: node.underlay.to_string(),
            addresses: addresses(node),
            subnets: subnets(document, node),
            managed: node.is_managed(),
            tunnel: cluster.tunnel(node, node).into(),
        };
        Self {
            ok: true,
            cluster: ClusterReport {
                name: &cluster.name,
                encap: cluster.encap.to_string(),
                mtu: cluster.mtu,
                ttl: cluster.ttl,
                dscp: cluster.dscp.to_string(),
                bridges: &cluster.bridges,
            },
            networks: cluster.networks.iter().map(network).collect(),
            nodes: cluster.nodes.iter().map(node).collect(),
            links: links(cluster)
                .map(|(nodes, tunnel)| LinkReport { nodes, tunnel: tunnel.into() })
                .collect(),
        }
    }
}

/// The pairs that have their own, and what it is.
fn links(cluster: &Cluster) -> impl Iterator<Item = ([&str; 2], Tunnel)> {
    cluster.links.iter().filter_map(|link| {
        let [a, b] = &link.nodes;
        Some(([a.as_str(), b], cluster.tunnel(cluster.node(a)?, cluster.node(b)?)))
    })
}

fn strings<T: ToString>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

fn addresses(node: &Node) -> Vec<String> {
    strings(node.subnets_of(Vni::DEFAULT).map(config::gateway))
}

/// In the order of the networks.
fn subnets<'a>(document: &'a Document, node: &Node) -> Vec<SubnetReport<'a>> {
    let networks = document.cluster.networks.iter();
    let of = |network: &'a Network| {
        node.subnets_of(network.vni).map(|subnet| SubnetReport {
            network: &network.name,
            vni: network.vni.get(),
            subnet: subnet.to_string(),
        })
    };
    networks.flat_map(of).collect()
}

/// The mesh for people.
fn table(document: &Document) -> String {
    let cluster = &document.cluster;
    let mtu = cluster.mtu.map_or_else(|| "chosen by each node".to_owned(), |mtu| mtu.to_string());
    let mut networks = plain_table(["NETWORK", "VNI", "CIDR", "OVERHEAD", "SUBNETS"]);
    for network in &cluster.networks {
        let is_divided = document.divided.contains(&network.vni);
        networks.add_row([
            network.name.clone(),
            network.vni.to_string(),
            strings(&network.cidrs).join("\n"),
            format!("{} bytes", cluster.overhead(network.vni)),
            if is_divided { "divided evenly" } else { "as in the file" }.to_owned(),
        ]);
    }
    let mut nodes = plain_table(["NODE", "UNDERLAY", "ADDRESS", "NETWORK", "SUBNET"]);
    for node in &cluster.nodes {
        let subnets = subnets(document, node);
        nodes.add_row([
            node.name.clone(),
            node.underlay.to_string(),
            addresses(node).join("\n"),
            strings(subnets.iter().map(|s| s.network)).join("\n"),
            strings(subnets.iter().map(|s| &s.subnet)).join("\n"),
        ]);
    }
    let mut out = format!("cluster {}, encap {}, mtu {mtu}\n", cluster.name, usual(cluster));
    if !cluster.bridges.is_empty() {
        let _ = writeln!(out, "attached on each host: {}", cluster.bridges.join(", "));
    }
    let tables = [Some(networks), Some(nodes), tunnels(cluster)];
    for table in tables.into_iter().flatten() {
        out.push('\n');
        out.extend(table.lines().map(|line| format!("{}\n", line.trim_end())));
    }
    out + &notes(document)
}

/// Between two nodes of which nothing else is said.
fn usual(cluster: &Cluster) -> Tunnel {
    let encap = cluster.encap;
    let port = encap.default_port().map_or(0, |usual| cluster.port.unwrap_or(usual));
    Tunnel { encap, port }
}

/// What is otherwise than in the cluster, if anything is.
fn tunnels(cluster: &Cluster) -> Option<Table> {
    let mut table = plain_table(["BETWEEN", "AND", "ENCAP"]);
    for node in cluster.nodes.iter().filter(|node| !node.is_managed()) {
        let tunnel = cluster.tunnel(node, node);
        let vni = node.foreign.as_ref().and_then(|foreign| foreign.vni).filter(|vni| *vni != 0);
        let vni = vni.map_or_else(String::new, |vni| format!(", vni {vni}"));
        table.add_row([
            node.name.clone(),
            "all that run mesh".to_owned(),
            format!("{tunnel}{vni}; it does not run mesh"),
        ]);
    }
    for ([a, b], tunnel) in links(cluster) {
        table.add_row([a.to_owned(), b.to_owned(), tunnel.to_string()]);
    }
    (!table.is_empty()).then_some(table)
}

/// What is no fault, and may surprise.
fn notes(document: &Document) -> String {
    let mut notes = String::new();
    if !document.divided.is_empty() {
        notes.push_str(
            "\nA network that is divided evenly is divided anew, for all nodes, when their number \
             passes a\npower of two. To keep the parts as they are, write them into the file.\n",
        );
    }
    for network in &document.cluster.networks {
        for cidr in unused(network, &document.cluster.nodes) {
            let name = &network.name;
            let _ = writeln!(notes, "\nNo node has a part of {cidr} in network {name}.");
        }
    }
    if document.cluster.udp_tunnels().iter().any(|tunnel| tunnel.port == OVERLAY_PORT) {
        let _ = writeln!(
            notes,
            "\nDocker's own overlay networks have UDP port {OVERLAY_PORT} too. On hosts that have \
             some, `mesh doctor`\nsays who has it now; another port, or encap \"gre\", keeps them \
             apart."
        );
    }
    notes
}

fn unused<'a>(network: &'a Network, nodes: &'a [Node]) -> impl Iterator<Item = &'a IpNet> {
    let has_part = |node: &Node, cidr: &IpNet| {
        node.subnets_of(network.vni).any(|subnet| cidr.contains(&subnet))
    };
    network.cidrs.iter().filter(move |cidr| !nodes.iter().any(|node| has_part(node, cidr)))
}

fn plain_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Each fault with the line it is in and a mark below its place.
fn quote(path: &Path, failure: &Failure) -> String {
    let text = failure.text.strip_prefix('\u{feff}').unwrap_or(&failure.text);
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for fault in &failure.faults.0 {
        if fault.line == 0 {
            out.push_str(&format!("mesh: {fault}\n"));
            continue;
        }
        let _ = writeln!(out, "{}:{fault}", path.display());
        let line = lines.get(fault.line - 1).copied().unwrap_or_default();
        out.push_str(&excerpt(line, fault));
    }
    let count = failure.faults.0.len();
    if failure.faults.0.iter().any(|fault| fault.line != 0) {
        let plural = if count == 1 { "" } else { "s" };
        let _ = writeln!(out, "mesh: {count} fault{plural} in {}", path.display());
    }
    out
}

/// A long line is cut to what stands around the place.
fn excerpt(line: &str, fault: &Fault) -> String {
    const BEFORE: usize = 60;
    const LONGEST: usize = 100;
    let skipped = (fault.column - 1).saturating_sub(BEFORE);
    let shown = line.chars().skip(skipped).take(LONGEST);
    // A tab is one column, and a control character must not reach the terminal.
    let shown: String = shown.map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.trim().is_empty() {
        return String::new();
    }
    let number = fault.line.to_string();
    let gutter = " ".repeat(number.len());
    let indent = " ".repeat(fault.column - 1 - skipped);
    format!("  {number} | {}\n  {gutter} | {indent}^\n", shown.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[cluster]\nname = 'c'\ncidr = ['10.42.0.0/16', 'fd42::/48']\n\
        [[node]]\nname = 'h1'\nunderlay = '192.0.2.1'\nsubnet = '10.42.1.0/24'\n\
        [[network]]\nname = 'blue'\nvni = 7\ncidr = '10.43.0.0/16'\n";

    fn document() -> Document {
        config::parse_document(FILE.as_bytes()).unwrap()
    }

    #[test]
    fn mesh_is_printed_as_tables_with_notes() {
        let text = table(&document());
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        for line in [
            "cluster c, encap gre, mtu chosen by each node",
            "blue 7 10.43.0.0/16 28 bytes divided evenly",
            "h1 192.0.2.1 10.42.1.1 default 10.42.1.0/24",
            "blue 10.43.0.0/16",
            "No node has a part of fd42::/48 in network default.",
        ] {
            assert!(words.contains(&line.split(' ').collect()), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("overlay networks"), "{text}");
        let file = FILE.replace("name = 'c'", "name = 'c'\nencap = 'vxlan'");
        let vxlan = |file: &str| table(&config::parse_document(file.as_bytes()).unwrap());
        assert!(vxlan(&file).contains("UDP port 4789 too"), "{text}");
        let other = file.replace("name = 'c'", "name = 'c'\nport = 4790");
        assert!(!vxlan(&other).contains("overlay networks"), "{text}");
    }

    #[test]
    fn tunnels_that_are_otherwise_are_shown() {
        let more = "[[node]]\nname = 'h2'\nunderlay = '192.0.2.2'\nsubnet = '10.42.2.0/24'\n\
            [[node]]\nname = 'x'\nunderlay = '192.0.2.3'\nsubnet = '10.42.3.0/24'\n\
            managed = false\nencap = 'vxlan'\nvni = 42\n\
            [[link]]\nnodes = ['h2', 'h1']\nencap = 'vxlan'\nport = 8472\n";
        let document = config::parse_document(format!("{FILE}{more}").as_bytes()).unwrap();
        let text = table(&document);
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        for line in
            ["x all that run mesh vxlan, vni 42; it does not run mesh", "h1 h2 vxlan port 8472"]
        {
            assert!(words.contains(&line.split(' ').collect()), "{line:?} is not in\n{text}");
        }
        let json = serde_json::to_value(Report::new(&document)).unwrap();
        let link = serde_json::json!({"nodes": ["h1", "h2"], "encap": "vxlan", "port": 8472});
        assert_eq!(json["links"], serde_json::json!([link]));
        let tunnel = |at: usize| {
            let node = &json["nodes"][at];
            (node["managed"].clone(), node["encap"].clone(), node["port"].clone())
        };
        assert_eq!(tunnel(0), (true.into(), "gre".into(), serde_json::Value::Null));
        assert_eq!(tunnel(2), (false.into(), "vxlan".into(), 4789.into()));
    }

    #[test]
    fn mesh_as_json_has_networks_and_nodes() {
        let json = serde_json::to_value(Report::new(&document())).unwrap();
        assert_eq!(json["ok"], true);
        assert_eq!(json["cluster"]["mtu"], serde_json::Value::Null);
        assert_eq!(json["networks"][1]["overhead_bytes"], 28);
        assert_eq!(json["networks"][1]["divided_evenly"], true);
        assert_eq!(json["nodes"][0]["addresses"], serde_json::json!(["10.42.1.1"]));
        assert_eq!(json["nodes"][0]["subnets"][1]["subnet"], "10.43.0.0/16");
    }

    #[test]
    fn fault_is_quoted_with_a_mark_below() {
        let text = FILE.replace("10.42.1.0", "10.42.1.9");
        let faults = config::parse_document(text.as_bytes()).unwrap_err();
        let quoted = quote(Path::new("m.toml"), &Failure { faults, text });
        let lines: Vec<_> = quoted.lines().collect();
        assert!(lines[0].starts_with("m.toml:7:10: node[0].subnet: 10.42.1.9/24"), "{quoted}");
        assert_eq!(lines[1], "  7 | subnet = '10.42.1.9/24'");
        assert_eq!(lines[2], "    |          ^");
        assert_eq!(lines[3], "mesh: 1 fault in m.toml");
    }

    #[tokio::test]
    async fn file_that_can_not_be_read_is_a_fault_without_a_line() {
        let failure =
            check(config::read_bytes(Path::new("/nowhere/mesh.toml"))).await.err().unwrap();
        let json = serde_json::to_value(FaultReport { ok: false, faults: &failure.faults.0 });
        let fault = &json.unwrap()["faults"][0];
        assert_eq!((fault["line"].is_null(), fault["column"].is_null()), (true, true));
        assert!(fault["message"].as_str().unwrap().contains("/nowhere/mesh.toml"), "{fault}");
    }
}
