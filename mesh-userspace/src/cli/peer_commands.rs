//! `mesh check --peer-commands NODE`

use std::fmt::Write as _;

use anyhow::bail;
use serde::Serialize;

use crate::{
    config::{Cluster, Node},
    foreign::{self, Command, Kind},
};

#[derive(Serialize)]
struct Report<'a> {
    node: &'a str,
    commands: Vec<Command>,
}

/// What to type on that node, for people or as JSON.
pub(super) fn report(cluster: &Cluster, name: &str, json: bool) -> anyhow::Result<String> {
    let node = find(cluster, name)?;
    let commands = foreign::commands(cluster, node);
    if json {
        let report = Report { node: &node.name, commands };
        return Ok(serde_json::to_string_pretty(&report)?);
    }
    Ok(text(cluster, node, &commands))
}

fn find<'a>(cluster: &'a Cluster, name: &str) -> anyhow::Result<&'a Node> {
    match cluster.node(name) {
        Some(node) if node.is_managed() => bail!(
            "node {} runs mesh, which sets its own tunnels up: --peer-commands is for a node with \
             `managed = false`",
            node.name
        ),
        Some(node) => Ok(node),
        None => {
            let foreign = cluster.nodes.iter().filter(|node| !node.is_managed());
            let names: Vec<_> = foreign.take(10).map(|node| node.name.as_str()).collect();
            let known = match names.as_slice() {
                [] => "no node of it has `managed = false`".to_owned(),
                names => format!("with `managed = false` it has {}", names.join(", ")),
            };
            bail!("the config file has no node {name:?}; {known}")
        }
    }
}

fn text(cluster: &Cluster, node: &Node, commands: &[Command]) -> String {
    let mut out = format!(
        "# On node {} ({}), as root, for network {}.\n# MTU {}: {}.\n",
        node.name,
        node.underlay,
        crate::config::DEFAULT_NETWORK,
        foreign::mtu(cluster),
        match cluster.mtu {
            Some(_) => "as in the config file".to_owned(),
            None => format!("for an underlay of {}", foreign::UNDERLAY_MTU),
        },
    );
    let (mut kind, mut told) = (None, Vec::new());
    for command in commands {
        if kind.replace(command.kind) != Some(command.kind) {
            out.push_str(match command.kind {
                Kind::Ip => "\n# With the kernel's own tunnels\n",
                Kind::Ovs => "\n# Or with Open vSwitch, in their place\n",
            });
        }
        for note in &command.notes {
            if !told.contains(note) {
                told.push(*note);
                let _ = writeln!(out, "# {note}.");
            }
        }
        let _ = writeln!(out, "{}", command.command);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let file = "[cluster]\nname='c'\ncidr='10.42.0.0/16'\nencap='gretap'\n\
            [[node]]\nname='h1'\nunderlay='192.0.2.1'\n\
            [[node]]\nname='x'\nunderlay='192.0.2.2'\nmanaged=false\n";
        crate::config::parse(file.as_bytes()).unwrap()
    }

    #[test]
    fn commands_stand_under_headings_and_the_rest_is_comments() {
        let text = report(&cluster(), "X", false).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# On node x (192.0.2.2), as root, for network default.");
        assert_eq!(lines[1], "# MTU 1462: for an underlay of 1500.");
        assert!(lines.contains(&"# Or with Open vSwitch, in their place"), "{text}");
        let programs = ["#", "ip ", "bridge ", "sysctl ", "ovs-vsctl "];
        let is_known = |line: &&str| programs.iter().any(|s| line.starts_with(s));
        assert!(lines.iter().filter(|line| !line.is_empty()).all(is_known), "{text}");
    }

    #[test]
    fn json_has_each_command_with_its_kind() {
        let json: serde_json::Value =
            serde_json::from_str(&report(&cluster(), "x", true).unwrap()).unwrap();
        assert_eq!(json["node"], "x");
        let expected = serde_json::json!({
            "kind": "ip",
            "command": "ip link add br-mesh address 02:6d:c0:00:02:02 type bridge",
        });
        assert_eq!(json["commands"][0], expected);
        let kinds: Vec<_> =
            json["commands"].as_array().unwrap().iter().map(|c| c["kind"].clone()).collect();
        assert_eq!((&kinds[1], kinds.last().unwrap()), (&"ip".into(), &"ovs".into()));
    }

    #[test]
    fn only_a_node_that_does_not_run_mesh_has_commands() {
        let error = |name| report(&cluster(), name, false).unwrap_err().to_string();
        assert!(error("h1").contains("h1 runs mesh"), "{}", error("h1"));
        assert!(error("y").contains("no node \"y\"; with `managed = false` it has x"));
        let mut cluster = cluster();
        cluster.nodes.pop();
        let error = report(&cluster, "x", false).unwrap_err().to_string();
        assert!(error.contains("no node of it"), "{error}");
    }
}
