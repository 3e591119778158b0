//! Docker on this host: does it find the driver, and may it lead into the world? An agent that runs is
//! asked, since it follows Docker; else there is a look at where the config file says that it is.

use std::{fs, net::IpAddr, os::unix::net::UnixStream, path::Path};

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
    /// No agent runs. `addresses`: those that one would answer for names by.
    At { docker: config::Docker, addresses: Vec<IpAddr> },
}

impl Default for Docker {
    fn default() -> Self {
        Self::At { docker: config::Docker::default(), addresses: Vec::new() }
    }
}

/// Docker's config file, where nobody says otherwise.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// What is wrong if Docker's `dns` names one of these addresses, and no agent is there.
pub fn dns_without_agent(addresses: &[IpAddr]) -> Option<String> {
    let asked = asked(&fs::read_to_string(DAEMON_JSON).ok()?, addresses)?;
    Some(format!(
        "`dns` in {DAEMON_JSON} names the agent of this host ({asked}), and none answers: containers \
         of Docker find no name of the mesh, and others late or not at all: run `mesh up --config \
         FILE`, or take {asked} out of `dns` and restart Docker"
    ))
}

/// The first of these addresses that `dns` of this daemon.json has.
fn asked(daemon: &str, addresses: &[IpAddr]) -> Option<IpAddr> {
    let daemon: serde_json::Value = serde_json::from_str(daemon).ok()?;
    let dns = daemon.get("dns")?.as_array()?.iter();
    dns.filter_map(|ip| ip.as_str()?.parse().ok()).find(|ip| addresses.contains(ip))
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
        Docker::At { docker: at, addresses } => {
            let mut findings: Vec<Finding> = dns(addresses).into_iter().collect();
            // Perhaps there is to be none on this host.
            if at.socket.exists() {
                findings.push(driver(at.plugin.then_some(at.plugin_socket.as_path())));
                findings.push(forwarding());
            }
            findings
        }
    }
}

fn dns(addresses: &[IpAddr]) -> Option<Finding> {
    let meaning = "Docker asks the agent for the names that its containers ask for.";
    let finding = Finding::new("docker_dns", Warn, dns_without_agent(addresses)?, meaning);
    Some(finding.mended_by("mesh up --config FILE"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_ours_is_the_agent() {
        let ours: [IpAddr; 2] = ["10.42.0.1".parse().unwrap(), "fd42::1".parse().unwrap()];
        let daemon = r#"{"dns": ["192.0.2.53", "fd42::1", 7]}"#;
        assert_eq!(asked(daemon, &ours), Some(ours[1]));
        for other in ["", "[]", "{}", r#"{"dns": "10.42.0.1"}"#, r#"{"dns": ["10.42.0.2"]}"#] {
            assert_eq!(asked(other, &ours), None, "{other}");
        }
    }
}
