//! The config file's bytes.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::fault::Faults;

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
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    // Looked at before it is opened, since opening is enough to wake some devices; and again after,
    // since it may be another by then. O_NONBLOCK: a FIFO without writer does not keep us.
    check_kind(path, &path.metadata().map_err(io)?)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    check_kind(path, &metadata)?;
    read_all(file, path, metadata.len())
}

/// Reads at most [`SIZE_MAX_BYTES`] from stdin, to its end.
pub fn read_stdin() -> Result<Vec<u8>, ReadError> {
    read_all(io::stdin().lock(), Path::new("stdin"), 0)
}

/// `path`: for errors. `expected`: how many bytes there will be, as far as that is known.
fn read_all(source: impl io::Read, path: &Path, expected: u64) -> Result<Vec<u8>, ReadError> {
    // One more than there are: to find the end takes no larger buffer.
    let mut bytes = Vec::with_capacity(expected.min(SIZE_MAX_BYTES) as usize + 1);
    let read = source.take(SIZE_MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > SIZE_MAX_BYTES {
        return Err(ReadError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn check_kind(path: &Path, metadata: &std::fs::Metadata) -> Result<(), ReadError> {
    let kind = metadata.file_type();
    if kind.is_file() {
        // A large file is refused before it is read.
        return if metadata.len() > SIZE_MAX_BYTES {
            Err(ReadError::TooLarge { path: path.to_owned() })
        } else {
            Ok(())
        };
    }
    let what = if kind.is_dir() { "a directory" } else { "no regular file" };
    Err(ReadError::NotAFile { path: path.to_owned(), what })
}
