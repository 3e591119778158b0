//! What an agent with many peers costs: time, memory, CPU. `cargo xtask bench --scale`.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_common::maps::{Addr, PeerKey};
use mesh_tests::{ClusterFile, Figure, figure, scenario::bare};

use super::large::{Large, config, key, moved};

/// Peers, and subnets of each.
const SIZES: [(u32, u32); 4] = [(10, 1), (1000, 1), (10_000, 1), (10_000, 10)];

/// Of so many entries that are looked for each is there: then all are, or all but very few.
const PROBES: usize = 200;

#[test]
#[ignore = "measures: `cargo xtask bench --scale`"]
fn measure() {
    let quick = figure::measure().unwrap_or(true);
    // For this and the agent: what else runs on the machine is not to be measured.
    rustix::process::nice(-20).expect("the highest priority");
    for (peers, subnets) in SIZES {
        let name = match subnets {
            1 => format!("{peers} peers"),
            _ => format!("{peers} peers, {} subnets", peers * subnets),
        };
        eprintln!("measuring an agent with {name}");
        bare(Large::OPTIONS, |topology| {
            let mut large = Large::new(topology, peers, subnets)?;
            let figures = figures(&mut large, &name, (peers, subnets), if quick { 3 } else { 11 })?;
            figures.iter().for_each(Figure::print);
            large.host().down()
        });
    }
}

fn figures(
    large: &mut Large<'_>,
    name: &str,
    (peers, subnets): (u32, u32),
    rounds: u32,
) -> Result<Vec<Figure>> {
    let full = large.config.clone();
    let start = start(large)?;
    let changes = (0..rounds).map(|turn| change(large, &moved(&full, turn)));
    let (changes, work) = changes.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let resident = large.resident_bytes()? as f64 / 1e6;
    let idle = idle(large)?;
    let restarts = (0..rounds).map(|turn| restart(large, &moved(&full, rounds + turn)));
    let restarts = restarts.collect::<Result<Vec<_>>>()?;
    let fills = (0..rounds).map(|_| fill(large, &config(1, subnets), &full));
    let fills = fills.collect::<Result<Vec<_>>>()?;
    // Each peer, who it is, and its subnets.
    let entries = f64::from(peers * (2 + subnets));
    let rates = fills.iter().map(|ms| entries / ms / 1e3).collect();
    Ok(vec![
        Figure::cost(name, "start", "ms", vec![start]),
        Figure::cost(name, "restart", "ms", restarts),
        Figure::cost(name, "change to kernel", "ms", changes),
        Figure::cost(name, "CPU for a change", "ms", work),
        Figure::cost(name, "resident", "MB", vec![resident]),
        Figure::cost(name, "CPU when idle", "ms/s", vec![idle]),
        Figure::gain(name, "map fill", "M entries/s", rates),
    ])
}

/// From the start of the process, on a host where there is no mesh, to the last entry.
fn start(large: &mut Large<'_>) -> Result<f64> {
    let start = Instant::now();
    large.start()?;
    large.wait_for(&large.config.clone())?;
    let took = ms(start);
    large.wait_idle()?;
    Ok(took)
}

/// From the start of the process, on the maps that the last one left, to an entry that changed
/// meanwhile.
fn restart(large: &mut Large<'_>, changed: &ClusterFile) -> Result<f64> {
    large.kill();
    large.write(changed)?;
    start(large)
}

/// From the new file to the new entry; and the CPU time until all is done.
fn change(large: &mut Large<'_>, changed: &ClusterFile) -> Result<(f64, f64)> {
    let before = large.cpu_ns()?;
    let start = large.write(changed)?;
    large.wait_for(changed)?;
    let took = ms(start);
    large.wait_idle()?;
    Ok((took, (large.cpu_ns()? - before) as f64 / 1e6))
}

/// From a file with all peers in place of one with hardly any to all the entries.
fn fill(large: &mut Large<'_>, few: &ClusterFile, all: &ClusterFile) -> Result<f64> {
    large.write(few)?;
    large.wait_idle()?;
    let step = (all.nodes.len() / PROBES).max(1);
    let probes = || all.nodes.iter().skip(1).rev().step_by(step);
    let source = |address: &str| {
        let outer_source = Addr::from(address.parse::<std::net::IpAddr>().expect("an address"));
        PeerKey { outer_source, vni: 0 }
    };
    let prefixes: Vec<_> = probes().flat_map(|n| &n.subnet).map(|subnet| key(subnet)).collect();
    let sources: Vec<_> = probes().map(|n| source(&n.underlay)).collect();
    let start = large.write(all)?;
    large.wait_until("all entries", |tables| {
        let mut sources = sources.iter().map(|key| tables.peer_by_addr.get(key));
        let mut prefixes = prefixes.iter().map(|key| tables.fib.get(key));
        Ok(sources.all(|s| s.is_ok_and(|s| s.is_some()))
            && prefixes.all(|p| p.is_ok_and(|p| p.is_some())))
    })?;
    let took = ms(start);
    large.wait_idle()?;
    Ok(took)
}

/// Milliseconds of CPU in a second in which nothing happens.
fn idle(large: &mut Large<'_>) -> Result<f64> {
    const WINDOW: Duration = Duration::from_secs(3);
    large.wait_idle()?;
    let before = large.cpu_ns()?;
    std::thread::sleep(WINDOW);
    Ok((large.cpu_ns()? - before) as f64 / 1e6 / WINDOW.as_secs_f64())
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
