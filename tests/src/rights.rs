//! What the threads of a process may do.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};

/// What an agent keeps. linux/capability.h: DAC_READ_SEARCH, NET_BIND_SERVICE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN
const KEPT: u64 = 1 << 2 | 1 << 10 | 1 << 12 | 1 << 19 | 1 << 21;

/// What a thread may do, by the names of /proc/PID/task/TID/status.
type Rights = BTreeMap<String, u64>;

/// Of all threads that a process has now, by their names.
fn rights(pid: u32) -> BTreeMap<String, Rights> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_one = |task: fs::DirEntry| {
        // A thread may have ended meanwhile.
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        let name = fields.clone().find(|(key, _)| *key == "Name")?.1.to_owned();
        let is_right =
            |key: &str| key.starts_with("Cap") || key == "NoNewPrivs" || key == "Seccomp";
        let rights = fields.filter(|(key, _)| is_right(key)).filter_map(|(key, value)| {
            Some((key.to_owned(), u64::from_str_radix(value.trim(), 16).ok()?))
        });
        Some((format!("{name} {}", task.file_name().display()), rights.collect()))
    };
    tasks.filter_map(of_one).collect()
}

fn expect_few(seen: &BTreeMap<String, Rights>) -> Result<()> {
    for (name, rights) in seen {
        let right = |key: &str| rights.get(key).copied().with_context(|| format!("no {key}"));
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let set_now = right(set)?;
            ensure!(set_now & !KEPT == 0, "thread {name}: {set} is {set_now:x}");
        }
        ensure!(right("CapInh")? == 0 && right("CapAmb")? == 0, "thread {name}: {rights:x?}");
        ensure!(right("NoNewPrivs")? == 1 && right("Seccomp")? == 2, "thread {name}: {rights:x?}");
    }
    Ok(())
}

/// Does `work`. Fails if a thread that process `pid` has meanwhile may do more than an agent needs.
pub fn expect_few_during<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    let (worked, seen) = thread::scope(|s| {
        let watcher = s.spawn(|| {
            let mut seen = rights(pid);
            while !done.load(Ordering::Relaxed) {
                seen.extend(rights(pid));
            }
            seen
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        (worked, watcher.join().unwrap_or_default())
    });
    let worked = worked?;
    ensure!(seen.len() > 1, "one thread alone: {seen:?}");
    expect_few(&seen)?;
    Ok(worked)
}
