//! The report, for people.

use std::{env, ffi::OsString, process::Command};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use mesh_tests::Topology;
use serde::Serialize;

use super::{Report, measure::Pair, packet::Dissected};

/// How to enter what was left standing, and how to remove it.
#[derive(Debug, Serialize)]
pub struct Kept {
    pub name: String,
    pub folder: String,
    pub enter: Vec<Entry>,
    pub remove: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Entry {
    pub what: String,
    pub command: String,
}

impl Kept {
    pub fn of(mesh: &Topology) -> Result<Self> {
        let mut enter = Vec::new();
        // Whoever came here by sudo is not root where he types the next command.
        let by = env::var_os("SUDO_UID");
        let nsenter = |netns: &std::path::Path, command: &str| {
            format!("{}nsenter --net={} {command}", sudo(by.as_ref()), netns.display())
        };
        // Only the network namespace is changed: pinned maps stay in sight.
        for host in &mesh.hosts {
            enter.push(Entry {
                what: host.name.clone(),
                command: nsenter(&host.netns.path(), "bash"),
            });
            for c in &host.containers {
                enter.push(Entry {
                    what: c.name.clone(),
                    command: nsenter(&c.netns.path(), "bash"),
                });
            }
        }
        for host in &mesh.hosts {
            let status = typed(host.mesh()?.arg("status"));
            enter.push(Entry {
                what: format!("{} status", host.name),
                command: nsenter(&host.netns.path(), &status),
            });
        }
        Ok(Self {
            name: mesh.name.clone(),
            folder: mesh.dir.display().to_string(),
            enter,
            remove: "cargo xtask run --clean",
        })
    }
}

/// What a command for root begins with. `by`: the user that sudo was called by, if it was.
fn sudo(by: Option<&OsString>) -> &'static str {
    if by.is_some_and(|uid| uid != "0") { "sudo " } else { "" }
}

fn typed(command: &Command) -> String {
    crate::exec::line(command)
}

pub fn report(report: &Report) {
    hosts(report);
    pairs(&report.pairs);
    packet(&report.packet);
    verdict(report);
    if let Some(kept) = &report.kept {
        println!("\nLeft standing, agents and all. Config files and logs are in {}.", kept.folder);
        let mut table = plain(["enter", "by"]);
        for Entry { what, command } in &kept.enter {
            table.add_row([what, command]);
        }
        println!("{table}\nRemove it all: {}", kept.remove);
    }
}

fn hosts(report: &Report) {
    let mut table = plain(["host", "underlay", "overlay", "hooks", "containers"]);
    for host in &report.hosts {
        let listed = |addresses: &[std::net::IpAddr]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let containers = host.containers.iter();
        let containers: Vec<_> = containers
            .map(|c| format!("{}  {}  MTU {}", c.name, listed(&c.addresses), c.mtu))
            .collect();
        table.add_row([
            host.name.clone(),
            host.underlay.clone(),
            listed(&host.overlay),
            host.attach_mode.clone(),
            containers.join("\n"),
        ]);
    }
    println!(
        "{} over an underlay with an MTU of {} bytes\n{table}",
        report.encap, report.underlay_mtu
    );
}

fn pairs(pairs: &[Pair]) {
    let mut table = plain([
        "from",
        "to",
        "way",
        "ping",
        "RTT p50 us",
        "p99 us",
        "TCP",
        "UDP bytes",
        "Gbit/s",
        "",
    ]);
    for column in [4, 5, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for pair in pairs {
        let rtt = |pick: fn(&super::measure::Percentiles) -> f64| {
            pair.rtt_us.as_ref().map_or("-".into(), |rtt| format!("{:.0}", pick(rtt)))
        };
        let rate = pair.throughput_bits_per_second;
        table.add_row([
            pair.from.clone(),
            pair.to.clone(),
            if pair.encapsulated { "underlay" } else { "local" }.into(),
            format!("{}/{}", pair.pings_answered, pair.pings_sent),
            rtt(|rtt| rtt.p50),
            rtt(|rtt| rtt.p99),
            if pair.faults.is_empty() { "same hash" } else { "" }.into(),
            pair.udp_packet_bytes.to_string(),
            rate.map_or("-".into(), |rate| format!("{:.1}", rate / 1e9)),
            if pair.faults.is_empty() { "ok" } else { "FAILED" }.into(),
        ]);
    }
    println!("\n{table}");
    for pair in pairs {
        for fault in &pair.faults {
            println!("FAILED {} -> {}: {fault}", pair.from, pair.to);
        }
    }
}

fn packet(packet: &Dissected) {
    println!("\nOne packet on the underlay: {}, {} bytes", packet.what, packet.bytes);
    for field in &packet.fields {
        println!("  {:04x}  {:<23}  {}", field.offset, field.hex, field.meaning);
    }
    if let Some(text) = &packet.tshark {
        println!("\nThe same, as tshark reads it:");
        // A line that begins at the margin is a protocol; its fields are indented.
        text.lines()
            .filter(|l| !l.is_empty() && !l.starts_with(' '))
            .for_each(|l| println!("  {l}"));
    }
}

fn verdict(report: &Report) {
    let failed = report.pairs.iter().filter(|pair| !pair.faults.is_empty()).count();
    let all = report.pairs.len();
    let seconds = report.seconds;
    if failed == 0 {
        println!("\nAll {all} pairs passed ping, TCP and UDP on IPv4 and IPv6, in {seconds:.1} s.");
    } else {
        println!("\n{failed} of {all} pairs failed, see above.");
    }
}

fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_is_for_those_who_are_not_root() {
        assert_eq!(sudo(None), "");
        assert_eq!(sudo(Some(&"0".into())), "");
        assert_eq!(sudo(Some(&"1000".into())), "sudo ");
    }
}
