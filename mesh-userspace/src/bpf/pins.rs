//! What outlives the agent: programs, maps and links, pinned below one folder of a bpf file system.
//!
//! ```text
//! <pin-dir>/v8/maps/FIB ...                   tables and counters
//! <pin-dir>/v8/programs/from_endpoint ...     programs, for attaching more interfaces
//! <pin-dir>/v8/links/from_underlay-4 ...      attachments (tcx), hook and ifindex
//! ```

use std::{
    ffi::CString,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use mesh_common::{ABI_VERSION, verdict::Hook};

use super::{BpfError, raw};
use crate::lock;

/// From linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// S_ISVTX.
const STICKY: u32 = 0o1000;

const LINKS: &str = "links";

/// The source by which a bpf file system that mesh mounted is known, to whichever agent ends last.
const OURS: &str = "mesh";

/// The pin folder of one agent.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// `dir`: the agent's `--pin-dir`. Nothing is made yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), root: dir.join(format!("v{ABI_VERSION}")) }
    }

    /// As it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where a larger set of maps is built before it takes the place of the old.
    pub fn next_maps(&self) -> PathBuf {
        self.root.join("maps-next")
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    pub fn link(&self, hook: Hook, ifindex: u32) -> PathBuf {
        self.links().join(format!("{}-{ifindex}", hook.label()))
    }

    pub fn exist(&self) -> bool {
        self.maps().exists()
    }

    /// Makes the folders, on a bpf file system that is mounted if there is none.
    pub fn prepare(&self) -> Result<(), BpfError> {
        self.mount()?;
        for dir in [self.maps(), self.root.join("programs"), self.links()] {
            let fail = |what, source| BpfError::Pin { what, path: dir.clone(), source };
            // What is there first: in a folder of somebody else's none can be made, which says nothing
            // of the cause.
            let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(&dir);
            check_owners(there).map_err(|e| fail("using", e))?;
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(&dir);
            made.map_err(|e| fail("making the folder", e))?;
            check_owners(&dir).map_err(|e| fail("using", e))?;
        }
        Ok(())
    }

    /// Is the folder, or will it be, on a bpf file system?
    pub fn is_mounted(&self) -> bool {
        is_bpffs(self.dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")))
    }

    fn mount(&self) -> Result<(), BpfError> {
        if self.is_mounted() {
            return Ok(());
        }
        // The kernel's usual place if the folder is below it, else the folder itself.
        let usual = Path::new("/sys/fs/bpf");
        let at = if self.dir.starts_with(usual) { usual } else { &self.dir };
        let fail = |source| BpfError::Mount { path: at.to_owned(), source };
        fs::create_dir_all(at).map_err(fail)?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(OURS, at, "bpf", flags, Some(c"mode=0700")).map_err(|e| fail(e.into()))
    }

    /// Removes the pins of other versions, whose maps nobody fills any more.
    pub fn remove_other_versions(&self) -> Vec<BpfError> {
        let mut errors = Vec::new();
        let others = entries(&self.dir).into_iter().filter(|p| is_version(p) && *p != self.root);
        others.for_each(|path| remove_tree(&path, &mut errors));
        errors
    }

    /// Removes every pin, and with the links the attachments, also those of other versions. Errors
    /// are collected, not fatal.
    pub fn remove(&self) -> Vec<BpfError> {
        let mut errors = Vec::new();
        if !is_bpffs(&self.dir) {
            return errors;
        }
        for path in entries(&self.dir).into_iter().filter(|p| is_version(p)) {
            remove_tree(&path, &mut errors);
        }
        // Not ours alone if something else is in it; a mount point stays until it is unmounted.
        // With several agents the folder above may have become empty too.
        for dir in self.dir.ancestors().take(2).filter(|dir| is_bpffs(dir)) {
            let _ = fs::remove_dir(dir);
        }
        errors
    }

    /// Unmounts the bpf file system, if mesh mounted it and nobody has anything in it.
    pub fn unmount(&self) -> io::Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let Some(at) = mounted_by_us(&mounts, &self.dir) else { return Ok(()) };
        if entries(&at).iter().any(|p| !is_preloaded(p)) {
            return Ok(());
        }
        rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty())?;
        if at == self.dir { fs::remove_dir(at) } else { Ok(()) }
    }
}

/// Where the bpf file system of `dir` is mounted, if it was mesh that did it.
fn mounted_by_us(mounts: &str, dir: &Path) -> Option<PathBuf> {
    mounts.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let at = Path::new(mount.split(' ').nth(4)?);
        let is_ours = file_system.starts_with(&format!("bpf {OURS} "));
        (is_ours && dir.starts_with(at)).then(|| at.to_owned())
    })
}

/// The kernel's default for a bpf file system lets all users make folders: one of theirs, or a link, could
/// be put in the place of ours later. Above the file system nobody but root can do so.
fn check_owners(dir: &Path) -> io::Result<()> {
    let folders: Vec<&Path> = dir.ancestors().take_while(|dir| is_bpffs(dir)).collect();
    // In the uppermost, users who may write may not rename what is root's (1777).
    let (top, below) = folders.split_last().unzip();
    for dir in below.into_iter().flatten() {
        check_link(dir)?;
        lock::check_owner(dir)?;
    }
    match top {
        Some(top) if fs::metadata(top)?.mode() & STICKY == 0 => lock::check_owner(top),
        _ => Ok(()),
    }
}

/// Fails if it is a link that somebody else made.
fn check_link(path: &Path) -> io::Result<()> {
    let uid = fs::symlink_metadata(path)?.uid();
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let text = format!("{} is user {uid}'s: remove it, or name another --pin-dir", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Removes the pin of a link, which is off its interface when this returns.
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
    // Fails where there is nothing left to take it off from.
    if let Ok(link) = raw::open_pin(pin) {
        let _ = raw::detach_link(&link);
    }
    fs::remove_file(pin)
}

fn remove_tree(dir: &Path, errors: &mut Vec<BpfError>) {
    if !is_folder(dir) {
        if let Err(source) = fs::remove_file(dir) {
            errors.push(BpfError::Pin { what: "removing", path: dir.to_owned(), source });
        }
        return;
    }
    let remove = if dir.ends_with(LINKS) { remove_link } else { |pin: &Path| fs::remove_file(pin) };
    let mut below = Vec::new();
    for path in entries(dir) {
        if is_folder(&path) {
            below.push(path);
        } else if let Err(source) = remove(&path) {
            errors.push(BpfError::Pin { what: "removing the pin", path, source });
        }
    }
    below.iter().for_each(|path| remove_tree(path, errors));
    if let Err(source) = fs::remove_dir(dir) {
        errors.push(BpfError::Pin { what: "removing", path: dir.to_owned(), source });
    }
}

/// A link to one is none: what it leads to is not ours to remove.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|e| e.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

/// `v1` and the like: a folder of ours.
fn is_version(path: &Path) -> bool {
    let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix('v'));
    number.is_some_and(|n| n.parse::<u32>().is_ok())
}

/// The kernel puts `maps.debug` and `progs.debug` into every bpf file system (CONFIG_BPF_PRELOAD).
fn is_preloaded(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "debug")
}

/// Is `path` on a bpf file system?
pub fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return false };
    rustix::fs::statfs(path.as_c_str()).is_ok_and(|s| s.f_type == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown};

    use rustix::{
        mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
        thread::{UnshareFlags, unshare_unsafe},
    };

    use super::*;

    #[test]
    fn only_a_mount_of_ours_is_ours() {
        let mounts = "40 23 0:50 / /sys/fs/bpf rw,nosuid - bpf mesh rw,mode=700\n\
                      41 23 0:51 / /run/other rw - bpf bpf rw\n";
        let at = |dir: &str| mounted_by_us(mounts, Path::new(dir));
        assert_eq!(at("/sys/fs/bpf/mesh"), Some("/sys/fs/bpf".into()));
        assert_eq!(at("/run/other"), None);
        assert_eq!(at("/elsewhere"), None);
    }

    /// As nobody makes a folder where the kernel lets all users do so.
    fn with_folder_of_nobody(mode: u32) -> Result<(), BpfError> {
        let at = std::env::temp_dir().join(format!("mesh-pins-{mode:o}-{}", std::process::id()));
        fs::create_dir(&at).unwrap();
        let (private, none) = (MountPropagationFlags::PRIVATE, MountFlags::empty());
        // SAFETY: this thread alone has another mount namespace then, and ends after this.
        unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", private | MountPropagationFlags::REC).unwrap();
        mount("none", &at, "bpf", none, None).unwrap();
        // One of root's, in a folder where others may make some too.
        Pins::new(&at.join("own")).prepare().unwrap();
        let dir = at.join("mesh");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        lchown(&dir, Some(65534), Some(65534)).unwrap();
        let prepared = Pins::new(&dir).prepare();
        unmount(&at, UnmountFlags::DETACH).unwrap();
        fs::remove_dir(at).unwrap();
        prepared
    }

    #[test]
    fn a_folder_of_another_user_is_not_pinned_in() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        for mode in [0o777, 0o755] {
            let made = std::thread::spawn(move || with_folder_of_nobody(mode)).join().unwrap();
            let text = made.unwrap_err().to_string();
            assert!(text.contains("user 65534"), "{text}");
        }
    }

    #[test]
    fn what_a_link_leads_to_is_not_removed() {
        let dir = std::env::temp_dir().join(format!("mesh-pins-link-{}", std::process::id()));
        let (other, version) = (dir.join("other"), dir.join("v1"));
        fs::create_dir_all(&other).unwrap();
        fs::create_dir(&version).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        for link in [version.join("maps"), dir.join("v2")] {
            std::os::unix::fs::symlink(&other, link).unwrap();
        }
        let mut errors = Vec::new();
        for path in [&version, &dir.join("v2")] {
            remove_tree(path, &mut errors);
            assert!(fs::symlink_metadata(path).is_err());
        }
        assert!(errors.is_empty() && other.join("kept").exists(), "{errors:?}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn folders_of_versions_are_told_from_others() {
        assert!(is_version(Path::new("/x/v1")) && is_version(Path::new("/x/v12")));
        assert!(!is_version(Path::new("/x/vault")) && !is_version(Path::new("/x/1")));
    }
}
