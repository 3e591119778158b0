//! What mesh does by itself, measured by a test and judged by absolute bars.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use mesh_tests::{Figure, figure};
use serde::Serialize;

use super::{
    machine,
    results::{self, Better, Metric, Results, Row, Sample},
    table::number,
};
use crate::{
    artifacts,
    exec::{self, as_root, say},
    run::MESH_BIN,
    setup,
};

/// Where a figure of a workload ought to be.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    pub workload: &'static str,
    pub metric: &'static str,
    pub bar: f64,
}

/// How a bar was met or missed.
#[derive(Debug, Serialize)]
struct Verdict {
    workload: String,
    metric: String,
    unit: String,
    bar: f64,
    value: f64,
    met: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    results: Results,
    bars: Vec<Verdict>,
}

/// Tests that measure: the file in `tests/tests`, and names in it.
pub struct Source {
    pub file: &'static str,
    pub tests: &'static [&'static str],
    pub notes: &'static str,
    pub bars: &'static [Bar],
}

/// Builds, measures, prints.
pub fn run(source: &Source, quick: bool, json: bool) -> Result<ExitCode> {
    setup::compilers()?;
    ensure!(exec::can_be_root(), exec::how_to_be_root());
    setup::packages(setup::DEMO)?;
    let mesh = match std::env::var_os(MESH_BIN) {
        Some(mesh) => mesh.into(),
        None => artifacts::release()?.0,
    };
    let test = artifacts::test(source.file)?;
    let mut samples = Vec::new();
    for name in source.tests {
        let how = if quick { figure::QUICK } else { "full" };
        let vars = [(MESH_BIN, mesh.as_os_str()), (figure::MEASURE, how.as_ref())];
        let mut command = as_root(&test, vars);
        command.args(["--exact", name, "--include-ignored", "--nocapture"]);
        samples.extend(measure(&mut command)?);
    }
    let results = Results {
        machine: machine::machine(None, vec![source.notes.into()])?,
        results: results::summarize(&samples, &["mesh"], &[]),
        skipped: Vec::new(),
    };
    let bars = source.bars.iter().filter_map(|bar| bar.judge(&results.results)).collect();
    let report = Report { results, bars };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a test, and takes the figures out of what it prints.
fn measure(command: &mut Command) -> Result<Vec<Sample>> {
    say(exec::line(command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("start the test")?;
    let mut samples = Vec::new();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        samples.extend(Figure::on(&line?).into_iter().flat_map(of_each_round));
    }
    let status = child.wait()?;
    ensure!(status.success() && !samples.is_empty(), "{}: {status}", exec::line(command));
    Ok(samples)
}

fn of_each_round(figure: Figure) -> impl Iterator<Item = Sample> {
    let better = if figure.higher_is_better { Better::Higher } else { Better::Lower };
    let metric = Metric::new(&figure.metric, &figure.unit, better);
    figure.values.into_iter().enumerate().map(move |(round, value)| Sample {
        candidate: "mesh".into(),
        workload: figure.workload.clone(),
        metric: metric.clone(),
        round,
        value,
        disturbed: false,
    })
}

impl Bar {
    /// `None` if it was not measured.
    fn judge(&self, rows: &[Row]) -> Option<Verdict> {
        let is_it = |r: &&Row| r.workload == self.workload && r.metric.name == self.metric;
        let row = rows.iter().find(is_it)?;
        let met = match row.metric.better {
            Better::Higher => row.median >= self.bar,
            Better::Lower => row.median <= self.bar,
        };
        Some(Verdict {
            workload: row.workload.clone(),
            metric: row.metric.name.clone(),
            unit: row.metric.unit.clone(),
            bar: self.bar,
            value: row.median,
            met,
        })
    }
}

fn print(report: &Report) {
    let m = &report.results.machine;
    println!("{}, {} cores, Linux {}, {}", m.cpu, m.cores, m.kernel, m.date);
    m.notes.iter().for_each(|note| println!("{note}"));
    let mut table = plain(["", "", "unit", "median", "least", "most", "rounds"]);
    for row in &report.results.results {
        table.add_row([
            row.workload.clone(),
            row.metric.name.clone(),
            row.metric.unit.clone(),
            number(row.median),
            number(row.min),
            number(row.max),
            row.rounds.to_string(),
        ]);
    }
    println!("\n{table}");
    let mut table = plain(["bars", "", "unit", "bar", "median", ""]);
    for bar in &report.bars {
        table.add_row([
            bar.workload.clone(),
            bar.metric.clone(),
            bar.unit.clone(),
            number(bar.bar),
            number(bar.value),
            if bar.met { "met" } else { "missed" }.into(),
        ]);
    }
    println!("\n{table}");
}

fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_met_on_the_side_that_is_better() {
        let figures = [
            Figure::cost("w", "time", "ms", vec![5.0, 10.0, 30.0]),
            Figure::gain("w", "rate", "1/s", vec![2.0]),
        ];
        let samples: Vec<_> = figures.into_iter().flat_map(of_each_round).collect();
        let rows = results::summarize(&samples, &["mesh"], &[]);
        let met = |metric, bar| {
            Bar { workload: "w", metric, bar }.judge(&rows).map(|verdict| verdict.met)
        };
        assert_eq!((met("time", 10.0), met("time", 9.9)), (Some(true), Some(false)));
        assert_eq!((met("rate", 2.0), met("rate", 2.1)), (Some(true), Some(false)));
        assert_eq!(met("other", 1.0), None);
    }
}
