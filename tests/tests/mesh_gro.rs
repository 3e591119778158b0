//! Segments that arrive are put together again before the programs see them, in every encapsulation.

use anyhow::{Context, Result, ensure};
use mesh_tests::{Encap, Options, Topology, Underlay, kernel, scenario::scenario, socket, traffic};

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
