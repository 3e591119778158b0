//! The kernel's own tunnels of each kind at the far end, over both families: small packets and
//! super-packets, in both directions and whoever speaks first, and a stranger.

use anyhow::ensure;
use mesh_tests::{Encap, Options, Underlay, foreign, foreign::Net, scenario::bare};

use crate::{
    cut_on_the_underlay, expect_all_reach, expect_large_transfers, expect_stranger_is_not_heard,
    far_end,
};

/// Longer than a super-packet, many times.
const LARGE: usize = 2 << 20;

fn meets(encap: Encap, underlay: Underlay) {
    bare(Options { containers: 2, encap, underlay, ..Options::DEFAULT }, |mesh| {
        if let Err(cause) = foreign::kernel_has(far_end(mesh)?, encap, underlay) {
            // Not one to be counted as skipped: no machine has all, and emulated kernels do.
            eprintln!("not here: {cause}; `cargo xtask test --kernel 6.1 kernel::` runs it");
            return Ok(());
        }
        let without = mesh.cluster.clone().without_node("h2");
        let cluster = mesh.cluster.clone().with_foreign("h2", &[]);
        mesh.cluster = cluster.clone();
        mesh.up()?;
        foreign::join(far_end(mesh)?, &cluster)?;
        let theirs = foreign::plug_into_bridge(far_end(mesh)?, &cluster, Net::of(encap))?;
        let ours = mesh.parties()?;
        ensure!(ours[0].mtu == theirs[0].mtu, "{} here, {} there", ours[0].mtu, theirs[0].mtu);
        ours[0].expect_first_word(&theirs[0])?;
        theirs[1].expect_first_word(&ours[1])?;
        expect_all_reach(&ours[..1], &theirs[..1])?;
        expect_large_transfers(&ours[0], &theirs[0], LARGE)?;
        cut_on_the_underlay(mesh)?;
        expect_large_transfers(&ours[1], &theirs[1], LARGE)?;
        expect_stranger_is_not_heard(mesh, &without, &ours[0], &theirs[0])
    });
}

#[test]
fn kernel_gre_and_mesh_speak_with_each_other() {
    meets(Encap::Gre, Underlay::V4);
}

#[test]
fn kernel_gretap_and_mesh_speak_with_each_other() {
    meets(Encap::Gretap, Underlay::V4);
}

#[test]
fn kernel_vxlan_and_mesh_speak_with_each_other() {
    meets(Encap::Vxlan, Underlay::V4);
}

#[test]
fn kernel_geneve_and_mesh_speak_with_each_other() {
    meets(Encap::Geneve, Underlay::V4);
}

#[test]
fn kernel_ip6gre_and_mesh_speak_with_each_other() {
    meets(Encap::Gre, Underlay::V6);
}

#[test]
fn kernel_ip6gretap_and_mesh_speak_with_each_other() {
    meets(Encap::Gretap, Underlay::V6);
}

#[test]
fn kernel_vxlan_over_ipv6_and_mesh_speak_with_each_other() {
    meets(Encap::Vxlan, Underlay::V6);
}

#[test]
fn kernel_geneve_over_ipv6_and_mesh_speak_with_each_other() {
    meets(Encap::Geneve, Underlay::V6);
}
