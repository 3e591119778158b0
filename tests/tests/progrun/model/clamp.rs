//! The segment size that is agreed on with peers that need it (RFC 9293, 3.7.1; RFC 6691).

use super::{Model, be16};
use crate::spec::{H5, OLD_GENEVE, OLD_GRE, Peer};

impl Model<'_> {
    /// A packet to a peer, as it is inside its tunnel.
    pub fn clamped_to(&self, peer: Peer, vni: u32, packet: &[u8]) -> Vec<u8> {
        clamped(peer, packet, self.spec.path_mtu(peer, vni))
    }

    /// A packet from a peer, as it is handed over.
    pub fn clamped_from(&self, peer: Peer, vni: u32, packet: &[u8]) -> Vec<u8> {
        clamped(peer, packet, self.spec.whole_path_mtu(peer, vni))
    }
}

/// Those that the file says it of, and the one that the route leaves less than 1280 bytes to.
pub fn is_clamped(peer: Peer) -> bool {
    [H5, OLD_GENEVE, OLD_GRE].contains(&peer)
}

fn clamped(peer: Peer, packet: &[u8], mtu: usize) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let is_v4 = packet[0] >> 4 == 4;
    let (ip, protocol, fixed) = match is_v4 {
        true => (usize::from(packet[0] & 15) * 4, packet[9], 20),
        false => (40, packet[6], 40),
    };
    let is_later = is_v4 && be16(&packet, 6) & 0x1fff != 0;
    let opens = packet.get(ip..ip + 24).is_some_and(|tcp| {
        // SYN, with an option at least, of which the first is the one.
        tcp[13] & 2 != 0 && tcp[12] >> 4 >= 6 && tcp[20..22] == [2, 4]
    });
    let most = (mtu - fixed - 20) as u16;
    if !is_clamped(peer) || protocol != 6 || is_later || !opens || be16(&packet, ip + 22) <= most {
        return packet;
    }
    // The checksum by RFC 1624, equation 3.
    let (old, sum) = (be16(&packet, ip + 22), be16(&packet, ip + 16));
    packet[ip + 22..ip + 24].copy_from_slice(&most.to_be_bytes());
    let all = u32::from(!sum) + u32::from(!old) + u32::from(most);
    let folded = (all & 0xffff) + (all >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[ip + 16..ip + 18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}
