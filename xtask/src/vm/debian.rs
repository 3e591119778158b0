//! Debian's packages of any release, by an apt of our own: the machine's sources stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::exec;

/// Signs all of Debian's archives.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const ARCHIVE: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";

/// What apt knows of one release.
pub struct Release {
    dir: PathBuf,
}

impl Release {
    /// Fetches the lists of `suite`, and of its security updates if it has its own, into `dir`.
    pub fn fetch(dir: &Path, suite: &str) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial", "none"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let mut sources = format!("deb [arch=amd64 signed-by={KEYRING}] {ARCHIVE} {suite} main\n");
        if !suite.ends_with("-backports") {
            sources +=
                &format!("deb [arch=amd64 signed-by={KEYRING}] {SECURITY} {suite}-security main\n");
        }
        fs::write(dir.join("sources.list"), sources)?;
        fs::write(dir.join("status"), "")?;
        let release = Self { dir: dir.to_owned() };
        exec::run(release.apt("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("the package lists of Debian {suite}"))?;
        Ok(release)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        let mut option = |name: &str, value: &Path| {
            let mut pair = std::ffi::OsString::from(format!("{name}="));
            pair.push(value);
            apt.arg("-o").arg(pair);
        };
        option("Dir::State", &self.dir);
        option("Dir::State::lists", &self.dir.join("lists"));
        option("Dir::State::status", &self.dir.join("status"));
        option("Dir::Cache", &self.dir.join("cache"));
        option("Dir::Etc::sourcelist", &self.dir.join("sources.list"));
        for parts in ["sourceparts", "preferencesparts", "preferences"] {
            option(&format!("Dir::Etc::{parts}"), &self.dir.join("none"));
        }
        for plain in [
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
            "Acquire::Languages=none",
            // An old release is not signed anew each week.
            "Acquire::Check-Valid-Until=false",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ] {
            apt.args(["-o", plain]);
        }
        apt.current_dir(&self.dir);
        apt
    }

    /// All names of packages that begin so.
    pub fn packages(&self, prefix: &str) -> Result<Vec<String>> {
        let names = exec::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them, one over the other, into `to`.
    pub fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        exec::run(self.apt("apt-get").args(["-qq", "download"]).args(packages))?;
        let mut unpacked = 0;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                exec::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(to))?;
                fs::remove_file(&path)?;
                unpacked += 1;
            }
        }
        if unpacked != packages.len() {
            bail!("apt downloaded {unpacked} packages of {}", packages.join(", "));
        }
        Ok(())
    }
}
