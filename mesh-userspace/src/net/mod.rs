//! Links, addresses, routes and neighbours, and connections: the one module that speaks netlink.
//!
//! Everything here reads the kernel or changes one thing in it. What ought to be there is decided
//! elsewhere. Errors name what was attempted, on which interface, and the way out.

mod address;
mod bridge;
mod conntrack;
mod driver;
mod error;
mod ethtool;
mod features;
mod hops;
mod icmp;
mod link;
mod neighbour;
mod netns;
mod packet;
mod ports;
mod qdisc;
mod route;
mod socket;
mod tables;
mod veth;
mod wait;
mod watch;

pub use address::Address;
pub use bridge::Single;
pub use conntrack::{Conversation, forget_udp};
pub use driver::driver;
pub use error::{NetError, Refusal};
pub use features::segment_nested;
pub use icmp::{Icmp, TooBig};
pub use link::{Link, interface_index};
pub use neighbour::Neighbour;
pub use netns::{NetnsError, netns_paths, open_netns, own_netns, same_netns};
pub use packet::PacketSocket;
pub use ports::{port_holder, udp_listeners};
pub use qdisc::filter_program;
pub use route::{Hop, Route, RouteSpec};
pub use socket::Net;
pub use veth::{PairKind, Veth, VethPair};
pub use watch::{Change, Watch};
