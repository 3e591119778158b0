//! What was measured, and what it comes to: medians, spread, and ratios paired round by round.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All that `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    pub results: Vec<Row>,
    pub skipped: Vec<Skipped>,
}

/// Where and how it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Of the CPU's frequency; `None` where the machine shows none, as in most virtual ones.
    pub governor: Option<String>,
    /// The underlay interface's, as `tx-tcp-segmentation` or `rx-gro`; empty if there is none.
    pub offloads: BTreeMap<String, bool>,
    /// Against speculative execution: those in force, as `retbleed: Enhanced IBRS`.
    pub mitigations: Vec<String>,
    /// ISO 8601, UTC.
    pub date: String,
    /// What ran where, and other facts that the figures depend on.
    pub notes: Vec<String>,
}

/// One metric of one candidate under one workload, over all rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub candidate: String,
    pub workload: String,
    #[serde(flatten)]
    pub metric: Metric,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: usize,
    /// How many of the rounds others on the machine disturbed. They count as well.
    pub disturbed: usize,
    /// By baseline: the median of this candidate's value over the baseline's of the same round.
    pub ratio: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    pub candidate: String,
    pub reason: String,
}

/// What a value means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    #[serde(rename = "metric")]
    pub name: String,
    pub unit: String,
    pub better: Better,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

impl Results {
    /// The rows of one workload.
    pub fn of_workload(&self, workload: &str) -> Vec<&Row> {
        self.results.iter().filter(|row| row.workload == workload).collect()
    }

    pub fn row(&self, candidate: &str, workload: &str, metric: &str) -> Option<&Row> {
        let wanted = |row: &&Row| {
            row.candidate == candidate && row.workload == workload && row.metric.name == metric
        };
        self.results.iter().find(wanted)
    }
}

impl Better {
    pub fn word(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
        }
    }
}

impl Metric {
    pub fn new(name: &str, unit: &str, better: Better) -> Self {
        Self { name: name.into(), unit: unit.into(), better }
    }
}

/// One value of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub candidate: String,
    pub workload: String,
    pub metric: Metric,
    pub round: usize,
    /// Not a number where it could not be told.
    pub value: f64,
    pub disturbed: bool,
}

/// The rows of all samples: workloads and metrics as they first appear, `candidates` in their order
/// within each. Ratios are taken to those of the `baselines` that were measured, but not to itself.
pub fn summarize(samples: &[Sample], candidates: &[&str], baselines: &[&str]) -> Vec<Row> {
    let mut kinds: Vec<(&str, &Metric)> = Vec::new();
    for sample in samples {
        let kind = (&*sample.workload, &sample.metric);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut rows = Vec::new();
    for (workload, metric) in kinds {
        let of = |candidate: &str| -> BTreeMap<usize, &Sample> {
            let same = |s: &&Sample| {
                s.candidate == candidate && s.workload == workload && s.metric == *metric
            };
            let known = samples.iter().filter(same).filter(|s| s.value.is_finite());
            known.map(|s| (s.round, s)).collect()
        };
        for candidate in candidates {
            let own = of(candidate);
            let values: Vec<f64> = own.values().map(|s| s.value).collect();
            let Some(median) = median(&values) else { continue };
            let others = baselines.iter().filter(|base| *base != candidate);
            let ratio =
                others.filter_map(|base| Some(((*base).into(), rounded(paired(&own, &of(base))?))));
            rows.push(Row {
                candidate: (*candidate).into(),
                workload: workload.into(),
                metric: metric.clone(),
                median: rounded(median),
                min: rounded(values.iter().copied().fold(f64::INFINITY, f64::min)),
                max: rounded(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
                rounds: values.len(),
                disturbed: own.values().filter(|s| s.disturbed).count(),
                ratio: ratio.collect(),
            });
        }
    }
    rows
}

/// To four digits that matter: more than was measured.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// The median of the ratios of rounds that both have. `None` if there are none, or the baseline is
/// zero in all of them.
fn paired(own: &BTreeMap<usize, &Sample>, base: &BTreeMap<usize, &Sample>) -> Option<f64> {
    let ratios = own.iter().filter_map(|(round, sample)| {
        let base = base.get(round)?.value;
        (base != 0.0).then(|| sample.value / base)
    });
    median(&ratios.collect::<Vec<_>>())
}

/// The middle value, or the mean of the two in the middle. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Results of one round, for tests: candidate, workload, metric, and the value.
#[cfg(test)]
pub fn example(values: &[(&str, &str, &str, Better, f64)]) -> Results {
    let sample =
        |(candidate, workload, metric, better, value): &(&str, &str, &str, Better, f64)| {
            let metric = Metric::new(metric, "unit", *better);
            let (candidate, workload) = ((*candidate).into(), (*workload).into());
            Sample { candidate, workload, metric, round: 0, value: *value, disturbed: false }
        };
    let samples: Vec<_> = values.iter().map(sample).collect();
    let mut candidates: Vec<&str> = values.iter().map(|value| value.0).collect();
    candidates.sort_unstable();
    candidates.dedup();
    let machine = Machine {
        cpu: "one & only".into(),
        cores: 2,
        kernel: "6.18".into(),
        governor: None,
        offloads: BTreeMap::new(),
        mitigations: Vec::new(),
        date: "2026-11-22T00:00:00Z".into(),
        notes: Vec::new(),
    };
    let results = summarize(&samples, &candidates, &["bare", "routed", "vxlan-bridge"]);
    Results { machine, results, skipped: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(candidate: &str, round: usize, value: f64) -> Sample {
        let metric = Metric::new("p50", "us", Better::Lower);
        Sample {
            candidate: candidate.into(),
            workload: "tcp-rr".into(),
            metric,
            round,
            value,
            disturbed: round == 1,
        }
    }

    #[test]
    fn median_of_even_and_odd_counts_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn round_without_a_value_is_missing() {
        let samples = [sample("bare", 0, f64::NAN), sample("bare", 1, 2.0)];
        let rows = summarize(&samples, &["bare"], &[]);
        assert_eq!((rows[0].rounds, rows[0].median), (1, 2.0));
        assert!(summarize(&samples[..1], &["bare"], &[]).is_empty());
    }

    #[test]
    fn values_are_rounded_to_four_digits() {
        assert_eq!(rounded(123_456.0), 123_500.0);
        assert_eq!(rounded(1.234_56), 1.235);
        assert_eq!(rounded(-0.012_345_6), -0.012_35);
        assert_eq!(rounded(0.0), 0.0);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine is four times slower in the second round: the medians say nothing, the
        // ratios of each round agree.
        let samples = [
            sample("bare", 0, 1.0),
            sample("bare", 1, 4.0),
            sample("mesh-gre", 0, 2.0),
            sample("mesh-gre", 1, 8.0),
            // Only in a round that the other does not have.
            sample("routed", 2, 5.0),
        ];
        let rows = summarize(&samples, &["mesh-gre", "bare", "routed"], &["bare", "routed"]);
        let names: Vec<_> = rows.iter().map(|row| &*row.candidate).collect();
        assert_eq!(names, ["mesh-gre", "bare", "routed"]);
        assert_eq!(rows[0].ratio, [("bare".to_owned(), 2.0)].into());
        assert_eq!((rows[0].median, rows[0].min, rows[0].max), (5.0, 2.0, 8.0));
        assert_eq!((rows[0].rounds, rows[0].disturbed), (2, 1));
        assert!(rows[1].ratio.is_empty() && rows[2].ratio.is_empty());
    }

    #[test]
    fn baseline_of_zero_gives_no_ratio() {
        let samples = [sample("bare", 0, 0.0), sample("mesh-gre", 0, 2.0)];
        assert!(summarize(&samples, &["mesh-gre"], &["bare"])[0].ratio.is_empty());
    }

    #[test]
    fn row_has_its_metric_beside_its_other_fields() {
        let row = &summarize(&[sample("bare", 0, 1.5)], &["bare"], &[])[0];
        let json = serde_json::to_value(row).expect("serialize");
        let wanted = serde_json::json!({
            "candidate": "bare", "workload": "tcp-rr", "metric": "p50", "unit": "us",
            "better": "lower", "median": 1.5, "min": 1.5, "max": 1.5, "rounds": 1, "disturbed": 0,
            "ratio": {},
        });
        assert_eq!(json, wanted);
    }
}
