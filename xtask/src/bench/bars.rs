//! What mesh wants to reach, as ratios to other candidates of the same run.

use super::results::{Better, Results};

/// A goal.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    pub workload: &'static str,
    pub metric: &'static str,
    pub against: Against,
    /// The ratio to reach.
    pub bar: f64,
    /// The ratio to dream of.
    pub dream: f64,
}

#[derive(Debug, Clone, Copy)]
pub enum Against {
    Candidate(&'static str),
    /// What becomes of the metric from `workload` to this one, over what becomes of it on `bare`.
    GrowthOnBare {
        from: &'static str,
    },
}

const fn bar(
    workload: &'static str,
    metric: &'static str,
    against: &'static str,
    bar: f64,
    dream: f64,
) -> Bar {
    Bar { workload, metric, against: Against::Candidate(against), bar, dream }
}

pub const BARS: &[Bar] = &[
    bar("tcp-rr", "p50", "bare", 1.13, 1.06),
    bar("tcp-rr", "p50", "vxlan-bridge", 0.72, 0.66),
    bar("udp-64", "rate", "bare", 0.82, 0.95),
    bar("udp-64", "rate", "vxlan-bridge", 1.85, 2.2),
    bar("udp-64", "instructions", "kernel-gre", 1.0 / 1.2, 1.0 / 1.4),
    bar("tcp-stream", "throughput", "bare", 0.97, 1.0),
    bar("tcp-wire", "efficiency", "bare", 0.92, 1.0),
    // Faster than containers that are plainly routed, without any overlay.
    bar("tcp-stream", "throughput", "routed", 1.05, 1.05),
    bar("tcp-streams", "throughput", "routed", 1.05, 1.05),
    bar("tcp-wire", "efficiency", "routed", 1.05, 1.05),
    bar("udp-64", "rate", "routed", 1.25, 1.5),
    bar("tcp-rr", "p50", "routed", 0.88, 0.8),
    bar("udp-rr", "p50", "routed", 0.88, 0.8),
    bar("udp-rr-16", "p50", "routed", 0.88, 0.8),
    bar("udp-rr-64", "p50", "routed", 0.88, 0.8),
    bar("tcp-crr", "p50", "routed", 0.88, 0.8),
    Bar {
        workload: "udp-rr-64",
        metric: "rate",
        against: Against::GrowthOnBare { from: "udp-rr" },
        bar: 0.9,
        dream: 1.0,
    },
];

/// A candidate's ratio against a bar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    pub ratio: f64,
    pub better: Better,
    pub met: bool,
    pub dream: bool,
}

impl Bar {
    /// `None` if one of the two was not measured.
    pub fn judge(&self, results: &Results, candidate: &str) -> Option<Verdict> {
        let row = results.row(candidate, self.workload, self.metric)?;
        let ratio = match self.against {
            Against::Candidate(base) => *row.ratio.get(base)?,
            Against::GrowthOnBare { from } => {
                let from = results.row(candidate, from, self.metric)?;
                row.ratio.get("bare")? / from.ratio.get("bare")?
            }
        };
        let better = row.metric.better;
        let reaches = |goal: f64| match better {
            Better::Higher => ratio >= goal,
            Better::Lower => ratio <= goal,
        };
        Some(Verdict { ratio, better, met: reaches(self.bar), dream: reaches(self.dream) })
    }

    /// `tcp-rr p50 against bare`
    pub fn title(&self) -> String {
        let Self { workload, metric, .. } = self;
        match self.against {
            Against::Candidate(base) => format!("{workload} {metric} against {base}"),
            Against::GrowthOnBare { from } => {
                format!("{workload} {metric} against {from}, as on bare")
            }
        }
    }
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match (self.met, self.dream) {
            (_, true) => "dream",
            (true, false) => "met",
            (false, false) => "missed",
        }
    }
}

impl Better {
    /// Of a bar: `at least` or `at most`.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Higher => "≥",
            Self::Lower => "≤",
        }
    }
}

/// The candidates that bars are for, of those that were measured.
pub fn candidates(results: &Results) -> Vec<&str> {
    let mut found = Vec::new();
    for row in &results.results {
        if row.candidate.starts_with("mesh-") && !found.contains(&&*row.candidate) {
            found.push(&row.candidate);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{results, workload};

    #[test]
    fn ratio_on_the_right_side_of_the_bar_meets_it() {
        let results = results::example(&[
            ("bare", "tcp-rr", "p50", Better::Lower, 100.0),
            ("mesh-gre", "tcp-rr", "p50", Better::Lower, 110.0),
            ("bare", "udp-64", "rate", Better::Higher, 100.0),
            ("mesh-gre", "udp-64", "rate", Better::Higher, 70.0),
        ]);
        assert_eq!(candidates(&results), ["mesh-gre"]);
        let rr = BARS[0].judge(&results, "mesh-gre").expect("measured");
        assert!(rr.met && !rr.dream, "{rr:?}");
        let udp = BARS[2].judge(&results, "mesh-gre").expect("measured");
        assert!(!udp.met, "{udp:?}");
        assert_eq!(BARS[1].judge(&results, "mesh-gre"), None, "there is no vxlan-bridge");
    }

    #[test]
    fn growth_is_compared_with_that_of_bare() {
        let results = results::example(&[
            ("bare", "udp-rr", "rate", Better::Higher, 100.0),
            ("bare", "udp-rr-64", "rate", Better::Higher, 200.0),
            ("mesh-gre", "udp-rr", "rate", Better::Higher, 80.0),
            ("mesh-gre", "udp-rr-64", "rate", Better::Higher, 150.0),
        ]);
        let growth = BARS.last().and_then(|bar| bar.judge(&results, "mesh-gre")).expect("measured");
        assert!((growth.ratio - 0.9375).abs() < 1e-3 && growth.met, "{growth:?}");
    }

    #[test]
    fn bars_are_of_workloads_that_exist() {
        for bar in BARS {
            assert!(workload::ALL.iter().any(|w| w.name == bar.workload), "{}", bar.title());
        }
    }
}
