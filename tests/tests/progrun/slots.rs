//! The arrays in front of the hash maps: whoever shares a slot is found too, and a slot never says
//! what the map does not.

use std::net::{IpAddr, Ipv4Addr};

use mesh_common::{
    maps::{Addr, EndpointInfo, EndpointKey},
    slots::SlotKey as _,
    verdict::DropReason,
    wire::mac_pair,
};
use mesh_userspace::plan::Plan;

use super::{
    packet::{Mac, ip, udp},
    spec::{A, B, GRE},
    world::{World, gateway_mac, removing, setting, world},
};

pub const MACS: [Mac; 4] =
    [[2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2], [2, 0, 0, 0, 9, 3], [2, 0, 0, 0, 9, 4]];

pub fn key(address: Ipv4Addr) -> EndpointKey {
    EndpointKey { vni: A.vni, addr: Addr::from(IpAddr::from(address)) }
}

/// Local addresses with one slot, which is nobody else's.
pub fn that_share<const N: usize>(w: &World) -> [Ipv4Addr; N] {
    let taken: Vec<u32> = w.desired.maps.endpoints.keys().map(|k| k.slot()).collect();
    let local = |n: u32| Ipv4Addr::from_bits(0x0a2a_0100 + n);
    let sharing = |first: u32| {
        let slot = key(local(first)).slot();
        (first..0x3e00).map(local).filter(move |a| key(*a).slot() == slot).take(N)
    };
    (0..0x3e00)
        .filter(|n| !taken.contains(&key(local(*n)).slot()))
        .find_map(|n| sharing(n).collect::<Vec<_>>().try_into().ok())
        .unwrap()
}

/// As B's, with another MAC.
pub fn entry(w: &World, address: Ipv4Addr, mac: Mac) -> (EndpointKey, EndpointInfo) {
    let of_b = w.tables.endpoints.get(&key(B.v4.unwrap())).unwrap().unwrap();
    (key(address), EndpointInfo { macs: mac_pair(mac, gateway_mac()), ..of_b })
}

fn set(w: &World, address: Ipv4Addr, mac: Mac) {
    w.change(&Plan { endpoints: setting(&[entry(w, address, mac)]), ..Plan::default() });
}

fn remove(w: &World, addresses: &[Ipv4Addr]) {
    let keys: Vec<EndpointKey> = addresses.iter().copied().map(key).collect();
    w.change(&Plan { endpoints: removing(&keys), ..Plan::default() });
}

#[track_caller]
fn assert_reaches(w: &World, address: Ipv4Addr, mac: Mac) {
    let ran = w.sends_ip(A, &udp(ip(A.v4.unwrap(), address, 0), b"x"));
    assert_eq!((ran.reason, &ran.frame[..6]), (None, &mac[..]));
}

#[track_caller]
fn assert_gone(w: &World, address: Ipv4Addr) {
    let packet = udp(ip(A.v4.unwrap(), address, 0), b"x");
    w.sends_ip(A, &packet).assert_dropped(DropReason::NoEndpoint);
}

#[test]
fn keys_that_share_a_slot_are_both_found_and_follow_every_change() {
    world(GRE, |w| {
        let [first, second] = that_share(w);
        set(w, first, MACS[0]);
        set(w, second, MACS[1]);
        assert_reaches(w, first, MACS[0]);
        assert_reaches(w, second, MACS[1]);

        set(w, first, MACS[2]);
        set(w, second, MACS[0]);
        assert_reaches(w, first, MACS[2]);
        assert_reaches(w, second, MACS[0]);

        remove(w, &[first]);
        assert_gone(w, first);
        assert_reaches(w, second, MACS[0]);

        // The slot is free now, and the second moves in with its next change.
        set(w, second, MACS[1]);
        set(w, first, MACS[2]);
        assert_reaches(w, first, MACS[2]);
        assert_reaches(w, second, MACS[1]);

        remove(w, &[first, second]);
        assert_gone(w, first);
        assert_gone(w, second);
    });
}
