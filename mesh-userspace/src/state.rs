//! What an agent must find again after it ended, however it ended: the run folder.
//!
//! ```text
//! <run-dir>/lock           held by whoever changes this host's part of the mesh
//! <run-dir>/mesh.sock      the running agent
//! <run-dir>/state.json     what was made here
//! <run-dir>/cluster.toml   the last config file that was good, as it was
//! <run-dir>/docker.json    what Docker was given here, and which networks there are
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    bpf::{
        attach::{Interface, Mode},
        load::Identity,
    },
    holder::Holder,
    host::AddedNetwork,
    lock::{Lock, LockError},
};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{what} {}: {source}{}", path.display(), hint(source))]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} can not be read: {cause}; `mesh down` removes it", path.display())]
    Parse { path: PathBuf, cause: serde_json::Error },
    #[error("{}", locked(path, holder.as_ref()))]
    Locked { path: PathBuf, holder: Option<Holder> },
    #[error("{}", elsewhere(holder.as_ref()))]
    Elsewhere { holder: Option<Holder> },
    #[error("looking for other agents of this network namespace: {source}")]
    Claim { source: io::Error },
    #[error("{} was removed, and with it the right to change things: start this agent again", path.display())]
    Gone { path: PathBuf },
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
    match holder.run_dir.as_deref().map(Path::display) {
        Some(dir) => format!(
            "{holder} {what}, with the run folder {dir}: give --run-dir {dir}, end it (`{stop}`), or \
             take that mesh down first (`mesh down --run-dir {dir}`)"
        ),
        None => format!(
            "{holder} {what}: another agent, or a command that is not done yet; `{stop}` ends it"
        ),
    }
}

fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => " (run as root)",
        _ => "",
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
}

/// The agent's socket in a run folder.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("mesh.sock")
}

impl RunDir {
    /// Makes the folder if it is not there, and takes its lock.
    pub fn lock(dir: &Path) -> Result<Self, StateError> {
        match Lock::take(dir, "lock", &Holder::this(dir)) {
            Ok(lock) => Ok(Self { dir: dir.to_owned(), lock }),
            Err(LockError::Held(holder)) => {
                Err(StateError::Locked { path: dir.join("lock"), holder })
            }
            Err(LockError::Io { what, path, source }) => Err(StateError::Io { what, path, source }),
        }
    }

    /// Gives the lock back, and leaves no folder behind in which there is nothing else.
    pub fn unlock(self) {
        if fs::read_dir(&self.dir).is_ok_and(|entries| entries.count() == 1) {
            let _ = self.lock.remove();
            let _ = fs::remove_dir(&self.dir);
        }
    }

    /// Fails if the lock's file is not the one that we hold: the next one to come would not notice
    /// us, nor we them.
    pub fn check(&self) -> Result<(), StateError> {
        match self.lock.is_in_place() {
            true => Ok(()),
            false => Err(StateError::Gone { path: self.lock.path().to_owned() }),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was made here; nothing if there is no such file.
    pub fn load(&self) -> Result<State, StateError> {
        let path = self.dir.join("state.json");
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|cause| StateError::Parse { path, cause })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(source) => Err(StateError::Io { what: "reading", path, source }),
        }
    }

    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(state)
            .map_err(|cause| StateError::Parse { path: self.dir.join("state.json"), cause })?;
        self.replace("state.json", &bytes)
    }

    /// The last config file that was good.
    pub fn cluster(&self) -> Option<Vec<u8>> {
        fs::read(self.dir.join("cluster.toml")).ok()
    }

    pub fn save_cluster(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.replace("cluster.toml", bytes)
    }

    /// Writes a file so that a reader, and a crash, find either the old or the new.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let (path, next) = (self.dir.join(name), self.dir.join(format!("{name}.next")));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&next)?;
            file.write_all(bytes)?;
            fs::rename(&next, &path)
        };
        write().map_err(|source| StateError::Io { what: "writing", path: path.clone(), source })
    }

    /// What Docker was given; nothing if there is no such file, or none that makes sense.
    pub fn docker(&self) -> Option<Vec<u8>> {
        fs::read(self.dir.join("docker.json")).ok()
    }

    pub fn save_docker(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.replace("docker.json", bytes)
    }

    /// Removes our files, and the folder if nothing else is in it.
    pub fn remove(self) -> Result<(), StateError> {
        for name in [
            "state.json",
            "state.json.next",
            "cluster.toml",
            "cluster.toml.next",
            "docker.json",
            "docker.json.next",
            "mesh.sock",
            "lock",
        ] {
            let path = self.dir.join(name);
            match fs::remove_file(&path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let dir = std::env::temp_dir().join(format!("mesh-lock-{}", std::process::id()));
        let first = RunDir::lock(&dir).unwrap();
        assert!(matches!(RunDir::lock(&dir), Err(StateError::Locked { .. })));
        drop(first);
        RunDir::lock(&dir).unwrap().remove().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_lock_whose_file_is_gone_is_none() {
        let dir = std::env::temp_dir().join(format!("mesh-gone-{}", std::process::id()));
        let first = RunDir::lock(&dir).unwrap();
        first.check().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(first.check(), Err(StateError::Gone { .. })));
        let second = RunDir::lock(&dir).unwrap();
        second.check().unwrap();
        assert!(matches!(first.check(), Err(StateError::Gone { .. })));
        second.remove().unwrap();
    }

    #[test]
    fn a_saved_state_is_found_again() {
        let dir = std::env::temp_dir().join(format!("mesh-state-{}", std::process::id()));
        let run = RunDir::lock(&dir).unwrap();
        let state = State { node: "h1".into(), generation: 7, ..State::default() };
        run.save(&state).unwrap();
        assert_eq!(run.load().unwrap(), state);
        run.remove().unwrap();
    }
}
