//! Files that an agent must find again. A reader, and a crash at any moment, find a file either as it was
//! or as it is now. A file that makes no sense is set aside under another name and counts as missing.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

/// Spoiled files of one name that are kept; the next one replaces the last.
pub const SET_ASIDE_MAX: u32 = 9;

/// Another process may make the file between two steps of ours.
const TRIES: u32 = 16;

/// Longest file that is read, in bytes. A state of 10,000 endpoints has 5 MB.
const READ_MAX: u64 = 64 << 20;

/// What was found where a file should be.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    Good(T),
    Absent,
    /// The file made no sense and has another name now.
    SetAside(Spoiled),
    /// The file makes no sense, for this cause, and is as it was.
    Spoiled(String),
}

/// A file that could not be understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Spoiled {
    /// Where it should be.
    pub path: PathBuf,
    /// Where it is now.
    pub at: PathBuf,
    pub cause: String,
}

impl std::fmt::Display for Spoiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, at, cause } = self;
        let (path, at) = (path.display(), at.display());
        write!(f, "{path} could not be read ({cause}): it is kept as {at} and counts as missing")
    }
}

/// Reads a JSON file. A spoiled one is set aside.
///
/// # Errors
///
/// The file is there but cannot be opened, or a spoiled one cannot be set aside.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Found<T>> {
    match look_at_json(path)? {
        Found::Spoiled(cause) => {
            let at = set_aside(path)?;
            Ok(Found::SetAside(Spoiled { path: path.to_owned(), at, cause }))
        }
        found => Ok(found),
    }
}

/// Reads a JSON file, and changes nothing.
///
/// # Errors
///
/// The file is there but cannot be opened.
pub fn look_at_json<T: DeserializeOwned>(path: &Path) -> io::Result<Found<T>> {
    match read(path) {
        Ok(bytes) => Ok(match serde_json::from_slice(&bytes) {
            Ok(value) => Found::Good(value),
            Err(e) => Found::Spoiled(e.to_string()),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Found::Absent),
        Err(e) if makes_no_sense(&e) => Ok(Found::Spoiled(e.to_string())),
        Err(e) => Err(e),
    }
}

/// Reads a file that an agent keeps.
///
/// # Errors
///
/// As [`read_regular`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_regular(path, READ_MAX)
}

/// Whether what is at a path is nothing that [`read`] could ever read: it is to be set aside.
pub fn makes_no_sense(e: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidInput, IsADirectory};
    matches!(e.kind(), FileTooLarge | InvalidInput | IsADirectory)
}

/// Reads a regular file of at most `max` bytes; never waits for one that is something else.
///
/// # Errors
///
/// `IsADirectory`, `InvalidInput` for another that is no regular file, `FileTooLarge`, and those of
/// open(2) and read(2).
pub fn read_regular(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let len = file.metadata()?.len();
    if len > max {
        return Err(too_large(max));
    }
    // One more than there are: to find the end takes no larger buffer.
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(too_large(max)) } else { Ok(bytes) }
}

/// Opens a regular file to read it; never waits for one that is something else.
///
/// # Errors
///
/// `IsADirectory`, `InvalidInput` for another that is no regular file, and those of open(2).
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Looked at before it is opened, since opening is enough to wake some devices; and again after,
    // since it may be another by then. O_NONBLOCK: a FIFO without writer does not keep us.
    check_kind(&fs::metadata(path)?)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    check_kind(&file.metadata()?)?;
    Ok(file)
}

fn check_kind(there: &fs::Metadata) -> io::Result<()> {
    if there.is_dir() {
        Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"))
    } else if !there.is_file() {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    } else {
        Ok(())
    }
}

fn too_large(max: u64) -> io::Error {
    let text = format!("it is larger than {} MiB", max >> 20);
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

/// What mends an error of a file, in brackets behind a blank; nothing if that is not known.
pub fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => " (run as root)",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => " (make room there)",
        io::ErrorKind::ReadOnlyFilesystem => " (`mount -o remount,rw` its file system)",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            " (a file is there where a folder is needed: give another path, or move it away)"
        }
        _ => "",
    }
}

/// Gives a file another name beside its own and returns it: `state.json.spoiled-1`.
///
/// # Errors
///
/// Those of rename(2).
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let at = |n: u32| spoiled(path, n);
    let free = (1..SET_ASIDE_MAX).map(at).find(|at| fs::symlink_metadata(at).is_err());
    let at = free.unwrap_or_else(|| at(SET_ASIDE_MAX));
    fs::rename(path, &at)?;
    Ok(at)
}

/// Where the `n`th spoiled file of that name is, from 1.
pub fn spoiled(path: &Path, n: u32) -> PathBuf {
    beside(path, &format!(".spoiled-{n}"))
}

/// Puts a file of mode 0600 in the place of the old one. It is on the disk when this returns.
///
/// # Errors
///
/// The old file is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, 0o600, |_| Ok(()))
}

/// The same, but the mode and the owner are the old file's. A new one is for all to read, within the
/// umask.
///
/// # Errors
///
/// The old file is as it was.
pub fn replace_alike(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old = check_regular(path)?;
    let mode = if old.is_some() { 0o600 } else { 0o644 };
    put(path, bytes, mode, |new| old.as_ref().map_or(Ok(()), |old| make_alike(new, old)))
}

/// Gives a file that only its owner could open so far the owner and the mode of another.
///
/// # Errors
///
/// Those of fchown(2) and fchmod(2).
pub fn make_alike(new: &File, old: &fs::Metadata) -> io::Result<()> {
    fchown(new, Some(old.uid()), Some(old.gid()))?;
    new.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))
}

/// Makes a file, and opens none that is there: whoever may write to the folder could have put a link
/// there, or have opened it.
///
/// # Errors
///
/// Those of open(2), `AlreadyExists` if anything has the name.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(mode).open(path)
}

/// The same, in the place of what another run left.
fn create_anew(path: &Path, mode: u32) -> io::Result<File> {
    for _ in 0..TRIES {
        match create_new(path, mode) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    let text = format!("{} is made again and again by somebody else", path.display());
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// What a path leads to, if anything is there.
///
/// # Errors
///
/// It is no regular file. A device or a socket that is replaced is lost to all who need it.
pub fn check_regular(path: &Path) -> io::Result<Option<fs::Metadata>> {
    let refuse = |kind, text: &str| Err(io::Error::new(kind, text.to_owned()));
    match fs::metadata(path) {
        Ok(there) if there.is_file() => Ok(Some(there)),
        Ok(there) if there.is_dir() => {
            let text = "it is a folder: give the path of a file in it";
            refuse(io::ErrorKind::IsADirectory, text)
        }
        Ok(_) => refuse(
            io::ErrorKind::InvalidInput,
            "it is no regular file, but a device, a pipe or a socket: give another path",
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// `finish`: what is done to the file before it has its name.
fn put(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let next = beside(path, ".next");
    let write = || {
        let mut file = create_anew(&next, mode)?;
        file.write_all(bytes)?;
        finish(&file)?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    if let Err(e) = write() {
        // On a full disk it would take room for nothing.
        let _ = fs::remove_file(&next);
        return Err(e);
    }
    // The name is the folder's: without this, a power failure may bring the old file back. A name
    // alone is in the folder of now.
    match path.parent() {
        Some(folder) if folder == Path::new("") => File::open(".")?.sync_all(),
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The same path with more at its end.
pub fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(more);
    name.into()
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-durable-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn what_was_replaced_is_found_again() {
        let dir = folder("replace");
        let path = dir.join("state.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), Found::Absent);
        replace(&path, b"7").unwrap();
        replace(&path, b"8").unwrap();
        assert_eq!(read_json(&path).unwrap(), Found::Good(8));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn nothing_that_others_put_at_the_next_name_is_opened() {
        let dir = folder("next");
        let (path, next, other) =
            (dir.join("mesh.toml"), dir.join("mesh.toml.next"), dir.join("other"));
        let content = || fs::read_to_string(&path).unwrap();
        fs::write(&other, "kept").unwrap();
        let put: [&dyn Fn(); 4] = [
            &|| std::os::unix::fs::symlink(&other, &next).unwrap(),
            &|| fs::hard_link(&other, &next).unwrap(),
            // Nobody reads from it: to open it for writing would never return.
            &|| rustix::fs::mkfifoat(CWD, &next, 0o666.into()).unwrap(),
            &|| drop(fs::write(&next, "left by a run that was killed")),
        ];
        for (n, put) in put.iter().enumerate() {
            put();
            replace_alike(&path, n.to_string().as_bytes()).unwrap();
            assert_eq!(content(), n.to_string());
            let found = fs::symlink_metadata(&path).unwrap();
            assert!(found.is_file() && found.nlink() == 1, "{n}: {found:?}");
            assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&other, &next).unwrap();
        replace_alike(&path, b"last").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(&other).unwrap().len(), 4);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_spoiled_file_is_set_aside_and_counts_as_missing() {
        let dir = folder("spoiled");
        let path = dir.join("state.json");
        let spoil: [&dyn Fn(); 6] = [
            &|| fs::write(&path, "").unwrap(),
            &|| fs::write(&path, "{\"a\":").unwrap(),
            &|| fs::write(&path, [0xff; 300]).unwrap(),
            &|| fs::create_dir(&path).unwrap(),
            // Nobody writes into it.
            &|| mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            &|| File::create(&path).unwrap().set_len(READ_MAX + 1).unwrap(),
        ];
        // More often than there is room for, too.
        for (n, spoil) in spoil.iter().cycle().take(11).enumerate() {
            if n >= 8 {
                fs::write(&path, "").unwrap();
            } else {
                spoil();
            }
            let Found::SetAside(spoiled) = read_json::<u32>(&path).unwrap() else { panic!("{n}") };
            assert!(spoiled.at.exists() && !path.exists(), "{spoiled}");
            assert_eq!(read_json::<u32>(&path).unwrap(), Found::Absent);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 9);
        fs::remove_dir_all(dir).unwrap();
    }
}
