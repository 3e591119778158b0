//! `mesh init`

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;

use super::{DEFAULT_CONFIG, file, log, path, print};
use crate::{
    config::{self, Cluster, Fault, Faults},
    net::{Net, NetError},
};

/// Of the cluster's network, a /16 of 10.0.0.0/8.
const FIRST: u8 = 42;
/// Each node has a /24 of it.
const NODES_MAX: usize = 255;
/// So many of this host's addresses are named.
const NAMED_MAX: usize = 8;

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Address by which the other hosts reach this one, or NAME=ADDRESS; all hosts of the mesh, in the
    /// same order on each of them [default name: h1, h2, ...]
    #[arg(required = true, value_name = "HOST")]
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub hosts: Vec<String>,
    /// Where to write the file, or `-` to print it; a file that is there is never overwritten
    #[arg(long, default_value = DEFAULT_CONFIG)]
    pub file: PathBuf,
}

pub async fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    let text = text(&args.hosts)?;
    let cluster = match config::parse(text.as_bytes()) {
        Ok(cluster) => cluster,
        Err(faults) => bail!(of_arguments(&faults, args.hosts.len())),
    };
    if path::is_standard(&args.file) {
        print(&text)?;
    } else {
        write(&args.file, &text, args.hosts.len())?;
    }
    // Where nobody can say what this host has, nothing is known to be wrong.
    if let Ok(Some(lack)) = lack(&cluster).await {
        log::warning(&lack);
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str, hosts: usize) -> anyhow::Result<()> {
    let shown = path.display();
    let before = file::read(path).map_err(file::failed(path))?;
    if !before.is_empty() && before != text {
        bail!("{shown} is there already, and another one: edit it, or move it away");
    }
    let done = match before == text {
        true => "is there already, the same",
        false => {
            file::replace(path, text).map_err(file::failed(path))?;
            "is written"
        }
    };
    let up = match path == Path::new(DEFAULT_CONFIG) {
        true => "mesh up".to_owned(),
        false => format!("mesh up --config {shown}"),
    };
    Ok(print(&format!("{shown} {done}: {hosts} nodes; do the same on each of them, then `{up}`"))?)
}

/// What to say if none of the nodes is this host. It is no error: a file may be made for others.
async fn lack(cluster: &Cluster) -> Result<Option<String>, NetError> {
    let net = Net::here()?;
    let mut own = BTreeMap::new();
    for address in net.addresses().await? {
        let name = net.link(address.ifindex).await?.map(|link| link.name);
        own.insert(address.ip(), name.unwrap_or_default());
    }
    Ok(lack_of(cluster, &own))
}

/// `own`: this host's addresses and their interfaces.
fn lack_of(cluster: &Cluster, own: &BTreeMap<IpAddr, String>) -> Option<String> {
    if cluster.nodes.iter().any(|node| own.contains_key(&node.underlay)) {
        return None;
    }
    // Others may reach it by these.
    let is_reached = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let named = own.iter().filter(|(ip, _)| is_reached(ip)).take(NAMED_MAX);
    let named: Vec<_> = named.map(|(ip, interface)| format!("{ip} ({interface})")).collect();
    let has = match named.as_slice() {
        [] => "has no address yet".to_owned(),
        named => format!("has {}", named.join(", ")),
    };
    Some(format!(
        "none of these hosts is this one, which {has}: if it is to be in the mesh, give its own \
         address too, the same hosts on each"
    ))
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

    fn cluster(hosts: &[&str]) -> Cluster {
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
    fn a_host_that_is_not_among_its_hosts_is_told_its_addresses() {
        let own = [("127.0.0.1", "lo"), ("192.0.2.11", "eth0"), ("fe80::1", "eth0")];
        let own = own.map(|(ip, interface)| (ip.parse().unwrap(), interface.to_owned())).into();
        assert_eq!(lack_of(&cluster(&["192.0.2.11", "192.0.2.12"]), &own), None);
        let said = lack_of(&cluster(&["192.0.2.12", "192.0.2.13"]), &own).unwrap();
        assert!(said.contains("which has 192.0.2.11 (eth0): "), "{said}");
        let said = lack_of(&cluster(&["192.0.2.12"]), &BTreeMap::new()).unwrap();
        assert!(said.contains("has no address yet"), "{said}");
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
