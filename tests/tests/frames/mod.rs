//! Frames with a mark, and whoever sees them.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use etherparse::{IpNumber, PacketBuilder};
use mesh_tests::packet::PacketSocket;

/// Ends the packets of [`udp`].
pub const MARK: &[u8] = b"mesh test payload";

/// A frame of UDP, with [`MARK`] for its payload and a TTL of 9.
pub fn udp(dst_mac: [u8; 6], src: IpAddr, dst: IpAddr) -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], dst_mac);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let builder = builder.ipv4(src.octets(), dst.octets(), 9).udp(1000, 2000);
            builder.write(&mut frame, MARK)?;
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let builder = builder.ipv6(src.octets(), dst.octets(), 9).udp(1000, 2000);
            builder.write(&mut frame, MARK)?;
        }
        _ => anyhow::bail!("{src} and {dst} are of different families"),
    }
    Ok(frame)
}

/// Whether a UDP packet with the mark is seen within `limit`. An ICMP error that quotes it does not
/// count.
pub fn arrives(socket: &PacketSocket, limit: Duration) -> Result<bool> {
    let protocol = |frame: &[u8]| frame.get(if frame[12] == 0x08 { 23 } else { 20 }).copied();
    let ours = |frame: &[u8]| frame.ends_with(MARK) && protocol(frame) == Some(IpNumber::UDP.0);
    Ok(socket.find(limit, ours)?.is_some())
}

/// A frame in VXLAN, as a UDP datagram's payload (RFC 7348, 5).
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}
