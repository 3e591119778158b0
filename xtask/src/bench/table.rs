//! The results, for people.

use comfy_table::{CellAlignment, Table, presets};

use super::{
    bars::{self, BARS},
    compare::{Moved, NOISE},
    results::{Results, Row},
    workload,
};

/// Baselines with a column of their own, where they were measured.
const COLUMNS: [&str; 4] = ["bare", "routed", "kernel-gre", "vxlan-bridge"];

pub fn print(results: &Results) {
    print_as(results, workload::ALL.iter().map(|workload| (workload.name, workload.what)));
}

/// With each workload's name and what it is.
pub fn print_as<'a>(results: &Results, workloads: impl Iterator<Item = (&'a str, &'a str)>) {
    let m = &results.machine;
    println!("{}, {} cores, Linux {}, {}", m.cpu, m.cores, m.kernel, m.date);
    m.notes.iter().for_each(|note| println!("{note}"));
    for (name, what) in workloads {
        let rows = results.of_workload(name);
        if !rows.is_empty() {
            println!("\n{name}: {what}\n{}", block(&rows));
        }
    }
    goals(results);
    for skipped in &results.skipped {
        println!("\nskipped {}: {}", skipped.candidate, skipped.reason);
    }
}

/// Bars down, mesh's candidates across.
fn goals(results: &Results) {
    let candidates = bars::candidates(results);
    let header = ["bars", "bar", "dream"].into_iter().chain(candidates.iter().copied());
    let mut table = plain(header);
    for bar in BARS {
        let verdicts: Vec<_> = candidates.iter().map(|c| bar.judge(results, c)).collect();
        let Some(some) = verdicts.iter().flatten().next() else { continue };
        let goals = [format!("{} {:.2}", some.better.sign(), bar.bar), format!("{:.2}", bar.dream)];
        let cells = verdicts.iter().map(|verdict| match verdict {
            Some(v) => format!("{:.2} {}", v.ratio, v.word()),
            None => "-".into(),
        });
        table.add_row([bar.title()].into_iter().chain(goals).chain(cells));
    }
    if !table.is_empty() {
        println!("\n{table}");
    }
}

/// What differs from the results accepted before.
pub fn print_moved(moved: &[Moved]) {
    if moved.is_empty() {
        println!("\nnothing moved by more than {:.0} %", NOISE * 100.0);
        return;
    }
    let mut table = plain(["moved", "", "before", "now", "", ""]);
    for m in moved {
        table.add_row([
            m.candidate.clone(),
            format!("{} {} {}", m.workload, m.metric, m.of),
            number(m.before),
            number(m.after),
            format!("{:+.0} %", m.change() * 100.0),
            if m.better { "better" } else { "WORSE" }.into(),
        ]);
    }
    println!("\n{table}");
}

/// A table without lines, its figures to the right.
fn plain<T: Into<comfy_table::Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.into_iter().map(Into::into).collect::<Vec<_>>());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The rows of one workload: candidates down, metrics across, and ratios of the first metric.
fn block(rows: &[&Row]) -> Table {
    let first = &rows[0].metric;
    let mut metrics = Vec::new();
    for row in rows {
        if !metrics.contains(&&row.metric) {
            metrics.push(&row.metric);
        }
    }
    let main: Vec<_> = rows.iter().filter(|row| row.metric == *first).collect();
    let ratios = || main.iter().flat_map(|row| row.ratio.keys().map(String::as_str));
    let mut bases: Vec<_> = COLUMNS.into_iter().filter(|b| ratios().any(|r| r == *b)).collect();
    for other_mesh in ratios().filter(|base| base.starts_with("mesh-")) {
        if !bases.contains(&other_mesh) {
            bases.push(other_mesh);
        }
    }

    let mut header = vec!["".to_owned(), format!("{} {}", first.name, first.unit), "spread".into()];
    header.extend(bases.iter().map(|base| format!("/{base}")));
    header.extend(metrics.iter().skip(1).map(|m| format!("{} {}", m.name, m.unit)));
    header.push("rounds".into());
    let mut table = plain(header);
    for row in main {
        let mut cells = vec![
            row.candidate.clone(),
            number(row.median),
            format!("{}-{}", number(row.min), number(row.max)),
        ];
        cells.extend(
            bases
                .iter()
                .map(|base| row.ratio.get(*base).map_or("-".into(), |ratio| format!("{ratio:.2}"))),
        );
        for metric in metrics.iter().skip(1) {
            let other = rows.iter().find(|r| r.candidate == row.candidate && r.metric == **metric);
            cells.push(other.map_or("-".into(), |other| number(other.median)));
        }
        cells.push(match row.disturbed {
            0 => row.rounds.to_string(),
            n => format!("{}, {n} disturbed", row.rounds),
        });
        table.add_row(cells);
    }
    table
}

/// With three digits that matter, and a k for thousands.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 99_950.0 => format!("{:.0}k", value / 1e3),
        v if v >= 9999.5 => format!("{:.1}k", value / 1e3),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_digits() {
        let shown = [0.0, 1.234, 12.34, 123.4, 1234.0, 456_789.0].map(number);
        assert_eq!(shown, ["0.00", "1.23", "12.3", "123", "1234", "457k"]);
    }
}
