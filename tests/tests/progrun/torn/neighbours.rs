//! Addresses behind a switch that are heard of again and again: each is sent to its own MAC.

use std::net::IpAddr;

use mesh_common::names;

use super::{Fate, Packet};
use crate::{
    fuzz::{neighbour_key, neighbour_value, seconds},
    packet::{Mac, eth, ethertype, ip, udp},
    spec::{A, GRE, OLD_VXLAN, Spec},
    switch,
    world::{REDIRECT, SHOT, world},
};

const BROADCAST: Mac = [0xff; 6];
const MACS: [Mac; 2] = [[2, 0, 0, 0, 7, 1], [2, 0, 0, 0, 7, 2]];

#[test]
fn neighbour_that_is_heard_of_again_is_sent_to_its_own_mac() {
    world(Spec { foreign: true, ..GRE }, |w| {
        let addresses = [197, 198].map(switch::v4);
        let hear = |map: &mut aya::maps::HashMap<_, _, _>| {
            for (address, mac) in addresses.into_iter().zip(MACS) {
                let key = neighbour_key(0, IpAddr::from(address));
                let value = neighbour_value(key, (OLD_VXLAN.index, mac), seconds(), 0);
                map.insert(key, value, 0).unwrap();
            }
        };
        hear(&mut w.neighbours());
        let inner = udp(ip(A.v4.unwrap(), addresses[0], 0), &[7; 64]);
        let frame = eth(w.spec.gateway_mac(), A.mac, ethertype(&inner), &inner);
        let packet = Packet { program: w.program(names::FROM_ENDPOINT), ifindex: A.ifindex, frame };
        let whole = packet.whole();
        assert_eq!(whole.0, REDIRECT);
        let to = whole.1.windows(6).position(|mac| mac == MACS[0]).unwrap();
        let map = std::sync::Mutex::new(w.neighbours());
        packet
            .race(
                |_| hear(&mut map.lock().unwrap()),
                |code, frame| match () {
                    () if (code, frame) == (whole.0, &whole.1) => Fate::Right,
                    // Unknown, and asked for once in a second: here others are heard of far more often.
                    () if code == SHOT || frame[to..].starts_with(&BROADCAST) => Fate::Dropped,
                    () => Fate::Wrong,
                },
            )
            .assert_whole("two neighbours are heard of");
    });
}
