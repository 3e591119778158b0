//! One workload as a picture: a bar to each candidate's median, a dot for each round.

use std::error::Error;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::bench::{
    results::{Row, Sample, median},
    table::number,
};

/// All lengths are in pixels.
const WIDTH: u32 = 860;
/// From one candidate to the next.
const PITCH: u32 = 34;
/// Of a bar.
const THICK: i32 = 18;
/// Room for the candidates' names, and for the axis.
const NAMES: u32 = 150;
const AXIS: u32 = 44;
const MARGIN: u32 = 6;

const OURS: RGBColor = RGBColor(37, 99, 235);
const THEIRS: RGBColor = RGBColor(148, 163, 184);
const DOT: RGBColor = RGBColor(71, 85, 105);
const FONT: (&str, u32) = ("sans-serif", 14);

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// An `<svg>` element of the rows of one metric.
pub fn bars(rows: &[&Row], samples: &[Sample]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, rows, samples).map_err(|e| anyhow!("plot: {e}"))?;
    // Within a page it needs no name space, and so the page names nothing of the network.
    Ok(svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", ""))
}

fn draw(svg: &mut String, rows: &[&Row], samples: &[Sample]) -> Drawn {
    let count = rows.len();
    let size = (WIDTH, PITCH * count as u32 + AXIS + 2 * MARGIN);
    let canvas: Canvas = SVGBackend::with_string(svg, size).into_drawing_area();
    let limit = limit(rows);
    let mut chart = ChartBuilder::on(&canvas)
        .margin(MARGIN)
        .margin_right(70)
        .x_label_area_size(AXIS)
        .y_label_area_size(NAMES)
        .build_cartesian_2d(0.0..limit, 0.0..count as f64)?;
    let metric = &rows[0].metric;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_label_formatter(&|value| number(*value))
        .x_desc(format!("{}, {}; {} is better", metric.name, metric.unit, metric.better.word()))
        .axis_style(THEIRS)
        .bold_line_style(THEIRS.mix(0.4))
        .light_line_style(TRANSPARENT)
        .label_style(FONT)
        .draw()?;
    for (i, row) in rows.iter().enumerate() {
        let y = count as f64 - i as f64 - 0.5;
        let place = |value: f64| chart.backend_coord(&(value.min(limit), y));
        candidate(&canvas, row, place(0.0), place(row.median), row.median > limit)?;
        let own = |s: &&Sample| {
            s.candidate == row.candidate && s.workload == row.workload && s.metric == row.metric
        };
        for sample in samples.iter().filter(own).filter(|s| s.value.is_finite()) {
            // A disturbed round is hollow.
            let style = if sample.disturbed { DOT.stroke_width(1) } else { DOT.mix(0.7).filled() };
            canvas.draw(&Circle::new(place(sample.value), 3, style))?;
        }
    }
    canvas.present()?;
    Ok(())
}

/// Name, bar and value of one candidate, between two points on its middle line.
fn candidate(canvas: &Canvas, row: &Row, zero: (i32, i32), end: (i32, i32), cut: bool) -> Drawn {
    let color = if row.candidate.starts_with("mesh-") { OURS } else { THEIRS };
    let corners = [(zero.0, zero.1 - THICK / 2), (end.0, end.1 + THICK / 2)];
    canvas.draw(&Rectangle::new(corners, color.mix(0.75).filled()))?;
    let text = |side| FONT.into_font().color(&BLACK).pos(Pos::new(side, VPos::Center));
    canvas.draw(&Text::new(row.candidate.clone(), (zero.0 - 8, zero.1), text(HPos::Right)))?;
    let value = format!("{}{}", number(row.median), if cut { " →" } else { "" });
    // Beside the dots, not under them.
    canvas.draw(&Text::new(value, (WIDTH as i32 - 64, end.1), text(HPos::Left)))?;
    Ok(())
}

/// Where the axis ends: a candidate that is out of all proportion must not make the others small.
fn limit(rows: &[&Row]) -> f64 {
    const OUT_OF_PROPORTION: f64 = 4.0;
    let medians: Vec<f64> = rows.iter().map(|row| row.median).collect();
    let usual = OUT_OF_PROPORTION * median(&medians).unwrap_or(1.0);
    let shown = rows.iter().filter(|row| row.median <= usual);
    // The greatest values of all rounds may be out of proportion as well.
    let most = shown.map(|row| row.max.min(row.median * 1.5)).fold(0.0, f64::max);
    if most > 0.0 { most * 1.05 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Better, example};

    #[test]
    fn picture_names_every_candidate_and_cuts_what_is_out_of_proportion() {
        let results = example(&[
            ("bare", "tcp-rr", "p50", Better::Lower, 3.5),
            ("mesh-gre", "tcp-rr", "p50", Better::Lower, 4.0),
            ("ovs-gre", "tcp-rr", "p50", Better::Lower, 210.0),
            ("routed", "tcp-rr", "p50", Better::Lower, 4.5),
        ]);
        let rows = results.of_workload("tcp-rr");
        assert!(limit(&rows) < 10.0);
        let svg = bars(&rows, &[]).expect("plot");
        for text in ["bare", "mesh-gre", "ovs-gre", "210 →", "lower is better"] {
            assert!(svg.contains(text), "no {text} in {svg}");
        }
        assert!(svg.starts_with("<svg") && !svg.contains("http"));
    }
}
