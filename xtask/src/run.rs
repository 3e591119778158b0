//! The demo: hosts and containers in namespaces, joined by the real agent.

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mesh_tests::{Encap, Options, Topology, Underlay, interrupt, removal};
use serde::Serialize;

use crate::{
    artifacts,
    exec::{self, say},
};

mod measure;
mod packet;
mod show;

/// Names the `mesh` to run, and says that it need not be built.
pub const MESH_BIN: &str = "MESH_BIN";

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Print the result as JSON, and nothing else on standard output
    #[arg(long)]
    pub json: bool,
    /// Leave the hosts standing and say how to enter them
    #[arg(long)]
    pub keep: bool,
    /// Remove what --keep left standing, and do nothing else
    #[arg(long, conflicts_with_all = ["json", "keep"])]
    pub clean: bool,
    /// The outer headers: gre, gretap, vxlan or geneve
    #[arg(long, default_value = "gre", value_parser = encap)]
    pub encap: Encap,
    /// IPv6 between the hosts
    #[arg(long)]
    pub ipv6: bool,
}

fn encap(text: &str) -> Result<Encap, String> {
    let found = Encap::ALL.into_iter().find(|encap| encap.name() == text);
    found.ok_or_else(|| "not gre, gretap, vxlan or geneve".into())
}

/// All that the demo found out; `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every check of every pair passed.
    pub ok: bool,
    pub encap: &'static str,
    pub underlay_mtu: u32,
    pub hosts: Vec<measure::HostRow>,
    pub pairs: Vec<measure::Pair>,
    pub packet: packet::Dissected,
    pub kept: Option<show::Kept>,
    pub seconds: f64,
}

/// Runs the demo, as root. The exit status is 1 if a check fails.
pub fn run(args: RunArgs) -> Result<ExitCode> {
    if !exec::is_root() {
        return Err(become_root(&args)?);
    }
    if args.clean {
        let removed = removal::remove_kept()?;
        say(if removed.is_empty() { "nothing to remove".into() } else { removed.join(", ") });
        return Ok(ExitCode::SUCCESS);
    }
    if env::var_os(MESH_BIN).is_none() {
        let mesh = artifacts::mesh()?;
        // SAFETY: no other thread runs yet.
        unsafe { env::set_var(MESH_BIN, mesh) };
    }
    for name in removal::sweep()? {
        say(format!("removed {name}, left behind by a run that was killed"));
    }
    let report = demo(&args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        show::report(&report);
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does not return if all is well. Builds first, so that what is built belongs to the user.
fn become_root(args: &RunArgs) -> Result<anyhow::Error> {
    let mut vars = Vec::new();
    if !args.clean {
        let mesh = match env::var_os(MESH_BIN) {
            Some(mesh) => mesh,
            None => artifacts::mesh()?.into(),
        };
        vars.push((MESH_BIN, mesh));
    }
    exec::again_as_root(&env::current_exe()?, vars)
}

fn demo(args: &RunArgs) -> Result<Report> {
    let start = Instant::now();
    let underlay = if args.ipv6 { Underlay::V6 } else { Underlay::V4 };
    let options =
        Options { hosts: 3, containers: 2, encap: args.encap, underlay, ..Options::default() };
    say(format!(
        "making {} hosts with {} containers each, in namespaces",
        options.hosts, options.containers
    ));
    let mut mesh = Topology::new(options)?;
    let name = mesh.name.clone();
    interrupt::on_interrupt(move || {
        say("interrupted, removing everything");
        removal::destroy(&name);
    })
    .context("catch Ctrl-C")?;
    say("starting an agent on each host, attaching the containers");
    mesh.up()?;
    let hosts = measure::hosts(&mesh)?;
    let pairs = measure::all_pairs(&mesh, |done, all, what| {
        say(format!("{done:2}/{all} {what}"));
    })?;
    say("catching one encapsulated packet");
    let packet = packet::catch(&mesh, Duration::from_secs(2))?;
    let kept = args.keep.then(|| show::Kept::of(&mesh)).transpose()?;
    if args.keep {
        mesh.keep()?;
    } else {
        say("removing everything");
        drop(mesh);
    }
    Ok(Report {
        ok: pairs.iter().all(|pair| pair.faults.is_empty()),
        encap: args.encap.name(),
        underlay_mtu: options.mtu,
        hosts,
        pairs,
        packet,
        kept,
        seconds: start.elapsed().as_secs_f64(),
    })
}
