//! Names are answered, and callers told why they wait, whatever the agent's own thread waits for.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use mesh_tests::{Options, Topology, cni, dns, pulse::Pulse, scenario::bare};

const OPTIONS: Options = Options { hosts: 1, containers: 3, ipv6: false, ..Options::DEFAULT };
const H1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));
/// The name of the container that asks.
const NAME: &str = "h1c1";

/// An agent whose first container has a name. `before`: what a shell does before it starts.
fn up(mesh: &mut Topology, before: &str) -> Result<()> {
    let cluster = mesh.cluster.clone();
    let host = &mut mesh.hosts[0];
    host.spawn_after(&cluster, before)?;
    host.wait_ready(&cluster)?;
    cni::add(host, 0)?;
    dns::wait_known(&host.containers[0].netns, H1, NAME).map(drop)
}

#[test]
fn names_are_answered_in_time_while_networks_come_and_go() {
    bare(OPTIONS, |mesh| {
        // As on a host with Docker: there are rules to keep then.
        up(mesh, "sysctl -qw net.ipv4.ip_forward=1")?;
        let few = mesh.cluster.clone();
        let many = (0..200).fold(few.clone(), |cluster, n| {
            cluster.with_network(&format!("n{n}"), 1000 + n, &format!("10.100.{n}.0/24"))
        });
        let host = &mut mesh.hosts[0];
        let pulse = Pulse::start(&host.netns, &host.containers[0].netns, H1, NAME)?;
        for n in 0..20 {
            let cluster = if n % 2 == 0 { &many } else { &few };
            let before = host.generation()?;
            host.write_config(&cluster.to_string())?;
            host.wait_newer(cluster, before)?;
            host.attach(1, &[])?;
            host.detach(1)?;
        }
        pulse.end()?.expect_steady("while networks come and go")
    });
}
