//! This host's part of the mesh: brought up, kept right, taken away.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use crate::{
    bpf::{BpfError, Pins, held::Held, tables::Tables},
    claim::Claim,
    cli::Place,
    compile::ByAddress,
    config::{Cluster, Node},
    faults::{Faults, Of},
    net::{Hop, Net, NetError},
    plan::Contents,
    program::ProgramError,
    state::{RunDir, State, StateError},
    supervise::Supervisor,
};

mod apply;
mod attach;
mod bridge;
mod choice;
mod cni;
mod endpoint;
mod faults;
mod fill;
mod firewall;
mod gateway;
mod gro;
mod groups;
mod guard;
mod headroom;
mod identity;
mod inside;
mod look;
mod matter;
mod mesh0;
mod networks;
mod pair;
mod parts;
mod path_mtu;
mod ports;
mod record;
mod recover;
mod removal;
mod routes;
mod sandbox;
mod status;
mod teardown;
mod underlay;

pub use bridge::Told;
pub use endpoint::{AttachRequest, Attached};
pub use gateway::PortRequest;
pub use groups::{GroupStatus, QUERY_INTERVAL, Querier};
pub use identity::which_node;
pub use mesh0::NAME as MESH0;
pub use networks::{ADDED_MAX, AddedNetwork, with_added};
pub use ports::{Holder, holder};
pub use sandbox::SandboxRequest;
pub use status::{BridgeStatus, Count, NextHop, Status};

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Netns(#[from] crate::net::NetnsError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Something that the user can mend; says how.
    #[error("{0}")]
    User(String),
    /// No endpoint of that name.
    #[error("{0}")]
    Unknown(String),
}

/// The protocol number of our routes, in the range that rtnetlink(7) leaves to everybody.
const ROUTE_PROTOCOL: u8 = 109;

/// Starts the alias of every interface that we make.
const ALIAS: &str = "mesh:";
/// Ends that of an endpoint of which all is to be seen in the kernel, so that its record is no loss. No
/// name has a blank.
const PLAIN: &str = " plain";

/// The faults' part of a record of Docker that can not be read.
const DOCKER_HAD: &str = "what Docker had";

/// How long another process may have the lock of a run folder that was removed.
const FOR_A_COMMAND: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(5);

/// This host, with the locks on its network namespace and its run folder.
pub struct Host {
    claim: Claim,
    run: RunDir,
    pub state: State,
    /// As this process last wrote it.
    saved: Option<State>,
    net: Net,
    pins: Pins,
    /// What was applied last.
    cluster: Option<Cluster>,
    tables: Option<Tables>,
    /// What is pinned; `None` until it is known to be whole.
    held: Option<Held>,
    /// The bridge that gives its ports headroom.
    headroom: Option<u32>,
    bridges: bridge::Bridges,
    firewall: firewall::Table,
    guard: firewall::Table,
    gateways: gateway::Gateways,
    /// What this process last made the maps contain; `None` if they must be read. Only who holds
    /// the lock writes to them.
    contents: Option<Contents>,
    /// Counts what may have changed the endpoints.
    revision: u64,
    /// The kernel's routes to the other nodes from `hops_from`; see [`Host::forget_routes`].
    hops: ByAddress<Option<Hop>>,
    hops_from: Option<IpAddr>,
    next_hops: underlay::NextHops,
    path_mtus: path_mtu::PathMtus,
    listeners: gro::Listeners,
    /// Of the mesh's UDP ports those that somebody else has too.
    foreign_ports: Vec<u16>,
    /// The kernel has no netkit; it need not be asked again.
    no_netkit: bool,
    /// The networks that are noted are not all carried.
    networks_lag: bool,
    /// Endpoints that a change of the file did not reach, with what is wrong.
    unfollowed: BTreeMap<String, inside::Unfollowed<u32>>,
    unflooded: BTreeMap<String, inside::Unfollowed<bool>>,
    faults: Faults,
    supervisor: Supervisor,
    /// Why an endpoint has no program, by its name.
    unattached: BTreeMap<String, String>,
}

impl Host {
    /// Takes the lock and reads what was made here before. Changes nothing, but for a file that makes
    /// no sense: it is set aside, and what is ours is known by its mark. Must be called in a tokio runtime.
    pub fn open(place: &Place) -> Result<Self, HostError> {
        Self::of(RunDir::lock(&place.run_dir)?, place)
    }

    /// The same for who only looks, and changes nothing at all.
    pub fn look(place: &Place) -> Result<Self, HostError> {
        let mut run = RunDir::lock(&place.run_dir)?;
        run.look_only();
        Self::of(run, place)
    }

    fn of(run: RunDir, place: &Place) -> Result<Self, HostError> {
        let claim = match Claim::take(&place.run_dir) {
            Ok(claim) => claim,
            Err(e) => {
                run.unlock();
                return Err(e.into());
            }
        };
        let state = run.load()?;
        // Where it is, whatever folder is named now.
        let pins = Pins::new(state.pin_dir.as_ref().unwrap_or(&place.pin_dir));
        let faults = Faults::default();
        Ok(Self {
            claim,
            run,
            state,
            saved: None,
            net: Net::here()?,
            pins,
            cluster: None,
            tables: None,
            held: None,
            headroom: None,
            bridges: bridge::Bridges::default(),
            firewall: firewall::Table::default(),
            guard: firewall::Table::default(),
            gateways: gateway::Gateways::default(),
            contents: None,
            revision: 0,
            hops: ByAddress::default(),
            hops_from: None,
            next_hops: underlay::NextHops::default(),
            path_mtus: path_mtu::PathMtus::default(),
            listeners: gro::Listeners::default(),
            foreign_ports: Vec::new(),
            no_netkit: false,
            networks_lag: false,
            unfollowed: BTreeMap::new(),
            unflooded: BTreeMap::new(),
            supervisor: Supervisor::new(Handle::current(), faults.clone()),
            faults,
            unattached: BTreeMap::new(),
        })
    }

    /// Fails if pins are wanted in another folder than where they are.
    pub fn check_pin_dir(&self, place: &Place) -> Result<(), HostError> {
        let (here, wanted) = (self.pins.dir(), place.pin_dir.as_path());
        // `ip netns exec` has a folder of its own below.
        if here.starts_with(wanted) || wanted.starts_with(here) {
            return Ok(());
        }
        let (run, here) = (self.run.dir().display(), here.display());
        if wanted.starts_with(Place::DEFAULT_PIN_DIR) {
            tracing::info!("the pins are in {here}, as {run} says");
            return Ok(());
        }
        Err(HostError::User(format!(
            "the mesh of {run} has its pins in {here}: leave --pin-dir {} out, or take that mesh \
             down first (`mesh down`)",
            wanted.display()
        )))
    }

    /// Makes the run folder anew if somebody removed it. Fails if another process is in charge by now.
    pub fn check(&mut self) -> Result<(), HostError> {
        self.claim.keep()?;
        if self.run.is_in_place() {
            return Ok(());
        }
        let began = Instant::now();
        let mut renewed = self.run.renew();
        // A command has it for a moment, until it sees the claim.
        while matches!(renewed, Err(StateError::Locked { .. })) && began.elapsed() < FOR_A_COMMAND {
            thread::sleep(POLL);
            renewed = self.run.renew();
        }
        let removed = format!("the run folder {} was removed", self.run.dir().display());
        match renewed {
            Ok(()) => {
                tracing::warn!("{removed}, and is made anew");
                self.faults.set("run folder", None);
                self.faults
                    .note(Of::Host, format!("{removed} while the agent ran: it was made anew"));
                self.saved = None;
                self.note();
            }
            Err(StateError::Locked { path, holder }) => {
                return Err(StateError::Taken { path, holder }.into());
            }
            Err(e) => {
                let fault = format!("{removed} and is not whole: {e}");
                self.faults.set("run folder", Some(fault));
            }
        }
        Ok(())
    }

    /// The cluster as this process applied it last.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Another one than before: the endpoints may be others.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What is wrong on this host; every part of the agent adds its own.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Where the tasks run that this host's work needs.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// From now on such tasks run there.
    pub fn serve_on(&mut self, runtime: &Handle) {
        self.supervisor = Supervisor::new(runtime.clone(), self.faults.clone());
    }

    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The cluster as it was applied last, by this process or one before.
    pub fn last_cluster(&self) -> Option<Cluster> {
        self.cluster
            .clone()
            .or_else(|| Some(with_added(self.file_cluster()?, &self.state.networks)))
    }

    /// The last config file that was good, as it was.
    pub fn last_config(&self) -> Option<Vec<u8>> {
        self.run.cluster()
    }

    /// What Docker was given, as [`Host::save_docker`] kept it. That it can not be read is a fault.
    pub fn docker<T: DeserializeOwned>(&self) -> Option<T> {
        let found = self.run.docker();
        let fault = found
            .as_ref()
            .err()
            .map(|e| format!("{e}: what Docker was given here is not known but from Docker"));
        self.faults.set(DOCKER_HAD, fault);
        found.ok().flatten()
    }

    /// That it can not be written is a fault.
    pub fn save_docker(&self, bytes: &[u8]) -> Result<(), HostError> {
        let saved = self.run.save_docker(bytes);
        let fault = saved.as_ref().err().map(|e| {
            format!("{e}: until that is mended, Docker is given no new networks and addresses")
        });
        self.faults.set("docker record", fault);
        saved?;
        self.faults.set(DOCKER_HAD, None);
        Ok(())
    }

    /// The cluster and the open maps, also when another process applied them.
    fn adopt(&mut self) -> Result<Cluster, HostError> {
        if self.state.node.is_empty() && self.run.cluster().is_some() {
            return Err(HostError::User(format!(
                "{} does not say any more what was made on this host: run `mesh up --config FILE`, \
                 which takes it up again; traffic goes on",
                self.run.dir().display()
            )));
        }
        let Some(cluster) = self.cluster.take().or_else(|| self.last_cluster()) else {
            return Err(HostError::User(
                "the mesh is not up on this host: run `mesh up --config FILE`".into(),
            ));
        };
        if let Some(held) = &self.held
            && let Err(e) = held.pin(&self.pins)
        {
            // The next look says so, and what to do.
            tracing::debug!("{e}");
        }
        if self.tables.is_none() {
            self.tables = Some(Tables::open(&self.pins.maps())?);
        }
        Ok(cluster)
    }

    fn tables(&self) -> Result<&Tables, HostError> {
        self.tables.as_ref().ok_or_else(|| HostError::User("the mesh is not up".into()))
    }
}

fn find(cluster: &Cluster, node: &str) -> Result<Node, HostError> {
    let Some(node) = cluster.nodes.iter().find(|n| n.name == node) else {
        return Err(HostError::User(format!(
            "the config file has no node {node:?}, which this host is: add it, or run `mesh down`"
        )));
    };
    identity::managed(node).cloned()
}

/// The inode number of this network namespace.
fn own_inode() -> Result<u32, HostError> {
    let netns = crate::net::own_netns()?;
    let stat = rustix::fs::fstat(&netns).map_err(|e| HostError::User(format!("own netns: {e}")))?;
    Ok(stat.st_ino as u32)
}
