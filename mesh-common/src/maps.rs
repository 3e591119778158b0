//! Layouts of map keys and values.
//!
//! All are plain old data without padding. Addresses and MACs are in network byte order, every
//! other number in the host's.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

pub use addr::*;
pub use endpoint::*;
pub use fib::*;
pub use flood::*;
pub use node::*;
pub use peer::*;

mod addr;
mod endpoint;
mod fib;
mod flood;
mod node;
mod peer;

/// A network's number, 0..=0xff_ffff. 0 is the cluster's own network, which GRE carries without a
/// key.
pub const VNI_MAX: u32 = 0xff_ffff;

/// `ENDPOINT_STATS` and `PEER_STATS`, per CPU. rx and tx are as seen from the endpoint, and from
/// this host for a peer. Bytes are those of inner packets without Ethernet header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Traffic {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

const _: () = {
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<EndpointInfo>() == 28);
    assert!(size_of::<PortInfo>() == 84);
    assert!(size_of::<LearnedKey>() == 8);
    assert!(size_of::<LearnedInfo>() == 28);
    assert!(size_of::<FibKey>() == 20);
    assert!(size_of::<LpmKey>() == 20);
    assert!(size_of::<FibInfo>() == 16);
    assert!(size_of::<PeerInfo>() == 144);
    assert!(size_of::<PeerKey>() == 20);
    assert!(size_of::<PeerSource>() == 68);
    assert!(size_of::<NeighbourInfo>() == 24);
    assert!(size_of::<NetworkInfo>() == 44);
    assert!(size_of::<FloodKey>() == 8);
    assert!(size_of::<FloodInfo>() == 12);
    assert!(size_of::<GroupKey>() == 24);
    assert!(size_of::<GroupInfo>() == 8);
    assert!(size_of::<NodeInfo>() == 40);
    assert!(size_of::<Traffic>() == 32);
};
