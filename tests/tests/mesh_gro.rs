//! Segments that arrive are put together again before the programs see them, in every encapsulation;
//! and whoever had the port that this takes before keeps it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Encap, Host, Options, Topology, Underlay, kernel, ping,
    scenario::{bare, scenario},
    socket, traffic, wait,
};
use serde_json::Value;

const BYTES: usize = 32 << 20;
/// No packet is larger that is not of several. On a real machine they have 10,000 bytes and more.
const WHOLE: u64 = 1500;

/// How many bytes of the containers a packet has on average that the programs of h2 get.
fn merged(mesh: &Topology) -> Result<u64> {
    let [sender, receiver] = [&mesh.hosts[0], &mesh.hosts[1]];
    sender.netns.run(|| Ok(socket::disable_transmit_offloads("eth0")?))?;
    // A veth hands its packets to GRO only if its other end could not have sent larger ones.
    mesh.switch.run(|| Ok(socket::disable_transmit_offloads("h2")?))?;
    receiver.netns.run(|| Ok(socket::enable_gro("eth0")?))?;
    let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
    let rx = || -> Result<[u64; 2]> {
        let status = receiver.status()?;
        let rx = &status["peers"][0]["rx"];
        let number = |key: &str| rx[key].as_u64().with_context(|| format!("no {key}: {rx}"));
        Ok([number("packets")?, number("bytes")?])
    };
    let before = rx()?;
    traffic::tcp_transfer(&from.netns, &to.netns, to.addresses[0], BYTES)?;
    let after = rx()?;
    ensure!(after[1] - before[1] >= BYTES as u64, "{before:?} {after:?}: less than was sent");
    Ok((after[1] - before[1]) / (after[0] - before[0]))
}

fn is_merged(encap: Encap, underlay: Underlay) {
    if !kernel::is_since(5, 13) {
        // Not to be counted as skipped: cards do it there too.
        return eprintln!("not here: before Linux 5.13 a veth puts nothing together");
    }
    scenario(Options { encap, underlay, ipv6: false, ..Options::default() }, |mesh| {
        let bytes = merged(mesh)?;
        eprintln!("{encap:?} over {underlay:?}: {bytes} bytes a packet");
        ensure!(bytes > WHOLE, "{bytes} bytes a packet: nothing is put together");
        Ok(())
    });
}

#[test]
fn gre_segments_are_put_together() {
    is_merged(Encap::Gre, Underlay::V4);
}

#[test]
fn vxlan_segments_are_put_together() {
    is_merged(Encap::Vxlan, Underlay::V4);
}

#[test]
fn vxlan_segments_are_put_together_over_ipv6() {
    is_merged(Encap::Vxlan, Underlay::V6);
}

/// What the doctor says of the UDP port of VXLAN.
fn udp_port(host: &Host) -> Result<String> {
    let config = host.config.to_str().context("path")?;
    // Whatever else it finds.
    let report = host.try_mesh(&["doctor", "--json", "--config", config])?;
    let report: Value = serde_json::from_slice(&report.stdout)?;
    let mut findings = report["findings"].as_array().into_iter().flatten();
    let port = findings.find(|finding| finding["name"] == "udp_port").context("no udp_port")?;
    Ok(port["value"].as_str().unwrap_or_default().to_owned())
}

/// As Docker makes those of its overlay networks: the interface moves, and its socket stays.
const LOOK_EACH_SECOND: [&str; 2] = ["--look-interval", "1"];

#[test]
fn vxlan_whose_interface_is_in_a_container_receives_beside_the_mesh() {
    let options = Options { encap: Encap::Vxlan, ipv6: false, ..Options::default() };
    bare(options, |mesh| {
        let container = |h: usize| mesh.hosts[h].containers[0].netns.clone();
        let [one, two] = [container(0), container(1)];
        for (h, netns) in [&one, &two].into_iter().enumerate() {
            let [local, remote] = [h + 1, 2 - h].map(|h| mesh.options.underlay.address(h));
            mesh.hosts[h].netns.ip_batch(&format!(
                "link add vx0 type vxlan id 4097 dstport 4789 local {local} remote {remote}\n\
                 link set vx0 netns {}\n",
                netns.name()
            ))?;
            let own = h + 1;
            netns.ip_batch(&format!("addr add 198.18.0.{own}/24 dev vx0\nlink set vx0 up\n"))?;
        }
        let target = "198.18.0.2".parse()?;
        ping::expect_ping(&one, target)?;
        // What happens in other namespaces, only a look finds.
        mesh.hosts
            .iter_mut()
            .for_each(|host| host.up_args = LOOK_EACH_SECOND.map(Into::into).into());
        mesh.up()?;
        ping::expect_ping(&one, target)?;
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)?;
        for host in &mesh.hosts {
            ensure!(host.drops("unknown_vni")? == 0, "{}: theirs was dropped", host.name);
            ensure!(udp_port(host)? == "4789 shared", "{}: {}", host.name, udp_port(host)?);
        }
        if kernel::is_since(5, 13) {
            let bytes = merged(mesh)?;
            ensure!(bytes > WHOLE, "{bytes} bytes a packet: their socket does not do for GRO");
        }
        // Nobody has it any more.
        for (host, netns) in mesh.hosts.iter().zip([&one, &two]) {
            netns.exec("ip link del vx0")?;
            wait::until("the port to be the mesh's", Duration::from_secs(5), || {
                let said = udp_port(host).map_err(|e| format!("{e:#}"))?;
                if said == "4789 mesh's" { Ok(()) } else { Err(said) }
            })?;
        }
        Ok(())
    });
}
