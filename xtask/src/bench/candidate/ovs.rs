//! Open vSwitch with a GRE port.

use std::process::Command;

use anyhow::Result;
use mesh_tests::{Encap, Topology, Underlay, ovs::Switch};

use super::{
    UNDERLAY, UNDERLAY_MTU,
    wire::{Net, PORT, each, plug},
};
use crate::{exec::succeeds, setup};

const INNER: &str = "br0";

/// Returns the switches, and whether the underlay may join packets on receipt.
pub fn join(topology: &Topology) -> Result<(Vec<Switch>, bool)> {
    let root = setup::open_vswitch()?;
    let in_kernel = kernel_datapath();
    let mtu = UNDERLAY_MTU - Encap::Gretap.overhead(0);
    let mut switches = Vec::new();
    for (host, h) in topology.hosts.iter().zip(1..) {
        plug(host, h, mtu, Net::Bridged)?;
        switches.push(Switch::start(&root, &host.netns, topology.dir.join(format!("ovs{h}")))?);
    }
    each(topology, |host, h, o| {
        let switch = &switches[h - 1];
        let datapath = if in_kernel { "system" } else { "netdev" };
        let address = |h| Underlay::V4.address(h);
        if !in_kernel {
            switch.own_underlay(UNDERLAY, &format!("{}/24", address(h)))?;
            // User space computes no checksums for others, and cuts nothing.
            host.containers[0].netns.exec("ethtool -K eth0 tx off tso off gso off")?;
        }
        switch.vsctl(&format!(
            "add-br {INNER} -- set bridge {INNER} datapath_type={datapath} -- add-port {INNER} {PORT} \
             -- add-port {INNER} gre0 -- set interface gre0 type=gre \
             options:local_ip={} options:remote_ip={}",
            address(h),
            address(o),
        ))
    })?;
    Ok((switches, in_kernel))
}

fn kernel_datapath() -> bool {
    // Where it is built in, or there are no modules, this fails and says nothing.
    succeeds(Command::new("modprobe").arg("openvswitch"));
    succeeds(Command::new("genl").args(["ctrl", "get", "name", "ovs_datapath"]))
}
