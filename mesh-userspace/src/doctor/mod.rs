//! What this kernel and host can do, what that means for the mesh, and what mends it.
//!
//! Looks only: nothing is attached, loaded for good, mounted or set. What cannot be seen, for lack of
//! a capability or of a program to ask, is said to be unseen.

mod agent;
mod docker;
mod firewall;
mod host;
mod kernel;
mod ports;
mod underlay;

use std::path::Path;

pub use agent::{Agent, Config};
pub use docker::{DAEMON_JSON, Docker, dns_without_agent};
pub use kernel::release_numbers;
use serde::Serialize;

use crate::{
    bpf::probe::KernelFeatures,
    config::{Cluster, Tunnel},
    net::Net,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Good to know; nothing is wrong.
    Info,
    /// The mesh works, but less well than it could, or the doctor could not see.
    Warn,
    /// The mesh does not work.
    Fail,
}

impl Status {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The remedy of whatever was not seen for lack of a capability.
pub const AS_ROOT: &str = "sudo mesh doctor";

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for programs. Those about interfaces appear once for each.
    pub name: &'static str,
    pub status: Status,
    /// What there is.
    pub value: String,
    /// What that means for the mesh.
    pub meaning: String,
    /// The command that mends or improves it.
    pub remedy: Option<String>,
}

impl Finding {
    fn new(
        name: &'static str,
        status: Status,
        value: impl Into<String>,
        meaning: impl Into<String>,
    ) -> Self {
        Self { name, status, value: value.into(), meaning: meaning.into(), remedy: None }
    }

    fn mended_by(self, command: impl Into<String>) -> Self {
        Self { remedy: Some(command.into()), ..self }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Nothing failed.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(findings: Vec<Finding>) -> Self {
        Self { ok: findings.iter().all(|f| f.status != Status::Fail), findings }
    }
}

/// What is known of the mesh of this host before a look.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    pub agent: Agent,
    pub config: Option<Config>,
    pub docker: Docker,
    /// What the config file says, if it makes sense.
    pub cluster: Option<Cluster>,
    /// Those of the cluster that are in UDP, as far as there is a config file.
    pub tunnels: Vec<Tunnel>,
}

/// Looks at everything. `pin_dir`: where the agent would pin its programs.
pub async fn examine(pin_dir: &Path, mesh: &Mesh) -> Report {
    let root = rustix::process::geteuid().is_root();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut findings = kernel::findings(&release, KernelFeatures::probe(), root);
    findings.extend(host::findings(pin_dir, root));
    findings.push(firewall::forward_policy(&release));
    findings.extend(agent::findings(mesh));
    findings.extend(docker::findings(&mesh.docker));
    match Net::here() {
        Ok(net) => {
            findings.extend(underlay::findings(&net, mesh.cluster.as_ref()).await);
            findings.extend(ports::findings(&net, &mesh.tunnels).await);
        }
        Err(e) => findings.push(underlay::unseen(&e)),
    }
    Report::new(findings)
}

/// A sysctl of this network namespace, by its path below /proc/sys.
fn sysctl(path: &str) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(Path::new("/proc/sys").join(path))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_makes_the_report_bad() {
        let finding = |status| Finding::new("x", status, "", "");
        assert!(Report::new(vec![finding(Status::Warn), finding(Status::Info)]).ok);
        assert!(!Report::new(vec![finding(Status::Ok), finding(Status::Fail)]).ok);
    }

    #[test]
    fn the_json_has_the_promised_fields() {
        let finding = Finding::new("bpf_jit", Status::Warn, "0", "slow").mended_by("sysctl");
        let json = serde_json::to_value(Report::new(vec![finding])).unwrap();
        let expected = serde_json::json!({
            "ok": true,
            "findings": [{
                "name": "bpf_jit", "status": "warn", "value": "0", "meaning": "slow",
                "remedy": "sysctl"
            }]
        });
        assert_eq!(json, expected);
    }
}
