//! The config file's bytes.

use std::{
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::fault::Faults;
use crate::durable;

/// Largest config file. 100,000 nodes take about 10 MB; parsing takes up to 60 times the size.
pub const SIZE_MAX_BYTES: u64 = 32 << 20;

/// Why there is no cluster to be had from a file.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("can not read {}: {source}{}", .path.display(), remedy(.source))]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is {what}: name the config file itself", .path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("{} is larger than {} MiB: is it the right file?", .path.display(), SIZE_MAX_BYTES >> 20)]
    TooLarge { path: PathBuf },
    /// Each fault on a line of its own, after the path.
    #[error("{}", Located { path, faults })]
    Faults { path: PathBuf, faults: Faults },
}

struct Located<'a> {
    path: &'a Path,
    faults: &'a Faults,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.0.iter().enumerate() {
            write!(f, "{}{}:{fault}", if i == 0 { "" } else { "\n" }, self.path.display())?;
        }
        Ok(())
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (write it with `mesh init`, or give its path with --config)",
        io::ErrorKind::PermissionDenied => " (run as root, or make the file readable)",
        _ => "",
    }
}

/// Reads a regular file of at most [`SIZE_MAX_BYTES`]; never waits for one that is something else.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ReadError> {
    durable::read_regular(path, SIZE_MAX_BYTES).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::IsADirectory => ReadError::NotAFile { path, what: "a directory" },
            io::ErrorKind::InvalidInput => ReadError::NotAFile { path, what: "no regular file" },
            io::ErrorKind::FileTooLarge => ReadError::TooLarge { path },
            _ => ReadError::Io { path, source },
        }
    })
}

/// Reads at most [`SIZE_MAX_BYTES`] from stdin, to its end.
pub fn read_stdin() -> Result<Vec<u8>, ReadError> {
    let (path, mut bytes) = (PathBuf::from("stdin"), Vec::new());
    match io::stdin().lock().take(SIZE_MAX_BYTES + 1).read_to_end(&mut bytes) {
        Err(source) => Err(ReadError::Io { path, source }),
        Ok(_) if bytes.len() as u64 > SIZE_MAX_BYTES => Err(ReadError::TooLarge { path }),
        Ok(_) => Ok(bytes),
    }
}
