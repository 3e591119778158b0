//! A Docker engine for the tests, and what other runtimes there are, unpacked beside the other
//! tools. Nothing is installed: an installed engine would start, and make interfaces of its own on
//! this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{output, run, say, succeeds},
    setup::apt::{Need, packages, unpacked, update},
    toolchain::{self, on_path},
};

/// Debian 12's, and a static busybox to make an image of.
const PACKAGES: [&str; 5] = ["docker.io", "containerd", "runc", "tini", "busybox-static"];

const NEEDS: &[Need] =
    &[Need { command: "iptables", package: "iptables", why: "is what Docker calls for its rules" }];

/// The root folder that the engine is unpacked in.
pub fn engine() -> Result<PathBuf> {
    packages(NEEDS)?;
    let root = toolchain::tools().join("docker/root");
    if root.exists() {
        return Ok(root);
    }
    if on_path("apt-get").is_none() || on_path("dpkg").is_none() {
        bail!("no apt-get here to fetch a Docker engine with");
    }
    let next = toolchain::tools().join("docker/next");
    fetch(&next).context("fetching a Docker engine")?;
    let dockerd = next.join("root/usr/sbin/dockerd");
    if !succeeds(Command::new(&dockerd).arg("--version")) {
        let missing = output(Command::new("ldd").arg(&dockerd)).unwrap_or_default();
        let missing: Vec<_> = missing.lines().filter(|l| l.contains("not found")).collect();
        bail!("Debian's dockerd does not run here: {}", missing.join("; "));
    }
    fs::rename(next.join("root"), &root)?;
    fs::remove_dir_all(next)?;
    Ok(root)
}

/// The root folders of podman and of the plugins that others bring for CNI.
pub fn podman() -> Result<[PathBuf; 2]> {
    Ok([
        unpacked("podman", "is a runtime that calls CNI plugins")?,
        unpacked("containernetworking-plugins", "are what mesh is chained with in tests")?,
    ])
}

fn fetch(into: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(into);
    fs::create_dir_all(into)?;
    say(format!(
        "fetching {} (apt, 66 MB) for the Docker tests; nothing is installed",
        PACKAGES.join(" ")
    ));
    let download =
        || run(Command::new("apt-get").args(["-q", "download"]).args(PACKAGES).current_dir(into));
    // The lists may be missing or stale.
    download().or_else(|_| update().and_then(|()| download()))?;
    for entry in fs::read_dir(into)? {
        let package = entry?.path();
        if package.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&package).arg(into.join("root")))?;
        }
    }
    Ok(())
}
