//! Open vSwitch at the far end, with the datapath in user space that runs on any kernel, and with the
//! kernel's where there is one.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use mesh_tests::{
    ClusterFile, Encap, Options, Party, Topology, Underlay, foreign,
    foreign::{BRIDGE, Kind, Net},
    ovs::{self, ROOT, Switch},
    party::pairs,
    scenario::{bare, skip},
    socket,
};

use crate::{cut_on_the_underlay, expect_large_transfers};

const LARGE: usize = 4 << 20;

/// Where Open vSwitch forwards packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Datapath {
    User,
    Kernel,
}

/// The last hosts have Open vSwitch, `ours` of them mesh.
struct Switches {
    switches: Vec<Switch>,
    parties: Vec<Party>,
}

fn with_switches(
    ours: usize,
    options: Options,
    datapath: Datapath,
    body: impl FnOnce(&mut Topology, Vec<Party>, Vec<Party>) -> Result<()>,
) {
    let Some(root) = env::var_os(ROOT).map(PathBuf::from) else {
        return skip(&format!("{ROOT} does not say where Open vSwitch is"));
    };
    if datapath == Datapath::Kernel && !ovs::kernel_has_datapath() {
        // As with tunnels of the kernel.
        eprintln!("not here: openvswitch.ko; `cargo xtask test --kernel 6.1 kernel::` runs it");
        return;
    }
    bare(options, |mesh| {
        let mut cluster = mesh.cluster.clone();
        for h in ours + 1..=options.hosts {
            cluster = cluster.with_foreign(&format!("h{h}"), &[]);
        }
        mesh.cluster = cluster.clone();
        mesh.up()?;
        if datapath == Datapath::User {
            // Hardware would do it; a switch in user space takes no super-packets.
            cut_on_the_underlay(mesh)?;
        }
        let far = join(&root, mesh, &cluster, ours, datapath)?;
        let near = mesh.parties()?;
        body(mesh, near, far.parties)?;
        drop(far.switches);
        Ok(())
    });
}

fn join(
    root: &Path,
    mesh: &Topology,
    cluster: &ClusterFile,
    ours: usize,
    datapath: Datapath,
) -> Result<Switches> {
    let (mut switches, mut parties) = (Vec::new(), Vec::new());
    let underlay = mesh.options.underlay;
    for (host, h) in mesh.hosts.iter().zip(1..).skip(ours) {
        let switch = Switch::start(root, &host.netns, mesh.dir.join(format!("ovs{h}")))?;
        let address = format!("{}/{}", underlay.address(h), underlay.prefix_len());
        // The kernel's datapath is the default, and not everywhere.
        let (usual, mut set) = (format!("set bridge {BRIDGE} "), format!("set bridge {BRIDGE} "));
        if datapath == Datapath::User {
            switch.own_underlay("eth0", &address)?;
            set += "datapath_type=netdev ";
        }
        for command in foreign::commands(host, cluster, Kind::OpenVswitch)? {
            switch.shell(&command.replace(&usual, &set))?;
        }
        parties.extend(foreign::plug(host, cluster, Net::Link)?);
        for (container, c) in host.containers.iter().zip(1..) {
            switch.vsctl(&format!("add-port {BRIDGE} c{c}"))?;
            if datapath == Datapath::User {
                container.netns.run(|| Ok(socket::disable_transmit_offloads("eth0")?))?;
            }
        }
        // Between those without mesh, as the guide has it: one to each.
        for other in (ours + 1..=mesh.hosts.len()).filter(|other| *other != h) {
            switch.vsctl(&format!(
                "add-port {BRIDGE} gre{other} -- set interface gre{other} type=gre \
                 options:remote_ip={}",
                underlay.address(other)
            ))?;
        }
        switches.push(switch);
    }
    Ok(Switches { switches, parties })
}

fn expect_everybody_reaches_everybody(ours: Vec<Party>, theirs: Vec<Party>) -> Result<()> {
    for us in &ours {
        theirs.iter().try_for_each(|one| us.expect_first_word(one))?;
    }
    let all = [ours, theirs].concat();
    pairs(&all).try_for_each(|(from, to)| from.expect_reaches(to))?;
    let (first, last) = all.first().zip(all.last()).context("nobody")?;
    expect_large_transfers(first, last, LARGE)
}

/// Three hosts, each with a part of one network under one bridge.
fn guide(ours: usize) {
    let options = Options { hosts: 3, containers: 2, encap: Encap::Gretap, ..Options::DEFAULT };
    with_switches(ours, options, Datapath::User, |_, near, far| {
        ensure!(near.len() == 2 * ours && far.len() == 6 - 2 * ours);
        ensure!(near.iter().chain(&far).all(|p| p.mtu == 1462), "{near:?} {far:?}");
        expect_everybody_reaches_everybody(near, far)
    });
}

#[test]
fn one_host_of_a_mesh_of_open_vswitch_is_replaced() {
    guide(1);
}

#[test]
fn two_hosts_of_a_mesh_of_open_vswitch_are_replaced() {
    guide(2);
}

#[test]
fn all_hosts_of_a_mesh_of_open_vswitch_are_replaced() {
    guide(3);
}

fn meets(encap: Encap, underlay: Underlay) {
    meets_over(encap, underlay, Datapath::User);
}

fn meets_over(encap: Encap, underlay: Underlay, datapath: Datapath) {
    let options = Options { containers: 2, encap, underlay, ..Options::DEFAULT };
    with_switches(1, options, datapath, |_, near, far| {
        expect_everybody_reaches_everybody(near, far)
    });
}

/// With the datapath of the kernel.
mod kernel {
    use super::*;

    #[test]
    fn open_vswitch_with_a_gre_port_and_mesh_speak_with_each_other() {
        meets_over(Encap::Gretap, Underlay::V4, Datapath::Kernel);
    }

    #[test]
    fn open_vswitch_with_a_vxlan_port_and_mesh_speak_with_each_other() {
        meets_over(Encap::Vxlan, Underlay::V4, Datapath::Kernel);
    }
}

#[test]
fn open_vswitch_with_a_vxlan_port_and_mesh_speak_with_each_other() {
    meets(Encap::Vxlan, Underlay::V4);
}

#[test]
fn open_vswitch_with_a_geneve_port_and_mesh_speak_with_each_other() {
    meets(Encap::Geneve, Underlay::V4);
}

#[test]
fn open_vswitch_with_a_gre_port_over_ipv6_and_mesh_speak_with_each_other() {
    meets(Encap::Gretap, Underlay::V6);
}

#[test]
fn open_vswitch_with_a_vxlan_port_over_ipv6_and_mesh_speak_with_each_other() {
    meets(Encap::Vxlan, Underlay::V6);
}

#[test]
fn open_vswitch_with_a_geneve_port_over_ipv6_and_mesh_speak_with_each_other() {
    meets(Encap::Geneve, Underlay::V6);
}
