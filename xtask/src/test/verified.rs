//! What each kernel's verifier takes to accept each program: instructions processed, of a million
//! that it may. Kept in `tests/verified.json`, so that a jump is seen long before the limit.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets::NOTHING};

use crate::{exec::say, report::Outcome, toolchain};

/// How a test says it, at the start of a line; then kernel, program and number.
const LINE: &str = "VERIFIED: ";
/// BPF_COMPLEXITY_LIMIT_INSNS, since Linux 5.2.
const LIMIT: u32 = 1_000_000;
/// More than this of what is kept is a jump.
const JUMP_PERCENT: u64 = 120;

/// Instructions by series of kernels, and by program.
type Counts = BTreeMap<String, BTreeMap<String, u32>>;

#[derive(Default)]
pub struct Verified {
    now: Counts,
}

impl Verified {
    /// Picks them out of what a test printed.
    pub fn read(&mut self, output: &str) {
        for line in output.lines().filter_map(|line| line.strip_prefix(LINE)) {
            let mut words = line.split_whitespace();
            let (Some(kernel), Some(program), Some(count)) =
                (words.next(), words.next(), words.next().and_then(|n| n.parse().ok()))
            else {
                continue;
            };
            let series = kernel.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
            self.now.entry(series).or_default().insert(program.to_owned(), count);
        }
    }

    /// Prints the table; a jump is a failure. With `record`, what is new is kept.
    pub fn compare(self, record: bool) -> Result<Outcome> {
        if self.now.is_empty() {
            return Ok(Outcome::Passed("not asked".to_owned()));
        }
        let file = file();
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let mut kept: Counts = serde_json::from_slice(&text).context("tests/verified.json")?;
        eprintln!("instructions processed, of {LIMIT}\n{}", table(&self.now, &kept));
        let jumps = jumps(&self.now, &kept);
        if record {
            kept.extend(self.now);
            fs::write(&file, serde_json::to_string_pretty(&kept)? + "\n")?;
            say(format!("kept in {}", file.display()));
            return Ok(Outcome::Passed("kept".to_owned()));
        }
        if jumps.is_empty() {
            return Ok(Outcome::Passed(String::new()));
        }
        Ok(Outcome::Failed(format!(
            "{}; if it is worth it: cargo xtask test --kernel all --record progrun",
            jumps.join(", ")
        )))
    }
}

fn file() -> PathBuf {
    toolchain::workspace().join("tests/verified.json")
}

fn table(now: &Counts, kept: &Counts) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["kernel", "program", "now", "kept", "of the limit"]);
    for (kernel, programs) in now {
        for (program, count) in programs {
            let before = kept.get(kernel).and_then(|kept| kept.get(program));
            table.add_row([
                kernel.clone(),
                program.clone(),
                count.to_string(),
                before.map_or("-".to_owned(), ToString::to_string),
                format!("{:.1} %", f64::from(*count) * 100.0 / f64::from(LIMIT)),
            ]);
        }
    }
    table
}

/// What takes much more than before.
fn jumps(now: &Counts, kept: &Counts) -> Vec<String> {
    let mut jumps = Vec::new();
    for (kernel, programs) in now {
        for (program, count) in programs {
            let Some(before) = kept.get(kernel).and_then(|kept| kept.get(program)) else {
                continue;
            };
            if u64::from(*count) * 100 > u64::from(*before) * JUMP_PERCENT {
                jumps.push(format!("{program} on {kernel}: {before} -> {count}"));
            }
        }
    }
    jumps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(output: &str) -> Counts {
        let mut verified = Verified::default();
        verified.read(output);
        verified.now
    }

    #[test]
    fn a_jump_is_told_from_a_step() {
        let kept = verified("VERIFIED: 6.1.0-56-amd64 from_endpoint 1000\nother\n");
        assert_eq!(kept["6.1"]["from_endpoint"], 1000);
        assert!(jumps(&verified("VERIFIED: 6.1.9 from_endpoint 1200"), &kept).is_empty());
        assert_eq!(jumps(&verified("VERIFIED: 6.1.9 from_endpoint 1201"), &kept).len(), 1);
        assert!(jumps(&verified("VERIFIED: 6.12.1 from_endpoint 9999"), &kept).is_empty());
    }
}
