//! What a measuring test hands to `cargo xtask bench`: a line of JSON on standard output.

use serde::{Deserialize, Serialize};

/// Set for tests that measure: print [`Figure`]s, and do it thoroughly unless it is [`QUICK`].
pub const MEASURE: &str = "MESH_BENCH";
pub const QUICK: &str = "quick";

/// One metric of one workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub workload: String,
    pub metric: String,
    pub unit: String,
    pub higher_is_better: bool,
    /// One for each round.
    pub values: Vec<f64>,
}

impl Figure {
    /// A figure of which less is better.
    pub fn cost(workload: &str, metric: &str, unit: &str, values: Vec<f64>) -> Self {
        Self {
            workload: workload.into(),
            metric: metric.into(),
            unit: unit.into(),
            higher_is_better: false,
            values,
        }
    }

    /// A figure of which more is better.
    pub fn gain(workload: &str, metric: &str, unit: &str, values: Vec<f64>) -> Self {
        Self { higher_is_better: true, ..Self::cost(workload, metric, unit, values) }
    }

    /// # Panics
    ///
    /// If a value is not finite.
    pub fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("a figure is finite"));
    }

    /// The figure on a line of output, if there is one.
    pub fn on(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// Whether to measure, and whether quickly.
pub fn measure() -> Option<bool> {
    std::env::var(MEASURE).ok().map(|how| how == QUICK)
}
