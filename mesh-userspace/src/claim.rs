//! One mesh in each network namespace, whatever its run folder is called: who changes it holds a lock.
//!
//! The lock's file is in a folder of root's and is named by the namespace's device and inode. Nobody
//! else can take it, or make those wait who look for its holder.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    holder::Holder,
    lock::{Lock, LockError},
    net::own_netns,
    state::StateError,
};

mod before;

/// The lock of each network namespace that has a mesh.
const FOLDER: &str = "/run/mesh-locks";
/// Another folder, for several machines that share one /run.
const FOLDER_VAR: &str = "MESH_LOCK_DIR";

/// See [`mounting`].
const MOUNTING: &str = "bpf-mount";
const MOUNTING_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// Files to look at for those that nobody holds, each time.
const SWEEP_MAX: usize = 1024;

/// Held, nobody else changes this network namespace's mesh.
#[derive(Debug)]
pub struct Claim {
    lock: Lock,
    holder: Holder,
}

impl Claim {
    /// Fails with [`StateError::Elsewhere`] if another process has it.
    pub fn take(run_dir: &Path) -> Result<Self, StateError> {
        let claim = Self::take_as(Holder::this(run_dir))?;
        match before::holder(&claim.holder) {
            Some(other) => Err(StateError::Elsewhere { holder: Some(other) }),
            None => Ok(claim),
        }
    }

    fn take_as(holder: Holder) -> Result<Self, StateError> {
        let (dir, name) = (folder(), file_name()?);
        check_folder(&dir)?;
        match Lock::take(&dir, &name, &holder) {
            Ok(lock) => {
                sweep(&dir);
                Ok(Self { lock, holder })
            }
            Err(LockError::Held(holder)) => Err(StateError::Elsewhere { holder }),
            Err(LockError::Io { what, path, source }) => Err(StateError::Io { what, path, source }),
        }
    }

    /// As [`Lock::say_holder`].
    pub fn say_holder(&mut self) -> Result<(), StateError> {
        let path = self.lock.path().to_owned();
        let said = self.lock.say_holder();
        said.map_err(|source| StateError::Io { what: "writing", path, source })
    }

    /// Takes it anew if somebody removed the file.
    pub fn keep(&mut self) -> Result<(), StateError> {
        if !self.lock.is_in_place() {
            *self = Self::take_as(self.holder.clone())?;
        }
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What stays is cleared away by the next.
        let _ = self.lock.remove();
        if let Some(dir) = self.lock.path().parent() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Held while a bpf file system is mounted, or unmounted if nobody has anything in it: agents of other
/// network namespaces may have the same.
///
/// # Errors
///
/// Somebody has it for too long, or the folder can not be used.
pub fn mounting() -> Result<Mounting, StateError> {
    mounting_in(&folder(), MOUNTING_MAX)
}

fn mounting_in(dir: &Path, patience: Duration) -> Result<Mounting, StateError> {
    let began = Instant::now();
    check_folder(dir)?;
    loop {
        match Lock::take(dir, MOUNTING, &Holder::this(dir)) {
            Ok(lock) => return Ok(Mounting(lock)),
            Err(LockError::Held(_)) if began.elapsed() < patience => thread::sleep(PAUSE),
            Err(LockError::Held(holder)) => {
                return Err(StateError::Locked { path: dir.join(MOUNTING), holder });
            }
            Err(LockError::Io { what, path, source }) => {
                return Err(StateError::Io { what, path, source });
            }
        }
    }
}

/// As [`mounting`] gives it.
#[derive(Debug)]
pub struct Mounting(Lock);

impl Drop for Mounting {
    fn drop(&mut self) {
        // The next one makes it anew, or takes it as it is.
        let _ = self.0.remove();
    }
}

/// Nobody else may open the files, since whoever can may lock them.
fn check_folder(dir: &Path) -> Result<(), StateError> {
    let found = match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found,
    };
    if found.is_ok_and(|found| found.is_dir() && found.mode() & 0o077 == 0) {
        return Ok(());
    }
    let text = "others may look into it, or it is a link: remove it";
    let source = io::Error::new(io::ErrorKind::InvalidInput, text);
    Err(StateError::Io { what: "using", path: dir.to_owned(), source })
}

/// Who has it, if somebody has.
pub fn holder() -> Result<Option<Holder>, StateError> {
    let path = folder().join(file_name()?);
    Lock::holder(&path).map_err(|source| StateError::Io { what: "looking at", path, source })
}

fn folder() -> PathBuf {
    std::env::var_os(FOLDER_VAR).map_or_else(|| FOLDER.into(), PathBuf::from)
}

/// Of this thread's network namespace.
fn file_name() -> Result<String, StateError> {
    let fail = |source| StateError::Claim { source };
    let netns = own_netns().map_err(|e| fail(io::Error::other(e)))?;
    let stat = rustix::fs::fstat(&netns).map_err(|e| fail(e.into()))?;
    Ok(format!("netns-{:x}-{}", stat.st_dev, stat.st_ino))
}

/// Removes the files of those that were killed, whose namespace may be gone.
fn sweep(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().take(SWEEP_MAX);
    for entry in entries.filter(|e| e.file_name().as_bytes().starts_with(b"netns-")) {
        let _ = Lock::clear_stale(&entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_mounts_and_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("mesh-mounting-{}", std::process::id()));
        let first = mounting_in(&dir, Duration::ZERO).unwrap();
        let second = mounting_in(&dir, Duration::ZERO).unwrap_err();
        assert!(second.is_held(), "{second}");
        let waiting = dir.clone();
        let third = thread::spawn(move || mounting_in(&waiting, Duration::from_secs(60)).unwrap());
        drop(first);
        drop(third.join().unwrap());
        // Nothing is left in it.
        fs::remove_dir(dir).unwrap();
    }
}
