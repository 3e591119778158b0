//! Peers that change: no packet has headers of two states.

use mesh_common::{maps::PeerInfo, names};

use super::{Packet, one_of};
use crate::{
    decap::H2_V4,
    packet::{eth, ethertype, ip, udp},
    spec::{A, GENEVE, GRE, GRETAP, H2, H3, Spec, VXLAN},
    world::{REDIRECT, World, world},
};

/// What A sends to H2.
fn sent(w: &World) -> Packet<'_> {
    let inner = udp(ip(A.v4.unwrap(), H2_V4, 0), &[7; 64]);
    let frame = eth(w.spec.gateway_mac(), A.mac, ethertype(&inner), &inner);
    Packet { program: w.program(names::FROM_ENDPOINT), ifindex: A.ifindex, frame }
}

/// How H2 is sent to in another world.
fn h2_in(spec: Spec) -> PeerInfo {
    let mut info = None;
    world(spec, |w| info = w.tables.peers.get(&H2.index).unwrap());
    info.unwrap()
}

#[test]
fn packet_has_the_headers_of_one_state_of_its_peer() {
    if !crate::world::able() {
        return;
    }
    let [gretap, vxlan, geneve] = [GRETAP, VXLAN, GENEVE].map(h2_in);
    let ipv6 = h2_in(Spec { ipv6: true, ..VXLAN });
    world(GRE, |w| {
        let peers = &w.tables.peers;
        let h2 = peers.get(&H2.index).unwrap().unwrap();
        let h3 = peers.get(&H3.index).unwrap().unwrap();
        let PeerInfo { outer, outer_sum, remote, next_hop, .. } = h3;
        let moved = PeerInfo { outer, outer_sum, remote, next_hop, ..h2 };
        let packet = sent(w);
        for (title, states) in [
            ("another address", [h2, moved]),
            ("gre and gretap", [h2, gretap]),
            ("gre and vxlan", [h2, vxlan]),
            ("geneve and gre", [geneve, h2]),
            ("IPv4 and IPv6", [h2, ipv6]),
        ] {
            let set = |state| w.set_peers(&[(H2.index, state)]);
            let whole = states.map(|state| {
                set(state);
                packet.whole()
            });
            assert!(whole.iter().all(|(code, _)| *code == REDIRECT), "{title}");
            assert_ne!(whole[0], whole[1], "{title}");
            packet.race(|n| set(states[n % 2]), one_of(&whole)).assert_lossless(title);
        }
    });
}
