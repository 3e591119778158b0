//! The frame of a namespace test: skips where it can not run, shows the logs where it fails.

use std::{env, fs};

use anyhow::Result;

use crate::{Options, Topology, topology};

/// Set to forbid skipping: a test that can not run here fails.
pub const NO_SKIP: &str = "MESH_TESTS_NO_SKIP";

/// Makes a topology without agents and runs `body` on it.
///
/// # Panics
///
/// If `body` fails, with its error and the end of every agent's log.
pub fn bare(options: Options, body: impl FnOnce(&mut Topology) -> Result<()>) {
    if let Err(cause) = able() {
        assert!(env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, but: {cause}");
        eprintln!("SKIP: {cause}");
        return;
    }
    let mut topology = Topology::new(options).expect("make namespaces");
    if let Err(error) = body(&mut topology) {
        topology.hosts.iter().for_each(|host| eprintln!("{}", host.log_tail()));
        panic!("{error:#}");
    }
}

/// Makes a topology, starts all agents, attaches all containers, and runs `body`.
///
/// # Panics
///
/// As [`bare`].
pub fn scenario(options: Options, body: impl FnOnce(&mut Topology) -> Result<()>) {
    bare(options, |topology| {
        topology.up()?;
        body(topology)
    });
}

/// Whether this process may make network namespaces; else why not, and what to do.
pub fn able() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("namespaces need root; run as root, or `cargo xtask test` with sudo".into());
    }
    if let Err(e) = fs::create_dir_all(topology::RUN) {
        return Err(format!("{} can not be written: {e}", topology::RUN));
    }
    probe().map_err(|e| format!("network namespaces can not be made here: {e:#}"))
}

/// Makes a namespace and removes it.
fn probe() -> Result<()> {
    let none = Options { hosts: 0, containers: 0, ..Options::default() };
    Topology::new(none).map(drop)
}
