//! How lookups grow with what the maps hold, and the memory of that. `cargo xtask bench --program`.
//!
//! One key again and again finds its entry in the cache whatever the size of the map; keys at random
//! do not. Those are other packets each time, so each is run once, with the kernel's own clock around
//! it: the figures of the two kinds do not compare, those of different sizes do.

use std::net::{IpAddr, Ipv4Addr};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use mesh_common::{
    maps::{Addr, EndpointKey, FibInfo, FibKey, PeerKey},
    names,
};
use mesh_tests::{Figure, figure};
use mesh_userspace::config::Encap;
use mesh_userspace::plan::Plan;

use super::{
    decap::from_peer,
    packet::{IPV4, eth, ip, udp},
    perf::{Bench, DONE, REPEAT, ROUNDS},
    spec::{A, B, GRE, H3, NEXT_HOP_MAC, Peer, Spec, UNDERLAY, UNDERLAY_MAC},
    world::{REDIRECT, Skb, World, gateway_mac, setting, worlds},
};

const SIZES: [u32; 4] = [10, 1_000, 100_000, 1_000_000];

/// Packets with keys at random in each round.
const RANDOM: u32 = 5_000;

/// 32.0.0.0 and up are the addresses of what is added, apart from what the world has.
const FIRST: u32 = 32 << 24;
/// Prefix lengths that the world has, in 128-bit form.
const PREFIX: u8 = 96 + 24;
const LOCAL_PREFIX: u8 = 96 + 18;

/// What is looked up.
#[derive(Clone, Copy)]
enum Kind {
    /// `FIB`, then one peer.
    Encap,
    /// `PEER_BY_ADDR`, then one endpoint.
    Decap,
    /// `FIB`, then `ENDPOINTS`.
    Local,
}

const KINDS: [(Kind, &str); 3] =
    [(Kind::Encap, "encap"), (Kind::Decap, "decap"), (Kind::Local, "local delivery")];

#[test]
#[ignore = "measures: `cargo xtask bench --program`"]
fn growth() {
    let quick = figure::measure().unwrap_or(true);
    worlds(SIZES.map(|entries| Spec { entries, ..GRE }), |worlds| {
        for (world, entries) in worlds.into_iter().zip(SIZES) {
            fill(world, entries);
            for map in [names::FIB, names::PEER_BY_ADDR, names::ENDPOINTS] {
                let metric = format!("memory, {entries} entries");
                Figure::cost(map, &metric, "MB", vec![world.memory(map) as f64 / 1e6]).print();
            }
        }
        for (kind, name) in KINDS {
            for (how, figures) in measure(worlds, kind, if quick { 5 } else { ROUNDS }) {
                let ratios = figures[SIZES.len() - 1].iter().zip(&figures[0]).map(|(a, b)| a / b);
                let metric = format!("{how}, 1000000 entries against 10");
                Figure::cost(name, &metric, "x", ratios.collect()).print();
                for (values, entries) in figures.into_iter().zip(SIZES) {
                    let metric = format!("{how}, {entries} entries");
                    Figure::cost(name, &metric, "ns", values).print();
                }
            }
        }
    });
}

/// Adds prefixes of one peer, peers, and endpoints that are all one container.
fn fill(w: &World, entries: u32) {
    let get = |key: EndpointKey| w.tables.endpoints.get(&key).unwrap().unwrap();
    let own = |ip: Ipv4Addr| Addr::from(IpAddr::V4(ip));
    let endpoint = get(EndpointKey { vni: 0, addr: own(B.v4.unwrap()) });
    let source = PeerKey { outer_source: own(H3.underlay), vni: 0 };
    let source = w.tables.peer_by_addr.get(&source).unwrap().unwrap();
    let peer = FibInfo { kind: FibInfo::PEER, peer: H3.index, ..FibInfo::default() };
    let local = FibInfo { kind: FibInfo::LOCAL, ..FibInfo::default() };

    let all = || 0..entries;
    let prefix = |n| (FibKey::new(0, PREFIX, address(Kind::Encap, n)), peer);
    let source = |n| (PeerKey { outer_source: address(Kind::Decap, n), vni: 0 }, source);
    let endpoint = |n| (EndpointKey { vni: 0, addr: address(Kind::Local, n) }, endpoint);
    let of_endpoints = |n| (FibKey::new(0, LOCAL_PREFIX, address(Kind::Local, n << 14)), local);
    let blocks = (0..=entries >> 14).map(of_endpoints);
    w.change(&Plan {
        fib: setting(&all().map(prefix).chain(blocks).collect::<Vec<_>>()),
        peer_by_addr: setting(&all().map(source).collect::<Vec<_>>()),
        endpoints: setting(&all().map(endpoint).collect::<Vec<_>>()),
        ..Plan::default()
    });
}

/// The address of the entry of that number, apart for each kind.
fn address(kind: Kind, n: u32) -> Addr {
    Addr::from(IpAddr::V4(v4(kind, n)))
}

fn v4(kind: Kind, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(match kind {
        Kind::Encap => FIRST + (n << 8),
        Kind::Decap => FIRST + n,
        Kind::Local => (FIRST >> 1) + n,
    })
}

/// The values of each round for each size, with a hot key and with random ones. The sizes take turns.
fn measure(
    worlds: [&World; SIZES.len()],
    kind: Kind,
    rounds: usize,
) -> [(&'static str, [Vec<f64>; SIZES.len()]); 2] {
    let (mut hot, mut random) = (SIZES.map(|_| Vec::new()), SIZES.map(|_| Vec::new()));
    let mut seed = 1;
    for _ in 0..rounds {
        for (i, (w, entries)) in worlds.into_iter().zip(SIZES).enumerate() {
            let bench = bench(kind, entries / 2);
            let program = w.program(bench.program);
            let nothing = Bench { program: "perf_empty", code: DONE, ..bench.clone() };
            let nothing = nothing.run(w.program("perf_empty"));
            hot[i].push(bench.run(program) - nothing);
            let keys = (0..RANDOM).map(|_| next(&mut seed) % entries);
            let sum: u64 = keys.map(|key| once(program, &self::bench(kind, key))).sum();
            random[i].push(sum as f64 / f64::from(RANDOM));
        }
    }
    [("hot key", hot), ("random keys", random)]
}

/// A packet that needs the entry of that number.
fn bench(kind: Kind, key: u32) -> Bench {
    let to = v4(kind, key);
    let (program, ifindex, frame) = match kind {
        Kind::Encap | Kind::Local => {
            let to = if matches!(kind, Kind::Encap) { (to.to_bits() + 9).into() } else { to };
            let sent = udp(ip(A.v4.unwrap(), to, 0), &[7; 64]);
            let program =
                if matches!(kind, Kind::Encap) { "perf_encap" } else { names::FROM_ENDPOINT };
            (program, A.ifindex, eth(gateway_mac(), A.mac, IPV4, &sent))
        }
        Kind::Decap => {
            let inner = udp(ip(Ipv4Addr::new(10, 42, 128, 9), A.v4.unwrap(), 0), &[7; 64]);
            let peer = Peer { underlay: to, ..H3 };
            let received = from_peer(peer, Encap::Gre, 0, 0, &inner);
            ("perf_decap", UNDERLAY, eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, &received))
        }
    };
    Bench { program, code: REDIRECT, ifindex, frame, outer_len: 24, repeat: REPEAT }
}

/// ns of one run, by the kernel's clock.
fn once(program: &SchedClassifier, bench: &Bench) -> u64 {
    let skb = Skb { ifindex: bench.ifindex, mark: bench.outer_len, ..Skb::default() };
    let ran = program
        .test_run(TestRunOptions {
            data_in: Some(&bench.frame),
            ctx_in: Some(&skb.bytes()),
            ..TestRunOptions::new()
        })
        .unwrap();
    assert_eq!(ran.return_value as i32, bench.code, "{} does not do its work", bench.program);
    ran.duration.as_nanos() as u64
}

/// A step of a linear congruence (Knuth), of which the upper bits are the random ones.
fn next(seed: &mut u64) -> u32 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as u32
}
