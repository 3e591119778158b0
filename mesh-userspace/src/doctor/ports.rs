//! The UDP ports of tunnels: whether this host has other things on them.

use std::{collections::BTreeSet, io};

use super::{
    Finding,
    Status::{Info, Ok, Warn},
};
use crate::{
    config::Tunnel,
    docker::OVERLAY_PORT,
    host::{Holder, holder},
    net::{self, Link, Net},
};

/// `used`: the cluster's tunnels in UDP. The port of an interface that mesh made is one of them,
/// whatever the config file says.
pub(super) async fn findings(net: &Net, used: &[Tunnel]) -> Vec<Finding> {
    // What can not be listed, the underlay's findings tell of.
    let links = net.links().await.unwrap_or_default();
    let taken = net::udp_listeners();
    let seen = taken.as_ref().cloned().unwrap_or_default();
    let held = links.iter().filter_map(|l| l.udp_port);
    let mut ports: BTreeSet<u16> =
        held.filter(|port| holder(*port, &links, &seen) == Holder::Mesh).collect();
    ports.extend(used.iter().map(|tunnel| tunnel.port));
    ports.into_iter().map(|port| finding(port, &links, &taken)).collect()
}

fn finding(port: u16, links: &[Link], taken: &io::Result<BTreeSet<u16>>) -> Finding {
    let finding = |status, value: String, meaning: &str| {
        Finding::new("udp_port", status, format!("{port} {value}"), meaning)
    };
    let look = format!("ss -ulnp sport = :{port}; ip -d link show type vxlan");
    let none = BTreeSet::new();
    match (holder(port, links, taken.as_ref().unwrap_or(&none)), taken) {
        (Holder::Other, _) => {
            let meaning = "Somebody else listens there, such as a tunnel of this host's own or an \
                           overlay network of Docker's, and gets what is not of the mesh. That \
                           works in this order only: with mesh up first, they can not come up. \
                           Another cluster.port keeps the two apart, as does encap = \"gre\".";
            finding(Warn, "shared".into(), meaning).mended_by(look)
        }
        (Holder::Mesh, _) if port == OVERLAY_PORT => {
            let meaning = "Docker's overlay networks, and other VXLAN, can not come up on it \
                           (\"address already in use\"). Where this host is to have them, set \
                           cluster.port to another, or encap to \"gre\".";
            finding(Info, "mesh's".into(), meaning)
        }
        (Holder::Mesh, _) => finding(Ok, "mesh's".into(), "Nobody else can have it."),
        (Holder::Nobody, Err(e)) => {
            let meaning = "Whether somebody else listens there can not be seen.";
            finding(Warn, format!("unseen: {e}"), meaning).mended_by(look)
        }
        (Holder::Nobody, _) => finding(Ok, "free".into(), "Nobody else listens there."),
    }
}
