//! What of a bridge's traffic passes the host's stack and its firewall, put right there: in a table
//! of our own, beside whatever others have.
//!
//! What containers of different hosts say to each other passes no firewall, whatever its policy, and
//! no masquerading. Three things are left:
//!
//! - A port that Docker publishes, asked for by an overlay address of the host: the request is
//!   rewritten by Docker and forwarded to the container, but the container's answer would take the
//!   short way back into the mesh, past the one who could rewrite it. So it must see the host as the
//!   one who asks.
//! - Docker masquerades what its bridge's network sends to anywhere else. What gets to `mesh0` by the
//!   stack, in the moment before a port is attached, must not become the host's own by that; as it
//!   is, it is dropped there, and sent again.
//! - What is masqueraded comes from the host's own address, as all do that other nodes trust. A
//!   container must not be able to put an outer header in front of what it sends.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

use ipnet::IpNet;

use super::{Host, HostError, mesh0};
use crate::{
    config::{Cluster, Encap},
    state::State,
};

const TABLE: &str = "mesh_bridges";

/// What this process last made a table of ours contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    rules: String,
    /// The same as `nft` lists it, which differs between versions.
    listing: String,
    /// Why it is not so.
    pub error: Option<String>,
}

impl Host {
    /// Makes the rules be there if a bridge is attached, and not be there otherwise. Without `nft`
    /// what is said above is not so; all else works.
    pub(super) fn ensure_firewall(&mut self, cluster: &Cluster) {
        let names: Vec<&str> = self.bridges.names().collect();
        let done = match names.is_empty() {
            true => remove(&self.state).map(|()| Table::default()),
            false => ensure(TABLE, rules(&names, cluster), &self.firewall),
        };
        match done {
            Ok(table) => {
                self.state.firewall = !table.listing.is_empty();
                self.firewall = table;
            }
            Err(e) => {
                let error = Some(format!(
                    "ports that Docker publishes are not reached by the overlay address of their \
                     host: {e}"
                ));
                if self.firewall.error != error {
                    tracing::warn!("{}", error.as_deref().unwrap_or_default());
                }
                self.firewall = Table { error, ..Table::default() };
            }
        }
    }
}

/// Takes them away. They can only be there without us knowing if we know nothing at all.
pub(super) fn remove(state: &State) -> Result<(), HostError> {
    let is_lost = state.node.is_empty();
    if state.firewall || is_lost { remove_table(TABLE) } else { Ok(()) }
}

pub(super) fn remove_table(name: &str) -> Result<(), HostError> {
    if !is_there(name) {
        return Ok(());
    }
    nft(&["delete", "table", "inet", name], "").map(drop)
}

pub(super) fn is_there(name: &str) -> bool {
    list(name).is_ok()
}

/// Makes a table `inet NAME` have just these chains. `last`: as this returned it before.
pub(super) fn ensure(name: &str, chains: String, last: &Table) -> Result<Table, HostError> {
    if last.rules == chains && list(name).is_ok_and(|there| there == last.listing) {
        return Ok(last.clone());
    }
    // In one step, whether there was one before or not.
    let all = format!(
        "table inet {name} {{}}\ndelete table inet {name}\ntable inet {name} {{\n{chains}}}\n"
    );
    nft(&["-f", "-"], &all)?;
    Ok(Table { listing: list(name)?, rules: chains, error: None })
}

fn list(name: &str) -> Result<String, HostError> {
    nft(&["list", "table", "inet", name], "")
}

/// 99: before Docker's, at 100.
fn rules(bridges: &[&str], cluster: &Cluster) -> String {
    let (bridges, mesh0) = (quoted(bridges), mesh0::NAME);
    let no_tunnels = no_tunnels(&bridges, cluster);
    format!(
        "chain forward {{
            type filter hook forward priority 0; policy accept;
            {no_tunnels}
            iifname {{ {bridges} }} oifname \"{mesh0}\" ct state new drop
        }}
        chain postrouting {{
            type nat hook postrouting priority 99; policy accept;
            iifname \"{mesh0}\" oifname {{ {bridges} }} ct status dnat masquerade
        }}
        "
    )
}

/// What comes in by these interfaces is no tunnel to a node, whichever it is: nodes take every form from
/// each other. Only to nodes; to anywhere else containers may have tunnels of their own.
pub(super) fn no_tunnels(interfaces: &str, cluster: &Cluster) -> String {
    let used = cluster.udp_tunnels().into_iter().map(|tunnel| tunnel.port);
    let ports: BTreeSet<u16> =
        Encap::ALL.iter().filter_map(|e| e.default_port()).chain(used).collect();
    let ports = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let nodes = IpNet::aggregate(&cluster.nodes.iter().map(|n| n.underlay.into()).collect());
    let mut rules = String::new();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let Some(nodes) = of_family(&nodes, v4) else { continue };
        for kind in ["meta l4proto gre", &format!("udp dport {{ {ports} }}")] {
            let _ = writeln!(
                rules,
                "iifname {{ {interfaces} }} {family} daddr {{ {nodes} }} {kind} drop"
            );
        }
    }
    rules
}

/// The elements of a set of prefixes; a set must not be empty.
pub(super) fn of_family(nets: &[IpNet], v4: bool) -> Option<String> {
    let mut nets: Vec<String> =
        nets.iter().filter(|net| net.addr().is_ipv4() == v4).map(ToString::to_string).collect();
    nets.sort_unstable();
    nets.dedup();
    (!nets.is_empty()).then(|| nets.join(", "))
}

/// The elements of a set of names.
pub(super) fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn nft(args: &[&str], input: &str) -> Result<String, HostError> {
    match run("nft", args, input) {
        Ok(done) => done,
        Err(e) => Err(HostError::User(format!("nft: {e}: install nftables"))),
    }
}

/// What a program prints. The outer error: it could not be started.
pub(super) fn run(
    program: &str,
    args: &[&str],
    input: &str,
) -> io::Result<Result<String, HostError>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let args = args.join(" ");
        return Ok(Err(HostError::User(format!("{program} {args}: {}", said.trim()))));
    }
    Ok(Ok(String::from_utf8_lossy(&output.stdout).into_owned()))
}
