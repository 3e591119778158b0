//! The frame of a namespace test: skips where it can not run, shows the logs where it fails.

use std::{env, fs, io, thread};

use anyhow::Result;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{Options, Topology, removal};

/// Set to forbid skipping: a test that can not run here fails.
pub const NO_SKIP: &str = "MESH_TESTS_NO_SKIP";

/// Makes a topology without agents and runs `body` on it.
///
/// # Panics
///
/// If `body` fails, with its error and the end of every agent's log.
pub fn bare(options: Options, body: impl FnOnce(&mut Topology) -> Result<()>) {
    if let Err(cause) = able() {
        return skip(&cause);
    }
    let mut topology = Topology::new(options).expect("make namespaces");
    // The topology shows the logs when it is dropped by a panic.
    body(&mut topology).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Says why a test can not run here.
///
/// # Panics
///
/// If skipping is forbidden.
pub fn skip(cause: &str) {
    assert!(env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, but: {cause}");
    eprintln!("SKIP: {cause}");
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
    if let Err(e) = fs::create_dir_all(removal::RUN) {
        return Err(format!("{} can not be written: {e}", removal::RUN));
    }
    probe().map_err(|e| format!("network namespaces can not be made here: {e}"))
}

/// Makes a namespace, which ends with the thread.
fn probe() -> io::Result<()> {
    thread::scope(|s| {
        let unshare = || {
            // SAFETY: only the network namespace is left, which no memory depends on.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        };
        s.spawn(unshare).join().unwrap_or(Err(rustix::io::Errno::PERM))
    })?;
    Ok(())
}
