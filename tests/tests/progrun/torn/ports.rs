//! Ports that share a slot: none sends as another.

use mesh_common::{names, slots::SlotKey as _};
use mesh_userspace::{
    compile::{Attachment, AttachmentKind},
    config::Vni,
};

use super::{Packet, one_of};
use crate::{
    packet::{eth, ethertype, ip, udp},
    spec::{A, BLUE_VNI, D, GRE, H2},
    world::{World, world},
};

/// What D sends to another node.
fn sent_by_d(w: &World) -> Packet<'_> {
    let inner = udp(ip(D.v4.unwrap(), crate::decap::H2_V4, 0), &[7; 64]);
    let frame = eth(w.spec.gateway_mac(), D.mac, ethertype(&inner), &inner);
    Packet { program: w.program(names::FROM_ENDPOINT), ifindex: D.ifindex, frame }
}

/// A container in another network, with D's address, MAC and slot, and the lower number.
fn stranger() -> Attachment {
    Attachment {
        vni: Vni::new(BLUE_VNI).unwrap(),
        ifindex: A.ifindex,
        id: 9,
        addresses: vec![D.v4.unwrap().into()],
        mac: D.mac,
        kind: AttachmentKind::Container,
    }
}

fn is_d(a: &Attachment) -> bool {
    a.ifindex == D.ifindex
}

/// All but A, whose number the stranger has.
fn without_a(w: &World) -> Vec<Attachment> {
    assert_eq!(A.ifindex.slot(), D.ifindex.slot());
    w.attachments().into_iter().filter(|a| a.ifindex != A.ifindex).collect()
}

#[test]
fn port_that_comes_and_goes_takes_no_packet_of_one_that_shares_its_slot() {
    world(GRE, |w| {
        let alone = w.desired_with(without_a(w));
        let both = w.desired_with(without_a(w).into_iter().chain([stranger()]).collect());
        let ways = w.ways(&alone, &both);
        let packet = sent_by_d(w);
        let whole = [packet.whole()];
        assert_eq!(whole[0].0, crate::world::REDIRECT, "{H2:?}");
        packet
            .race(|n| w.change(&ways[n % 2]), one_of(&whole))
            .assert_lossless("a port that shares the slot comes and goes");
    });
}

#[test]
fn port_that_goes_sends_nothing_as_the_one_that_takes_its_slot() {
    world(GRE, |w| {
        let alone = w.desired_with(without_a(w));
        let others = without_a(w).into_iter().filter(|a| !is_d(a));
        let other = w.desired_with(others.chain([stranger()]).collect());
        let ways = w.ways(&alone, &other);
        let packet = sent_by_d(w);
        let whole = [packet.whole()];
        packet
            .race(|n| w.change(&ways[n % 2]), one_of(&whole))
            .assert_whole("another port takes the slot of one that goes");
    });
}
