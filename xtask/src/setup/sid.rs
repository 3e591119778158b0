//! Packages of Debian's newest suite, whatever this machine's own is: fetched, and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::apt;
use crate::exec::{output, run};

const SUITE: &str = "sid";
/// Of the package debian-archive-keyring, where it is installed; apt may have the keys elsewhere.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt with that suite and no other, and with lists of its own in `dir`: the machine's stay as they
/// are, and it needs no root.
pub struct Sid {
    dir: PathBuf,
}

impl Sid {
    pub fn new(dir: &Path) -> Result<Self> {
        let mirror = mirror()?;
        for folder in ["lists/partial", "archives/partial", "none"] {
            fs::create_dir_all(dir.join(folder)).context("a folder for apt")?;
        }
        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        let keys =
            if Path::new(KEYS).exists() { format!(" signed-by={KEYS}") } else { String::new() };
        let source = format!(
            "deb [arch={} lang=none target=Packages{keys}] {mirror} {SUITE} main\n",
            architecture.trim()
        );
        fs::write(dir.join("sources.list"), source).context("sources for apt")?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Fetches packages, as they are in the suite now, into a folder.
    pub fn download(&self, packages: &[&str], into: &Path) -> Result<()> {
        run(self.apt_get().arg("update"))?;
        run(self.apt_get().arg("download").args(packages).current_dir(into))
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-q");
        for (option, path) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "none"),
            ("Dir::Etc::preferences", "none/none"),
            ("Dir::Etc::preferencesparts", "none"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache::archives", "archives"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.dir.join(path).display()));
        }
        command.args(["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]);
        // As root, apt would fetch as a user of its own, who may not write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }
}

/// The mirror of Debian that this machine's apt uses.
fn mirror() -> Result<String> {
    if let Some(mirror) = known_mirror()? {
        return Ok(mirror);
    }
    // Before the first update apt does not know whose a source is.
    apt::update()?;
    known_mirror()?.with_context(|| {
        format!("this machine's apt has no source of Debian's: {SUITE} is not to be had")
    })
}

fn known_mirror() -> Result<Option<String>> {
    let mut ask = Command::new("apt-get");
    ask.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]);
    let targets = output(ask.arg("Created-By: Packages"))?;
    Ok(targets.lines().find_map(debian).map(str::to_owned))
}

/// The address of a source, if that is Debian's archive and not its security updates.
fn debian(line: &str) -> Option<&str> {
    line.strip_prefix("Debian|Debian|").filter(|mirror| !mirror.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own_archive() {
        let lines = ["Node Source||https://x/", "Debian|Debian-Security|http://s/", "||http://y/"];
        assert!(lines.iter().all(|line| debian(line).is_none()));
        assert_eq!(debian("Debian|Debian|http://mirror/debian/"), Some("http://mirror/debian/"));
    }
}
