//! What an agent may do while it works for Docker.

use anyhow::{Context, ensure};
use mesh_tests::{docker::scenario, rights};

#[test]
fn no_thread_keeps_more_than_is_needed_whatever_docker_asks_for() {
    scenario(1, |docker| {
        let pid = docker.host(0).pid().context("no agent")?;
        rights::expect_few_during(pid, || {
            docker.run(0, "network create -d mesh --subnet 10.0.9.0/24 my-net")?;
            docker.run(0, "run -d --name web --network my-net bb sleep 1000")?;
            let ping = "run --rm --network my-net bb ping -c 1 -w 20 web";
            let said = docker.run(0, ping)?;
            ensure!(said.contains(" 0% packet loss"), "{said}");
            docker.run(0, "rm -f web")?;
            docker.run(0, "network rm my-net")
        })
        .map(drop)
    });
}
