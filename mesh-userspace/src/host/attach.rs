//! The programs on their interfaces.

use std::collections::BTreeMap;

use mesh_common::verdict::Hook;

use super::{Host, HostError, mesh0};
use crate::{
    bpf::attach::{self, Interface, Mode},
    config::Node,
    faults::Of,
    state::Endpoint,
};

/// Of an interface of the underlay.
pub(super) const UNDERLAY_HOOKS: [Hook; 2] = [Hook::FromUnderlay, Hook::FromForward];

impl Host {
    /// Attaches every program where it belongs, and takes it off where it does not any more.
    pub(super) async fn attach_all(&mut self, me: &Node) -> Result<(), HostError> {
        let mode = self.mode();
        let wanted = self.underlay_interfaces(me).await?;
        // One interface that can not have its program keeps no other from its own.
        let mut done = Ok(());
        for interface in &wanted {
            for hook in UNDERLAY_HOOKS {
                let made = attach::attach(&self.pins, mode, hook, interface);
                if matches!(made, Ok(true)) && !self.state.clsact.contains(interface) {
                    self.state.clsact.push(interface.clone());
                }
                done = done.and(made.map(drop));
            }
        }
        // By number: an interface with another name is still the same one.
        let is_wanted = |i: &Interface| wanted.iter().any(|w| w.index == i.index);
        let mut left = Vec::new();
        for interface in self.state.underlay.iter().filter(|i| !is_wanted(i)) {
            let detach = |hook| attach::detach(&self.pins, mode, hook, interface);
            let detached = UNDERLAY_HOOKS.map(detach).into_iter().fold(Ok(()), Result::and);
            if detached.is_err() {
                // Not forgotten while a program is on it: the next look tries again.
                left.push(interface.clone());
            }
            done = done.and(detached);
        }
        self.state.underlay = wanted.into_iter().chain(left).collect();
        if let Some(host) = &self.state.host {
            done = done.and(attach::attach(&self.pins, mode, Hook::FromHost, host).map(drop));
        }
        self.attach_endpoints().await;
        self.remove_dead_links();
        Ok(done?)
    }

    /// One that can not have its program stops no other, nor the host: it is a fault.
    async fn attach_endpoints(&mut self) {
        let mut faults = BTreeMap::new();
        let made = self.state.endpoints.iter().filter(|(_, e)| e.host.index != 0);
        for (name, endpoint) in made {
            let (mode, host) = (self.mode_of(endpoint), &endpoint.host);
            match attach::attach(&self.pins, mode, Hook::FromContainer, host) {
                Ok(true) if endpoint.bridged.is_some() => {
                    if !self.state.clsact.contains(host) {
                        self.state.clsact.push(host.clone());
                    }
                }
                Ok(_) => {}
                // A container that ends takes its interface with it.
                Err(e) if matches!(self.net.link(host.index).await, Ok(None)) => {
                    tracing::debug!("{e}");
                }
                Err(e) => {
                    faults.insert(name.clone(), format!(
                        "it sends nothing into the mesh: {e}; start its container anew, or detach and \
                         attach it again"
                    ));
                }
            }
        }
        self.unattached = faults;
        self.say_endpoints();
    }

    /// Sets the host's ends up again that somebody set down: through them nothing gets in or out.
    pub(super) async fn ensure_endpoints_up(&self) -> Result<(), HostError> {
        let links = self.net.links().await?;
        let made = self.state.endpoints.values().filter(|e| e.bridged.is_none() && !e.unfinished);
        let down = made.filter_map(|e| links.iter().find(|link| link.index == e.host.index));
        let mut done = Ok(());
        for link in down.filter(|link| !link.up && mesh0::is_ours(link)) {
            done = done.and(self.net.set_up(link.index).await);
        }
        Ok(done?)
    }

    /// Says of each endpoint that is not as it should be what is wrong.
    pub(super) fn say_endpoints(&self) {
        let mut faults = Vec::new();
        for (name, endpoint) in &self.state.endpoints {
            let fault = match self.unattached.get(name) {
                _ if endpoint.unfinished => Some(format!(
                    "it is half made, since that was cut short: the next start of the agent, \
                     or `mesh detach {name}`, takes it back; then attach it again"
                )),
                Some(fault) => Some(fault.clone()),
                None => self.lost_with_record(name, endpoint),
            };
            faults.extend(fault.map(|fault| (Of::Endpoint(name.clone()), fault)));
        }
        self.faults.set_all_of("endpoint", faults);
    }

    /// Takes the attachments of one kind away, as those of the other are in place.
    pub(super) fn detach_all(&self, old: Mode) -> Result<(), HostError> {
        let detach = |hook, interface| Ok(attach::detach(&self.pins, old, hook, interface)?);
        let endpoints = self.state.endpoints.values().filter(|e| !e.netkit);
        let endpoints = endpoints.map(|e| detach(Hook::FromContainer, &e.host));
        let underlay = self.state.underlay.iter();
        let underlay = underlay.flat_map(|i| UNDERLAY_HOOKS.map(|hook| detach(hook, i)));
        let host = self.state.host.iter().map(|i| detach(Hook::FromHost, i));
        all(underlay.chain(host).chain(endpoints).chain([self.detach_gro(old)]))
    }

    pub(super) fn mode(&self) -> Mode {
        self.state.mode.unwrap_or(Mode::Tcx)
    }

    pub(super) fn mode_of(&self, endpoint: &Endpoint) -> Mode {
        if endpoint.netkit { Mode::Netkit } else { self.mode() }
    }
}

/// Has all be done, whatever becomes of one, and fails as the first that failed.
pub(super) fn all(done: impl IntoIterator<Item = Result<(), HostError>>) -> Result<(), HostError> {
    done.into_iter().fold(Ok(()), Result::and)
}
