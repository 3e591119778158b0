//! What a machine starts from: busybox, the modules that mount the host's files, and two scripts.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

use super::Kernel;
use crate::toolchain;

const INIT: &str = include_str!("init.sh");
const STAGE2: &str = include_str!("stage2.sh");
/// What mounting the root needs, unless it is built in.
const MODULES: [&str; 4] = ["virtio_pci", "9p", "9pnet_virtio", "overlay"];

/// An archive in the format of initramfs, as the kernel takes it.
pub fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "proc", "sys", "dev", "modules", "host", "tmpfs", "root"] {
        archive.add(folder, 0o040755, &[]);
    }
    let busybox = toolchain::on_path("busybox").context("busybox is gone")?;
    archive.add("bin/busybox", 0o100755, &fs::read(busybox)?);
    let mut names = String::new();
    for (i, path) in modules(kernel)?.iter().enumerate() {
        let name = format!("modules/{i}.ko");
        archive.add(&name, 0o100644, &unpack(&fs::read(kernel.modules().join(path))?)?);
        names += &format!("{name}\n");
    }
    archive.add("modules/list", 0o100644, names.as_bytes());
    archive.add("init", 0o100755, INIT.as_bytes());
    archive.add("stage2", 0o100755, STAGE2.as_bytes());
    Ok(archive.finish())
}

/// The files of [`MODULES`] and all that they need, each behind what it needs.
fn modules(kernel: &Kernel) -> Result<Vec<String>> {
    let text = fs::read_to_string(kernel.modules().join("modules.dep"))?;
    let dependencies: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).collect();
    let mut ordered: Vec<String> = Vec::new();
    for name in MODULES {
        let named = |path: &&&str| {
            let file = Path::new(path).file_name().and_then(|f| f.to_str()).unwrap_or_default();
            file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('-', "_") == name)
        };
        // Not in the list: built in.
        let Some((path, needed)) = dependencies.iter().find(|(path, _)| named(path)) else {
            continue;
        };
        // What is needed by what is needed is there too, and comes later.
        for path in needed.split_whitespace().rev().chain([*path]) {
            if !ordered.iter().any(|done| done == path) {
                ordered.push(path.to_owned());
            }
        }
    }
    Ok(ordered)
}

/// Unpacks what xz or zstd packed, by its first bytes; anything else is returned as it is.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>> {
    let program = match packed {
        [0xfd, b'7', b'z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Ok(packed.to_vec()),
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can not run {program}"))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut unpacked = Vec::new();
    thread::scope(|scope| {
        // If it ends early, its exit status tells.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(packed)));
        stdout.map(|mut pipe| pipe.read_to_end(&mut unpacked)).transpose()
    })?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{program}: {status}");
    }
    Ok(unpacked)
}

/// The `newc` format: Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    /// `mode`: type and permissions, as in stat(2). Everything is root's.
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // Inode, mode, uid, gid, links, mtime, size, device, its device, name, checksum.
        let fields = [self.files, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
