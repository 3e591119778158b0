//! What is compared: ways to join two containers on two hosts, and how each is set up.

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result};
use mesh_tests::{Encap, Netns, Options, Topology};

mod wire;

/// MTU of the underlay, in bytes.
pub const UNDERLAY_MTU: u32 = 1500;
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
    Mesh(Encap),
    Other(Wiring),
}

/// Joins the containers of two hosts by what the kernel has.
type Wiring = fn(&Topology) -> Result<()>;

impl Candidate {
    fn new(name: &str, what: &str, kind: Kind) -> Self {
        Self { name: name.into(), what: what.into(), kind }
    }

    pub fn is_mesh(&self) -> bool {
        matches!(self.kind, Kind::Mesh(_))
    }
}

/// All candidates, in the order in which they are shown.
pub fn all() -> Vec<Candidate> {
    let mesh = Encap::ALL.map(|encap| {
        let name = format!("mesh-{}", encap.name());
        Candidate::new(&name, "this project", Kind::Mesh(encap))
    });
    let other = |name, what, wiring: Wiring| Candidate::new(name, what, Kind::Other(wiring));
    let mut all = vec![
        Candidate::new("bare", "host to host: no containers, no encapsulation", Kind::Bare),
        other("routed", "containers on veth, IP routes, no encapsulation", wire::routed),
    ];
    all.extend(mesh);
    all.extend([
        other("vxlan-bridge", "kernel VXLAN and a bridge, br_netfilter off", wire::vxlan_bridge),
        other("vxlan-bridge-nf", "the same, br_netfilter at its default", wire::vxlan_bridge_nf),
    ]);
    all
}

/// A candidate that is set up, and removed when this is dropped.
#[derive(Debug)]
pub struct Standing {
    pub name: String,
    /// Client on the first host, server on the second.
    pub ends: [End; 2],
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
        let encap = match candidate.kind {
            Kind::Mesh(encap) => encap,
            _ => Encap::default(),
        };
        let options = Options { containers, encap, mtu: UNDERLAY_MTU, ipv6: false, hosts: 2 };
        let mut topology = Topology::direct(options)?;
        let ends = match candidate.kind {
            Kind::Bare => bare_ends(&topology)?,
            Kind::Mesh(_) => {
                topology.up()?;
                mesh_ends(&topology)?
            }
            Kind::Other(wiring) => {
                wiring(&topology)?;
                wire::ends(&topology)?
            }
        };
        let [client, server] = &ends;
        mesh_tests::ping::expect_ping(&client.netns, server.address)
            .with_context(|| format!("{} carries nothing", candidate.name))?;
        Ok(Self { name: candidate.name.clone(), ends, topology })
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
