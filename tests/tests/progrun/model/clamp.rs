//! The segment size that is agreed on with peers that need it (RFC 9293, 3.7.1; RFC 6691).

use super::{Model, be16};
use crate::world::{OLD_GENEVE, OLD_GRE, Peer, UNDERLAY_MTU};

impl Model<'_> {
    /// A packet to a peer, as it is inside its tunnel.
    pub fn clamped_to(&self, peer: Peer, vni: u32, packet: &[u8]) -> Vec<u8> {
        clamped(peer, packet, self.spec.path_mtu(peer, vni))
    }

    /// A packet from a peer, as it is handed over.
    pub fn clamped_from(&self, peer: Peer, vni: u32, packet: &[u8]) -> Vec<u8> {
        clamped(peer, packet, UNDERLAY_MTU as usize - self.spec.overhead(peer, vni))
    }
}

/// Those that the file says it of.
pub fn is_clamped(peer: Peer) -> bool {
    [OLD_GENEVE, OLD_GRE].contains(&peer)
}

fn clamped(peer: Peer, packet: &[u8], mtu: usize) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let is_v4 = packet[0] >> 4 == 4;
    let (ip, protocol, fixed) = match is_v4 {
        true => (usize::from(packet[0] & 15) * 4, packet[9], 20),
        false => (40, packet[6], 40),
    };
    let is_later = is_v4 && be16(&packet, 6) & 0x1fff != 0;
    if !is_clamped(peer) || protocol != 6 || is_later || packet.len() < ip + 14 {
        return packet;
    }
    let tcp = &packet[ip..];
    let end = usize::from(tcp[12] >> 4) * 4;
    if tcp[13] & 2 == 0 {
        return packet;
    }
    let most = (mtu - fixed - 20) as u16;
    let mut at = 20;
    // Ten options at most are looked at.
    for _ in 0..10 {
        if at + 4 > end {
            break;
        }
        let Some(option) = tcp.get(at..at + 4) else { break };
        match option[0] {
            1 => at += 1,
            2 => {
                if be16(option, 2) > most {
                    set(&mut packet[ip..], at, most);
                }
                break;
            }
            0 => break,
            _ if option[1] < 2 => break,
            _ => at += usize::from(option[1]),
        }
    }
    packet
}

/// The checksum by RFC 1624, equation 3, over the word that changes, or the two halves of two.
fn set(tcp: &mut [u8], at: usize, most: u16) {
    let old = be16(tcp, at + 2);
    tcp[at + 2..at + 4].copy_from_slice(&most.to_be_bytes());
    let swap = |v: u16| if at.is_multiple_of(2) { v } else { v.swap_bytes() };
    let Some(sum) = tcp.get(16..18).map(|sum| u16::from_be_bytes([sum[0], sum[1]])) else { return };
    let all = u32::from(!sum) + u32::from(!swap(old)) + u32::from(swap(most));
    let folded = (all & 0xffff) + (all >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    tcp[16..18].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}
