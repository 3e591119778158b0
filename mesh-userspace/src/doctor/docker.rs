//! Docker on this host: does it find the driver, and may it lead into the world? An agent that runs is
//! asked, since it follows Docker; else there is a look at where the config file says that it is.

use std::{os::unix::net::UnixStream, path::Path};

use super::{
    Finding,
    Status::{Info, Ok, Warn},
    sysctl,
};
use crate::{config, docker::DockerStatus};

/// What is known of it before a look.
#[derive(Clone, Debug)]
pub enum Docker {
    /// As an agent tells.
    Followed(Box<DockerStatus>),
    /// No agent runs.
    At(config::Docker),
}

impl Default for Docker {
    fn default() -> Self {
        Self::At(config::Docker::default())
    }
}

const MEANING: &str = "`docker network create -d mesh` works while an agent serves the driver.";

pub(super) fn findings(docker: &Docker) -> Vec<Finding> {
    let driver = |plugin: Option<&Path>| plugin.map_or_else(switched_off, driver);
    match docker {
        Docker::Followed(status) => {
            let faults = status.faults.iter().map(|fault| {
                Finding::new("docker_driver", Warn, fault, MEANING).mended_by("mesh status")
            });
            let mut findings: Vec<Finding> = faults.collect();
            if status.connected {
                if findings.is_empty() {
                    findings.push(driver(status.plugin_socket.as_deref()));
                }
                findings.push(forwarding());
            }
            findings
        }
        // Perhaps there is to be none on this host.
        Docker::At(at) if !at.socket.exists() => Vec::new(),
        Docker::At(at) => {
            vec![driver(at.plugin.then_some(at.plugin_socket.as_path())), forwarding()]
        }
    }
}

fn switched_off() -> Finding {
    Finding::new("docker_driver", Info, "docker.plugin = false in the config file", MEANING)
}

fn driver(plugin: &Path) -> Finding {
    let shown = plugin.display();
    match UnixStream::connect(plugin) {
        Result::Ok(_) => Finding::new("docker_driver", Ok, shown.to_string(), MEANING),
        Err(e) => {
            let finding = Finding::new("docker_driver", Info, format!("{shown}: {e}"), MEANING);
            finding.mended_by("mesh up --config FILE; mesh status  # says what Docker lacks")
        }
    }
}

fn forwarding() -> Finding {
    let meaning = "Containers of networks with gateway=mesh reach the world if the host forwards.";
    match sysctl("net/ipv4/ip_forward") {
        Result::Ok(value) if value == "0" => Finding::new("ip_forward", Warn, value, meaning)
            .mended_by("sysctl -w net.ipv4.ip_forward=1"),
        Result::Ok(value) => Finding::new("ip_forward", Ok, value, meaning),
        Err(e) => Finding::new("ip_forward", Warn, format!("unseen: {e}"), meaning)
            .mended_by("sysctl net.ipv4.ip_forward"),
    }
}
