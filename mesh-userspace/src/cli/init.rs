//! `mesh init`

use std::{
    fmt::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;

use super::{DEFAULT_CONFIG, file, print};
use crate::config::{self, Fault, Faults};

/// Of the cluster's network, a /16 of 10.0.0.0/8.
const FIRST: u8 = 42;
/// Each node has a /24 of it.
const NODES_MAX: usize = 255;

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The hosts, in the same order on each of them: their own addresses, or NAME=ADDRESS
    #[arg(required = true, value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Where to write the file; one that is there is left alone
    #[arg(long, default_value = DEFAULT_CONFIG)]
    pub file: PathBuf,
}

pub fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    let text = text(&args.hosts)?;
    if let Err(faults) = config::parse(text.as_bytes()) {
        bail!(of_arguments(&faults, args.hosts.len()));
    }
    let shown = args.file.display();
    let before = file::read(&args.file).with_context(|| shown.to_string())?;
    if !before.is_empty() && before != text {
        bail!("{shown} is there already, and another one: edit it, or move it away");
    }
    file::replace(&args.file, &text).with_context(|| shown.to_string())?;
    let up = match args.file.as_path() == Path::new(DEFAULT_CONFIG) {
        true => "mesh up".to_owned(),
        false => format!("mesh up --config {shown}"),
    };
    print(&format!(
        "{shown} is written: {} nodes; do the same on each of them, then `{up}`",
        args.hosts.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The faults of a file that was not written, said of the arguments that it would be made of; one a
/// line.
fn of_arguments(faults: &Faults, hosts: usize) -> String {
    let said = |fault: &Fault| {
        let whole = format!("{}: {}", fault.key, fault.message);
        (0..hosts).fold(without_lines(&whole), |text, n| {
            text.replace(&format!("node[{n}].name"), &format!("the name of host {}", n + 1))
                .replace(&format!("node[{n}].underlay"), &format!("the address of host {}", n + 1))
        })
    };
    faults.0.iter().map(said).collect::<Vec<_>>().join("\n")
}

/// Without each "(line N)".
fn without_lines(text: &str) -> String {
    let mut parts = text.split(" (line ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, rest| all + rest.split_once(')').map_or(rest, |(_, after)| after))
}

fn text(hosts: &[String]) -> anyhow::Result<String> {
    if hosts.len() > NODES_MAX {
        bail!("{} hosts are more than {NODES_MAX}: write the config file yourself", hosts.len());
    }
    let mut nodes = Vec::new();
    for (host, n) in hosts.iter().zip(1..) {
        let (name, address) = match host.split_once('=') {
            Some((name, address)) => (name.to_owned(), address),
            None => (format!("h{n}"), host.as_str()),
        };
        let address: IpAddr = address.parse().with_context(|| {
            format!("{host}: must be an address, or a name and an address: h1=192.0.2.11")
        })?;
        nodes.push((name, address));
    }
    // One in which none of the hosts is.
    let holds = |second: &u8| {
        let is_in = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.octets()[..2] == [10, *second]);
        nodes.iter().any(|(_, ip)| is_in(ip))
    };
    let second = (FIRST..=u8::MAX).find(|second| !holds(second)).context("no network is left")?;
    let mut text = format!(
        "# The same on each host. `mesh check` prints the mesh that it makes.\n\n\
         [cluster]\nname  = \"mesh\"\ncidr  = \"10.{second}.0.0/16\"\nencap = \"gre\"\n"
    );
    for ((name, address), n) in nodes.iter().zip(1..) {
        let _ = write!(
            text,
            "\n[[node]]\nname     = {name:?}\nunderlay = \"{address}\"\n\
             subnet   = \"10.{second}.{n}.0/24\"\n"
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(hosts: &[&str]) -> config::Cluster {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        config::parse(text(&hosts).unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn each_host_has_a_part_of_a_network_that_is_none_of_theirs() {
        let made = cluster(&["10.42.0.7", "db=10.43.0.7"]);
        assert_eq!(made.nodes[0].name, "h1");
        assert_eq!(made.nodes[1].name, "db");
        let parts = |n: usize| -> Vec<String> {
            made.nodes[n].subnets.iter().map(|(_, net)| net.to_string()).collect()
        };
        assert_eq!(
            (parts(0), parts(1)),
            (vec!["10.44.1.0/24".into()], vec!["10.44.2.0/24".into()])
        );
        assert_eq!(cluster(&["2001:db8::1", "2001:db8::2"]).nodes.len(), 2);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let error = text(&["h1".into()]).unwrap_err().to_string();
        assert!(error.contains("192.0.2.11"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_said_of_the_arguments() {
        let said = |hosts: &[&str]| {
            let args: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            let faults = config::parse(text(&args).unwrap().as_bytes()).unwrap_err();
            of_arguments(&faults, hosts.len())
        };
        assert_eq!(
            said(&["192.0.2.1", "192.0.2.1"]),
            "the address of host 2: 192.0.2.1 is also the address of host 1"
        );
        assert_eq!(
            said(&["a=192.0.2.1", "a=192.0.2.2"]),
            "the name of host 2: a is also the name of host 1"
        );
        let mixed = said(&["192.0.2.1", "2001:db8::1"]);
        assert!(mixed.starts_with("the address of host 2: 2001:db8::1 is IPv6"), "{mixed}");
        assert!(!mixed.contains("line"), "{mixed}");
    }
}
