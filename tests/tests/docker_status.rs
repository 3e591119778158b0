//! What `mesh status` says when something is wrong with Docker on a host.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::{
    docker::{Docker, scenario},
    wait,
};
use rustix::process::Signal;
use serde_json::Value;

const CREATE: &str = "network create -d mesh --subnet 10.0.9.0/24 my-net";
/// More than the time between two looks at everything.
const LOOKED: Duration = Duration::from_secs(45);

/// Waits until a part of a host's status says this.
fn says(docker: &Docker, at: usize, part: impl Fn(&Value) -> Value, text: &str) -> Result<()> {
    wait::until(&format!("h{}: {text:?}", at + 1), LOOKED, || {
        let status = docker.topology.hosts[at].status().map_err(|e| format!("{e:#}"))?;
        let said = part(&status).to_string();
        if said.contains(text) { Ok(()) } else { Err(said) }
    })
}

fn of_my_net(status: &Value) -> Value {
    let networks = status["networks"].as_array().into_iter().flatten();
    networks.filter(|n| n["name"] == "my-net").map(|n| n["faults"].clone()).collect()
}

fn of_docker(status: &Value) -> Value {
    status["docker"].clone()
}

#[test]
fn a_network_that_can_not_be_made_here_is_said_with_the_reason() {
    scenario(2, |docker| {
        docker.host(1).netns.exec("ip route add 10.0.9.0/25 via 192.0.2.11")?;
        docker.run(0, CREATE)?;
        // It is left out on this host, so that it is Docker's fault and none of a network.
        says(docker, 1, of_docker, "my-net: 10.0.9.0/24 overlaps a route of host h2")?;
        let text = docker.host(1).run_mesh(&["status"])?;
        let fault = text.lines().find(|l| l.contains("my-net") && l.contains("overlaps a route"));
        ensure!(text.contains("FAULTS") && fault.is_some(), "{text}");
        ensure!(docker.run(1, "network ls -q -f name=my-net")?.is_empty());
        // Mended: made after all, and said no more.
        docker.host(1).netns.exec("ip route del 10.0.9.0/25")?;
        docker.run(0, "network create -d mesh --subnet 10.0.8.0/24 other")?;
        docker.wait_network("my-net")?;
        says(docker, 1, of_my_net, "[[]]")?;
        docker.run(0, "network rm my-net")?;
        docker.wait_for(1, "network ls -q -f name=my-net", str::is_empty)?;
        let mut status = docker.host(1).status()?;
        let past = status["past_faults"].take();
        ensure!(past.to_string().contains("my-net"), "{past}");
        ensure!(!status.to_string().contains("my-net"), "{status}");
        Ok(())
    });
}

#[test]
fn what_docker_lacks_and_what_was_refused_is_said() {
    scenario(1, |docker| {
        docker.run(0, CREATE)?;
        says(docker, 0, of_docker, "\"connected\":true")?;
        let text = docker.host(0).run_mesh(&["status"])?;
        let line = "docker      /run/docker.sock, driver at /run/docker/plugins/mesh.sock";
        ensure!(text.contains(line) && !text.contains("\nFAULTS\n"), "{text}");
        // The last word of the driver's.
        docker.refused(0, "network create -d mesh --subnet 10.0.7.0/24 -o vni=0 x")?;
        let error = docker.host(0).status()?["docker"]["last_error"].clone();
        ensure!(error["call"] == "NetworkDriver.CreateNetwork", "{error}");
        let text = docker.host(0).run_mesh(&["status"])?;
        ensure!(text.contains("NetworkDriver.CreateNetwork was refused: vni=0"), "{text}");
        // The driver's socket taken away, which comes back.
        let remove = ["/run/docker/plugins/mesh.sock"];
        let removed = docker.topology.hosts[0].command("rm").args(remove).status()?;
        ensure!(removed.success());
        says(docker, 0, of_docker, "Docker finds no driver at")?;
        wait::until("the driver's socket", LOOKED, || {
            match docker.docker(0, &["network", "create", "-d", "mesh", "again"]).output() {
                Ok(output) if output.status.success() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        says(docker, 0, of_docker, "\"faults\":[]")?;
        // Docker itself.
        docker.end_daemon(0, Signal::TERM)?;
        says(docker, 0, of_docker, "\"connected\":false")?;
        says(docker, 0, of_docker, "start it")?;
        docker.start_daemon(0, &[])?;
        docker.wait_daemon(0)?;
        says(docker, 0, of_docker, "\"faults\":[]")
    });
}

#[test]
fn the_doctor_asks_the_agent_or_looks_where_the_config_file_says() {
    scenario(1, |docker| {
        // Found by its json name, with what is said of it.
        let driver = |docker: &Docker, args: &[&str]| -> Result<Vec<(String, String)>> {
            let output =
                docker.topology.hosts[0].try_mesh(&[&["doctor", "--json"], args].concat())?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let findings = report["findings"].as_array().cloned().unwrap_or_default();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let drivers = findings.iter().filter(|f| f["name"] == "docker_driver");
            Ok(drivers.map(|f| (text(&f["status"]), text(&f["value"]))).collect())
        };
        let mut cluster = docker.topology.cluster.clone();
        // Docker looks there too.
        const ELSEWHERE: &str = "/run/docker/plugins/mesh/mesh.sock";
        docker.host(0).down()?;
        cluster.docker = format!("plugin_socket = \"{ELSEWHERE}\"");
        docker.host(0).up(&cluster)?;
        docker.run(0, CREATE)?;
        let found = driver(docker, &[])?;
        ensure!(found == [("ok".to_owned(), ELSEWHERE.to_owned())], "{found:?}");
        // What the agent lacks is said as a warning.
        docker.end_daemon(0, Signal::KILL)?;
        wait::until("the doctor to miss Docker", LOOKED, || {
            let found = driver(docker, &[]).map_err(|e| format!("{e:#}"))?;
            let is_missed = found
                .iter()
                .any(|(status, why)| status == "warn" && why.contains("/run/docker.sock"));
            if is_missed { Ok(()) } else { Err(format!("{found:?}")) }
        })?;
        docker.start_daemon(0, &[])?;
        docker.wait_daemon(0)?;
        // Without an agent: by the file, where nobody listens now.
        docker.host(0).kill9();
        let config = docker.topology.hosts[0].config.clone();
        let found = driver(docker, &["--config", config.to_str().unwrap_or_default()])?;
        ensure!(
            matches!(&found[..], [(status, value)] if status == "info" && value.contains(ELSEWHERE)),
            "{found:?}"
        );
        Ok(())
    });
}
