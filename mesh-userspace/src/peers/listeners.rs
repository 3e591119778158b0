//! What listens on this node's overlay addresses, which come and go with the config file.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use tokio::{sync::watch, task::AbortHandle};

use super::Roster;

/// An address may be taken up a little before the interface has it.
const RETRY: Duration = Duration::from_secs(1);

/// The listeners, one for each address.
pub struct Listeners {
    roster: watch::Receiver<Roster>,
    tasks: HashMap<IpAddr, AbortHandle>,
}

impl Listeners {
    pub fn new(roster: watch::Receiver<Roster>) -> Self {
        Self { roster, tasks: HashMap::new() }
    }

    /// Ends those on addresses that this node no longer has, and returns the addresses that have
    /// none.
    pub fn missing(&mut self) -> Vec<IpAddr> {
        let mut wanted = self.roster.borrow_and_update().addresses.clone();
        self.tasks.retain(|address, task| {
            let stays = wanted.contains(address) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        wanted.retain(|address| !self.tasks.contains_key(address));
        wanted
    }

    pub fn add(&mut self, address: IpAddr, task: AbortHandle) {
        self.tasks.insert(address, task);
    }

    /// Until there is something to do: addresses changed, or, if one `failed`, a while later. `false`
    /// if nothing more will change.
    pub async fn wait(&mut self, failed: bool) -> bool {
        tokio::select! {
            changed = self.roster.changed() => changed.is_ok(),
            () = tokio::time::sleep(RETRY), if failed => true,
        }
    }
}
