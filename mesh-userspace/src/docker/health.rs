//! What `mesh status` says of Docker: whether it is there, whether it finds the driver, and why
//! something did not come about.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{Docker, api::Absence};
use crate::host::Status;

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
pub(super) struct Health(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    absence: Option<Absence>,
    /// Of the plugin's socket.
    unserved: Option<String>,
    refused: Option<(String, String, Instant)>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // What it has is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether that is new.
    pub fn api(&self, absence: Option<Absence>) -> bool {
        let is_new = self.lock().absence != absence;
        self.lock().absence = absence;
        is_new
    }

    pub fn plugin(&self, fault: Option<String>) {
        self.lock().unserved = fault;
    }

    pub fn refused(&self, call: &str, error: &str) {
        self.lock().refused = Some((call.to_owned(), error.to_owned(), Instant::now()));
    }
}

impl Docker {
    /// Adds what is known of Docker.
    pub fn tell(&self, status: &mut Status) {
        let mut troubles: BTreeMap<&str, &str> =
            self.troubles.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect();
        for network in &mut status.networks {
            let trouble = troubles.remove(network.name.as_str());
            network.faults.extend(trouble.map(str::to_owned));
        }
        let known = self.health.lock();
        let names: Vec<String> = self.shared.lock().networks().map(|(n, _)| n.to_owned()).collect();
        let socket = self.api.socket.display();
        let mut faults = Vec::new();
        match &known.absence {
            None => {}
            // Perhaps there is to be none on this host.
            Some(Absence::None) if names.is_empty() => {}
            Some(Absence::None) => faults.push(format!(
                "there is no Docker at {socket}, so that containers here can not be in {}: start it, \
                 or say where it is (docker.socket in the config file)",
                names.join(", ")
            )),
            Some(Absence::Unreachable(e)) => faults.push(format!(
                "Docker at {socket} does not answer ({e}): start it (`systemctl start docker`)"
            )),
            Some(Absence::Elsewhere) => faults.push(format!(
                "the Docker at {socket} is in another network namespace than this agent, and is not \
                 served"
            )),
        }
        let plugin_socket = self.plugin_socket.clone();
        if let (Some(path), None) = (&plugin_socket, &known.absence) {
            let path = path.display();
            if let Some(e) = &known.unserved {
                faults.push(format!("Docker finds no driver at {path}: {e}"));
            } else if plugin_socket.as_ref().is_some_and(|path| !path.exists()) {
                faults.push(format!(
                    "Docker finds no driver at {path}: somebody removed it; it is made again within \
                     half a minute"
                ));
            }
        }
        faults.extend(troubles.iter().map(|(name, why)| format!("network {name}: {why}")));
        let last_error = known.refused.as_ref().map(|(call, error, at)| DriverFault {
            call: call.clone(),
            error: error.clone(),
            seconds_ago: at.elapsed().as_secs(),
        });
        status.docker = Some(DockerStatus {
            socket: self.api.socket.clone(),
            connected: known.absence.is_none(),
            plugin_socket,
            faults,
            last_error,
        });
    }
}
