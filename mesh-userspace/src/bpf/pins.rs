//! What outlives the agent: programs, maps and links, pinned below one folder of a bpf file system.
//!
//! ```text
//! <pin-dir>/v1/maps/FIB ...                   tables and counters
//! <pin-dir>/v1/programs/from_container ...    programs, for attaching more interfaces
//! <pin-dir>/v1/links/from_underlay-4 ...      attachments (tcx), program and ifindex
//! ```

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use mesh_common::ABI_VERSION;

use super::BpfError;

/// From linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

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
        self.root.join("links")
    }

    pub fn link(&self, program: &str, ifindex: u32) -> PathBuf {
        self.links().join(format!("{program}-{ifindex}"))
    }

    pub fn exist(&self) -> bool {
        self.maps().exists()
    }

    /// Makes the folders, on a bpf file system that is mounted if there is none. Returns where it
    /// was mounted, for [`Pins::unmount`].
    pub fn prepare(&self) -> Result<Option<PathBuf>, BpfError> {
        let mounted = self.mount()?;
        for dir in [self.maps(), self.root.join("programs"), self.links()] {
            fs::create_dir_all(&dir).map_err(|source| BpfError::Pin {
                what: "making the folder",
                path: dir,
                source,
            })?;
        }
        Ok(mounted)
    }

    fn mount(&self) -> Result<Option<PathBuf>, BpfError> {
        let existing = self.dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        if is_bpffs(existing) {
            return Ok(None);
        }
        // The kernel's usual place if the folder is below it, else the folder itself.
        let usual = Path::new("/sys/fs/bpf");
        let at = if self.dir.starts_with(usual) { usual } else { &self.dir };
        let fail = |source| BpfError::Mount { path: at.to_owned(), source };
        fs::create_dir_all(at).map_err(fail)?;
        rustix::mount::mount(
            "bpf",
            at,
            "bpf",
            rustix::mount::MountFlags::empty(),
            Some(c"mode=0700"),
        )
        .map_err(|e| fail(e.into()))?;
        Ok(Some(at.to_owned()))
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
        let _ = fs::remove_dir(&self.dir);
        errors
    }

    /// Unmounts what [`Pins::prepare`] mounted, if nobody else has put anything there since.
    pub fn unmount(&self, at: &Path) -> io::Result<()> {
        if !is_bpffs(at) || entries(at).iter().any(|p| !is_preloaded(p)) {
            return Ok(());
        }
        rustix::mount::unmount(at, rustix::mount::UnmountFlags::empty())?;
        if at == self.dir {
            fs::remove_dir(at)?;
        }
        Ok(())
    }
}

fn remove_tree(dir: &Path, errors: &mut Vec<BpfError>) {
    let mut below = Vec::new();
    for path in entries(dir) {
        if path.is_dir() {
            below.push(path);
        } else if let Err(source) = fs::remove_file(&path) {
            errors.push(BpfError::Pin { what: "removing the pin", path, source });
        }
    }
    below.iter().for_each(|path| remove_tree(path, errors));
    if let Err(source) = fs::remove_dir(dir) {
        errors.push(BpfError::Pin { what: "removing", path: dir.to_owned(), source });
    }
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
