//! The demo: hosts and containers in namespaces, joined by the real agent.

use anyhow::{Result, bail};

pub struct RunArgs {
    /// Print the result as JSON
    pub json: bool,
    /// Leave everything standing
    pub keep: bool,
}

pub fn run(_args: RunArgs) -> Result<()> {
    bail!("placeholder, replaced on merge")
}
