//! `cargo xtask test`: the tiers, from the quickest up. What this machine can not run is said and,
//! where that is forbidden, a failure.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::{ArgAction, Args, builder::FalseyValueParser};
use mesh_tests::ovs;

use crate::{
    artifacts::{self, Built},
    bench,
    exec::{self, as_root, cargo, succeeds},
    report::{Outcome, Report},
    setup, toolchain,
};

mod heard;
mod kernels;
mod runtimes;
mod verified;

use heard::Heard;
use kernels::Matrix;
use runtimes::{Engine, Runtimes, is_of_docker, needs_runtimes};

#[derive(Debug, Args)]
pub struct TestArgs {
    /// Fail if anything is skipped
    #[arg(long, env = "CI", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub no_skip: bool,
    /// Run the tests of programs and hosts on these kernels instead, in emulated machines: as
    /// `6.1,6.12`, or `all`
    #[arg(long, value_name = "KERNELS", value_delimiter = ',')]
    pub kernel: Vec<String>,
    /// Keep what the verifiers took as what they may take (tests/verified.json)
    #[arg(long)]
    pub record: bool,
    /// Run only the tests with real container runtimes: Docker, podman, containerd
    #[arg(long)]
    pub docker: bool,
    /// Run only tests with this in their own name or in that of their file
    pub filter: Option<String>,
}

/// Forbids a test to skip itself: where it can not run, it fails.
const NO_SKIP: &str = "MESH_TESTS_NO_SKIP";
/// The last step, and its name for the filter.
const BENCH: &str = "bench: a short run";

/// The tests of this run, and what they are told.
struct Tiers {
    filter: Option<String>,
    /// `MESH_BIN`: the agent to test.
    agent: PathBuf,
    no_skip: bool,
    ran: usize,
    /// Once they were asked for.
    runtimes: Option<Runtimes>,
    /// Where it is, once it was asked for.
    ovs: Option<PathBuf>,
}

pub fn run(args: TestArgs) -> Result<()> {
    let mut report = Report::default();
    let no_skip = args.no_skip;
    tiers(args, &mut report)?;
    report.finish(no_skip)
}

/// Sets up, builds, and adds a step for each tier to the report.
fn tiers(args: TestArgs, report: &mut Report) -> Result<()> {
    setup::compilers()?;
    let no_privilege = privilege().err();
    let mut built = Vec::new();
    let mut agent = PathBuf::new();
    report.step("build", || {
        (agent, built) = artifacts::tests()?;
        Ok(Outcome::Passed(String::new()))
    });
    if built.is_empty() {
        return Ok(());
    }
    if args.docker {
        built.retain(needs_runtimes);
    }
    let mut tiers = Tiers {
        filter: args.filter,
        agent,
        no_skip: args.no_skip,
        ran: 0,
        runtimes: None,
        ovs: None,
    };
    let (mut upper, unit): (Vec<_>, Vec<_>) = built.into_iter().partition(is_upper);
    // Single programs before whole hosts: what fails first is nearest to the cause.
    upper.sort_by_key(|test| (!test.name.starts_with("prog"), test.name.clone()));
    if args.kernel.is_empty() {
        tiers.native(&unit, &upper, no_privilege.as_ref(), report)?;
        tiers.oldest(&upper, report)?;
    } else {
        let upper: Vec<_> = upper.iter().filter(|test| !needs_runtimes(test)).collect();
        let mut matrix = Matrix::default();
        for name in kernels::named(&args.kernel) {
            matrix.run(&name, &upper, &mut tiers, report)?;
        }
        matrix.finish(args.record, report);
    }
    let is_wanted = tiers.filter.as_ref().is_none_or(|filter| BENCH.contains(filter.as_str()));
    if is_wanted && !args.docker {
        tiers.ran += 1;
        report.step(BENCH, || match &no_privilege {
            Some(why) => Ok(Outcome::Skipped(format!("{why:#}"))),
            None => bench::smoke(&tiers.agent).map(|()| Outcome::Passed(String::new())),
        });
    }
    match (&tiers.filter, tiers.ran) {
        (Some(filter), 0) => bail!("no test ran: is there one with `{filter}` in its name?"),
        (None, 0) => bail!("no test ran"),
        _ => Ok(()),
    }
}

/// Whether the upper tiers can run: root that may make namespaces, and the commands tests call.
fn privilege() -> Result<()> {
    if !exec::can_be_root() {
        bail!(exec::how_to_be_root());
    }
    let no_vars: [(&str, &str); 0] = [];
    if !succeeds(as_root("unshare", no_vars).args(["--net", "--mount", "true"])) {
        bail!("root may not make namespaces here: in a container, run it with --privileged");
    }
    setup::packages(&[setup::DEMO, setup::BENCH, setup::TESTS].concat())
}

/// Tests with a real Open vSwitch.
fn uses_ovs(test: &Built) -> bool {
    is_upper(test) && test.name == "interop"
}

/// Tests of whole programs and hosts, in `tests/tests`.
fn is_upper(test: &Built) -> bool {
    test.kind == "test" && test.package == toolchain::workspace().join("tests")
}

impl Tiers {
    /// All tests, on this machine as it is.
    fn native(
        &mut self,
        unit: &[Built],
        upper: &[Built],
        no_privilege: Option<&anyhow::Error>,
        report: &mut Report,
    ) -> Result<()> {
        for test in unit {
            self.step(test, None, report)?;
        }
        if self.filter.is_none() && !unit.is_empty() {
            report.step("unit: examples in docs", || {
                exec::run(cargo("test").args(["--doc", "--quiet"]).args(artifacts::TESTED))?;
                Ok(Outcome::Passed(String::new()))
            });
        }
        for test in upper {
            self.step(test, no_privilege, report)?;
        }
        Ok(())
    }

    /// The part that every run tests on another kernel too.
    fn oldest(&mut self, upper: &[Built], report: &mut Report) -> Result<()> {
        let (name, test) = kernels::ALWAYS;
        let tests: Vec<_> = upper.iter().filter(|built| built.name == test).collect();
        if tests.is_empty() {
            return Ok(());
        }
        let mut matrix = Matrix::default();
        matrix.run(name, &tests, self, report)?;
        matrix.finish(false, report);
        Ok(())
    }

    /// Runs one test binary as a step of its own; none if the filter leaves nothing of it.
    fn step(
        &mut self,
        test: &Built,
        no_privilege: Option<&anyhow::Error>,
        report: &mut Report,
    ) -> Result<()> {
        let count = self.count(test)?;
        if count == 0 {
            return Ok(());
        }
        self.ran += count;
        let name = title(test);
        if let (true, Some(why)) = (is_upper(test), no_privilege) {
            report.step(&name, || Ok(Outcome::Skipped(format!("{count} tests: {why:#}"))));
            return Ok(());
        }
        if !needs_runtimes(test) {
            self.find_ovs(test, report);
            self.step_with(&name, test, count, None, report);
            return Ok(());
        }
        if let Err(why) = self.find_runtimes() {
            let why = format!("{count} tests: no container runtimes: {why:#}");
            report.step(&name, || Ok(Outcome::Skipped(why)));
            return Ok(());
        }
        let Some(runtimes) = &self.runtimes else { return Ok(()) };
        for engine in runtimes.engines(test) {
            let name = format!("{name}, Docker {}", engine.version);
            self.step_with(&name, test, count, Some(engine), report);
        }
        if let Some(why) = runtimes.lacking.as_ref().filter(|_| is_of_docker(test)) {
            report.skip(&format!("{name}, the newest Docker"), format!("{count} tests: {why}"));
        }
        Ok(())
    }

    /// One run of a test binary, with a Docker engine if it needs one.
    fn step_with(
        &self,
        name: &str,
        test: &Built,
        count: usize,
        engine: Option<&Engine>,
        report: &mut Report,
    ) {
        let mut heard = Heard::default();
        report.step(name, || {
            let status = self.run(test, engine, &mut heard)?;
            let failures = heard.failures();
            Ok(match status.success() {
                true => Outcome::Passed(format!("{count} tests")),
                false => Outcome::Failed(format!("{count} tests: {status}, see above{failures}")),
            })
        });
        for why in heard.skips() {
            report.skip(name, why);
        }
    }

    fn find_runtimes(&mut self) -> Result<()> {
        if self.runtimes.is_none() {
            self.runtimes = Some(Runtimes::find()?);
        }
        Ok(())
    }

    /// Open vSwitch, if the test has a use for it. Without it a part of the test skips itself.
    fn find_ovs(&mut self, test: &Built, report: &mut Report) {
        if !uses_ovs(test) || self.ovs.is_some() {
            return;
        }
        match setup::open_vswitch() {
            Ok(root) => self.ovs = Some(root),
            Err(why) => report.skip(&title(test), format!("{why:#}")),
        }
    }

    /// Runs a test binary and shows what it prints.
    fn run(&self, test: &Built, engine: Option<&Engine>, heard: &mut Heard) -> Result<ExitStatus> {
        let mut command = self.command(test, engine);
        // What passing tests print is shown as well: tables of measurements, and what they skip.
        command.arg("--show-output").args(self.filter(test));
        command.current_dir(&test.package).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| exec::line(&command))?;
        let stdout = child.stdout.take().context("a child without stdout")?;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            heard.line(&line);
        }
        Ok(child.wait()?)
    }

    fn command(&self, test: &Built, engine: Option<&Engine>) -> Command {
        let vars = self.vars(test, engine);
        if is_upper(test) {
            return as_root(&test.path, vars);
        }
        let mut command = Command::new(&test.path);
        command.envs(vars);
        command
    }

    /// What a test sees of the environment.
    fn vars(&self, test: &Built, engine: Option<&Engine>) -> Vec<(OsString, OsString)> {
        let mut vars: Vec<(OsString, OsString)> = env::vars_os().filter(is_for_tests).collect();
        for (name, value) in [("MESH_BIN", &*self.agent), ("CARGO_MANIFEST_DIR", &*test.package)] {
            vars.push((name.into(), Path::new(value).into()));
        }
        if let (Some(runtimes), Some(engine)) = (&self.runtimes, engine) {
            vars.extend(runtimes.vars(engine));
        }
        if let Some(root) = self.ovs.as_ref().filter(|_| uses_ovs(test)) {
            vars.push((ovs::ROOT.into(), root.into()));
        }
        if self.no_skip {
            vars.push((NO_SKIP.into(), "1".into()));
        }
        vars
    }

    /// What is left to choose within a test binary.
    fn filter(&self, test: &Built) -> Option<&String> {
        self.filter.as_ref().filter(|filter| !test.name.contains(filter.as_str()))
    }

    /// Tests of a binary that the filter leaves.
    fn count(&self, test: &Built) -> Result<usize> {
        let mut list = Command::new(&test.path);
        list.args(["--list", "--format=terse"]).args(self.filter(test));
        list.current_dir(&test.package);
        let out = list.output().with_context(|| exec::line(&list))?;
        if !out.status.success() {
            bail!("{} failed ({})", exec::line(&list), out.status);
        }
        let names = String::from_utf8_lossy(&out.stdout);
        Ok(names.lines().filter(|line| line.ends_with(": test")).count())
    }
}

/// What of the caller's environment a test as root still sees.
fn is_for_tests((name, _): &(OsString, OsString)) -> bool {
    let prefixes = [&b"MESH_"[..], b"PROPTEST_", b"RUST_"];
    prefixes.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix))
}

fn title(test: &Built) -> String {
    let package = test.package.file_name().and_then(OsStr::to_str).unwrap_or("?");
    match test.kind.as_str() {
        _ if is_upper(test) => format!("hosts: {}", test.name),
        "test" => format!("unit: {package}/{}", test.name),
        _ => format!("unit: {package}"),
    }
}
