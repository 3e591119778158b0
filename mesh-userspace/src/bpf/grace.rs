//! Waiting for programs that run at the moment, before what they may still read is written to.

use std::{io, os::fd::AsRawFd as _};

use super::raw;

/// Returns once every run of a program that began before the call has ended: an RCU grace period,
/// usually 10 to 30 ms. What was written before the call is seen by every run that begins after it.
///
/// The kernel waits so in an update of a map of maps, since Linux 5.0 (1ae80cf31938). In contrast to
/// membarrier(2) it does so on CPUs without a tick (nohz_full) and on machines with one CPU too.
///
/// # Errors
///
/// Those of bpf(2), which needs CAP_BPF and memory for two small maps.
pub fn grace() -> io::Result<()> {
    let inner = raw::create_array(None)?;
    let outer = raw::create_array(Some(&inner))?;
    raw::set_word(&outer, 0, inner.as_raw_fd() as u32)
}

/// [`grace`], which takes long, on a thread that has nothing else to do.
///
/// # Errors
///
/// As [`grace`].
pub async fn wait() -> io::Result<()> {
    tokio::task::spawn_blocking(grace).await.map_err(io::Error::other)?
}

/// Returns once no program can read what is written from here on and miss what was written before.
///
/// x86 neither reorders stores nor loads. Elsewhere a program may have loaded an entry ahead of the
/// mark that it is in use, since nothing but a branch is between the two; such a run is over then.
///
/// # Errors
///
/// As [`grace`].
pub async fn order() -> io::Result<()> {
    if cfg!(target_arch = "x86_64") { Ok(()) } else { wait().await }
}
