//! Steps that are run one after the other, and the table of what became of them.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use comfy_table::{Table, presets::NOTHING};

pub enum Outcome {
    /// With what there is to say, as the number of tests.
    Passed(String),
    /// With the reason, which is also what to mend.
    Skipped(String),
    Failed(String),
}

#[derive(Default)]
pub struct Report {
    steps: Vec<(String, Outcome, Duration)>,
}

impl Report {
    /// Runs a step under a heading. Its failure is noted, and does not stop those that follow.
    pub fn step(&mut self, name: &str, step: impl FnOnce() -> Result<Outcome>) {
        let (bold, plain) = if stderr().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        eprintln!("\n{bold}== {name} =={plain}");
        let start = Instant::now();
        let outcome = step().unwrap_or_else(|e| Outcome::Failed(format!("{e:#}")));
        match &outcome {
            Outcome::Passed(_) => {}
            Outcome::Skipped(why) => eprintln!("skipped: {why}"),
            Outcome::Failed(why) => eprintln!("FAILED: {why}"),
        }
        self.steps.push((name.to_owned(), outcome, start.elapsed()));
    }

    /// Notes what one part of a step did not do.
    pub fn skip(&mut self, name: &str, why: String) {
        self.steps.push((name.to_owned(), Outcome::Skipped(why), Duration::ZERO));
    }

    /// Prints the table; an error if a step failed or, if that is forbidden, was skipped.
    pub fn finish(self, no_skip: bool) -> Result<()> {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["step", "result", "time", ""]);
        let (mut failed, mut skipped) = (0, 0);
        for (name, outcome, time) in self.steps {
            let (result, note) = match outcome {
                Outcome::Passed(note) => ("passed", note),
                Outcome::Skipped(why) => {
                    skipped += 1;
                    ("SKIPPED", why)
                }
                Outcome::Failed(why) => {
                    failed += 1;
                    ("FAILED", why)
                }
            };
            table.add_row([name, result.into(), format!("{:.1} s", time.as_secs_f32()), note]);
        }
        eprintln!("\n{table}");
        match (failed, skipped) {
            (0, 0) => Ok(()),
            (0, n) if no_skip => bail!("skipped: {n}, and nothing may be skipped here (--no-skip)"),
            (0, _) => Ok(()),
            (n, _) => bail!("failed: {n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(outcome: Result<Outcome>, no_skip: bool) -> Result<()> {
        let mut report = Report::default();
        report.step("first", || Ok(Outcome::Passed(String::new())));
        report.step("second", || outcome);
        report.finish(no_skip)
    }

    #[test]
    fn only_failures_fail_unless_skipping_is_forbidden() {
        let skipped = || Ok(Outcome::Skipped("no root".into()));
        assert!(after(Ok(Outcome::Passed(String::new())), true).is_ok());
        assert!(after(skipped(), false).is_ok());
        assert!(after(skipped(), true).is_err());
        assert!(after(Ok(Outcome::Failed("1 of 2".into())), false).is_err());
        assert!(after(Err(anyhow::anyhow!("no compiler")), false).is_err());
    }

    #[test]
    fn what_a_part_of_a_step_skipped_counts() {
        let mut report = Report::default();
        report.step("all", || Ok(Outcome::Passed(String::new())));
        report.skip("all", "one needs docker".into());
        assert!(report.finish(true).is_err());
    }
}
