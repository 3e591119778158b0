//! Hosts, containers and captures in network namespaces.
//!
//! A [`Topology`] is a switch, some hosts on it and some containers on each host, all of them
//! network namespaces with names of their own, removed when it is dropped. A [`Host`] runs the real
//! `mesh` binary; traffic between [`Container`]s is made in this process, by sockets that were
//! opened in the namespaces. Nothing outside of the namespaces and of one folder in `/run` is
//! touched.
//!
//! The crate is also what `cargo xtask run` is built from, before there is an eBPF toolchain: it
//! must not depend on `mesh-userspace`.

pub mod capture;
pub mod cluster;
pub mod cni;
pub mod container;
mod disk;
pub mod dns;
pub mod docker;
pub mod etcd;
pub mod figure;
pub mod flow;
pub mod foreign;
pub mod host;
pub mod interrupt;
pub mod kernel;
pub mod machine;
pub mod netns;
pub mod ovs;
pub mod packet;
pub mod party;
pub mod ping;
pub mod pulse;
pub mod removal;
pub mod rights;
pub mod scenario;
pub mod snapshot;
pub mod socket;
pub mod topology;
pub mod traffic;
pub mod wait;

pub use capture::Capture;
pub use cluster::{ClusterFile, Encap, Underlay};
pub use container::Container;
pub use disk::SmallDisk;
pub use figure::Figure;
pub use flow::Flow;
pub use host::Host;
pub use netns::Netns;
pub use party::Party;
pub use scenario::scenario;
pub use snapshot::Snapshot;
pub use topology::{Options, Topology};
