//! What `mesh status` says of Docker: whether it is there, whether it finds the driver, and why
//! something did not come about.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{Docker, api::Absence};
use crate::{
    faults::{Faults, Of},
    host::{Host, Status},
};

/// Networks that a fault names.
const NAMED_MAX: usize = 8;

/// In `mesh status --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DockerStatus {
    pub socket: PathBuf,
    /// An agent follows it.
    pub connected: bool,
    /// Where Docker finds the driver; `None`: the config file says that there is none.
    pub plugin_socket: Option<PathBuf>,
    /// What is not as it should be, and the way out. Those of one network are with that.
    pub faults: Vec<String>,
    /// The last call of Docker's that the driver refused.
    pub last_error: Option<DriverFault>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriverFault {
    /// As Docker names it, such as `NetworkDriver.CreateNetwork`.
    pub call: String,
    pub error: String,
    pub seconds_ago: u64,
}

/// What is known, by who watches Docker and who serves it.
#[derive(Clone, Default)]
pub(super) struct Health {
    known: Arc<Mutex<Known>>,
    faults: Faults,
}

#[derive(Default)]
struct Known {
    /// There was a look.
    is_seen: bool,
    absence: Option<Absence>,
    /// Of the plugin's socket.
    unserved: Option<String>,
    refused: Option<(String, String, Instant)>,
}

impl Health {
    /// `faults`: where a refused call is remembered.
    pub fn new(faults: Faults) -> Self {
        Self { known: Arc::default(), faults }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // What it has is whole at any time.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn api(&self, absence: Option<Absence>) {
        let mut known = self.lock();
        (known.is_seen, known.absence) = (true, absence);
    }

    pub fn plugin(&self, fault: Option<String>) {
        self.lock().unserved = fault;
    }

    pub fn refused(&self, call: &str, error: &str) {
        self.lock().refused = Some((call.to_owned(), error.to_owned(), Instant::now()));
        self.faults.note(Of::Docker, format!("{call} was refused: {error}"));
    }
}

impl Known {
    fn is_there(&self) -> bool {
        self.is_seen && self.absence.is_none()
    }
}

/// The first few, and how many more there are.
fn some(names: &[&str]) -> String {
    let (first, more) = names.split_at(names.len().min(NAMED_MAX));
    let rest = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    first.join(", ") + &rest
}

impl Docker {
    /// Says what is wrong now.
    pub fn tell_faults(&self, host: &Host) {
        let is_known = |name: &str| host.cluster().is_some_and(|c| c.network(name).is_some());
        let of_networks = self.troubles.iter().map(|(name, why)| match is_known(name) {
            true => (Of::Network(name.clone()), why.clone()),
            false => (Of::Docker, format!("network {name}: {why}")),
        });
        let known = self.health.lock();
        let absent = known.absence.as_ref().and_then(|absence| self.absence(absence));
        let unserved = known.is_there().then(|| self.unserved(&known)).flatten();
        let of_docker = absent.into_iter().chain(unserved).map(|fault| (Of::Docker, fault));
        host.faults().set_all_of("docker", of_docker.chain(of_networks));
    }

    fn absence(&self, absence: &Absence) -> Option<String> {
        let socket = self.api.socket.display();
        match absence {
            Absence::None => {
                let shared = self.shared.lock();
                let names: Vec<&str> = shared.networks().map(|(name, _)| name).collect();
                // Perhaps there is to be none on this host.
                (!names.is_empty()).then(|| {
                    format!(
                        "there is no Docker at {socket}, so that containers here can not be in {}: \
                         start it, or say where it is (docker.socket in the config file)",
                        some(&names)
                    )
                })
            }
            Absence::Unreachable(e) => Some(format!(
                "Docker at {socket} does not answer ({e}): start it (`systemctl start docker`)"
            )),
            Absence::Elsewhere => Some(format!(
                "the Docker at {socket} is in another network namespace than this agent, and is not \
                 served: run the agent in Docker's, or say where its own is (docker.socket in the \
                 config file)"
            )),
        }
    }

    fn unserved(&self, known: &Known) -> Option<String> {
        let path = self.plugin_socket.as_ref()?;
        let shown = path.display();
        if let Some(e) = &known.unserved {
            return Some(format!("Docker finds no driver at {shown}: {e}"));
        }
        (!path.exists()).then(|| {
            format!(
                "Docker finds no driver at {shown}: somebody removed it; it is made again within \
                 half a minute"
            )
        })
    }

    /// Adds what is known of Docker.
    pub fn tell(&self, status: &mut Status) {
        let known = self.health.lock();
        let last_error = known.refused.as_ref().map(|(call, error, at)| DriverFault {
            call: call.clone(),
            error: error.clone(),
            seconds_ago: at.elapsed().as_secs(),
        });
        let of_docker = status.all_faults.iter().filter(|fault| fault.of == Of::Docker);
        status.docker = Some(DockerStatus {
            socket: self.api.socket.clone(),
            connected: known.is_there(),
            plugin_socket: self.plugin_socket.clone(),
            faults: of_docker.map(|fault| fault.fault.clone()).collect(),
            last_error,
        });
    }
}
