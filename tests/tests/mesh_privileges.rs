//! What an agent may do once it runs, and who may make it wait.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Options, scenario};

const TWO: Options = Options { containers: 2, ..Options::DEFAULT };

/// linux/capability.h: DAC_READ_SEARCH, NET_BIND_SERVICE, NET_ADMIN, SYS_PTRACE, SYS_ADMIN
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

/// All threads that the agent has while `work` is done.
fn watched(host: &mut Host, work: impl FnOnce(&mut Host) -> Result<()>) -> Result<()> {
    let pid = host.pid().context("no agent")?;
    let done = AtomicBool::new(false);
    let seen = thread::scope(|s| {
        let watcher = s.spawn(|| {
            let mut seen = rights(pid);
            while !done.load(Ordering::Relaxed) {
                seen.extend(rights(pid));
            }
            seen
        });
        let worked = work(host);
        done.store(true, Ordering::Relaxed);
        let seen = watcher.join().unwrap_or_default();
        worked.map(|()| seen)
    })?;
    ensure!(seen.len() > 1, "one thread alone: {seen:?}");
    expect_few(&seen)
}

#[test]
fn no_thread_keeps_more_than_is_needed_whatever_is_done() {
    scenario(TWO, |mesh| {
        let whole = mesh.cluster.clone();
        let smaller = whole.clone().without_node("h2");
        watched(&mut mesh.hosts[0], |host| {
            for _ in 0..5 {
                host.detach(1)?;
                host.attach(1, &[])?;
            }
            for cluster in [&smaller, &whole] {
                let before = host.generation()?;
                host.write_config(&cluster.to_string())?;
                host.wait_newer(cluster, before)?;
            }
            Ok(())
        })?;
        let [one, two] = [mesh.party("h1c2")?, mesh.party("h2c1")?];
        one.expect_reaches(&two)
    });
}

#[test]
fn callers_of_roots_that_say_nothing_make_nobody_wait() {
    scenario(TWO, |mesh| {
        let host = &mut mesh.hosts[0];
        let socket = host.run_dir.join("mesh.sock");
        let idle = (0..400).map(|_| UnixStream::connect(&socket));
        let idle = idle.collect::<std::io::Result<Vec<_>>>()?;
        let pid = host.pid().context("no agent")?;
        host.status()?;
        host.detach(1)?;
        host.attach(1, &[])?;
        // Those that made place are gone.
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        ensure!(open < idle.len(), "{open} descriptors");
        Ok(())
    });
}
