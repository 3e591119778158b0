//! What nobody tells of when it changes, looked at often: pins and attachments.

use std::{collections::HashSet, path::PathBuf};

use mesh_common::verdict::Hook;

use super::{Host, HostError, attach::UNDERLAY_HOOKS};
use crate::bpf::{
    attach::{self, Interface, Mode},
    held::Held,
};

impl Host {
    /// Whether pins and attachments are as they were left. Takes some microseconds for each.
    pub fn is_whole(&self) -> bool {
        self.held.as_ref().is_some_and(Held::is_pinned)
            && self
                .attached()
                .all(|(mode, hook, on)| attach::is_attached(&self.pins, mode, hook, on))
    }

    /// Makes every pin be there that this process knows.
    pub(super) fn hold_pins(&mut self) -> Result<(), HostError> {
        match &self.held {
            Some(held) => held.pin(&self.pins)?,
            None => self.held = Some(Held::open(&self.pins)?),
        }
        Ok(())
    }

    /// Removes the pins of interfaces that are gone.
    pub(super) fn remove_dead_links(&self) {
        let wanted: HashSet<PathBuf> =
            self.attached().map(|(_, hook, on)| self.pins.link(hook, on.index)).collect();
        attach::remove_dead(&self.pins, |pin| wanted.contains(pin));
    }

    /// Where programs are to run, and how they are attached there.
    fn attached(&self) -> impl Iterator<Item = (Mode, Hook, &Interface)> {
        let mode = self.mode();
        let underlay = self.state.underlay.iter();
        let underlay = underlay.flat_map(move |i| UNDERLAY_HOOKS.map(|hook| (mode, hook, i)));
        let host = self.state.host.iter().map(move |i| (mode, Hook::FromHost, i));
        let endpoints = self.state.endpoints.values();
        let endpoints = endpoints.map(|e| (self.mode_of(e), Hook::FromContainer, &e.host));
        let listeners = self.listeners.interfaces();
        let listeners = listeners.iter().map(move |i| (mode, Hook::FromContainer, i));
        underlay.chain(host).chain(endpoints).chain(listeners)
    }
}
