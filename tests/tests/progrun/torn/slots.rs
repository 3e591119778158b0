//! Slots of the arrays in front of hash maps: whoever is past the check reads one key's contents.

use std::net::Ipv4Addr;

use mesh_common::names;
use mesh_userspace::plan::{Changes, Plan};

use super::{Fate, Packet};
use crate::{
    decap::from_peer_in,
    packet::{eth, ethertype, ip, udp},
    slots::{MACS, entry, key, two_that_share},
    spec::{GRE, H3, NEXT_HOP_MAC, UNDERLAY, UNDERLAY_MAC},
    world::{SHOT, removing, setting, world},
};

#[test]
fn endpoint_that_takes_a_slot_gets_no_packet_of_the_one_that_had_it() {
    world(GRE, |w| {
        let [first, second] = two_that_share(w);
        let (one, two) = (entry(w, first, MACS[0]), entry(w, second, MACS[1]));
        let inner = udp(ip(Ipv4Addr::new(10, 42, 128, 9), first, 0), &[7; 64]);
        let received = from_peer_in(w.spec, H3, w.spec.encap, 0, 0, &inner);
        let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(&received), &received);
        let packet = Packet { program: w.program(names::FROM_UNDERLAY), ifindex: UNDERLAY, frame };
        let change = |set, gone| Plan {
            endpoints: Changes { set: vec![set], remove: vec![gone] },
            ..Plan::default()
        };
        w.change(&Plan { endpoints: setting(&[one]), ..Plan::default() });
        let ways = [change(two, one.0), change(one, two.0)];
        packet
            .race(
                |n| w.change(&ways[n % 2]),
                |code, frame| match code {
                    SHOT => Fate::Dropped,
                    _ if frame[..6] == MACS[0] => Fate::Right,
                    _ => Fate::Wrong,
                },
            )
            .assert_whole("an endpoint goes and another takes its slot");
        let keys = [key(first), key(second)];
        w.change(&Plan { endpoints: removing(&keys), ..Plan::default() });
    });
}
