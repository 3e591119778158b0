//! A host that loses its power: its disk stays, and with it Docker's data and the state folder.

use anyhow::Result;

use super::Docker;
use crate::machine::{kill_cgroup, remove_cgroup};

impl Docker {
    /// Kills everything on a host at once, and starts it with neither agent nor Docker. What was in the
    /// kernel and in /run is gone.
    pub fn reboot(&mut self, at: usize) -> Result<()> {
        let cgroup = self.cgroup(at);
        self.topology.hosts[at].kill9();
        if let Some(mut daemon) = self.daemons[at].take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        kill_cgroup(&cgroup);
        self.machines.reboot(&mut self.topology, at)?;
        remove_cgroup(&cgroup);
        Ok(())
    }
}
