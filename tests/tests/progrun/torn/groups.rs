//! Endpoints that ask for one multicast group on two CPUs at once.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::Barrier,
};

use mesh_common::{
    maps::{Addr, GroupKey},
    names,
};
use mesh_userspace::{bpf::sync, plan::Changes};

use super::{Packet, packets};
use crate::{
    packet::{eth, ethertype, ip, ip_with},
    spec::{A, B, GRE, Port, Spec},
    world::{World, world},
};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const IGMP_V2_REPORT: u8 = 0x16;
const IGMP_V2_LEAVE: u8 = 0x17;

fn igmp(w: &World, from: Port, kind: u8) -> Packet<'_> {
    let mut body = vec![kind, 0, 0, 0];
    body.extend(GROUP.octets());
    let sum: u32 = body.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let inner = ip_with(ip(from.v4.unwrap(), GROUP, 0), 2, &body);
    let frame = eth([1, 0, 0x5e, 1, 2, 3], from.mac, ethertype(&inner), &inner);
    Packet { program: w.program(names::FROM_ENDPOINT), ifindex: from.ifindex, frame }
}

#[test]
fn two_that_join_at_once_are_both_counted() {
    let rounds = packets() / 20;
    world(Spec { flood: true, ..GRE }, |w| {
        let [one, other] = [A, B].map(|from| igmp(w, from, IGMP_V2_REPORT));
        let leave = igmp(w, A, IGMP_V2_LEAVE);
        let here = GroupKey { vni: 0, member: 0, group: Addr::from(IpAddr::from(GROUP)) };
        let count = || w.tables.groups.get(&here).unwrap().map_or(0, |info| info.count);
        let barrier = Barrier::new(2);
        let mut wrong = HashMap::<(u32, u32), u64>::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..rounds {
                    barrier.wait();
                    other.whole();
                    barrier.wait();
                }
            });
            for _ in 0..rounds {
                barrier.wait();
                one.whole();
                barrier.wait();
                let joined = count();
                leave.whole();
                let counts = (joined, count());
                if counts != (2, 1) {
                    *wrong.entry(counts).or_default() += 1;
                }
                let remove = sync::groups(&w.tables).unwrap().into_keys().collect();
                let changes = Changes { set: Vec::new(), remove };
                sync::change_groups(&w.tables, &changes).unwrap();
            }
        });
        println!(
            "TORN: groups: {rounds} rounds, wrong counts after joins and after one left {wrong:?}"
        );
        assert!(wrong.is_empty(), "of {rounds} rounds: {wrong:?}");
    });
}
