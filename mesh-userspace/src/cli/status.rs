//! `mesh status`

use std::{fmt::Write, io, net::IpAddr, path::Path, process::ExitCode};

use anyhow::bail;
use clap::Args;
use comfy_table::{Table, presets};
use mesh_common::verdict::DropReason;

use super::{
    Place, print, print_json,
    session::{self, NoAnswer, Session},
};
use crate::{
    agent::protocol::{Request, Response},
    config, doctor,
    faults::{Fault, Of, SHOWN_MAX},
    host::{NextHop, Status},
    shown::plain,
};

/// Exit codes of `--check`. Another one: it could not look.
const FAULTY: u8 = 3;
const NO_AGENT: u8 = 4;

const NONE_RUNS: &str = "no agent runs: containers keep talking, but nobody follows the config file, \
    routes and neighbours, or answers for names: run `mesh up --config FILE`";

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
    /// Print what is wrong and nothing else. Exits with 0 if nothing is, with 3 if something is, and
    /// with 4 if no agent runs or it does not answer
    #[arg(long)]
    pub check: bool,
}

pub async fn run(args: StatusArgs, place: &Place) -> anyhow::Result<ExitCode> {
    let status = match look(place).await {
        Err(e) if args.check => {
            let (code, faults) = without_status(e)?;
            return check(&faults, code, args.json);
        }
        status => status?,
    };
    if args.check {
        let code = match (status.agent, status.all_faults.as_slice()) {
            (None, _) => NO_AGENT,
            (_, []) => 0,
            _ => FAULTY,
        };
        return check(&status.all_faults, code, args.json);
    }
    if args.json {
        print_json(&status)?;
    } else {
        print(&text(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn look(place: &Place) -> anyhow::Result<Status> {
    match session::open(place, &Request::Status, None, false).await? {
        Session::Agent(Response::Status(status)) => Ok(*status),
        Session::Agent(other) => bail!("the agent answered something else: {other:?}"),
        Session::Direct(mut host) => {
            host.faults().be_quiet();
            let mut status = host.status().await?;
            let mut faults = no_agent(NONE_RUNS.to_owned(), &status.addresses);
            faults.append(&mut status.all_faults);
            status.all_faults = faults;
            Ok(status)
        }
    }
}

/// What is wrong for the lack of an agent. `addresses`: those that it would answer for names by.
fn no_agent(why: String, addresses: &[IpAddr]) -> Vec<Fault> {
    let agent = Fault { of: Of::Agent, fault: why };
    let dns = doctor::dns_without_agent(addresses);
    [agent].into_iter().chain(dns.map(|fault| Fault { of: Of::Docker, fault })).collect()
}

/// What is wrong where there is no status to be had, with the exit code; fails where that is not to be
/// seen either.
fn without_status(e: anyhow::Error) -> anyhow::Result<(u8, Vec<Fault>)> {
    let text = super::failure::chain(&e);
    match e.downcast_ref::<NoAnswer>() {
        Some(NoAnswer::Refused(_)) => Ok((FAULTY, vec![Fault { of: Of::Host, fault: text }])),
        Some(_) => Ok((NO_AGENT, no_agent(text, &addresses_of_file()))),
        None if is_unseen(&e) => Err(e),
        // No agent runs, and what one before left makes no sense.
        None => {
            let mut faults = no_agent(NONE_RUNS.to_owned(), &[]);
            faults.push(Fault { of: Of::Host, fault: text });
            Ok((NO_AGENT, faults))
        }
    }
}

/// Those of all nodes, where only the config file is left to tell.
fn addresses_of_file() -> Vec<IpAddr> {
    let file = config::read(Path::new(super::DEFAULT_CONFIG)).ok();
    file.map(|(cluster, _)| super::doctor::addresses_of_nodes(&cluster)).unwrap_or_default()
}

/// It could not be looked into the run folder at all.
fn is_unseen(e: &anyhow::Error) -> bool {
    use io::ErrorKind::{NotADirectory, PermissionDenied};
    let mut causes = e.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|e| matches!(e.kind(), NotADirectory | PermissionDenied))
}

fn check(faults: &[Fault], code: u8, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        print_json(&serde_json::json!({ "faults": faults }))?;
    } else if !faults.is_empty() {
        print(&table_of(faults).trim_fmt())?;
    }
    Ok(ExitCode::from(code))
}

fn text(s: &Status) -> String {
    let mut out = head(s);
    section(&mut out, "NETWORKS", &networks(s));
    section(&mut out, "FAULTS", &table_of(&s.all_faults));
    section(&mut out, "PEERS", &peers(s));
    section(&mut out, "ENDPOINTS", &endpoints(s));
    section(&mut out, "GROUPS", &groups(s));
    section(&mut out, "PORTS", &ports(s));
    section(&mut out, "BRIDGES", &bridges(s));
    section(&mut out, "PROGRAMS", &programs(s));
    section(&mut out, "PACKETS", &hooks(s));
    section(&mut out, "DROPS", &drops(s));
    section(&mut out, "PAST FAULTS", &past_faults(s));
    out
}

fn head(s: &Status) -> String {
    let agent = s.agent.map_or_else(
        || "none runs; the data plane goes on without".to_owned(),
        |pid| format!("pid {pid}"),
    );
    let mut out = format!(
        "node        {} of {}\nunderlay    {}\noverlay     {}\nencap       {}, attached by {}\n\
         mtu         {}\ngeneration  {}\nagent       {agent}\n",
        s.node,
        s.cluster,
        s.underlay,
        join(&s.addresses),
        s.encap,
        s.attach_mode,
        s.mtu,
        s.generation,
    );
    if let Some(docker) = s.docker.as_ref().filter(|docker| docker.connected) {
        let driver = docker.plugin_socket.as_ref().map_or_else(
            || "no driver, as the config file says".to_owned(),
            |path| format!("driver at {}", path.display()),
        );
        let _ = writeln!(out, "docker      {}, {driver}", docker.socket.display());
    }
    out
}

fn section(out: &mut String, title: &str, table: &Table) {
    if !table.is_empty() {
        let _ = write!(out, "\n{title}\n{}\n", table.trim_fmt());
    }
}

fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().copied());
    table
}

/// What is shown may come from others: from processes, containers and nodes.
fn add<T: AsRef<str>>(table: &mut Table, cells: impl IntoIterator<Item = T>) {
    table.add_row(cells.into_iter().map(|cell| plain(cell.as_ref(), SHOWN_MAX)));
}

fn networks(s: &Status) -> Table {
    let mut table = table(&["name", "vni", "mtu", "cidr", "here"]);
    for n in &s.networks {
        add(
            &mut table,
            [
                n.name.clone(),
                n.vni.to_string(),
                n.mtu.to_string(),
                join(&n.cidrs),
                join(&n.subnets),
            ],
        );
    }
    table
}

fn table_of(faults: &[Fault]) -> Table {
    let mut table = table(&["of", "fault"]);
    for Fault { of, fault } in faults {
        add(&mut table, [&of.to_string(), fault]);
    }
    table
}

fn past_faults(s: &Status) -> Table {
    let mut table = table(&["of", "mended", "times", "fault"]);
    for past in &s.past_faults {
        let ago = format!("{} s ago", past.seconds_ago);
        add(&mut table, [&past.of.to_string(), &ago, &past.times.to_string(), &past.fault]);
    }
    table
}

fn peers(s: &Status) -> Table {
    let mut table =
        table(&["name", "underlay", "encap", "subnets", "next hop", "mtu", "sent", "received"]);
    for p in &s.peers {
        let next_hop = p.next_hop.as_ref().map_or_else(
            || "no route".to_owned(),
            |n| format!("{} {} ({})", n.ifname, n.address, n.state),
        );
        let mtu = p.next_hop.as_ref().map(path_mtu).unwrap_or_default();
        let (tx, rx) = (traffic(&p.tx), traffic(&p.rx));
        let port = p.port.map_or_else(String::new, |port| format!(" port {port}"));
        let encap = format!("{}{port}{}", p.encap, if p.managed { "" } else { ", foreign" });
        add(
            &mut table,
            [p.name.clone(), p.underlay.clone(), encap, join(&p.subnets), next_hop, mtu, tx, rx],
        );
    }
    table
}

/// With where it is known from, unless it is simply that of the interface.
fn path_mtu(hop: &NextHop) -> String {
    match (hop.mtu_from.as_str(), hop.mtu_expires) {
        ("interface", _) => hop.mtu.to_string(),
        (from, Some(seconds)) => format!("{} ({from}, for {seconds} s)", hop.mtu),
        (from, None) => format!("{} ({from})", hop.mtu),
    }
}

fn endpoints(s: &Status) -> Table {
    let mut table = table(&["name", "network", "address", "interface", "host", "sent", "received"]);
    for e in &s.endpoints {
        add(
            &mut table,
            [
                e.name.clone(),
                e.network.clone(),
                join(&e.addresses),
                // What is in a container that mesh did not make is known by its name.
                e.container.clone().unwrap_or_else(|| e.ifname.clone()),
                e.host_ifname.clone(),
                traffic(&e.tx),
                traffic(&e.rx),
            ],
        );
    }
    table
}

fn groups(s: &Status) -> Table {
    let mut table = table(&["network", "group", "endpoints here", "other nodes"]);
    for g in &s.groups {
        add(
            &mut table,
            [
                g.network.clone(),
                g.group.map_or_else(|| "all".to_owned(), |group| group.to_string()),
                g.endpoints.join(", "),
                g.nodes.join(", "),
            ],
        );
    }
    table
}

fn ports(s: &Status) -> Table {
    let mut table = table(&["host", "container", "endpoint"]);
    for e in &s.endpoints {
        let addresses = join(&e.addresses);
        for p in &e.ports {
            let at = p.host_ip.map_or_else(String::new, |ip| format!("{ip} "));
            add(
                &mut table,
                [
                    format!("{at}{}/{}", p.host_port, p.proto),
                    format!("{addresses} {}", p.port),
                    e.name.clone(),
                ],
            );
        }
    }
    table
}

fn bridges(s: &Status) -> Table {
    let mut table = table(&["name", "address", "ports"]);
    for b in &s.bridges {
        add(&mut table, [b.name.clone(), join(&b.addresses), b.ports.to_string()]);
    }
    table
}

fn programs(s: &Status) -> Table {
    let mut table = table(&["name", "hook", "interface", "side"]);
    for p in &s.programs {
        add(&mut table, [&p.name, &p.hook, &p.ifname, &p.side]);
    }
    table
}

fn hooks(s: &Status) -> Table {
    use mesh_common::verdict::Verdict;
    let mut columns = vec!["hook", "all"];
    columns.extend(Verdict::ALL.iter().map(|v| v.label()));
    let mut table = table(&columns);
    for h in &s.hooks {
        let mut row = vec![h.hook.clone(), h.packets.to_string()];
        let count = |v: &Verdict| h.verdicts.get(v.label()).copied().unwrap_or_default();
        row.extend(Verdict::ALL.iter().map(|v| count(v).to_string()));
        add(&mut table, row);
    }
    table
}

fn drops(s: &Status) -> Table {
    let mut table = table(&["hook", "reason", "packets", "meaning"]);
    for h in &s.hooks {
        for (label, n) in &h.drops {
            let meaning =
                DropReason::ALL.iter().find(|r| r.label() == label).map_or("", |r| r.describe());
            add(&mut table, [h.hook.clone(), label.clone(), n.to_string(), meaning.to_owned()]);
        }
    }
    table
}

fn traffic(c: &crate::host::Count) -> String {
    format!("{} / {}", c.packets, bytes(c.bytes))
}

/// With a unit, three digits or so.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
