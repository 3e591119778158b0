//! The removal of topologies: of one that is dropped, and of what dead or keeping owners left.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context, Result};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::netns::{NETNS_DIR, ip_batch};

/// Where the folders of topologies are.
pub(crate) const RUN: &str = "/run";
/// All their names begin with this.
pub(crate) const PREFIX: &str = "mt";
const LOCK: &str = "lock";
/// Marks a folder that outlives its owner.
const KEEP: &str = "keep";

/// Marks a topology's folder as one that [`sweep`] leaves.
pub(crate) fn mark_kept(dir: &Path) -> Result<()> {
    File::create(dir.join(KEEP)).context("mark as kept")?;
    Ok(())
}

/// The lock file of a topology's folder, locked. `None` if somebody else holds it.
pub(crate) fn locked(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

/// Removes what dead owners left behind, but for what they meant to keep. Returns the names.
pub fn sweep() -> Result<Vec<String>> {
    remove_where(|dir| !dir.join(KEEP).exists())
}

/// Removes what [`crate::Topology::keep`] kept, and what dead owners left behind. Returns the names.
pub fn remove_kept() -> Result<Vec<String>> {
    remove_where(|_| true)
}

/// Removes one topology that was kept. Fails while its owner lives.
pub fn remove(name: &str) -> Result<()> {
    let removed = remove_where(|dir| dir.ends_with(name))?;
    anyhow::ensure!(!removed.is_empty(), "{name} does not exist, or is in use");
    Ok(())
}

/// Removes every topology of this process, also one that is being made.
pub fn destroy_own() {
    let own = format!("{PREFIX}{}-", std::process::id());
    for entry in fs::read_dir(RUN).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&own) {
            destroy(&name);
        }
    }
}

fn remove_where(wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(RUN).context("read /run")?.flatten() {
        let (name, dir) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if is_ours(&name) && wanted(&dir) && dir.join(LOCK).exists() && locked(&dir)?.is_some() {
            destroy(&name);
            removed.push(name);
        }
    }
    Ok(removed)
}

/// `mt<digits>-<digits>`
fn is_ours(name: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(pid, n)| digits(pid) && digits(n))
}

/// Removes all that a topology of this name made. Goes on whatever fails, and says what did. May be
/// called twice, and from two threads.
pub fn destroy(name: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    if !Path::new(RUN).join(name).exists() {
        return;
    }
    let report = |what: &str, e: &dyn std::fmt::Display| eprintln!("{name}: {what}: {e}");
    let namespaces = namespaces_of(name);
    for pid in pids_inside(&namespaces) {
        if let Err(e) = kill_process(pid, Signal::KILL) {
            report("kill an agent", &e);
        }
    }
    let dir = Path::new(RUN).join(name);
    for target in mounts_below(&dir) {
        if let Err(e) = unmount(&target, UnmountFlags::DETACH) {
            report(&format!("unmount {}", target.display()), &e);
        }
    }
    let lines = namespaces.iter().fold(String::new(), |all, n| all + &format!("netns del {n}\n"));
    if let Err(e) = ip_batch(&lines) {
        report("remove namespaces", &e);
    }
    if let Err(e) = fs::remove_dir_all(&dir) {
        report(&format!("remove {}", dir.display()), &e);
    }
}

fn namespaces_of(name: &str) -> Vec<String> {
    let prefix = format!("{name}-");
    let names = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.starts_with(&prefix)).collect()
}

/// Processes that live in one of the namespaces, which nobody but us has put anything into.
fn pids_inside(namespaces: &[String]) -> Vec<Pid> {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let ours: Vec<_> =
        namespaces.iter().filter_map(|n| id(&Path::new(NETNS_DIR).join(n))).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let inside = ours.contains(&id(&entry.path().join("ns/net"))?);
            if inside { Pid::from_raw(pid) } else { None }
        })
        .collect()
}

/// Mount points in `dir`, the innermost first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_made_here_are_ours() {
        assert!(is_ours("mt12-0"));
        for foreign in ["mt", "mt-", "mtx-1", "mt1-", "mount", "mt1-h1", "mesh"] {
            assert!(!is_ours(foreign), "{foreign}");
        }
    }
}
