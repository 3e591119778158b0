//! Config files of others, changed so that a person sees what changes.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::durable;

/// Bytes of a config file of others that is read.
const MAX: u64 = 16 << 20;

/// A file or folder that could not be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}{}", path.display(), durable::remedy(source))]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// Of this path.
pub fn failed(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError { path: path.to_owned(), source }
}

/// Nothing, if there is no such file.
///
/// # Errors
///
/// It is something else, which may never end or have no writer, or can not be read.
pub fn read(path: &Path) -> io::Result<String> {
    let bytes = match durable::check_regular(path).and_then(|_| durable::read_regular(path, MAX)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        done => done?,
    };
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}

/// A comma more, since another line follows, is no difference.
fn plain(line: &str) -> &str {
    line.trim_end().trim_end_matches(',')
}

/// The lines that go and those that come.
pub fn difference(before: &str, after: &str) -> String {
    let missing = |sign: char, lines: &str, other: &str| -> String {
        let others: Vec<&str> = other.lines().map(plain).collect();
        let only = lines.lines().filter(|line| !others.contains(&plain(line)));
        only.map(|line| format!("{sign} {line}\n")).collect()
    };
    missing('-', before, after) + &missing('+', after, before)
}

/// Writes a file, and its folder if need be, so that a reader finds either the old or the new. One that
/// is there keeps its mode and its owner, and a link to it stays.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    durable::replace_alike(&target(path)?, text.as_bytes())
}

/// Where the file itself is.
fn target(path: &Path) -> io::Result<PathBuf> {
    let there = fs::canonicalize(path);
    if let Ok(there) = &there {
        check_links(path, fs::metadata(there)?.uid())?;
    }
    match there {
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            let lacks = fs::read_link(path)?;
            let text = format!("it is a link to {}, which is not there", lacks.display());
            Err(io::Error::new(e.kind(), format!("{text}: make that file, or remove the link")))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        done => done,
    }
}

/// Who may write to a folder may link a name in it to any file. Such a link is followed only to what
/// is of who made it.
fn check_links(path: &Path, owner: u32) -> io::Result<()> {
    let own = rustix::process::geteuid().as_raw();
    let mut at = path.to_owned();
    // As many as the kernel follows.
    for _ in 0..40 {
        let Ok(next) = fs::read_link(&at) else { return Ok(()) };
        let uid = fs::symlink_metadata(&at)?.uid();
        if uid != own && uid != owner {
            let (link, to) = (at.display(), next.display());
            let text = format!(
                "{link} is a link of user {uid} to {to} of user {owner}: remove the link, or name the file \
                 itself"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        at = at.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-file-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        dir
    }

    #[test]
    fn a_link_stays_and_its_file_keeps_its_mode() {
        let dir = folder("link");
        let (link, file) = (dir.join("daemon.json"), dir.join("kept.json"));
        fs::write(&file, "1").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        replace(&link, "2").unwrap();
        assert!(link.is_symlink());
        // One that somebody else made leads to files of theirs only.
        if rustix::process::geteuid().is_root() {
            lchown(&link, Some(65534), None).unwrap();
            let e = replace(&link, "3").unwrap_err().to_string();
            assert!(e.contains("is a link of user 65534"), "{e}");
            assert_eq!(fs::read_to_string(&file).unwrap(), "2");
            lchown(&file, Some(65534), None).unwrap();
            replace(&link, "2").unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        fs::remove_file(&file).unwrap();
        let error = replace(&link, "3").unwrap_err().to_string();
        assert!(error.contains("kept.json, which is not there"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_device_is_neither_read_nor_replaced() {
        let dir = folder("device");
        let socket = dir.join("socket");
        let _open = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for done in [read(Path::new("/dev/zero")).map(drop), read(&socket).map(drop)] {
            let error = done.unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{error}");
        }
        let error = replace(&socket, "1").unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        assert!(!fs::metadata(&socket).unwrap().is_file());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_folder_is_no_file_and_nothing_is_left_of_what_could_not_be_written() {
        let dir = folder("folder");
        let error = read(&dir).unwrap_err().to_string();
        assert!(error.contains("it is a folder"), "{error}");
        fs::create_dir(dir.join("there")).unwrap();
        assert!(replace(&dir.join("there"), "1").is_err());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(dir).unwrap();
    }
}
