//! What this host must still know after a reboot: the state folder.
//!
//! ```text
//! <state-dir>/lock          held by the agent
//! <state-dir>/host.json     which node this host is, and how often an agent was started
//! <state-dir>/docker.json   the mesh's networks, and which of Docker's they are
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    durable::{self, Found},
    faults::Faults,
    lock::check_owner,
};

pub const HOST: &str = "host.json";
pub const DOCKER: &str = "docker.json";
const LOCK: &str = "lock";
/// Part of [`Faults`].
const PART: &str = "state folder";

/// An agent that ends still has the lock for a moment, and for a longer one that is told to.
const AFTER_ANOTHER: Duration = Duration::from_millis(500);
const AFTER_DOWN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("{what} {}: {source}{}", path.display(), durable::remedy(source))]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "another agent has the state folder {}: give each agent of this machine one of its own with \
         --state-dir",
        path.display()
    )]
    Taken { path: PathBuf },
}

/// The state folder, locked.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    /// Held until this is dropped.
    _lock: File,
    faults: Faults,
}

impl StateDir {
    /// Makes the folder if it is not there, and takes its lock. What is wrong with its files is told
    /// to `faults`.
    ///
    /// # Errors
    ///
    /// The folder cannot be made or written to, or another agent has it.
    pub fn open(dir: &Path, faults: Faults) -> Result<Self, StateDirError> {
        make(dir).map_err(failed("making the folder", dir))?;
        Ok(Self { dir: dir.to_owned(), _lock: lock(dir, AFTER_ANOTHER)?, faults })
    }

    /// Whether the lock's file is the one that we hold: else the folder was removed, or is another.
    pub fn is_in_place(&self) -> bool {
        let (held, there) = (self._lock.metadata(), fs::metadata(self.dir.join(LOCK)));
        let id = |of: io::Result<fs::Metadata>| of.map(|of| (of.dev(), of.ino())).ok();
        id(held).is_some_and(|held| Some(held) == id(there))
    }

    /// Reads a file. One that makes no sense is set aside, which is a fault for as long as it lies
    /// there.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.dir.join(name);
        match durable::read_json(&path) {
            Ok(Found::Good(value)) => Some(value),
            Ok(Found::Absent | Found::Spoiled(_)) => None,
            Ok(Found::SetAside(spoiled)) => {
                let at = spoiled.at.display();
                let fault = format!("{spoiled}; remove {at} when you have looked at it");
                self.faults.set_one(PART, &spoiled.at.to_string_lossy(), Some(fault));
                None
            }
            Err(e) => {
                let path = path.display();
                self.faults.set_one(PART, name, Some(format!("{path} can not be read: {e}")));
                None
            }
        }
    }

    /// Writes a file. Returns whether it is on the disk; a failure is a fault until it succeeds.
    pub fn write(&self, name: &str, value: &impl Serialize) -> bool {
        let path = self.dir.join(name);
        let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::from);
        // Somebody may have removed the folder since.
        let written =
            bytes.and_then(|bytes| make(&self.dir).and_then(|()| durable::replace(&path, &bytes)));
        let fault = written.err().map(|e| {
            let path = path.display();
            let remedy = durable::remedy(&e);
            format!("{path} can not be written: {e}{remedy}; after a reboot this host knows less")
        });
        let done = fault.is_none();
        self.faults.set_one(PART, name, fault);
        done
    }

    /// A spoiled file that somebody removed is a fault no more.
    pub fn forget_removed(&self) {
        for at in (1..=durable::SET_ASIDE_MAX)
            .flat_map(|n| [HOST, DOCKER].map(|name| durable::spoiled(&self.dir.join(name), n)))
        {
            if !at.exists() {
                self.faults.set_one(PART, &at.to_string_lossy(), None);
            }
        }
    }
}

/// Removes what mesh keeps there, and the folder if nothing else is in it.
///
/// # Errors
///
/// An agent has it and does not end, or a file cannot be removed.
pub fn forget(dir: &Path) -> Result<(), StateDirError> {
    if !dir.exists() {
        return Ok(());
    }
    let _lock = lock(dir, AFTER_DOWN)?;
    let entries = fs::read_dir(dir).map_err(failed("looking into", dir))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = |file: &str| name.strip_prefix(file).is_some_and(is_suffix);
        if [HOST, DOCKER].into_iter().any(is_ours) {
            remove(&entry.path())?;
        }
    }
    remove(&dir.join(LOCK))?;
    // Not ours alone if it is not empty.
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// As [`durable`] names what belongs to a file.
fn is_suffix(suffix: &str) -> bool {
    suffix.is_empty() || suffix == ".next" || suffix.starts_with(".spoiled-")
}

fn make(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    check_owner(dir)
}

fn remove(path: &Path) -> Result<(), StateDirError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(e)),
        _ => Ok(()),
    }
}

fn lock(dir: &Path, patience: Duration) -> Result<File, StateDirError> {
    let began = Instant::now();
    let path = dir.join(LOCK);
    let mut options = File::options();
    // Read as well, since else a FIFO of that name is waited for.
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(failed("opening", &path))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if began.elapsed() < patience => thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(StateDirError::Taken { path: dir.to_owned() }),
            Err(e) => return Err(failed("locking", &path)(e.into())),
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    let path = path.to_owned();
    move |source| StateDirError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mesh-kept-{name}-{}", std::process::id()))
    }

    #[test]
    fn what_was_written_is_read_again_and_only_ours_is_forgotten() {
        let dir = folder("forget");
        let state = StateDir::open(&dir, Faults::default()).unwrap();
        assert!(state.write(HOST, &7));
        assert_eq!(state.read::<u32>(HOST), Some(7));
        assert_eq!(state.read::<u32>(DOCKER), None);
        fs::write(dir.join("docker.json.spoiled-1"), "").unwrap();
        fs::write(dir.join("notes"), "").unwrap();
        drop(state);
        forget(&dir).unwrap();
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
        fs::remove_file(dir.join("notes")).unwrap();
        forget(&dir).unwrap();
        assert!(!dir.exists());
        forget(&dir).unwrap();
    }

    #[test]
    fn a_spoiled_file_is_a_fault_until_it_is_removed() {
        let dir = folder("spoiled");
        let faults = Faults::default();
        let state = StateDir::open(&dir, faults.clone()).unwrap();
        fs::write(dir.join(DOCKER), "{").unwrap();
        assert_eq!(state.read::<u32>(DOCKER), None);
        let now = faults.now();
        assert!(now.len() == 1 && now[0].fault.contains("docker.json.spoiled-1"), "{now:?}");
        state.forget_removed();
        assert_eq!(faults.now(), now);
        fs::remove_file(dir.join("docker.json.spoiled-1")).unwrap();
        state.forget_removed();
        assert_eq!(faults.now(), [""; 0]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn one_agent_has_it() {
        let dir = folder("taken");
        let first = StateDir::open(&dir, Faults::default()).unwrap();
        let second = StateDir::open(&dir, Faults::default()).unwrap_err();
        assert!(second.to_string().contains("--state-dir"), "{second}");
        drop(first);
        forget(&dir).unwrap();
    }
}
