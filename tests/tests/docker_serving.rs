//! Names are answered in time while Docker's networks and containers come and go.

use std::net::IpAddr;

use anyhow::ensure;
use mesh_tests::{dns, docker::scenario, pulse::Pulse};

const PLUGIN: &str = "/run/docker/plugins/mesh.sock";

#[test]
fn names_are_answered_in_time_while_dockers_networks_come_and_go() {
    scenario(1, |docker| {
        docker.run(0, "network create -d mesh --subnet 10.0.9.0/24 my-net")?;
        docker.run(0, "run -d --network my-net --name web bb sleep 1000")?;
        let asker = docker.netns(0, "web")?;
        let server: IpAddr = [10, 42, 1, 1].into();
        dns::wait_known(&asker, server, "web")?;
        let pulse = Pulse::start(&docker.host(0).netns, &asker, server, "web")?;
        for n in 0..10 {
            let gateway = if n % 2 == 0 { "-o gateway=mesh" } else { "" };
            docker.run(0, &format!("network create -d mesh {gateway} net{n}"))?;
            docker.run(0, &format!("run -d --network net{n} --name c{n} bb sleep 1000"))?;
            docker.run(0, &format!("rm -f c{n}"))?;
            docker.run(0, &format!("network rm net{n}"))?;
        }
        pulse.end()?.expect_steady("while Docker's networks come and go")?;
        // Docker asks no agent that is gone.
        docker.host(0).stop()?;
        let there = docker.host(0).command("test").args(["-e", PLUGIN]).status()?;
        ensure!(!there.success(), "the agent left {PLUGIN}");
        Ok(())
    });
}
