//! `cargo xtask bench`: mesh against all that one would pick instead, side by side in one run.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use mesh_tests::{interrupt, removal};

use crate::{
    artifacts,
    exec::{self, say},
    run::MESH_BIN,
    setup, toolchain,
};

mod bars;
mod candidate;
mod compare;
mod docker;
mod figures;
mod machine;
mod page;
mod program;
pub mod results;
mod rounds;
mod scale;
mod table;
mod traffic;
mod tune;
mod usage;
mod vm;
mod workload;

use candidate::{Candidate, Standing};
use results::{Results, Sample, Skipped};
use rounds::{Plan, Tuned};
pub use traffic::run as traffic;
use tune::Tuner;
pub use vm::guest as in_guest;

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Fewer and shorter rounds: under a minute once built
    #[arg(long)]
    quick: bool,
    /// Print the results as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
    /// Measure the agent with 10 to 10,000 peers instead
    #[arg(long)]
    scale: bool,
    /// Measure the programs alone instead, with 10 to 1,000,000 entries in the maps
    #[arg(long, conflicts_with = "scale")]
    program: bool,
    /// Measure networks of mesh's Docker driver beside Docker's own overlay with etcd instead
    #[arg(long, conflicts_with_all = ["scale", "program"])]
    docker: bool,
    /// Which candidates to compare, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    candidates: Vec<String>,
    /// Which workloads to run, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    workloads: Vec<String>,
    /// How often everything is measured [default: 15, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Measure another agent too, as mesh-NAME; may be given several times
    #[arg(long, value_name = "NAME=PATH", value_parser = other_mesh)]
    mesh: Vec<(String, PathBuf)>,
    /// Tell what moved since the results that were last accepted
    #[arg(long)]
    compare: bool,
    /// Accept these results: what --compare compares with from now on
    #[arg(long)]
    accept: bool,
    /// Where to write the page with the plots [default: bench.html in the target folder]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Count instructions for each packet on this kernel instead, in an emulated machine: `6.1`,
    /// or as `cargo xtask vm` takes it
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,
}

fn other_mesh(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("not NAME=PATH")?;
    let path = fs::canonicalize(path).map_err(|e| format!("{path}: {e}"))?;
    Ok((name.into(), path))
}

/// Runs the benchmark, as root and by the release build, unless `MESH_BIN` says what to measure.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.scale {
        return figures::run(&scale::SCALE, args.quick, args.json);
    }
    if args.program {
        return figures::run(&program::PROGRAM, args.quick, args.json);
    }
    if let Some(kernel) = &args.vm {
        let candidates = chosen(&vm::candidates(), &args.candidates, |candidate| &candidate.name)?;
        let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 9 });
        let results = vm::run(kernel, rounds as usize, &candidates)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&results)?);
        } else {
            vm::print(&results);
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Before anything is built: a name that is wrong is told at once.
    let (candidates, plan) = (args.candidates()?, args.plan()?);
    let before = args.compare.then(|| compare::read(&accepted())).transpose()?;
    let Some(mesh) = env::var_os(MESH_BIN) else {
        setup::compilers()?;
        let (mesh, xtask) = artifacts::release()?;
        return Err(exec::again_as_root(&xtask, [(MESH_BIN, mesh)])?);
    };
    if !exec::is_root() {
        return Err(exec::again_as_root(&env::current_exe()?, [(MESH_BIN, mesh)])?);
    }
    setup::packages(&[setup::DEMO, setup::BENCH].concat())?;
    for name in removal::sweep()? {
        say(format!("removed {name}, left behind by a run that was killed"));
    }
    interrupt::on_interrupt(|| {
        say("interrupted, removing everything");
        removal::destroy_own();
    })
    .context("catch Ctrl-C")?;
    if args.docker {
        let rounds = args.rounds.unwrap_or(if args.quick { 2 } else { 7 });
        docker::run(rounds as usize, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (results, samples) = measure(&candidates, &plan)?;
    let moved = before.map(|before| compare::moved(&before, &results));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        table::print(&results);
        if let Some(moved) = &moved {
            table::print_moved(moved);
        }
    }
    let report = args.report.clone().unwrap_or_else(|| toolchain::target().join("bench.html"));
    fs::write(&report, page::render(&results, &samples, moved.as_deref())?)
        .with_context(|| format!("write {}", report.display()))?;
    say(format!("the same with plots: {}", report.display()));
    if args.accept {
        compare::write(&accepted(), &results)?;
        say(format!("accepted, as {}", accepted().display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A short run with that agent, which must measure everything and write the page.
pub fn smoke(mesh: &Path) -> Result<()> {
    let page = toolchain::target().join("bench-short.html");
    // Not by its path: building the tests may have put another in its place.
    let program = format!("/proc/{}/exe", process::id());
    let mut bench = exec::as_root(program, [(MESH_BIN, mesh)]);
    bench.args([
        "bench",
        "--quick",
        "--rounds=1",
        "--candidates=bare,mesh-gre",
        "--json",
        "--report",
    ]);
    let out = bench.arg(&page).stderr(Stdio::inherit()).output().context("run the bench")?;
    ensure!(out.status.success(), "bench: {}", out.status);
    let results: Results = serde_json::from_slice(&out.stdout).context("bench --json")?;
    for workload in workload::ALL {
        let count = results.of_workload(workload.name).len();
        ensure!(count > 0, "{} was not measured: {:?}", workload.name, results.skipped);
    }
    ensure!(fs::read_to_string(&page)?.contains("</html>"), "the page is not complete");
    Ok(())
}

/// The results that were last accepted.
fn accepted() -> PathBuf {
    toolchain::workspace().join("xtask/bench/accepted.json")
}

impl BenchArgs {
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let other = |(name, path): &(String, PathBuf)| Candidate::other_mesh(name, path.clone());
        let mut all = chosen(&candidate::all(), &self.candidates, |candidate| &candidate.name)?;
        all.extend(self.mesh.iter().map(other));
        Ok(all)
    }

    fn plan(&self) -> Result<Plan> {
        let workloads = chosen(workload::ALL, &self.workloads, |workload| workload.name)?;
        let (rounds, window) = if self.quick { (2, 200) } else { (15, 500) };
        let rounds = self.rounds.map_or(rounds, |rounds| rounds as usize);
        Ok(Plan { workloads, rounds, window: Duration::from_millis(window) })
    }
}

/// Those of `all` that are named, in their own order; all if none is named.
fn chosen<T: Clone>(all: &[T], names: &[String], name: impl Fn(&T) -> &str) -> Result<Vec<T>> {
    let known: Vec<&str> = all.iter().map(&name).collect();
    for name in names {
        ensure!(known.contains(&&**name), "no {name}; there are {}", known.join(", "));
    }
    let wanted = |item: &&T| names.is_empty() || names.iter().any(|n| n == name(item));
    Ok(all.iter().filter(wanted).cloned().collect())
}

fn measure(candidates: &[Candidate], plan: &Plan) -> Result<(Results, Vec<Sample>)> {
    let start = Instant::now();
    let (mut standing, mut skipped) = set_up(candidates)?;
    let mut machine = {
        let (first, _) = standing.first().context("no candidate can run here")?;
        machine::machine(first.underlay(), notes(plan))?
    };
    let (samples, failed) = rounds::run(plan, &mut standing);
    skipped.extend(failed);
    machine.notes.push(rounds::disturbance(&samples));
    say(format!("done in {} s, removing everything", start.elapsed().as_secs()));
    drop(standing);
    let names: Vec<&str> = candidates.iter().map(|candidate| &*candidate.name).collect();
    let others = candidates.iter().filter(|candidate| candidate.is_baseline());
    let baselines: Vec<&str> = others.map(|candidate| &*candidate.name).collect();
    let results = results::summarize(&samples, &names, &baselines);
    Ok((Results { machine, results, skipped }, samples))
}

/// All candidates that this machine can run, and why not the others.
fn set_up(candidates: &[Candidate]) -> Result<(Vec<Tuned>, Vec<Skipped>)> {
    let (mut standing, mut skipped) = (Vec::new(), Vec::new());
    for candidate in candidates {
        say(format!("setting up {}: {}", candidate.name, candidate.what));
        let tunable = |standing| Tuner::new(&standing).map(|tuner| (standing, tuner));
        match Standing::new(candidate).and_then(tunable) {
            Ok(both) => standing.push(both),
            Err(e) if candidate.must_run() => return Err(e.context(candidate.name.clone())),
            Err(e) => {
                let reason = format!("{e:#}");
                say(format!("skipping {}: {reason}", candidate.name));
                skipped.push(Skipped { candidate: candidate.name.clone(), reason });
            }
        }
    }
    Ok((standing, skipped))
}

fn notes(plan: &Plan) -> Vec<String> {
    let (mtu, rounds, window) = (candidate::UNDERLAY_MTU, plan.rounds, plan.window.as_millis());
    let mut notes = vec![
        format!(
            "two hosts in namespaces of one kernel, joined by a veth with an MTU of {mtu} bytes; \
             {rounds} rounds of {window} ms each, candidates in random order"
        ),
        "pinned: of TCP streams, the client and all of host 1 to CPU 0, the server and all of host 2 \
         to CPU 1; of udp-64, the sender to CPU 0 and the receiver to CPU 1; of all others, both \
         ends to CPU 0"
            .into(),
    ];
    if cfg!(debug_assertions) {
        notes.push("the traffic generators are not optimized: good for tests only".into());
    }
    notes
}
