//! Everything taken away again, also what an agent left that crashed. Nothing that is not ours is
//! touched, an error does not stop the rest, and a second time finds nothing to do.

use mesh_common::verdict::Hook;

use super::{Host, HostError, attach::UNDERLAY_HOOKS, firewall, gateway, guard, mesh0};
use crate::bpf::attach::{self, Mode};

impl Host {
    /// Takes this host off the mesh. Returns what could not be done.
    pub async fn down(mut self) -> Vec<HostError> {
        let mut errors = Vec::new();
        let state = std::mem::take(&mut self.state);
        let mode = state.mode.unwrap_or(Mode::Tcx);
        self.tables = None;
        for interface in &state.underlay {
            for hook in UNDERLAY_HOOKS {
                errors.extend(
                    attach::detach(&self.pins, mode, hook, interface).err().map(Into::into),
                );
            }
        }
        for endpoint in state.endpoints.values().filter(|e| e.bridged.is_some()) {
            let host = &endpoint.host;
            if let Err(e) = attach::detach(&self.pins, mode, Hook::FromContainer, host) {
                errors.push(e.into());
            }
        }
        errors.extend(firewall::remove(&state).err());
        errors.extend(guard::remove(&state).err());
        errors.extend(gateway::remove(&state).err());
        for interface in &state.clsact {
            if let Err(e) = self.net.remove_clsact(interface.index).await {
                errors.push(e.into());
            }
        }
        // By their mark rather than by the state, which may be lost or older.
        match self.net.links().await {
            Ok(links) => {
                for link in links.iter().filter(|l| mesh0::is_ours(l)) {
                    if let Err(e) = self.net.delete_link(link.index).await {
                        errors.push(e.into());
                    }
                }
            }
            Err(e) => errors.push(e.into()),
        }
        errors.extend(self.pins.remove().into_iter().map(HostError::from));
        if let Err(e) = self.pins.unmount() {
            let dir = self.pins.dir().display();
            errors.push(HostError::User(format!("unmounting the bpf file system of {dir}: {e}")));
        }
        if errors.is_empty() {
            if let Err(e) = self.run.remove() {
                errors.push(e.into());
            }
        } else {
            // Kept for the next try.
            if let Err(e) = self.run.save(&state) {
                errors.push(e.into());
            }
        }
        errors
    }
}
