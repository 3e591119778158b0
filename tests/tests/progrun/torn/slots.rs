//! Slots: whoever has found a key reads its contents, and no other key's.

use std::net::Ipv4Addr;

use mesh_common::names;
use mesh_userspace::plan::{Changes, Plan};

use super::{Fate, Packet};
use crate::{
    decap::from_peer_in,
    packet::{eth, ethertype, ip, udp},
    slots::{MACS, entry, key, that_share},
    spec::{GRE, H3, NEXT_HOP_MAC, UNDERLAY, UNDERLAY_MAC},
    world::{SHOT, World, removing, setting, world},
};

/// From a peer for a container here.
fn received(w: &World, to: Ipv4Addr) -> Packet<'_> {
    let inner = udp(ip(Ipv4Addr::new(10, 42, 128, 9), to, 0), &[7; 64]);
    let received = from_peer_in(w.spec, H3, w.spec.encap, 0, 0, &inner);
    let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(&received), &received);
    Packet { program: w.program(names::FROM_UNDERLAY), ifindex: UNDERLAY, frame }
}

#[test]
fn endpoint_that_takes_a_slot_gets_no_packet_of_the_one_that_had_it() {
    world(GRE, |w| {
        let [first, second] = that_share(w);
        let (one, two) = (entry(w, first, MACS[0]), entry(w, second, MACS[1]));
        let packet = received(w, first);
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

#[test]
fn endpoint_without_a_slot_of_its_own_gets_no_packet_of_another() {
    world(GRE, |w| {
        let [has_it, first, second] = that_share(w);
        let of = |mac| [first, second].map(|address| entry(w, address, mac));
        let owner = entry(w, has_it, MACS[2]);
        w.change(&Plan { endpoints: setting(&[owner]), ..Plan::default() });
        // In one change the two get new values: the kernel gives each of them the other's element.
        let ways = [(0, 2), (1, 3)].map(|(first, second)| {
            let set = vec![of(MACS[first])[0], of(MACS[second])[1]];
            Plan { endpoints: Changes { set, remove: vec![] }, ..Plan::default() }
        });
        ways.iter().for_each(|way| w.change(way));
        received(w, first)
            .race(
                |n| w.change(&ways[n % 2]),
                |code, frame| match code {
                    SHOT => Fate::Dropped,
                    _ if [MACS[0], MACS[1]].iter().any(|mac| frame[..6] == *mac) => Fate::Right,
                    _ => Fate::Wrong,
                },
            )
            .assert_lossless("two endpoints without slots of their own get other values");
        let keys = [has_it, first, second].map(key);
        w.change(&Plan { endpoints: removing(&keys), ..Plan::default() });
    });
}
