//! The cluster's description: the file, its faults, and the [`Cluster`] it makes.

use std::net::Ipv4Addr;

use ipnet::IpNet;

/// A network's number: 0 for the cluster's own, 1..=16777215 for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The cluster's own network.
    pub const DEFAULT: Self = Self(0);

    /// `None` if larger than 24 bits.
    pub const fn new(vni: u32) -> Option<Self> {
        if vni <= mesh_common::maps::VNI_MAX { Some(Self(vni)) } else { None }
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The outer headers that the mesh uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encap {
    /// IP in GRE.
    #[default]
    Gre,
    /// Ethernet in GRE.
    Gretap,
}

/// A cluster whose description has no fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    pub encap: Encap,
    /// Container MTU, if the file sets one.
    pub mtu: Option<u16>,
    /// The cluster's own network first, named "default", VNI 0; then the others in file order.
    pub networks: Vec<Network>,
    /// In file order.
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub vni: Vni,
    /// Truncated to their prefix; one or several of each family.
    pub cidrs: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub underlay: Ipv4Addr,
    /// Its part of each network, in the order of `Cluster::networks`.
    pub subnets: Vec<(Vni, IpNet)>,
}
