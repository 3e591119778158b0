//! CPU time of the whole machine over a window, softirqs and kernel threads included, and whether
//! others used the machine meanwhile.

use std::{collections::HashMap, fs, os::unix::process::parent_id, process, time::Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What a window cost. All in seconds; CPU time is summed over the CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Length of the window.
    pub wall: f64,
    /// CPU time, but for that of other processes and what the hypervisor took. The kernel counts
    /// it in hundredths of a second.
    pub busy: f64,
    /// CPU time that the hypervisor gave to others.
    pub steal: f64,
    /// CPU time of processes that have nothing to do with this run.
    pub others: f64,
    /// For how long some process waited for a CPU (PSI "some"), this run's own ones too.
    pub waiting: f64,
}

/// The counters at one instant.
pub struct Snapshot {
    at: Instant,
    cpus: f64,
    idle: f64,
    steal: f64,
    others: HashMap<u32, f64>,
    waiting: f64,
}

impl Snapshot {
    /// Begins a window, as the last thing it does.
    pub fn begin() -> Result<Self> {
        let (others, waiting) = (others()?, waiting());
        let (cpus, idle, steal) = machine()?;
        Ok(Self { at: Instant::now(), cpus, idle, steal, others, waiting })
    }

    /// Ends the window, as the first thing it does.
    pub fn end(&self) -> Result<Usage> {
        let wall = self.at.elapsed().as_secs_f64();
        let (_, idle, steal) = machine()?;
        let (others, waiting) = (others()?, waiting());
        let spent = |(pid, now): (&u32, &f64)| now - self.others.get(pid).unwrap_or(&0.0);
        let others: f64 = others.iter().map(spent).sum();
        let steal = steal - self.steal;
        let busy = wall * self.cpus - (idle - self.idle) - steal - others;
        Ok(Usage { wall, busy: busy.max(0.0), steal, others, waiting: waiting - self.waiting })
    }
}

/// Number of CPUs, and their idle and stolen time in seconds.
fn machine() -> Result<(f64, f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    cpu_times(&stat).context("/proc/stat has no CPUs")
}

/// Fields of `cpu0 USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL ...`, in clock ticks.
fn cpu_times(stat: &str) -> Option<(f64, f64, f64)> {
    let is_cpu = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    let (mut cpus, mut idle, mut steal) = (0.0, 0.0, 0.0);
    for line in stat.lines().filter(is_cpu) {
        let fields: Vec<f64> = line.split(' ').skip(1).flat_map(str::parse).collect();
        cpus += 1.0;
        idle += (fields.get(3)? + fields.get(4)?) / ticks();
        steal += fields.get(7)? / ticks();
    }
    (cpus > 0.0).then_some((cpus, idle, steal))
}

/// CPU seconds that each process has used, but for kernel threads and this run's own: the bench, our
/// parent, and its other children, traffic and agents.
fn others() -> Result<HashMap<u32, f64>> {
    let ours = [process::id(), parent_id()];
    let mut others = HashMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, seconds)) = process_time(&stat)
            && !ours.contains(&pid)
            && !ours.contains(&parent)
            && parent != KTHREADD
        {
            others.insert(pid, seconds);
        }
    }
    Ok(others)
}

/// Parent of all kernel threads.
const KTHREADD: u32 = 2;

/// Parent and CPU seconds from `PID (NAME) STATE PARENT ...`; the name may hold anything.
fn process_time(stat: &str) -> Option<(u32, f64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks_at = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((fields.get(1)?.parse().ok()?, (ticks_at(11)? + ticks_at(12)?) / ticks()))
}

/// Seconds of PSI, 0 where the kernel has none.
fn waiting() -> f64 {
    let pressure = fs::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let total = pressure.lines().next().and_then(|line| line.split("total=").nth(1));
    total.and_then(|us| us.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
}

fn ticks() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_cpus_are_summed() {
        let stat = "cpu  9 9 9 900 9 9 9 9 0 0\ncpu0 1 0 1 300 100 0 0 50 0 0\n\
                    cpu1 1 0 1 500 100 0 0 150 0 0\nintr 5\n";
        let (idle, steal) = (1000.0 / ticks(), 200.0 / ticks());
        assert_eq!(cpu_times(stat), Some((2.0, idle, steal)));
        assert_eq!(cpu_times("intr 5\n"), None);
    }

    #[test]
    fn process_name_with_blanks_and_brackets_is_skipped() {
        let stat = "42 (a) R 7 (b c) S 17 42 42 0 -1 4194304 1 0 0 0 300 200 0 0 20 0 1 0 5 0";
        assert_eq!(process_time(stat), Some((17, 500.0 / ticks())));
        assert_eq!(process_time(""), None);
    }

    #[test]
    fn work_of_this_process_is_busy_time() {
        let used = || {
            let stat = fs::read_to_string("/proc/self/stat").expect("/proc");
            process_time(&stat).expect("a process").1
        };
        let (window, before) = (Snapshot::begin().expect("/proc"), used());
        while used() < before + 0.3 {}
        let usage = window.end().expect("/proc");
        // Counted in clock ticks; and others may keep the machine busy.
        assert!(usage.wall >= 0.2 && usage.busy >= 0.1, "{usage:?}");
    }
}
