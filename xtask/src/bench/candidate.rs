//! What is compared: ways to join two containers on two hosts, and how each is set up.

use std::{fs, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use mesh_tests::{Encap, Netns, Options, Topology, ovs::Switch, ping::expect_ping, wait};

mod ovs;
mod wire;

/// MTU of the underlay, in bytes.
pub const UNDERLAY_MTU: u32 = 1500;
/// Time for a candidate to carry its first packets.
const UP: Duration = Duration::from_secs(10);
/// The underlay interface of each host.
pub const UNDERLAY: &str = "eth0";

#[derive(Debug, Clone)]
pub struct Candidate {
    pub name: String,
    /// For people, in a few words.
    pub what: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Bare,
    Mesh(Mesh),
    Other(Wiring),
    Ovs,
}

/// What sets one candidate of mesh apart from the others.
#[derive(Debug, Clone, Default)]
struct Mesh {
    encap: Encap,
    /// Containers' interfaces are netkit pairs and not veth pairs.
    netkit: bool,
    /// Another agent than the one that was built.
    binary: Option<PathBuf>,
}

/// Joins the containers of two hosts by what the kernel has.
type Wiring = fn(&Topology) -> Result<()>;

impl Candidate {
    fn new(name: &str, what: &str, kind: Kind) -> Self {
        Self { name: name.into(), what: what.into(), kind }
    }

    /// `mesh-NAME`, by another agent: to compare two states of the data plane side by side.
    pub fn other_mesh(name: &str, binary: PathBuf) -> Self {
        let what = binary.display().to_string();
        let mesh = Mesh { binary: Some(binary), ..Mesh::default() };
        Self::new(&format!("mesh-{name}"), &what, Kind::Mesh(mesh))
    }

    /// Whether others are compared with it: with all but mesh as it is.
    pub fn is_baseline(&self) -> bool {
        !matches!(self.kind, Kind::Mesh(Mesh { binary: None, .. }))
    }

    /// Whether it runs on every machine that mesh runs on.
    pub fn must_run(&self) -> bool {
        matches!(self.kind, Kind::Bare | Kind::Mesh(Mesh { netkit: false, .. }))
    }
}

/// All candidates, in the order in which they are shown.
pub fn all() -> Vec<Candidate> {
    let mesh = Encap::ALL.map(|encap| {
        let (name, what) = (format!("mesh-{}", encap.name()), "this project");
        Candidate::new(&name, what, Kind::Mesh(Mesh { encap, ..Mesh::default() }))
    });
    let netkit = Mesh { netkit: true, ..Mesh::default() };
    let other = |name, what, wiring: Wiring| Candidate::new(name, what, Kind::Other(wiring));
    let mut all = vec![
        Candidate::new("bare", "host to host: no containers, no encapsulation", Kind::Bare),
        other("routed", "containers on veth, IP routes, no encapsulation", wire::routed),
    ];
    all.extend(mesh);
    all.extend([
        Candidate::new("mesh-gre-netkit", "mesh-gre, containers on netkit", Kind::Mesh(netkit)),
        other("vxlan-bridge", "kernel VXLAN and a bridge, br_netfilter off", wire::vxlan_bridge),
        other(
            "vxlan-bridge-nf",
            "kernel VXLAN and a bridge, br_netfilter on",
            wire::vxlan_bridge_nf,
        ),
        other("kernel-gre", "kernel GRE and IP routes", wire::kernel_gre),
        other("kernel-gretap", "kernel GRETAP and a bridge", wire::kernel_gretap),
        other("kernel-wireguard", "kernel WireGuard and IP routes", wire::kernel_wireguard),
        Candidate::new("ovs-gre", "Open vSwitch with a GRE port", Kind::Ovs),
    ]);
    all
}

/// A candidate that is set up, and removed when this is dropped.
#[derive(Debug)]
pub struct Standing {
    pub name: String,
    /// Client on the first host, server on the second.
    pub ends: [End; 2],
    /// Whether its underlay interface may join packets on receipt.
    pub takes_gro: bool,
    // Ended before what they run in is removed.
    _switches: Vec<Switch>,
    topology: Topology,
}

/// Where one end's traffic starts or ends.
#[derive(Debug)]
pub struct End {
    pub netns: Netns,
    pub address: IpAddr,
}

impl Standing {
    pub fn new(candidate: &Candidate) -> Result<Self> {
        let containers = usize::from(!matches!(candidate.kind, Kind::Bare));
        let encap = match &candidate.kind {
            Kind::Mesh(mesh) => mesh.encap,
            _ => Encap::default(),
        };
        let options =
            Options { containers, encap, mtu: UNDERLAY_MTU, ipv6: false, ..Options::DEFAULT };
        let mut topology = Topology::direct(options)?;
        let (mut switches, mut takes_gro) = (Vec::new(), true);
        let ends = match &candidate.kind {
            Kind::Bare => bare_ends(&topology)?,
            Kind::Mesh(mesh) => {
                topology.hosts.iter_mut().for_each(|host| host.binary.clone_from(&mesh.binary));
                if mesh.netkit {
                    topology.hosts[0].netns.expect_netkit()?;
                    topology.cluster.interfaces = Some("netkit");
                }
                topology.up()?;
                mesh_ends(&topology)?
            }
            Kind::Other(wiring) => {
                wiring(&topology)?;
                wire::ends(&topology)?
            }
            Kind::Ovs => {
                (switches, takes_gro) = ovs::join(&topology)?;
                wire::ends(&topology)?
            }
        };
        let [client, server] = &ends;
        let ping = || expect_ping(&client.netns, server.address).map_err(|e| format!("{e:#}"));
        wait::until(&format!("{} to carry packets", candidate.name), UP, ping)?;
        Ok(Self { name: candidate.name.clone(), ends, takes_gro, _switches: switches, topology })
    }

    /// The first host's interface to the second.
    pub fn underlay(&self) -> Option<(&Netns, &str)> {
        Some((&self.topology.hosts[0].netns, UNDERLAY))
    }

    /// The namespaces of one host, its own first.
    pub fn namespaces(&self, host: usize) -> impl Iterator<Item = &Netns> {
        let host = &self.topology.hosts[host];
        [&host.netns].into_iter().chain(host.containers.iter().map(|c| &c.netns))
    }
}

fn bare_ends(topology: &Topology) -> Result<[End; 2]> {
    both(|h| {
        let address = mesh_tests::cluster::underlay(h + 1).parse()?;
        Ok(End { netns: topology.hosts[h].netns.clone(), address })
    })
}

fn mesh_ends(topology: &Topology) -> Result<[End; 2]> {
    both(|h| {
        let container = &topology.hosts[h].containers[0];
        Ok(End { netns: container.netns.clone(), address: container.v4()?.into() })
    })
}

/// The same for the first and the second host, counted from 0.
pub fn both<T>(f: impl Fn(usize) -> Result<T>) -> Result<[T; 2]> {
    Ok([f(0)?, f(1)?])
}

/// Writes a sysctl below `/proc/sys/net` of a namespace.
fn sysctl(netns: &Netns, path: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{path}");
    netns.run(|| fs::write(&path, value).with_context(|| format!("write {path}")))
}
