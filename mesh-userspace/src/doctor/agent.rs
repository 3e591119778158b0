//! The agent of this host, and the config file that is looked at.

use std::path::PathBuf;

use super::{
    Finding, Mesh,
    Status::{Ok, Warn},
};

/// What is known of it.
#[derive(Clone, Debug, Default)]
pub enum Agent {
    /// No mesh is up, or that is not to be seen.
    #[default]
    Unknown,
    /// It answers. `faults`: what it knows to be wrong.
    Running { pid: u32, faults: usize },
    /// It is there and does not answer; says why.
    Silent(String),
    /// The mesh is up, and none runs.
    Absent,
}

/// A config file.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// The file that the mesh of this host was brought to.
    pub in_effect: bool,
    /// Why nothing else can be said of it.
    pub fault: Option<String>,
}

pub(super) fn findings(mesh: &Mesh) -> Vec<Finding> {
    agent(&mesh.agent).into_iter().chain(mesh.config.as_ref().map(config)).collect()
}

fn agent(agent: &Agent) -> Option<Finding> {
    let finding = |status, value: String| {
        let meaning = "An agent follows the config file, routes, neighbours and containers.";
        Finding::new("agent", status, value, meaning)
    };
    match agent {
        Agent::Unknown => None,
        Agent::Running { pid, faults: 0 } => Some(finding(Ok, format!("process {pid}"))),
        Agent::Running { pid, faults } => {
            let value = format!("process {pid}, faults that it knows: {faults}");
            Some(finding(Warn, value).mended_by("mesh status --check  # says each with its remedy"))
        }
        Agent::Silent(why) => {
            Some(finding(Warn, why.clone()).mended_by("mesh status --check  # when it goes on"))
        }
        Agent::Absent => Some(finding(Warn, "none".into()).mended_by("mesh up --config FILE")),
    }
}

fn config(config: &Config) -> Finding {
    let path = config.path.display();
    let meaning = "What a cluster asks of the host is looked at by its config file.";
    match (&config.fault, config.in_effect) {
        (Some(fault), _) => Finding::new("config", Warn, fault, meaning)
            .mended_by(format!("mesh check --config {path}")),
        (None, true) => Finding::new("config", Ok, format!("{path}, in effect"), meaning),
        (None, false) => Finding::new("config", Ok, path.to_string(), meaning),
    }
}
