//! Everything taken away again, also what an agent left that crashed. Nothing that is not ours is
//! touched, an error does not stop the rest, and a second time finds nothing to do.

use mesh_common::verdict::Hook;

use super::{Host, HostError, attach::UNDERLAY_HOOKS, firewall, gateway, guard, mesh0};
use crate::{
    bpf::attach::{self, Mode},
    claim,
};

impl Host {
    /// Takes this host off the mesh. Returns what could not be done.
    pub async fn down(mut self) -> Vec<HostError> {
        let mut errors = Vec::new();
        let state = std::mem::take(&mut self.state);
        self.tables = None;
        let bridged = state.endpoints.values().filter(|e| e.bridged.is_some());
        let ports = bridged.map(|e| (Hook::FromContainer, &e.host));
        let underlay = state.underlay.iter().flat_map(|i| UNDERLAY_HOOKS.map(|hook| (hook, i)));
        let attached: Vec<_> = underlay.chain(ports).collect();
        for mode in [state.mode.or(Some(Mode::Tcx)), state.old_mode].into_iter().flatten() {
            for (hook, interface) in &attached {
                let detached = attach::detach(&self.pins, mode, *hook, interface);
                errors.extend(detached.err().map(Into::into));
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
        let mounting = claim::mounting();
        errors.extend(self.pins.remove().into_iter().map(HostError::from));
        if let Err(e) = self.pins.unmount() {
            let dir = self.pins.dir().display();
            errors.push(HostError::User(format!("unmounting the bpf file system of {dir}: {e}")));
        }
        drop(mounting);
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
