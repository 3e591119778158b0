//! Debian's kernels, downloaded and unpacked once, below `target/vm`.
//!
//! ```text
//! target/vm/6.1 -> 6.1.0-56-amd64      what a series was when it was first asked for
//! target/vm/6.1.0-56-amd64/vmlinux     unpacked: to boot it takes less time to emulate
//!                         /lib/modules/6.1.0-56-amd64
//! ```
//!
//! Remove a link to have the newest kernel of its series looked up again.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail};

use super::debian::Release;
use crate::{
    exec::{self, say},
    toolchain,
};

/// The kernels that mesh is tested on, oldest first: Debian 11, 12, 13, and what is newest.
pub const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];
const NEWEST: &str = "newest";

pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    dir: PathBuf,
}

impl Kernel {
    /// The kernel by this name: a series, `newest`, or a full version.
    pub fn get(name: &str) -> Result<Self> {
        let cache = toolchain::target().join("vm");
        let link = cache.join(name);
        if !link.exists() {
            fs::create_dir_all(&cache)?;
            let work = cache.join(format!(".{name}-{}", process::id()));
            let got = download(name, &cache, &work);
            // What is left in there is of no use, whatever became of the rest.
            let _ = fs::remove_dir_all(&work);
            got.with_context(|| format!("kernel {name}"))?;
        }
        let dir = link.canonicalize()?;
        let version = dir.file_name().context("a kernel's folder without name")?;
        Ok(Self { version: version.to_string_lossy().into_owned(), dir: dir.clone() })
    }

    /// The kernel itself, an ELF file.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// `/lib/modules/VERSION`.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.version)
    }
}

/// Downloads the newest kernel that `name` means into `cache`, and links the name to it.
fn download(name: &str, cache: &Path, work: &Path) -> Result<()> {
    let release = Release::fetch(&work.join("apt"), suite(name))?;
    let prefix = "linux-image-";
    let all = release.packages(prefix)?;
    let versions = all.iter().filter_map(|package| package.strip_prefix(prefix));
    let Some(version) = newest(name, versions) else {
        bail!("Debian {} has none in the flavour amd64", suite(name));
    };
    let place = cache.join(version);
    if !place.exists() {
        // Lately a kernel comes in parts, and its package only names them.
        let mut packages = vec![format!("{prefix}{version}")];
        for part in ["linux-base-", "linux-binary-", "linux-modules-"] {
            packages.extend(release.packages(&format!("{part}{version}"))?);
        }
        packages.retain(|package| package.ends_with(version));
        say(format!("downloading Linux {version} of Debian {} (60 to 130 MB)", suite(name)));
        let (unpacked, kernel) = (work.join("unpacked"), work.join("kernel"));
        release.unpack(&packages, &unpacked)?;
        arrange(version, &unpacked, &kernel)?;
        fs::rename(&kernel, &place)?;
    }
    if name != version {
        symlink(version, cache.join(name))?;
    }
    Ok(())
}

/// The part of Debian that has a kernel.
fn suite(name: &str) -> &'static str {
    let is = |series: &str| name == series || name.starts_with(&format!("{series}."));
    match name {
        _ if is("5.10") => "bullseye",
        _ if is("6.1") => "bookworm",
        _ if is("6.12") => "trixie",
        _ => "trixie-backports",
    }
}

/// The newest version that `name` means. Only the flavour for all hardware has 9p.
fn newest<'a>(name: &str, versions: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |version: &&str| {
        let flavour = version.split_once('-').map(|(_, rest)| rest);
        let rest = flavour.and_then(|rest| rest.strip_suffix("amd64"));
        let is_number = version.starts_with(|c: char| c.is_ascii_digit());
        is_number && rest.is_some_and(|abi| abi.chars().all(|c| c.is_ascii_digit() || c == '-'))
    };
    let meant = |version: &&str| {
        name == NEWEST || *version == name || version.starts_with(&format!("{name}."))
    };
    versions.filter(plain).filter(meant).max_by_key(|version| numbers(version))
}

/// `6.12.117+deb13-amd64` as something that compares.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

/// Puts the modules and the unpacked kernel of a package where [`Kernel`] has them.
fn arrange(version: &str, unpacked: &Path, kernel: &Path) -> Result<()> {
    let modules = kernel.join("lib/modules").join(version);
    fs::create_dir_all(kernel.join("lib/modules"))?;
    let found = ["lib/modules", "usr/lib/modules"].map(|dir| unpacked.join(dir).join(version));
    let found = found.iter().find(|dir| dir.is_dir()).context("a package without modules")?;
    fs::rename(found, &modules)?;
    for link in ["build", "source"] {
        let _ = fs::remove_file(modules.join(link));
    }
    let images = [unpacked.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
    let image = images.iter().find(|file| file.is_file()).context("a package without kernel")?;
    let elf = unpack_image(&fs::read(image)?).context("the kernel's image")?;
    fs::write(kernel.join("vmlinux"), elf)?;
    exec::run(Command::new("depmod").arg("-b").arg(kernel).arg(version))
}

/// The ELF file within a bzImage. Fields: Documentation/arch/x86/boot.rst.
fn unpack_image(image: &[u8]) -> Result<Vec<u8>> {
    let field = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup_sectors = usize::from(*image.get(0x1f1).context("too short")?);
    let payload = (setup_sectors + 1) * 512 + field(0x248)?;
    // The last four bytes are the length of what is unpacked.
    let packed = image.get(payload..payload + field(0x24c)? - 4).context("too short")?;
    let unpacked = super::initramfs::unpack(packed)?;
    if !unpacked.starts_with(b"\x7fELF") {
        bail!("what is packed in it is no ELF file");
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_found_among_flavours() {
        let all = [
            "6.1.0-9-amd64",
            "6.1.0-56-amd64",
            "6.1.0-57-cloud-amd64",
            "6.1.0-58-rt-amd64",
            "6.1.0-59-amd64-unsigned",
            "6.12.117+deb13-amd64",
            "7.3.4+deb13-amd64",
            "amd64",
            "cloud-amd64",
        ];
        let newest = |name| newest(name, all.into_iter());
        assert_eq!(newest("6.1"), Some("6.1.0-56-amd64"));
        assert_eq!(newest("6.12"), Some("6.12.117+deb13-amd64"));
        assert_eq!(newest(NEWEST), Some("7.3.4+deb13-amd64"));
        assert_eq!(newest("6.1.0-9-amd64"), Some("6.1.0-9-amd64"));
        assert_eq!(newest("5.10"), None);
    }

    #[test]
    fn each_series_has_its_suite() {
        assert_eq!(SERIES.map(suite), ["bullseye", "bookworm", "trixie", "trixie-backports"]);
        assert_eq!(suite("6.1.0-56-amd64"), "bookworm");
        assert_eq!(suite("6.18"), "trixie-backports");
    }
}
