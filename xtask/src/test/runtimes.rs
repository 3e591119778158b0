//! Container runtimes that the tests start: unpacked, and not installed.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Result;

use super::is_upper;
use crate::{artifacts::Built, setup};

/// Where podman is, and the CNI plugins of others.
const OTHERS: [&str; 2] = ["MESH_PODMAN", "MESH_CNI_PLUGINS"];
const DOCKER: &str = "MESH_DOCKER";
/// Where `docker compose` is: the newest, with whatever engine.
const COMPOSE: &str = "MESH_DOCKER_COMPOSE";

pub struct Runtimes {
    /// This machine's Debian's, and the newest. At least one.
    engines: Vec<Engine>,
    /// Why the newest is not there.
    pub lacking: Option<String>,
    compose: Option<PathBuf>,
    others: [PathBuf; 2],
}

/// A Docker engine.
#[derive(Clone)]
pub struct Engine {
    pub version: String,
    root: PathBuf,
}

impl Engine {
    fn at(root: PathBuf) -> Result<Self> {
        Ok(Self { version: setup::docker_version(&root)?, root })
    }
}

impl Runtimes {
    /// Unpacks what is not unpacked yet.
    pub fn find() -> Result<Self> {
        let own = Engine::at(setup::docker_engine()?)?;
        let others = setup::podman()?;
        let newest = setup::newest_docker_engine(&own.root).and_then(Engine::at);
        let (newest, lacking) = match newest {
            Ok(newest) => (Some(newest), None),
            Err(why) => (None, Some(format!("{why:#}"))),
        };
        let compose = newest.as_ref().map(|e| e.root.join("usr/libexec/docker/cli-plugins"));
        let is_other = |newest: &Engine| newest.version != own.version;
        let newer = newest.filter(is_other);
        Ok(Self { engines: [own].into_iter().chain(newer).collect(), lacking, compose, others })
    }

    /// The engines that a test is run with, one after the other.
    pub fn engines(&self, test: &Built) -> &[Engine] {
        if is_of_docker(test) { &self.engines } else { &self.engines[..1] }
    }

    /// What a test is told.
    pub fn vars(&self, engine: &Engine) -> Vec<(OsString, OsString)> {
        let others = OTHERS.iter().zip(&self.others);
        let docker = [(&DOCKER, &engine.root)];
        let compose = self.compose.iter().map(|folder| (&COMPOSE, folder));
        let all = others.chain(docker).chain(compose);
        all.map(|(name, path)| (name.into(), path.into())).collect()
    }
}

/// Tests with real container runtimes.
pub fn needs_runtimes(test: &Built) -> bool {
    is_upper(test) && ["docker", "cni"].iter().any(|start| test.name.starts_with(start))
}

/// Those that every engine must pass.
pub fn is_of_docker(test: &Built) -> bool {
    test.name.starts_with("docker")
}
