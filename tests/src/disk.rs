//! A small file system that is filled up.

use std::{fs, io, path::Path};

use anyhow::Result;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A small file system on a folder, while this lives.
#[derive(Debug)]
pub struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// With what is in the folder, if that is there.
    pub fn new(at: &'a Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(at)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push((entry.path(), fs::read(entry.path())?));
            }
        }
        mount("small", at, "tmpfs", MountFlags::empty(), Some(c"size=64k,mode=0700"))?;
        let disk = Self(at);
        files.iter().try_for_each(|(path, bytes)| fs::write(path, bytes))?;
        Ok(disk)
    }

    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.0.join("full"))?;
        for size in [4096, 1] {
            while io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    pub fn make_room(&self) -> io::Result<()> {
        fs::remove_file(self.0.join("full"))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        _ = unmount(self.0, UnmountFlags::DETACH);
    }
}
