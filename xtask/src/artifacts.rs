//! Builds the workspace and says where cargo put what it built.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::exec::{cargo, line};

/// The packages that hold tests. Selected together, so that cargo settles on one set of features
/// and compiles each dependency once.
pub const TESTED: [&str; 8] =
    ["-p", "mesh-common", "-p", "mesh-userspace", "-p", "mesh-tests", "-p", "xtask"];

/// The part of cargo's JSON messages that tells what was built.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// An executable of cargo's making.
pub struct Built {
    pub path: PathBuf,
    /// The folder of its package, where tests expect to run.
    pub package: PathBuf,
    /// Of the library, the binary or the file in `tests/`.
    pub name: String,
    /// `lib`, `bin` or `test`.
    pub kind: String,
    /// Whether libtest is in it.
    pub is_test: bool,
}

/// The agent, `mesh`, built just now.
pub fn mesh() -> Result<PathBuf> {
    agent_in(&build(&["-p", "mesh-userspace", "--bin", "mesh"])?)
}

/// The agent and this program, optimized: for measurements.
pub fn release() -> Result<(PathBuf, PathBuf)> {
    let built = build(&["--release"])?;
    let xtask = built.iter().find(|b| b.name == "xtask").context("cargo built no xtask")?;
    Ok((agent_in(&built)?, xtask.path.clone()))
}

/// The agent and all tests.
pub fn tests() -> Result<(PathBuf, Vec<Built>)> {
    let mut built = build(&[&TESTED[..], &["--bins", "--tests"]].concat())?;
    let agent = agent_in(&built)?;
    built.retain(|built| built.is_test);
    Ok((agent, built))
}

/// One file of `tests/tests`.
pub fn test(name: &str) -> Result<PathBuf> {
    let built = build(&["-p", "mesh-tests", "--test", name])?;
    let test = built.into_iter().find(|built| built.name == name && built.is_test);
    Ok(test.with_context(|| format!("cargo built no {name}"))?.path)
}

fn agent_in(built: &[Built]) -> Result<PathBuf> {
    let agent = built.iter().find(|b| b.name == "mesh" && b.kind == "bin" && !b.is_test);
    Ok(agent.context("cargo built no mesh")?.path.clone())
}

fn build(args: &[&str]) -> Result<Vec<Built>> {
    let mut cargo = cargo("build");
    cargo.arg("--message-format=json-render-diagnostics").args(args);
    let out = cargo.stderr(Stdio::inherit()).output().context("can not run cargo")?;
    if !out.status.success() {
        bail!("{} failed", line(&cargo));
    }
    let messages = out.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{"));
    let mut built = Vec::new();
    for message in messages {
        let message: Message = serde_json::from_slice(message).context("cargo's message")?;
        let (Some(path), Some(target), Some(profile)) =
            (message.executable, message.target, message.profile)
        else {
            continue;
        };
        built.push(Built {
            path,
            package: message.manifest_path.parent().map(PathBuf::from).unwrap_or_default(),
            name: target.name,
            kind: target.kind.into_iter().next().unwrap_or_default(),
            is_test: profile.test,
        });
    }
    Ok(built)
}
