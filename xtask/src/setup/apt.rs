//! Debian packages, for commands that are missing.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{as_root, can_be_root, how_to_be_root, output, run, say},
    toolchain::{self, on_path},
};

/// A command that something here calls, and who brings it.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    pub command: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// What it is for, for the person who sees it being installed.
    pub why: &'static str,
}

const COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Installs what is missing; does nothing, quickly, if nothing is.
pub fn packages(needs: &[Need]) -> Result<()> {
    let missing: Vec<_> = needs.iter().filter(|need| on_path(need.command).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        say(format!("missing: {} (package {}), which {}", need.command, need.package, need.why));
    }
    let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    install(&packages, "")?;
    match missing.iter().find(|need| on_path(need.command).is_none()) {
        Some(need) => bail!("{} is installed and yet there is no {}", need.package, need.command),
        None => Ok(()),
    }
}

/// Unpacks a package and what it needs and this machine lacks into a folder of the project, and
/// returns that. Nothing is installed, and no service of the package is started.
pub fn unpacked(package: &str, why: &str) -> Result<PathBuf> {
    let root = toolchain::tools().join(package);
    if root.is_dir() {
        return Ok(root);
    }
    if on_path("apt-get").is_none() {
        bail!("{package} {why}, and without apt-get it must be installed by hand");
    }
    if candidate(package).is_none() {
        update()?;
    }
    say(format!("unpacking {package} into {} (apt{}): {why}", root.display(), size(&[package])));
    let archives = toolchain::tools().join(format!("{package}.debs"));
    fs::create_dir_all(archives.join("partial")).context("a folder for packages")?;
    let cache = format!("Dir::Cache::archives={}", archives.display());
    let download = ["-o", &cache, "install", "-y", "--download-only", "--no-install-recommends"];
    if run(&mut apt_get(&download, &[package])).is_err() {
        // Stale lists name files that the mirror has since replaced.
        update()?;
        run(&mut apt_get(&download, &[package]))?;
    }
    let part = root.with_extension("part");
    for entry in fs::read_dir(&archives)?.flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&part))?;
        }
    }
    fs::remove_dir_all(&archives).context("remove the packages")?;
    fs::rename(&part, &root).with_context(|| format!("make {}", root.display()))?;
    Ok(root)
}

/// Debian's newest compiler, its cargo and its sources.
pub fn compiler() -> Result<()> {
    let recent = |packages: &[&str]| {
        candidate(packages[0]).is_some_and(|version| toolchain::is_recent(&version))
    };
    if on_path("apt-get").is_some() && !recent(&COMPILER) {
        require_root(&COMPILER)?;
        update()?;
        if !recent(&COMPILER) {
            bail!(
                "the newest rustc-web that apt knows is {}, too old. Debian 12 has a newer one \
                 among its security updates: is that source enabled?",
                candidate("rustc-web").as_deref().unwrap_or("none"),
            );
        }
    }
    install(&COMPILER, ": a compiler and, for BPF, the sources of `core`")
}

fn install(packages: &[&str], why: &str) -> Result<()> {
    if on_path("apt-get").is_none() {
        bail!(
            "no apt-get here, so nothing can be installed for you. What these Debian packages \
             bring must be installed by hand: {}",
            packages.join(" "),
        );
    }
    require_root(packages)?;
    let fresh = packages.iter().any(|package| candidate(package).is_none());
    if fresh {
        update()?;
    }
    say(format!("installing {} (apt{}){why}", packages.join(" "), size(packages)));
    match run(&mut apt_get(&["install", "-y", "--no-install-recommends"], packages)) {
        // Stale lists name files that the mirror has since replaced.
        Err(_) if !fresh => {
            update()?;
            run(&mut apt_get(&["install", "-y", "--no-install-recommends"], packages))
        }
        done => done,
    }
}

fn require_root(packages: &[&str]) -> Result<()> {
    if can_be_root() {
        return Ok(());
    }
    bail!("apt-get install --no-install-recommends {} {}", packages.join(" "), how_to_be_root(),)
}

pub fn update() -> Result<()> {
    say("updating apt's lists: they are missing or stale");
    run(&mut apt_get(&["update"], &[]))
}

fn apt_get(args: &[&str], packages: &[&str]) -> Command {
    let mut command =
        as_root("apt-get", [("DEBIAN_FRONTEND", "noninteractive"), ("LC_ALL", "C.UTF-8")]);
    // Another apt may be at work: wait for it.
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(args).args(packages);
    command
}

/// The version that apt would install.
fn candidate(package: &str) -> Option<String> {
    let policy = output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
    let policy = policy.ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// `, 146 MB to download`, as far as apt can tell.
fn size(packages: &[&str]) -> String {
    let mut ask = Command::new("apt-get");
    // Prints what it would fetch, as `'URI' FILE BYTES HASH`, and does nothing. (--assume-no
    // would: a package that needs no other is installed without a question to say no to.)
    ask.args(["install", "-qq", "--print-uris", "--no-install-recommends"]).args(packages);
    let bytes: u64 = output(&mut ask).unwrap_or_default().lines().filter_map(bytes).sum();
    if bytes == 0 {
        String::new()
    } else {
        format!(", {} MB to download", bytes.div_ceil(1_000_000))
    }
}

fn bytes(line: &str) -> Option<u64> {
    line.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_download_is_read() {
        let line = "'http://deb.debian.org/x_1.0_amd64.deb' x_1.0_amd64.deb 3787216 SHA256:ab";
        assert_eq!(bytes(line), Some(3_787_216));
        assert_eq!(bytes("E: Unable to locate package x"), None);
    }
}
