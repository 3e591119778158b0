//! Programs, maps and attachments: the one module that speaks to the kernel's BPF side.

pub mod attach;
pub mod grace;
mod halves;
pub mod held;
pub mod load;
pub mod pins;
pub mod probe;
mod raw;
mod slotted;
pub mod sync;
pub mod tables;

pub use pins::Pins;

use std::{io, path::PathBuf};

/// What went wrong with programs, maps or pins.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error("{what} {}: {source}{}", path.display(), hint(source))]
    Pin { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the kernel does not take the programs: {0}")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("program {program} on {ifname}: {source}")]
    Attach {
        program: &'static str,
        ifname: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("map {map}: {source}")]
    Map { map: &'static str, source: io::Error },
    #[error("{} is used by something that is not a bpf file system, and one cannot be mounted there: {source}", path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("number of CPUs: {0}")]
    Cpus(io::Error),
}

fn hint(e: &io::Error) -> &'static str {
    match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (run as root, or with CAP_BPF and CAP_NET_ADMIN)",
        Some(libc::ENOENT) => " (is the mesh up? `mesh up` makes it)",
        _ => "",
    }
}
