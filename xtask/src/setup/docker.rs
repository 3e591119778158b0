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
    setup::{
        apt::{Need, packages, unpacked, update},
        sid::Sid,
    },
    toolchain::{self, on_path},
};

/// Debian 12's, and a static busybox to make an image of.
const PACKAGES: [&str; 5] = ["docker.io", "containerd", "runc", "tini", "busybox-static"];

const DOCKERD: &str = "usr/sbin/dockerd";

const NEEDS: &[Need] =
    &[Need { command: "iptables", package: "iptables", why: "is what Docker calls for its rules" }];

/// Debian's newest, with what its command line can do besides. Its runc may be too new for this
/// machine's libc.
const NEWEST: [&str; 6] =
    ["docker.io", "docker-cli", "containerd", "runc", "tini-static", "docker-compose"];
const RUNC: &str = "usr/sbin/runc";
const BUSYBOX: &str = "bin/busybox";

/// The root folder that the engine is unpacked in.
pub fn engine() -> Result<PathBuf> {
    packages(NEEDS)?;
    let root = toolchain::tools().join("docker/root");
    if root.exists() {
        return Ok(root);
    }
    apt_is_there()?;
    let next = empty(toolchain::tools().join("docker/next"))?;
    fetch(&next).context("fetching a Docker engine")?;
    accept(&next, &root)?;
    Ok(root)
}

/// The same for the newest that Debian has, which takes what it lacks from the other one.
pub fn newest_engine(other: &Path) -> Result<PathBuf> {
    let root = toolchain::tools().join("docker-sid/root");
    if root.exists() {
        return Ok(root);
    }
    apt_is_there()?;
    let next = empty(toolchain::tools().join("docker-sid/next"))?;
    let sid = Sid::new(&toolchain::tools().join("docker-sid/apt"))?;
    say(format!(
        "fetching {} of Debian sid (apt, 90 MB) for the Docker tests; nothing is installed",
        NEWEST.join(" ")
    ));
    sid.download(&NEWEST, &next).context("fetching the newest Docker engine")?;
    unpack(&next)?;
    let runc = next.join("root").join(RUNC);
    if !succeeds(Command::new(&runc).arg("--version")) {
        fs::copy(other.join(RUNC), &runc).context("the other engine's runc")?;
    }
    fs::create_dir_all(next.join("root/bin"))?;
    fs::copy(other.join(BUSYBOX), next.join("root").join(BUSYBOX)).context("busybox")?;
    accept(&next, &root)?;
    Ok(root)
}

/// `20.10.24+dfsg1`
pub fn version(engine: &Path) -> Result<String> {
    let said = output(Command::new(engine.join(DOCKERD)).arg("--version"))?;
    let version = said.strip_prefix("Docker version ").and_then(|rest| rest.split(',').next());
    Ok(version.with_context(|| format!("dockerd calls itself {said:?}"))?.to_owned())
}

/// The root folder of an etcd, in which Docker 20.10 keeps overlay networks.
pub fn etcd() -> Result<PathBuf> {
    unpacked("etcd-server", "is where Docker's own overlay keeps its networks")
}

/// The root folders of podman and of the plugins that others bring for CNI.
pub fn podman() -> Result<[PathBuf; 2]> {
    Ok([
        unpacked("podman", "is a runtime that calls CNI plugins")?,
        unpacked("containernetworking-plugins", "are what mesh is chained with in tests")?,
    ])
}

fn fetch(into: &Path) -> Result<()> {
    say(format!(
        "fetching {} (apt, 66 MB) for the Docker tests; nothing is installed",
        PACKAGES.join(" ")
    ));
    let download =
        || run(Command::new("apt-get").args(["-q", "download"]).args(PACKAGES).current_dir(into));
    // The lists may be missing or stale.
    download().or_else(|_| update().and_then(|()| download()))?;
    unpack(into)
}

fn apt_is_there() -> Result<()> {
    if on_path("apt-get").is_none() || on_path("dpkg").is_none() {
        bail!("no apt-get here to fetch a Docker engine with");
    }
    Ok(())
}

fn empty(folder: PathBuf) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Unpacks all packages in a folder into `root` there.
fn unpack(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|e| e == "deb") {
            run(Command::new("dpkg").arg("-x").arg(&package).arg(folder.join("root")))?;
        }
    }
    Ok(())
}

/// Puts an engine that was unpacked in its place, if it runs here.
fn accept(next: &Path, root: &Path) -> Result<()> {
    let dockerd = next.join("root").join(DOCKERD);
    if !succeeds(Command::new(&dockerd).arg("--version")) {
        let missing = output(Command::new("ldd").arg(&dockerd)).unwrap_or_default();
        let missing: Vec<_> = missing.lines().filter(|l| l.contains("not found")).collect();
        bail!("Debian's dockerd does not run here: {}", missing.join("; "));
    }
    fs::rename(next.join("root"), root)?;
    Ok(fs::remove_dir_all(next)?)
}
