//! What the run folder knows of this host, and what is wrong with that.

use super::{Host, HostError};
use crate::{
    config::{self, Cluster},
    state::StateError,
};

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
        let seen = self.run.seen().into_iter().map(|said| {
            let fault = format!(
                "{said}: the next start of the agent sets it aside and takes up what is in the kernel"
            );
            (said, fault)
        });
        self.faults.set_all("seen", seen.collect());
    }

    /// Writes what could not be written until now, and says what still can not.
    pub(super) fn save_again(&mut self) {
        let unsaid = self.run.say_holder().and(self.claim.say_holder());
        let fault =
            |e| format!("{e}: who looks for the agent that has the lock is not told who it is");
        self.faults.set("lock", unsaid.err().map(fault));
        let fault = self.run.save_cluster_again().err().map(unkept);
        self.faults.set("last config", fault);
    }

    /// Keeps the config file that is in effect. That it can not be written is a fault.
    pub(super) fn keep_config(&mut self, bytes: &[u8]) {
        let fault = self.run.save_cluster(bytes).err().map(unkept);
        self.faults.set("last config", fault);
    }

    /// The cluster as the file that was good last has it.
    pub fn file_cluster(&self) -> Option<Cluster> {
        let parsed = config::parse(&self.run.cluster()?);
        parsed.map_err(|e| self.run.set_cluster_aside(e.to_string())).ok()
    }
}

fn unkept(e: StateError) -> String {
    format!(
        "{e}: until that is mended, an agent that starts with a bad config file has no good one"
    )
}
