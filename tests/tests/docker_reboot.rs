//! A host that loses its power and starts again: containers that are to run always run again, and the
//! other hosts reach them.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    docker::{Docker, scenario},
    wait,
};
use serde_json::{Value, json};

const CREATE: &str = "network create -d mesh --subnet 10.0.9.0/24 my-net";
const WEB: &str =
    "run -d --restart always --network my-net --name web bb httpd -f -p 80 -h /var/www";
/// Docker looks again for a driver that it did not find, more and more seldom, for 15 s.
const LATE: Duration = Duration::from_secs(4);
/// More than a start takes besides what networks add to it; a driver that is missing adds 11 s and more.
const MORE: Duration = Duration::from_secs(8);
/// What Docker logs when it does not find its driver.
const MISSING: &str = "Unable to locate plugin";

/// Starts the daemon of the first host until it answers, and returns how long that took.
fn start(docker: &mut Docker) -> Result<Duration> {
    let began = Instant::now();
    docker.start_daemon(0, &[])?;
    docker.wait_daemon(0)?;
    Ok(began.elapsed())
}

fn start_agent(docker: &mut Docker) -> Result<()> {
    let cluster = docker.topology.cluster.clone();
    docker.host(0).up(&cluster)
}

/// The container runs, and is reached from the other host by its name and its address.
fn is_reached(docker: &Docker) -> Result<()> {
    docker.wait_for(0, "inspect -f {{.State.Running}} web", |running| running == "true")?;
    let format = "{{range.NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = docker.run(0, &format!("inspect -f {format} web"))?;
    for host in [address.as_str(), "web"] {
        let get = format!("exec c2 timeout 5 wget -qO- http://{host}");
        docker.wait_for(1, &get, |page| page == "hello")?;
    }
    Ok(())
}

/// A network and a container on it that is to run always; one on the other host that asks it.
fn prepare(docker: &Docker) -> Result<()> {
    docker.run(0, CREATE)?;
    docker.wait_network("my-net")?;
    docker.run(0, WEB)?;
    docker.run(1, "run -d --network my-net --name c2 bb sleep 1000")?;
    is_reached(docker)
}

/// What the daemon of the first host logged after `before` bytes says nothing of a missing driver.
fn missed_nothing(docker: &Docker, before: usize) -> Result<()> {
    let log = docker.log(0)?;
    ensure!(!log[before..].contains(MISSING), "Docker waited for its driver");
    Ok(())
}

fn no_faults(docker: &mut Docker) -> Result<()> {
    let faults = docker.host(0).status()?["docker"]["faults"].clone();
    ensure!(faults == json!([]), "{faults:#}");
    Ok(())
}

#[test]
fn what_is_to_run_always_runs_after_a_reboot_in_both_orders() {
    scenario(2, |docker| {
        // As a start without networks of the mesh: the first one was from nothing.
        docker.reboot(0)?;
        let plain = start(docker)?;
        start_agent(docker)?;
        prepare(docker)?;

        docker.reboot(0)?;
        let before = docker.log(0)?.len();
        start_agent(docker)?;
        let after = start(docker)?;
        println!("Docker's start took {plain:?} without networks, {after:?} behind the agent");
        is_reached(docker)?;
        missed_nothing(docker, before)?;
        ensure!(after < plain + wait::patient(MORE), "{plain:?} became {after:?}");
        no_faults(docker)?;

        docker.reboot(0)?;
        docker.start_daemon(0, &[])?;
        std::thread::sleep(LATE);
        start_agent(docker)?;
        docker.wait_daemon(0)?;
        is_reached(docker)?;
        no_faults(docker)
    });
}

#[test]
fn a_host_that_forgot_its_networks_recognises_them_after_a_reboot() {
    scenario(2, |docker| {
        prepare(docker)?;
        docker.reboot(0)?;
        let _ = fs::remove_dir_all(&docker.host(0).state_dir);
        start_agent(docker)?;
        start(docker)?;
        is_reached(docker)?;
        // It is the same network, and addresses are those of this host's part.
        docker.run(0, "run -d --network my-net --name more bb sleep 1000")?;
        docker.wait_for(1, "exec c2 ping -c 1 -w 5 more", |_| true)?;
        no_faults(docker)
    });
}

/// Docker waits for the driver and gives up. There is no other host to ask, and the state folder is gone
/// too.
#[test]
fn what_docker_gave_up_is_started_by_an_agent_that_comes_long_after_it() {
    scenario(1, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        docker.run(0, WEB)?;
        docker.run(0, &WEB.replace("--restart always", "").replace("web", "once"))?;
        docker.reboot(0)?;
        let _ = fs::remove_dir_all(&docker.host(0).state_dir);
        println!("Docker's start took {:?} without an agent", start(docker)?);
        let state = "inspect -f {{.State.Status}} web";
        ensure!(docker.run(0, state)? == "exited", "Docker found a driver");
        start_agent(docker)?;
        docker.wait_for(0, state, |state| state == "running")?;
        docker.run(0, "run --rm --network my-net bb timeout 5 wget -qO- http://web")?;
        ensure!(docker.run(0, &state.replace("web", "once"))? == "exited");
        no_faults(docker)
    });
}

/// Its networks were not removed: it never had any.
#[test]
fn a_docker_that_lost_its_data_gets_its_networks_from_the_other_host() {
    scenario(2, |docker| {
        docker.run(0, CREATE)?;
        docker.wait_network("my-net")?;
        let id = "network inspect -f {{.Id}} my-net";
        let before = [docker.run(0, id)?, docker.run(1, id)?];
        docker.reboot(0)?;
        fs::remove_dir_all(docker.topology.dir.join("h1-data"))?;
        start_agent(docker)?;
        start(docker)?;
        docker.wait_for(0, "network ls -q -f name=^my-net$", |ids| !ids.is_empty())?;
        let after = [docker.run(0, id)?, docker.run(1, id)?];
        ensure!(after[0] != before[0] && after[1] == before[1], "{before:?} became {after:?}");
        no_faults(docker)
    });
}

/// The agent's own file in the run folder.
fn run_file(docker: &mut Docker) -> Result<PathBuf> {
    let inside = docker.host(0).inside.context("a host with namespaces of its own")?;
    Ok(format!("/proc/{inside}/root/run/mesh/docker.json").into())
}

#[test]
fn names_are_heard_though_the_agent_before_said_it_is_from_the_future() {
    scenario(2, |docker| {
        prepare(docker)?;
        docker.host(0).stop()?;
        let path = run_file(docker)?;
        let mut saved: Value = serde_json::from_slice(&fs::read(&path)?)?;
        saved["epoch"] = json!(u64::from(u32::MAX - 9) << 32);
        fs::write(&path, saved.to_string())?;
        start_agent(docker)?;
        docker.run(0, "run -d --network my-net --name future bb sleep 1000")?;
        let found = |text: &str| text.contains("Address: 10.0.9.");
        docker.wait_for(1, "exec c2 nslookup -type=a future", found)?;

        docker.run(0, "rm -f future")?;
        docker.host(0).run_mesh(&["down", "--forget"])?;
        docker.host(0).kill9();
        ensure!(!docker.host(0).state_dir.exists(), "the state folder is there still");
        start_agent(docker)?;
        docker.run(0, "run -d --network my-net --name present bb sleep 1000")?;
        docker.wait_for(1, "exec c2 nslookup -type=a present", found).map(drop)
    });
}
