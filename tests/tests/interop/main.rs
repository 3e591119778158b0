//! Mesh beside what is not mesh: the kernel's own tunnels and Open vSwitch, set up with what
//! `mesh check --peer-commands` prints. And several encapsulations side by side in one mesh.

mod change;
mod kernel;
mod loops;
mod ovs;
mod static_entries;
mod vxlan;

use anyhow::{Context as _, Result, ensure};
use mesh_tests::{ClusterFile, Host, Party, Topology, socket, traffic};

/// Of the last host, which does not run mesh.
fn far_end(mesh: &Topology) -> Result<&Host> {
    mesh.hosts.last().context("no host")
}

/// Each reaches each of the other side, in both directions. Ours speak first, unless they have
/// spoken before.
fn expect_all_reach(ours: &[Party], theirs: &[Party]) -> Result<()> {
    for a in ours {
        for b in theirs {
            a.expect_first_word(b)?;
            a.expect_reaches(b)?;
            b.expect_reaches(a)?;
        }
    }
    Ok(())
}

/// Large transfers, which the containers hand over as super-packets.
fn expect_large_transfers(a: &Party, b: &Party, bytes: usize) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        for target in &to.addresses {
            traffic::tcp_transfer(&from.netns, &to.netns, *target, bytes)
                .with_context(|| format!("{bytes} bytes, {} -> {}", from.name, to.name))?;
        }
    }
    Ok(())
}

/// Makes the kernel cut super-packets where they leave a host, as a network card would.
fn cut_on_the_underlay(mesh: &Topology) -> Result<()> {
    let cut = |host: &Host| host.netns.run(|| Ok(socket::disable_transmit_offloads("eth0")?));
    mesh.hosts.iter().try_for_each(cut)
}

/// Once the far end is no node any more, it is not heard, and that is counted at the first host.
fn expect_stranger_is_not_heard(
    mesh: &mut Topology,
    without: &ClusterFile,
    ours: &Party,
    theirs: &Party,
) -> Result<()> {
    mesh.apply(without)?;
    let host = &mesh.hosts[0];
    let [unknown, no_route] = [host.drops("unknown_peer")?, host.drops("no_route")?];
    theirs.expect_cut_off_from(ours)?;
    ensure!(host.drops("unknown_peer")? > unknown, "what a stranger sends is not counted");
    ours.expect_cut_off_from(theirs)?;
    ensure!(host.drops("no_route")? > no_route, "what is sent to nobody is not counted");
    Ok(())
}
