//! The encapsulations, as data: all that the programs and the agent must know of one.

use crate::wire::{
    ETH_LEN, ETH_P_TEB, GENEVE_PORT, GRE_KEY_LEN, GRE_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN,
    VNI_HEADER_LEN, VXLAN_FLAG_VNI, VXLAN_PORT,
};

/// What stands between the outer IP header and the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// An inner Ethernet header.
    pub ethernet: bool,
    /// In UDP, to this port by default; otherwise GRE.
    pub port: Option<u16>,
    /// The first word of its header. GRE: flags, and the protocol if it is always the same. VXLAN:
    /// flags. Geneve: version, options, flags, protocol.
    pub word: u32,
}

/// RFC 2784, with the key of RFC 2890.
pub const GRE: Shape = Shape { ethernet: false, port: None, word: 0 };
/// As [`GRE`], around Ethernet.
pub const GRETAP: Shape = Shape { ethernet: true, port: None, word: ETH_P_TEB as u32 };
/// RFC 7348.
pub const VXLAN: Shape = Shape { ethernet: true, port: Some(VXLAN_PORT), word: VXLAN_FLAG_VNI };
/// RFC 8926, without options.
pub const GENEVE: Shape = Shape { ethernet: true, port: Some(GENEVE_PORT), word: ETH_P_TEB as u32 };

impl Shape {
    /// Bytes that it adds to an inner IP packet, the outer IP header included.
    pub const fn overhead(&self, vni: u32, ipv6: bool) -> usize {
        let ip = if ipv6 { IPV6_LEN } else { IPV4_LEN };
        let tunnel = match self.port {
            Some(_) => UDP_LEN + VNI_HEADER_LEN,
            None if vni == 0 => GRE_LEN,
            None => GRE_LEN + GRE_KEY_LEN,
        };
        ip + tunnel + if self.ethernet { ETH_LEN } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overheads_are_those_that_people_work_out_by_hand() {
        let all = [GRE, GRETAP, VXLAN, GENEVE];
        assert_eq!(all.map(|s| s.overhead(0, false)), [24, 38, 50, 50]);
        assert_eq!(all.map(|s| s.overhead(7, false)), [28, 42, 50, 50]);
        assert_eq!(all.map(|s| s.overhead(0, true)), [44, 58, 70, 70]);
    }
}
