//! What an agent must find again after it ended, however it ended: the run folder.
//!
//! ```text
//! <run-dir>/lock           held by whoever changes this host's part of the mesh
//! <run-dir>/mesh.sock      the running agent
//! <run-dir>/state.json     what was made here
//! <run-dir>/cluster.toml   the last config file that was good, as it was
//! <run-dir>/docker.json    what Docker was given here, and which networks there are
//! ```
//!
//! Of a step with an effect outside, the intent is noted first, then comes the effect, then the note that
//! it is whole. What a start makes of one that was cut short, and who is told of one that fails:
//!
//! ```text
//! step                 noted before          noted after    a start                a failure
//! attach, join         endpoint, unfinished  it is whole    takes it back          takes it back; said
//! detach, leave                              forgotten      tries what is there    stays, a fault; said
//! networks             the list              (not noted)    makes them             asked again; said
//! publish              the new ports         (not noted)    carries them           those of before; said
//! unpublish            no ports              (not noted)    carries none           a fault
//! firewall, gateways   that there are rules  (not noted)    makes them anew        a fault
//! other attach mode    the old mode          forgotten      takes the old off      tried again; said
//! what Docker asks for                       docker.json    asks Docker            undone; said
//! what Docker gives back                     docker.json    asks Docker            a fault
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Seek},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    bpf::{
        attach::{Interface, Mode},
        load::Identity,
    },
    durable::{self, Found, Spoiled},
    holder::Holder,
    host::AddedNetwork,
    lock::{Lock, LockError},
};

const LOCK: &str = "lock";
const STATE: &str = "state.json";
const CLUSTER: &str = "cluster.toml";
const DOCKER: &str = "docker.json";

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{what} {}: {source}{}", path.display(), durable::remedy(source))]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{}", locked(path, holder.as_ref()))]
    Locked { path: PathBuf, holder: Option<Holder> },
    #[error("{}", elsewhere(holder.as_ref()))]
    Elsewhere { holder: Option<Holder> },
    #[error("looking for other agents of this network namespace: {source}")]
    Claim { source: io::Error },
    #[error(
        "{} was removed, and {} has it now: give each agent a --run-dir of its own, and start this one \
         again",
        path.display(), holder.as_ref().map_or("another process".into(), ToString::to_string)
    )]
    Taken { path: PathBuf, holder: Option<Holder> },
}

impl StateError {
    /// Whether it may be otherwise in a moment: an agent ends, or a command is done.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Locked { .. } | Self::Elsewhere { .. })
    }
}

/// Who holds the lock of a run folder, and what to do.
fn locked(path: &Path, holder: Option<&Holder>) -> String {
    let at = path.display();
    let Some(holder) = holder.filter(|holder| holder.is_there()) else {
        let pid = holder.map_or_else(String::new, |holder| format!("{holder} is written in it; "));
        return format!("{at} is locked: {pid}`fuser -v {at}` tells who has it now");
    };
    // The default needs not be named.
    let dir = path.parent().filter(|dir| *dir != Path::new(crate::cli::Place::DEFAULT_RUN_DIR));
    let option = dir.map_or_else(String::new, |dir| format!(" --run-dir {}", dir.display()));
    let stop = holder.stop_command();
    format!(
        "{holder} holds {at}: an agent of this host, or a command that is not done yet. `mesh \
         status{option}` shows what an agent has; `{stop}` ends it and leaves the traffic alone; \
         `mesh down{option}` takes the mesh away"
    )
}

/// The same of the network namespace.
fn elsewhere(holder: Option<&Holder>) -> String {
    let what = "has the mesh of this network namespace";
    let Some(holder) = holder else {
        return format!("a process that has not said yet which {what}: try again");
    };
    let stop = holder.stop_command();
    match holder.run_dir.as_deref().map(|dir| (dir.display(), dir.join(LOCK).exists())) {
        Some((dir, false)) => format!(
            "{holder} {what}; its run folder {dir} was removed under it, and it makes that anew within \
             some seconds (versions before this do not): try again, or end it (`{stop}`) and start it \
             again; containers keep talking meanwhile. `mesh down --run-dir {dir}` takes that mesh away \
             once it has ended"
        ),
        Some((dir, true)) => format!(
            "{holder} {what}, with the run folder {dir}: give --run-dir {dir}, end it (`{stop}`), or \
             take that mesh down first (`mesh down --run-dir {dir}`)"
        ),
        None => format!(
            "{holder} {what}: another agent, or a command that is not done yet; `{stop}` ends it"
        ),
    }
}

/// What was made on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub node: String,
    /// Counts the config files that were applied and differed from the one before.
    pub generation: u64,
    pub mode: Option<Mode>,
    /// The mode of before, of which attachments may still be there.
    pub old_mode: Option<Mode>,
    /// Where the pins are.
    pub pin_dir: Option<PathBuf>,
    /// What is pinned.
    pub pinned: Option<Identity>,
    /// Interfaces that `from_underlay` is on.
    pub underlay: Vec<Interface>,
    /// Of these, the ones that got their clsact qdisc from us.
    pub clsact: Vec<Interface>,
    /// `mesh0`.
    pub host: Option<Interface>,
    pub endpoints: BTreeMap<String, Endpoint>,
    /// There are rules of ours in the host's firewall.
    pub firewall: bool,
    /// The same for what this host forwards.
    pub guard: bool,
    /// The same for networks that this host is the gateway of.
    pub gateways: bool,
    /// Networks besides those of the config file.
    pub networks: Vec<AddedNetwork>,
}

/// A container's attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub vni: u32,
    /// Index of its counters.
    pub id: u32,
    /// Host side of the veth.
    pub host: Interface,
    /// The container's side.
    pub ifname: String,
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub addresses: Vec<IpAddr>,
    pub mtu: u32,
    /// What the interface was asked to have at most.
    #[serde(default)]
    pub mtu_max: Option<u32>,
    /// How its namespace was named, for people and for a change of MTU.
    pub netns: String,
    /// Device and inode of the namespace, to know it again.
    pub netns_id: (u64, u64),
    /// What other containers call it; Docker's are asked of Docker.
    #[serde(default)]
    pub names: Vec<String>,
    /// The CNI network by which it came.
    #[serde(default)]
    pub cni: Option<String>,
    /// A netkit pair rather than a veth.
    #[serde(default)]
    pub netkit: bool,
    /// Of an interface that mesh did not make.
    #[serde(default)]
    pub bridged: Option<Bridged>,
    /// Its ports that are the host's too.
    #[serde(default)]
    pub ports: Vec<Published>,
    /// Whether it was given routes for broadcast and multicast; `None` if that is not known.
    #[serde(default)]
    pub floods: Option<bool>,
    /// It is about to be made, or was when whoever made it was killed.
    #[serde(default)]
    pub unfinished: bool,
    /// The run folder knew nothing of it: it was found again by what is in the kernel, which is not all
    /// that there was.
    #[serde(default)]
    pub found: bool,
}

/// A port of the host that leads to one of a container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub proto: Proto,
    /// All of the host's addresses if there is none.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of somebody else's bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridged {
    pub bridge: String,
    /// Where its other end is ([`crate::net::Link::peer_netns`]).
    pub netns: i32,
    /// Name of the container, once Docker confirmed whose it is.
    pub container: Option<String>,
}

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
        };
        run.hold(CLUSTER);
        run.hold(DOCKER);
        Ok(run)
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
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
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
        let found = durable::read_json(&self.dir.join(name));
        match found.map_err(|e| self.fail("reading", name, e))? {
            Found::Good(value) => Ok(Some(value)),
            Found::Absent => Ok(None),
            Found::SetAside(spoiled) => {
                tracing::warn!("{spoiled}");
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

fn take_lock(dir: &Path) -> Result<Lock, StateError> {
    Lock::take(dir, LOCK, &Holder::this(dir)).map_err(|e| match e {
        LockError::Held(holder) => StateError::Locked { path: dir.join(LOCK), holder },
        LockError::Io { what, path, source } => StateError::Io { what, path, source },
    })
}

#[cfg(test)]
mod tests;
