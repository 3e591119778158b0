//! The results as one HTML file that needs nothing else: no scripts, no fonts, no network.

use std::fmt::{Display, Write as _};

use anyhow::Result;

use super::{
    bars::{self, BARS},
    compare::{Moved, NOISE},
    results::{Machine, Metric, Results, Row, Sample},
    table::number,
    workload::{self, Workload},
};

mod plot;

const STYLE: &str = include_str!("page/style.css");

/// The page. `moved`: what differs from the results accepted before, if that was asked for.
pub fn render(results: &Results, samples: &[Sample], moved: Option<&[Moved]>) -> Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>mesh, measured</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>mesh, measured</h1>\n"
    );
    page += &machine(&results.machine);
    page += &overview(results);
    page += &goals(results);
    if let Some(moved) = moved {
        page += &movements(moved);
    }
    page += "<h2>Workload by workload</h2>\n<p>A bar ends at the median of all rounds; a dot is one \
             round, hollow if others used the machine meanwhile. Ratios are of the same round, and \
             the median of those.</p>\n";
    for workload in workload::ALL {
        page += &section(workload, results, samples)?;
    }
    page += &skipped(results);
    Ok(page + "</body>\n</html>\n")
}

fn machine(machine: &Machine) -> String {
    let onoff = |(name, on): (&String, &bool)| format!("{name} {}", if *on { "on" } else { "off" });
    let offloads: Vec<_> = machine.offloads.iter().map(onoff).collect();
    let facts = [
        ("date", machine.date.clone()),
        ("CPU", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("governor", machine.governor.clone().unwrap_or_else(|| "not shown".into())),
        ("underlay offloads", offloads.join(", ")),
        ("mitigations", machine.mitigations.join("; ")),
        ("set-up", machine.notes.join("; ")),
    ];
    let row = |(name, value): &(&str, String)| {
        format!("<tr><th>{name}</th><td>{}</td></tr>\n", escaped(value))
    };
    format!("<table class=\"facts\">\n{}</table>\n", facts.iter().map(row).collect::<String>())
}

/// Every candidate's ratio to `bare` under each workload, by its most telling metric.
fn overview(results: &Results) -> String {
    let measured: Vec<_> =
        workload::ALL.iter().filter_map(|w| Some((w, main_metric(results, w)?))).collect();
    let mut candidates: Vec<&str> = Vec::new();
    for row in &results.results {
        if !candidates.contains(&&*row.candidate) {
            candidates.push(&row.candidate);
        }
    }
    let mut text = String::from(
        "<h2>Against bare</h2>\n<p>How many times as fast as host to host without containers or \
         encapsulation: above 1 is faster, whatever the metric.</p>\n<table>\n<tr><th></th>",
    );
    for (workload, metric) in &measured {
        _ = write!(text, "<th>{}<br><small>{}</small></th>", workload.name, metric.name);
    }
    text += "</tr>\n";
    for candidate in candidates {
        let ours = if candidate.starts_with("mesh-") { " class=\"ours\"" } else { "" };
        _ = write!(text, "<tr{ours}><th>{}</th>", escaped(candidate));
        for (workload, metric) in &measured {
            let row = results.row(candidate, workload.name, &metric.name);
            text += &row.map_or_else(|| "<td>-</td>".into(), speed);
        }
        text += "</tr>\n";
    }
    text + "</table>\n"
}

/// A cell: how many times as fast as `bare`, the redder the slower.
fn speed(row: &Row) -> String {
    let ratio = match row.ratio.get("bare") {
        Some(ratio) => *ratio,
        None if row.candidate == "bare" => 1.0,
        None => return "<td>-</td>".into(),
    };
    let speed = match row.metric.better {
        super::results::Better::Higher => ratio,
        super::results::Better::Lower => 1.0 / ratio,
    };
    let share = ((1.0 - speed).clamp(0.0, 0.6) * 100.0).round();
    format!("<td style=\"background:rgba(220,38,38,{:.2})\">{speed:.2}</td>", share / 100.0)
}

fn goals(results: &Results) -> String {
    let candidates = bars::candidates(results);
    let judged =
        BARS.iter().filter(|bar| candidates.iter().any(|c| bar.judge(results, c).is_some()));
    let rows: String = judged.map(|bar| goal(bar, results, &candidates)).collect();
    if rows.is_empty() {
        return rows;
    }
    let heads: String = candidates.iter().map(|c| format!("<th>{}</th>", escaped(c))).collect();
    format!(
        "<h2>The bar</h2>\n<p>What mesh wants to reach, as ratios.</p>\n<table>\n\
         <tr><th></th><th>bar</th><th>dream</th>{heads}</tr>\n{rows}</table>\n"
    )
}

fn goal(bar: &bars::Bar, results: &Results, candidates: &[&str]) -> String {
    let verdicts: Vec<_> = candidates.iter().map(|c| bar.judge(results, c)).collect();
    let sign = verdicts.iter().flatten().next().map_or("", |v| v.better.sign());
    let mut text = format!(
        "<tr><th>{}</th><td>{sign} {:.2}</td><td>{:.2}</td>",
        bar.title(),
        bar.bar,
        bar.dream
    );
    for verdict in verdicts {
        let Some(verdict) = verdict else {
            text += "<td>-</td>";
            continue;
        };
        let class = if verdict.met { "met" } else { "missed" };
        _ = write!(text, "<td class=\"{class}\">{:.2} {}</td>", verdict.ratio, verdict.word());
    }
    text + "</tr>\n"
}

fn movements(moved: &[Moved]) -> String {
    let percent = NOISE * 100.0;
    let mut text = format!(
        "<h2>What moved</h2>\n<p>Since the accepted results, by more than {percent:.0} %.</p>\n"
    );
    if moved.is_empty() {
        return text + "<p>Nothing.</p>\n";
    }
    text += "<table>\n<tr><th></th><th></th><th>before</th><th>now</th><th></th></tr>\n";
    for m in moved {
        let class = if m.better { "met" } else { "missed" };
        _ = writeln!(
            text,
            "<tr><th>{}</th><td>{} {} {}</td><td>{}</td><td>{}</td><td class=\"{class}\">{:+.0} %</td></tr>",
            escaped(&m.candidate),
            m.workload,
            m.metric,
            escaped(&m.of),
            number(m.before),
            number(m.after),
            m.change() * 100.0,
        );
    }
    text + "</table>\n"
}

/// Picture and figures of one workload; nothing if it was not measured.
fn section(workload: &Workload, results: &Results, samples: &[Sample]) -> Result<String> {
    let rows = results.of_workload(workload.name);
    let Some(metric) = main_metric(results, workload) else { return Ok(String::new()) };
    let main: Vec<_> = rows.iter().copied().filter(|row| row.metric == *metric).collect();
    let picture = plot::bars(&main, samples)?;
    Ok(format!(
        "<h3 id=\"{0}\">{0}</h3>\n<p>{1}</p>\n{picture}\n<details><summary>all figures</summary>\n\
         {2}</details>\n",
        workload.name,
        escaped(workload.what),
        figures(&rows)
    ))
}

fn figures(rows: &[&Row]) -> String {
    let mut text = String::from(
        "<table>\n<tr><th></th><th>metric</th><th>median</th><th>least</th><th>most</th>\
         <th>rounds</th><th>disturbed</th><th>ratios</th></tr>\n",
    );
    for row in rows {
        let ratio = |(base, ratio): (&String, &f64)| format!("{ratio:.2} {}", escaped(base));
        let ratios: Vec<_> = row.ratio.iter().map(ratio).collect();
        _ = writeln!(
            text,
            "<tr><th>{}</th><td>{} {}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"text\">{}</td></tr>",
            escaped(&row.candidate),
            row.metric.name,
            row.metric.unit,
            number(row.median),
            number(row.min),
            number(row.max),
            row.rounds,
            row.disturbed,
            ratios.join(", "),
        );
    }
    text + "</table>\n"
}

fn skipped(results: &Results) -> String {
    if results.skipped.is_empty() {
        return String::new();
    }
    let item = |s: &super::results::Skipped| {
        format!("<li><b>{}</b>: {}</li>\n", escaped(&s.candidate), escaped(&s.reason))
    };
    let items: String = results.skipped.iter().map(item).collect();
    format!("<h2>Not measured here</h2>\n<ul>\n{items}</ul>\n")
}

/// The first metric of a workload's rows, which is its most telling one.
fn main_metric<'a>(results: &'a Results, workload: &Workload) -> Option<&'a Metric> {
    results.of_workload(workload.name).first().map(|row| &row.metric)
}

fn escaped(text: impl Display) -> String {
    text.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Better, Skipped, example};

    #[test]
    fn page_needs_nothing_but_itself() {
        let mut results = example(&[
            ("bare", "tcp-rr", "p50", Better::Lower, 3.5),
            ("mesh-gre", "tcp-rr", "p50", Better::Lower, 4.0),
        ]);
        let reason = "a <b> & c".to_owned();
        results.skipped.push(Skipped { candidate: "kernel-gre".into(), reason });
        let moved = super::super::compare::moved(&results, &results);
        let page = render(&results, &[], Some(&moved)).expect("render");
        for outside in ["http", "//", "src=", "@import", "url(", "<script", "<link"] {
            assert!(!page.contains(outside), "{outside} in the page");
        }
        for part in
            ["one &amp; only", "a &lt;b&gt; &amp; c", "<svg", ">0.87<", "missed", "Nothing."]
        {
            assert!(page.contains(part), "no {part} in {page}");
        }
    }
}
