//! The programs on their interfaces.

use mesh_common::verdict::Hook;

use super::{Host, HostError};
use crate::{
    bpf::attach::{self, Interface, Mode},
    config::Node,
    state::Endpoint,
};

impl Host {
    /// Attaches every program where it belongs, and takes it off where it does not any more.
    pub(super) async fn attach_all(&mut self, me: &Node) -> Result<(), HostError> {
        let mode = self.mode();
        let wanted = self.underlay_interfaces(me).await?;
        for interface in &wanted {
            let made = attach::attach(&self.pins, mode, Hook::FromUnderlay, interface)?;
            if made && !self.state.clsact.contains(interface) {
                self.state.clsact.push(interface.clone());
            }
        }
        // By number: an interface with another name is still the same one.
        let is_wanted = |i: &Interface| wanted.iter().any(|w| w.index == i.index);
        for interface in self.state.underlay.iter().filter(|i| !is_wanted(i)) {
            attach::detach(&self.pins, mode, Hook::FromUnderlay, interface)?;
        }
        self.state.underlay = wanted;
        if let Some(host) = &self.state.host {
            attach::attach(&self.pins, mode, Hook::FromHost, host)?;
        }
        for endpoint in self.state.endpoints.values() {
            let mode = self.mode_of(endpoint);
            match attach::attach(&self.pins, mode, Hook::FromContainer, &endpoint.host) {
                Ok(true) if endpoint.bridged.is_some() => {
                    if !self.state.clsact.contains(&endpoint.host) {
                        self.state.clsact.push(endpoint.host.clone());
                    }
                }
                // A container that ends takes its interface with it.
                Err(e) if endpoint.bridged.is_some() => tracing::debug!("{e}"),
                done => drop(done?),
            }
        }
        Ok(())
    }

    /// Takes the attachments of one kind away, as those of the other are in place.
    pub(super) fn detach_all(&self, old: Mode) -> Result<(), HostError> {
        for interface in &self.state.underlay {
            attach::detach(&self.pins, old, Hook::FromUnderlay, interface)?;
        }
        if let Some(host) = &self.state.host {
            attach::detach(&self.pins, old, Hook::FromHost, host)?;
        }
        for endpoint in self.state.endpoints.values().filter(|e| !e.netkit) {
            attach::detach(&self.pins, old, Hook::FromContainer, &endpoint.host)?;
        }
        self.detach_gro(old)
    }

    pub(super) fn mode(&self) -> Mode {
        self.state.mode.unwrap_or(Mode::Tcx)
    }

    pub(super) fn mode_of(&self, endpoint: &Endpoint) -> Mode {
        if endpoint.netkit { Mode::Netkit } else { self.mode() }
    }
}
