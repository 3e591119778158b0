//! What the run folder knows of this host, and what is wrong with that.

use super::{Host, HostError};
use crate::config::{self, Cluster};

impl Host {
    /// On a disk, to put a file in the place of another takes 2 to 11 ms; it is not done for nothing.
    pub(super) fn save(&mut self) -> Result<(), HostError> {
        self.revision += 1;
        if self.is_saved() {
            return Ok(());
        }
        self.saved = None;
        let saved = self.run.save(&self.state);
        let fault = saved.as_ref().err().map(|e| {
            format!("{e}: until that is mended, an agent that starts may not know what is attached")
        });
        self.faults.set("state", fault);
        saved?;
        self.saved = Some(self.state.clone());
        Ok(())
    }

    /// The same for what goes on without: the fault tells.
    pub(super) fn note(&mut self) {
        if let Err(e) = self.save() {
            tracing::debug!("{e}");
        }
    }

    pub(super) fn is_saved(&self) -> bool {
        self.saved.as_ref() == Some(&self.state)
    }

    /// Says of each file of the run folder that was set aside where it is, until it is removed.
    pub(super) fn say_spoiled(&self) {
        let said = self.run.spoiled().into_iter().map(|path| {
            let path = path.display().to_string();
            let fault = format!(
                "{path} made no sense when it was read, and counted as missing: what is in the kernel \
                 was taken up again; see what it was, and remove it"
            );
            (path, fault)
        });
        self.faults.set_all("spoiled", said.collect());
    }

    /// The cluster as the file that was good last has it.
    pub fn file_cluster(&self) -> Option<Cluster> {
        let parsed = config::parse(&self.run.cluster()?);
        parsed.map_err(|e| self.run.set_cluster_aside(e.to_string())).ok()
    }
}
