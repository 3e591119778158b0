//! Rounds of all workloads on all candidates, interleaved in random order.

use std::{
    collections::BTreeMap,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use super::{
    candidate::Standing,
    results::{Sample, Skipped},
    traffic::Measured,
    tune::Tuner,
    usage::Usage,
    workload::Workload,
};
use crate::exec::say;

/// What is measured for how long.
#[derive(Debug, Clone)]
pub struct Plan {
    pub workloads: Vec<Workload>,
    pub rounds: usize,
    pub window: Duration,
}

/// A candidate that stands, and what tunes it.
pub type Tuned = (Standing, Tuner);

/// One window.
struct Trial {
    candidate: String,
    workload: Workload,
    round: usize,
    measured: Measured,
}

/// Runs the plan. A measurement that fails is said, and missing in its round; what never succeeds is
/// returned with the reason.
pub fn run(plan: &Plan, standing: &mut [Tuned]) -> (Vec<Sample>, Vec<Skipped>) {
    let cpus = available_parallelism().map_or(1, usize::from);
    let (mut trials, mut faults, start) = (Vec::new(), BTreeMap::new(), Instant::now());
    for round in 0..plan.rounds {
        say(format!("round {} of {}{}", round + 1, plan.rounds, left(start, round, plan.rounds)));
        for workload in &plan.workloads {
            fastrand::shuffle(standing);
            for (standing, tuner) in &mut *standing {
                let candidate = standing.name.clone();
                match workload.run(standing, tuner, plan.window, cpus) {
                    Ok(measured) => {
                        trials.push(Trial { candidate, workload: *workload, round, measured });
                    }
                    Err(e) => {
                        say(format!("{candidate}, {}: {e:#}", workload.name));
                        faults.insert((candidate, workload.name), format!("{e:#}"));
                    }
                }
            }
        }
    }
    let never = faults.into_iter().filter(|((candidate, workload), _)| {
        !trials.iter().any(|t| t.candidate == *candidate && t.workload.name == *workload)
    });
    let skipped = never.map(|((candidate, workload), fault)| Skipped {
        candidate,
        reason: format!("{workload}: {fault}"),
    });
    let skipped = skipped.collect();
    (samples(&trials), skipped)
}

/// `, 40 s to go`, once that can be told.
fn left(start: Instant, done: usize, all: usize) -> String {
    if done == 0 {
        return String::new();
    }
    let left = start.elapsed().div_f64(done as f64).mul_f64((all - done) as f64);
    format!(", {} s to go", left.as_secs())
}

fn samples(trials: &[Trial]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for trial in trials {
        let same =
            |t: &&Trial| t.candidate == trial.candidate && t.workload.name == trial.workload.name;
        let waiting = |t: &Trial| t.measured.usage.waiting / t.measured.usage.wall;
        let least = trials.iter().filter(same).map(waiting).fold(f64::INFINITY, f64::min);
        let disturbed = is_disturbed(&trial.measured.usage, least);
        for (metric, value) in trial.workload.metrics(&trial.measured) {
            samples.push(Sample {
                candidate: trial.candidate.clone(),
                workload: trial.workload.name.into(),
                metric,
                round: trial.round,
                value,
                disturbed,
            });
        }
    }
    samples
}

/// How many of the measurements others disturbed, for people.
pub fn disturbance(samples: &[Sample]) -> String {
    let all: BTreeMap<_, _> =
        samples.iter().map(|s| ((s.round, &s.workload, &s.candidate), s.disturbed)).collect();
    let disturbed = all.values().filter(|disturbed| **disturbed).count();
    format!("others on the machine disturbed {disturbed} of {} measurements", all.len())
}

/// Shares of the window above which it counts as disturbed.
const STEAL: f64 = 0.03;
const OTHERS: f64 = 0.05;
const WAITING: f64 = 0.10;

/// Whether others had much of the CPUs. The two ends of one workload may wait for each other too,
/// so waiting counts only as far as it exceeds the `least` share of all rounds of the same kind.
fn is_disturbed(usage: &Usage, least: f64) -> bool {
    let share = |seconds: f64| seconds / usage.wall;
    share(usage.steal) > STEAL
        || share(usage.others) > OTHERS
        || share(usage.waiting) > least + WAITING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_in_which_others_ran_is_disturbed() {
        let quiet = Usage { wall: 0.5, busy: 0.9, steal: 0.01, others: 0.01, waiting: 0.2 };
        assert!(!is_disturbed(&quiet, 0.38));
        assert!(is_disturbed(&Usage { steal: 0.1, ..quiet }, 0.38));
        assert!(is_disturbed(&Usage { others: 0.1, ..quiet }, 0.38));
        assert!(is_disturbed(&quiet, 0.1), "waited for longer than in other rounds");
    }
}
