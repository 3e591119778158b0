//! The run folder's files, and its lock.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::de::DeserializeOwned;

use super::{CLUSTER, DOCKER, LOCK, STATE, State, StateError};
use crate::{
    durable::{self, Found, Spoiled},
    holder::Holder,
    lock::{Lock, LockError},
};

/// The run folder, locked: whoever has this may change things.
#[derive(Debug)]
pub struct RunDir {
    dir: PathBuf,
    lock: Lock,
    /// Its files but the state, as they were read or written last: what is in them is not lost with
    /// their names.
    open: Mutex<BTreeMap<&'static str, File>>,
    /// The last config file that was good, where it could not be written.
    unsaved: Option<Vec<u8>>,
    /// Of who only looks: files that make no sense, and why. They stay as they are.
    seen: Option<Mutex<Vec<String>>>,
}

/// Whether a mesh was brought up with this run folder, and not taken down.
///
/// # Errors
///
/// The folder can not be looked into.
pub fn is_there(dir: &Path) -> io::Result<bool> {
    // The second where the first was set aside.
    Ok(dir.join(STATE).try_exists()? || dir.join(CLUSTER).try_exists()?)
}

/// The agent's socket in a run folder.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("mesh.sock")
}

/// The last config file that was good, in a run folder.
pub fn last_config(dir: &Path) -> PathBuf {
    dir.join(CLUSTER)
}

/// Files of a run folder that made no sense when they were read, under their new names.
pub fn spoiled(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_spoiled = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let of = name.and_then(|name| Some(name.rsplit_once(".spoiled-")?.0));
        of.is_some_and(|of| [STATE, CLUSTER, DOCKER].contains(&of))
    };
    entries.flatten().map(|entry| entry.path()).filter(is_spoiled).collect()
}

impl RunDir {
    /// Makes the folder if it is not there, and takes its lock.
    pub fn lock(dir: &Path) -> Result<Self, StateError> {
        let run = Self {
            dir: dir.to_owned(),
            lock: take_lock(dir)?,
            open: Mutex::default(),
            unsaved: None,
            seen: None,
        };
        run.hold(CLUSTER);
        run.hold(DOCKER);
        Ok(run)
    }

    /// From now on files that make no sense are not set aside.
    pub fn look_only(&mut self) {
        self.seen = Some(Mutex::default());
    }

    pub fn looks_only(&self) -> bool {
        self.seen.is_some()
    }

    /// Those, and why, of who looks only.
    pub fn seen(&self) -> Vec<String> {
        let seen = self.seen.iter().flat_map(|seen| lock_of(seen).clone());
        seen.collect()
    }

    /// Notes a file that makes no sense, if nothing more is to be done with it.
    fn see(&self, name: &str, cause: &str) -> bool {
        let Some(seen) = &self.seen else { return false };
        let said = format!("{} makes no sense ({cause})", self.dir.join(name).display());
        let mut seen = lock_of(seen);
        if !seen.contains(&said) {
            seen.push(said);
        }
        true
    }

    /// As [`Lock::say_holder`].
    pub fn say_holder(&mut self) -> Result<(), StateError> {
        self.lock.say_holder().map_err(|e| self.fail("writing", LOCK, e))
    }

    /// Gives the lock back, and leaves no folder behind in which there is nothing else.
    pub fn unlock(self) {
        if fs::read_dir(&self.dir).is_ok_and(|entries| entries.count() == 1) {
            let _ = self.lock.remove();
            let _ = fs::remove_dir(&self.dir);
        }
    }

    /// Whether the lock's file is the one that we hold: else the next one to come does not notice us,
    /// nor we them.
    pub fn is_in_place(&self) -> bool {
        self.lock.is_in_place()
    }

    /// Makes the folder anew that somebody removed, and takes its lock. All that was in it but the state
    /// is there again.
    ///
    /// # Errors
    ///
    /// [`StateError::Locked`] if another process has the new lock. [`StateError::Io`] if the folder can
    /// not be made, or a file in it.
    pub fn renew(&mut self) -> Result<(), StateError> {
        self.lock = take_lock(&self.dir)?;
        let open = std::mem::take(self.open.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut done = Ok(());
        for (name, mut file) in open {
            let mut bytes = Vec::new();
            let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
            let read = read.map_err(|e| self.fail("reading", name, e));
            done = done.and(match name {
                CLUSTER => read.and_then(|_| self.save_cluster(&bytes)),
                _ => read.and_then(|_| self.replace(name, &bytes)),
            });
        }
        done
    }

    /// Keeps a file open.
    fn hold(&self, name: &'static str) {
        let mut open = lock_of(&self.open);
        match durable::open_regular(&self.dir.join(name)) {
            Ok(file) => open.insert(name, file),
            Err(_) => open.remove(name),
        };
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was made here; nothing if there is no file that makes sense.
    pub fn load(&self) -> Result<State, StateError> {
        Ok(self.read(STATE)?.unwrap_or_default())
    }

    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(state).map_err(|e| self.fail("writing", STATE, e))?;
        self.replace(STATE, &bytes)
    }

    /// The last config file that was good.
    pub fn cluster(&self) -> Option<Vec<u8>> {
        if let Some(bytes) = &self.unsaved {
            return Some(bytes.clone());
        }
        match durable::read(&last_config(&self.dir)) {
            Ok(bytes) => Some(bytes),
            Err(e) if durable::makes_no_sense(&e) => {
                self.set_cluster_aside(e.to_string());
                None
            }
            Err(_) => None,
        }
    }

    /// It is known until this process ends, even if it can not be written.
    pub fn save_cluster(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved = self.replace(CLUSTER, bytes);
        self.unsaved = saved.is_err().then(|| bytes.to_owned());
        saved
    }

    /// Writes it, where that failed until now.
    pub fn save_cluster_again(&mut self) -> Result<(), StateError> {
        self.unsaved.take().map_or(Ok(()), |bytes| self.save_cluster(&bytes))
    }

    /// Has the last config file count as missing: it makes no sense.
    pub fn set_cluster_aside(&self, cause: String) {
        if self.see(CLUSTER, &cause) {
            return;
        }
        let path = self.dir.join(CLUSTER);
        let aside = durable::set_aside(&path);
        self.hold(CLUSTER);
        match aside {
            Ok(at) => tracing::warn!("{}", Spoiled { path, at, cause }),
            Err(e) => tracing::warn!("{} can not be set aside: {e}", path.display()),
        }
    }

    /// What Docker was given; nothing if there is no file that makes sense. One that can not be read is
    /// set aside, so that it is not lost with the next one.
    ///
    /// # Errors
    ///
    /// It is there, and can neither be read nor set aside.
    pub fn docker<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        let path = self.dir.join(DOCKER);
        self.read(DOCKER).or_else(|e| match durable::set_aside(&path) {
            Ok(at) => {
                tracing::warn!("{}", Spoiled { path, at, cause: e.to_string() });
                Ok(None)
            }
            Err(_) => Err(e),
        })
    }

    pub fn save_docker(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.replace(DOCKER, bytes)
    }

    /// As [`spoiled`], of this folder.
    pub fn spoiled(&self) -> Vec<PathBuf> {
        spoiled(&self.dir)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let path = self.dir.join(name);
        let found = match self.seen {
            Some(_) => durable::look_at_json(&path),
            None => durable::read_json(&path),
        };
        match found.map_err(|e| self.fail("reading", name, e))? {
            Found::Good(value) => Ok(Some(value)),
            Found::Absent => Ok(None),
            Found::SetAside(spoiled) => {
                tracing::warn!("{spoiled}");
                Ok(None)
            }
            Found::Spoiled(cause) => {
                self.see(name, &cause);
                Ok(None)
            }
        }
    }

    fn replace(&self, name: &'static str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let is_folder = |e: &io::Error| e.kind() == io::ErrorKind::IsADirectory;
        let done = match durable::replace(&path, bytes) {
            Err(e) if is_folder(&e) => {
                durable::set_aside(&path).and_then(|_| durable::replace(&path, bytes))
            }
            done => done,
        };
        done.map_err(|e| self.fail("writing", name, e))?;
        if name != STATE {
            self.hold(name);
        }
        Ok(())
    }

    fn fail(&self, what: &'static str, name: &str, e: impl Into<io::Error>) -> StateError {
        StateError::Io { what, path: self.dir.join(name), source: e.into() }
    }

    /// Removes our files, and the folder if nothing else is in it.
    pub fn remove(self) -> Result<(), StateError> {
        let files = [STATE, CLUSTER, DOCKER].map(|name| self.dir.join(name));
        let nexts = files.clone().map(|path| durable::beside(&path, ".next"));
        let others = ["mesh.sock", LOCK].map(|name| self.dir.join(name));
        for path in self.spoiled().into_iter().chain(files).chain(nexts).chain(others) {
            let removed = match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&path),
                removed => removed,
            };
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::Io { what: "removing", path, source });
                }
                _ => {}
            }
        }
        // Not ours alone if it is not empty.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }
}

fn lock_of<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_lock(dir: &Path) -> Result<Lock, StateError> {
    Lock::take(dir, LOCK, &Holder::this(dir)).map_err(|e| match e {
        LockError::Held(holder) => StateError::Locked { path: dir.join(LOCK), holder },
        LockError::Io { what, path, source } => StateError::Io { what, path, source },
    })
}
