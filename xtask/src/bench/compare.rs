//! What moved since the results that were last accepted.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::results::{Better, Results, Row};

/// Below this a difference is the machine's mood: runs of the same program differ by as much.
pub const NOISE: f64 = 0.05;
/// Ratios to it move less from run to run than what they are made of.
const BASE: &str = "bare";

/// What differs from run to run whatever one does.
const RESTLESS: [&str; 3] = ["p99", "p99.9", "loss"];

/// One row that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Moved {
    pub candidate: String,
    pub workload: String,
    pub metric: String,
    /// `against bare`, or the unit where there is no such ratio.
    pub of: String,
    pub before: f64,
    pub after: f64,
    pub better: bool,
}

impl Moved {
    /// `0.1` for a tenth more.
    pub fn change(&self) -> f64 {
        self.after / self.before - 1.0
    }
}

pub fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("read the accepted results, {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

pub fn write(path: &Path, results: &Results) -> Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// All that moved by more than [`NOISE`], the most first.
pub fn moved(before: &Results, after: &Results) -> Vec<Moved> {
    let pair = |new: &Row| {
        let old = before.row(&new.candidate, &new.workload, &new.metric.name)?;
        let ratios = old.ratio.get(BASE).zip(new.ratio.get(BASE));
        let (of, (before, after)) = match ratios {
            Some((before, after)) => (format!("against {BASE}"), (*before, *after)),
            None => (new.metric.unit.clone(), (old.median, new.median)),
        };
        let better = match new.metric.better {
            Better::Higher => after > before,
            Better::Lower => after < before,
        };
        let moved = Moved {
            candidate: new.candidate.clone(),
            workload: new.workload.clone(),
            metric: new.metric.name.clone(),
            of,
            before,
            after,
            better,
        };
        (before != 0.0 && moved.change().abs() > NOISE).then_some(moved)
    };
    let steady = after.results.iter().filter(|row| !RESTLESS.contains(&&*row.metric.name));
    let mut all: Vec<_> = steady.filter_map(pair).collect();
    all.sort_by(|a, b| b.change().abs().total_cmp(&a.change().abs()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::example;

    #[test]
    fn ratio_that_moved_is_found_and_a_slower_machine_is_not() {
        let before = example(&[
            ("bare", "tcp-rr", "p50", Better::Lower, 100.0),
            ("mesh-gre", "tcp-rr", "p50", Better::Lower, 120.0),
            ("routed", "tcp-rr", "p50", Better::Lower, 130.0),
        ]);
        // Everything takes twice as long, and mesh has got better.
        let after = example(&[
            ("bare", "tcp-rr", "p50", Better::Lower, 200.0),
            ("mesh-gre", "tcp-rr", "p50", Better::Lower, 220.0),
            ("routed", "tcp-rr", "p50", Better::Lower, 261.0),
        ]);
        let all = moved(&before, &after);
        let names: Vec<_> = all.iter().map(|m| &*m.candidate).collect();
        // bare has only its own figure to go by.
        assert_eq!(names, ["bare", "mesh-gre"]);
        assert!(!all[0].better && all[1].better);
        assert!((all[1].change() - (1.1 / 1.2 - 1.0)).abs() < 1e-3);
        assert_eq!(all[1].of, "against bare");
    }

    #[test]
    fn results_survive_the_file() {
        let path = std::env::temp_dir().join(format!("mesh-accepted-{}.json", std::process::id()));
        let results = example(&[("bare", "udp-64", "rate", Better::Higher, 1e6)]);
        write(&path, &results).expect("write");
        let read = read(&path);
        fs::remove_file(&path).expect("remove");
        assert_eq!(read.expect("read"), results);
    }
}
