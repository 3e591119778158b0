//! A lock on a file that says who has it. The kernel gives it back when the process ends, however it ends.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

use crate::holder::Holder;

/// Another process may remove the folder or the file between two steps of ours.
const TRIES: u32 = 16;

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    /// Who has it, until that is written into the file.
    unsaid: Option<Holder>,
}

#[derive(Debug)]
pub enum LockError {
    /// `None` if the holder has not written itself down yet.
    Held(Option<Holder>),
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock on `dir/name` for this process, and makes what is missing. Follows no symbolic link
    /// of that name. That there is no room to write down who has it is no error: see [`Lock::say_holder`].
    pub fn take(dir: &Path, name: &str, holder: &Holder) -> Result<Self, LockError> {
        let path = dir.join(name);
        for _ in 0..TRIES {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700).create(dir).map_err(fail("making", dir))?;
            check_owner(dir).map_err(fail("using", dir))?;
            let file = match open(&path) {
                // The folder went.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(fail("opening", &path))?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let holder = Holder::read(&file).map_err(fail("reading", &path))?;
                    return Err(LockError::Held(holder));
                }
                Err(e) => return Err(fail("locking", &path)(e.into())),
            }
            let mut lock = Self { path: path.clone(), file, unsaid: Some(holder.clone()) };
            // Who had it may have removed it before we got it.
            if lock.is_in_place() {
                if let Err(e) = lock.say_holder() {
                    tracing::debug!("{}: {e}", path.display());
                }
                return Ok(lock);
            }
        }
        let source = io::Error::other("it is removed again and again");
        Err(fail("locking", &path)(source))
    }

    /// Who has the lock on that file. Leaves it as it is.
    pub fn holder(path: &Path) -> io::Result<Option<Holder>> {
        let file = match open_existing(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => Holder::read(&file),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the file if nobody has the lock on it.
    pub fn clear_stale(path: &Path) -> io::Result<()> {
        let file = open_existing(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Self { path: path.to_owned(), file, unsaid: None }.remove()
    }

    /// Writes down who has it, where that failed until now: only those who look for its holder need it.
    ///
    /// # Errors
    ///
    /// It still can not be written.
    pub fn say_holder(&mut self) -> io::Result<()> {
        if let Some(holder) = &self.unsaid {
            holder.write(&mut self.file)?;
            self.unsaid = None;
        }
        Ok(())
    }

    /// Whether the file is the one that is locked: else the next to come does not notice us.
    pub fn is_in_place(&self) -> bool {
        let id = |m: io::Result<fs::Metadata>| m.map(|m| (m.dev(), m.ino())).ok();
        let ours = id(self.file.metadata());
        ours.is_some() && ours == id(fs::symlink_metadata(&self.path))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, while it is ours.
    pub fn remove(&self) -> io::Result<()> {
        if self.is_in_place() { fs::remove_file(&self.path) } else { Ok(()) }
    }
}

/// Fails if somebody else may put a file in the place of one of ours in this folder, or another folder in
/// its place.
pub fn check_owner(dir: &Path) -> io::Result<()> {
    let found = fs::metadata(dir)?;
    let own = rustix::process::geteuid().as_raw();
    if found.uid() == own && !is_open(&found) {
        return check_above(dir, own);
    }
    if own != 0 && found.uid() == 0 {
        let text = format!("{} is root's: run as root", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let text = format!(
        "{} is another user's, or others may write to it (user {}, mode {:o}): name a folder of root's, or \
         remove it",
        dir.display(),
        found.uid(),
        found.mode() & 0o7777
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// May others write to it?
fn is_open(found: &fs::Metadata) -> bool {
    // The group of root has nobody else in it.
    let writable = if found.gid() == 0 { 0o002 } else { 0o022 };
    found.mode() & writable != 0
}

/// The folders above one: in `/tmp` and the like nobody may rename what is another's (1777).
fn check_above(dir: &Path, own: u32) -> io::Result<()> {
    const STICKY: u32 = 0o1000;
    for above in fs::canonicalize(dir)?.ancestors().skip(1) {
        let found = fs::metadata(above)?;
        let is_safe = !is_open(&found) || found.mode() & STICKY != 0;
        if is_safe && (found.uid() == 0 || found.uid() == own) {
            continue;
        }
        let text = format!(
            "{} is another user's, or others may write to it (user {}, mode {:o}), and could put another \
             folder in the place of {}: name a folder that is root's all the way",
            above.display(),
            found.uid(),
            found.mode() & 0o7777,
            dir.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockError {
    move |source| LockError::Io { what, path: path.to_owned(), source }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.custom_flags(flags.bits() as i32).open(path)
}

fn open_existing(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).custom_flags(flags.bits() as i32).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("mesh-lock-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_folder_below_one_of_others_is_refused() {
        let top = folder("above");
        let below = top.join("a/b");
        fs::create_dir_all(&below).unwrap();
        let set =
            |mode| fs::set_permissions(top.join("a"), PermissionsExt::from_mode(mode)).unwrap();
        let refused = |mode| {
            set(mode);
            check_owner(&below).err().map(|e| e.to_string())
        };
        assert_eq!(refused(0o755), None);
        assert_eq!(refused(0o1777), None);
        let said = refused(0o777).unwrap();
        assert!(said.contains("above") && said.contains("mode 777"), "{said}");
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn who_has_it_is_told_and_a_file_that_was_removed_is_made_anew() {
        let dir = folder("held");
        let this = Holder::this(&dir);
        let lock = Lock::take(&dir, "one", &this).unwrap();
        let path = lock.path().to_owned();
        let second = Lock::take(&dir, "one", &this);
        assert!(matches!(second, Err(LockError::Held(Some(holder))) if holder == this));
        assert_eq!(Lock::holder(&path).unwrap(), Some(this.clone()));
        assert!(Lock::clear_stale(&path).is_err());
        lock.remove().unwrap();
        assert!(!lock.is_in_place());
        let next = Lock::take(&dir, "one", &this).unwrap();
        // The one before is no longer about this file.
        lock.remove().unwrap();
        assert!(next.is_in_place());
        drop(next);
        assert_eq!(Lock::holder(&path).unwrap(), None);
        Lock::clear_stale(&path).unwrap();
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn no_link_is_followed_and_nobody_elses_folder_is_used() {
        let dir = folder("link");
        fs::create_dir(&dir).unwrap();
        let target = dir.join("target");
        std::os::unix::fs::symlink(&target, dir.join("one")).unwrap();
        let refused = Lock::take(&dir, "one", &Holder::this(&dir));
        assert!(matches!(refused, Err(LockError::Io { what: "opening", .. })), "{refused:?}");
        assert!(!target.exists());
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
        let refused = Lock::take(&dir, "two", &Holder::this(&dir));
        assert!(matches!(refused, Err(LockError::Io { what: "using", .. })), "{refused:?}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
