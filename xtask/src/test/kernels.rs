//! The upper tiers on other kernels: the test binaries as built here, run in emulated machines.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use comfy_table::{Table, presets::NOTHING};
use mesh_tests::wait;

use super::{Heard, Tiers, verified::Verified};
use crate::{
    artifacts::Built,
    exec::say,
    report::{Outcome, Report},
    vm::{self, Ended, Guest, Kernel},
};

/// What `--kernel all` means.
const ALL: &str = "all";
/// Where the plain `cargo xtask test` goes besides this kernel, and with which tests: as old as mesh
/// takes it, without tcx and without the flags of newer kernels.
pub const ALWAYS: (&str, &str) = ("5.10", "progrun");

/// Emulation takes 20 to 40 times as long.
const LIMIT: Duration = Duration::from_secs(90 * 60);
/// Random packets for a fuzzer, unless the caller says.
const FUZZ_PACKETS: (&str, &str) = ("MESH_FUZZ_PACKETS", "300");
/// Packets for a map that changes, likewise.
const TORN_PACKETS: (&str, &str) = ("MESH_TORN_PACKETS", "20000");
/// By what a test's deadlines are multiplied.
const PATIENCE: (&str, &str) = (wait::PATIENCE, "10");
/// Tests of time, of which emulation says nothing.
const NOT_EMULATED: [&str; 2] = ["--skip", "perf"];

/// What became of each test binary on each kernel.
#[derive(Default)]
pub struct Matrix {
    kernels: Vec<String>,
    /// The test, and a cell for each kernel.
    rows: Vec<(String, Vec<String>)>,
    pub verified: Verified,
}

/// The kernels that a list names.
pub fn named(list: &[String]) -> Vec<String> {
    let all = || vm::SERIES.iter().map(ToString::to_string);
    list.iter()
        .flat_map(|name| if name == ALL { all().collect() } else { vec![name.clone()] })
        .collect()
}

impl Matrix {
    /// Runs the tests on one kernel, a step for each. Without that kernel, or qemu, and a way to
    /// get them they are skipped.
    pub fn run(
        &mut self,
        name: &str,
        tests: &[&Built],
        tiers: &mut Tiers,
        report: &mut Report,
    ) -> Result<()> {
        let mut chosen = Vec::new();
        for test in tests {
            let count = tiers.count(test)?;
            if count > 0 {
                chosen.push((test, count));
            }
        }
        if chosen.is_empty() {
            return Ok(());
        }
        let mut kernel = None;
        report.step(&format!("Linux {name}"), || {
            Ok(match vm::prepare(name) {
                Ok(found) => Outcome::Passed(kernel.insert(found).version.clone()),
                Err(e) => Outcome::Skipped(format!("{e:#}")),
            })
        });
        let Some(kernel) = kernel else { return Ok(()) };
        self.kernels.push(kernel.version.clone());
        for (test, count) in chosen {
            tiers.ran += count;
            tiers.find_ovs(test, report);
            self.step(&kernel, test, count, tiers, report);
        }
        Ok(())
    }

    fn step(
        &mut self,
        kernel: &Kernel,
        test: &Built,
        count: usize,
        tiers: &Tiers,
        report: &mut Report,
    ) {
        let name = format!("Linux {}: {}", kernel.version, test.name);
        let mut output = Shown::default();
        let start = Instant::now();
        let mut heard = Heard::default();
        let mut cell = "FAILED";
        report.step(&name, || {
            let guest = Guest { limit: LIMIT, ..Guest::new(kernel) };
            let ended = guest.run(&command(tiers, test), &mut output);
            let text = String::from_utf8_lossy(&output.all);
            text.lines().for_each(|line| heard.line(line));
            self.verified.read(&text);
            let failures = heard.failures();
            let outcome = match ended? {
                Ended::Exited(0) => {
                    cell = "passed";
                    Outcome::Passed(format!("{count} tests"))
                }
                Ended::Exited(code) => {
                    Outcome::Failed(format!("{count} tests: status {code}{failures}"))
                }
                Ended::TimedOut => {
                    let limit = LIMIT.as_secs() / 60;
                    Outcome::Failed(format!("not done after {limit} min{failures}"))
                }
                Ended::Died(console) => Outcome::Failed(format!("the kernel died:\n{console}")),
            };
            Ok(outcome)
        });
        let mut cell = format!("{cell}, {} s", start.elapsed().as_secs());
        for why in heard.skips() {
            cell += &format!("\nskipped: {why}");
            report.skip(&name, why);
        }
        self.cell(&test.name, cell);
    }

    fn cell(&mut self, test: &str, cell: String) {
        let row = match self.rows.iter().position(|(name, _)| name == test) {
            Some(row) => row,
            None => {
                self.rows.push((test.to_owned(), Vec::new()));
                self.rows.len() - 1
            }
        };
        let cells = &mut self.rows[row].1;
        cells.resize(self.kernels.len() - 1, String::new());
        cells.push(cell);
    }

    /// Prints the table, and compares what the verifiers took with what they took before.
    pub fn finish(self, record: bool, report: &mut Report) {
        if self.kernels.is_empty() {
            return;
        }
        let mut table = Table::new();
        let header = ["test"].into_iter().chain(self.kernels.iter().map(String::as_str));
        table.load_style(NOTHING).set_header(header);
        for (test, cells) in self.rows {
            table.add_row([test].into_iter().chain(cells));
        }
        eprintln!("\n{table}");
        say(format!(
            "of the tests, `{}` is for real machines only; fuzzers ran {} packets, and {} met each map \
             that changed",
            NOT_EMULATED[1],
            env::var(FUZZ_PACKETS.0).as_deref().unwrap_or(FUZZ_PACKETS.1),
            env::var(TORN_PACKETS.0).as_deref().unwrap_or(TORN_PACKETS.1),
        ));
        report.step("verifier", || self.verified.compare(record));
    }
}

fn command(tiers: &Tiers, test: &Built) -> Command {
    let mut command = Command::new(&test.path);
    let given: Vec<(OsString, OsString)> = tiers.vars(test, None);
    command.envs([FUZZ_PACKETS, TORN_PACKETS, PATIENCE]).envs(given).current_dir(&test.package);
    command.arg("--show-output").args(tiers.filter(test)).args(NOT_EMULATED);
    command
}

/// Shows what it is given, and keeps it.
#[derive(Default)]
struct Shown {
    all: Vec<u8>,
}

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = io::stdout().write(bytes)?;
        self.all.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
