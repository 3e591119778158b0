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
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    bpf::{
        attach::{Interface, Mode},
        load::Identity,
    },
    durable,
    holder::Holder,
    host::AddedNetwork,
};

mod run_dir;

pub use run_dir::{RunDir, is_there, last_config, socket, spoiled};

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

#[cfg(test)]
mod tests;
