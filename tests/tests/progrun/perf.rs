//! The table of ns per packet. Printed, never asserted: `cargo test --test progrun -- perf
//! --nocapture`.
//!
//! What a program does is undone before it is repeated; a row's net cost is without that, and
//! without the cost of a run of nothing. The few stores by which the kernel keeps note of the inner
//! headers are not in it (see mesh-ebpf/src/test.rs), and neither is what a redirect sets in motion.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{Add, Div, Sub},
};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use mesh_common::{
    maps::{Addr, EndpointKey, PeerKey, PeerSource, PortInfo},
    names,
};

use mesh_tests::{Figure, figure};
use mesh_userspace::{config::Encap, plan::Plan};

use super::{
    decap::{from_peer, from_peer_in},
    packet::{IPV4, eth, ethertype, ip, udp, udp_of},
    spec::{
        A, B, BLUE, GENEVE, GRE, GRETAP, H3, HOST, ME, NEXT_HOP_MAC, Peer, Port, Spec, UNDERLAY,
        UNDERLAY_MAC, VXLAN,
    },
    world::{NEXT, REDIRECT, SHOT, Skb, World, gateway_mac, setting, world},
};

/// In the subnets whose prefix lengths are the commonest, as in a cluster of equal subnets: one
/// lookup finds them.
const H3_V4: Ipv4Addr = Ipv4Addr::new(10, 42, 128, 9);
const H3_V6: Ipv6Addr = Ipv6Addr::new(0xfd42, 0, 0, 2, 0, 0, 0, 9);

const NO_PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// What a program returns that only measures.
pub const DONE: i32 = 0;

/// Runs of each program in a row, and how often that is done, one program after the other so that
/// what slows the machine down slows down all of them.
pub const REPEAT: u32 = 20_000;
pub const ROUNDS: usize = 31;
/// Runs of a program that takes something off its packet, which can give only so much.
const SHORT_REPEAT: u32 = 60;

/// A program on a packet, again and again.
#[derive(Clone)]
pub struct Bench {
    pub program: &'static str,
    /// What it returns.
    pub code: i32,
    pub ifindex: u32,
    pub frame: Vec<u8>,
    /// Bytes of the outer header, for the programs that only undo.
    pub outer_len: u32,
    pub repeat: u32,
}

/// Median and least of all rounds.
#[derive(Clone, Copy, Debug, Default)]
struct Ns {
    median: f64,
    min: f64,
}

#[test]
fn perf() {
    println!("{:34} {:>15} {:>15}   ns per packet, median (least)", "", "gross", "net");
    let over_v6 = |spec| Spec { ipv6: true, ..spec };
    for (title, spec, from, v6) in [
        ("gre", GRE, A, false),
        ("gre, IPv6 inside", GRE, A, true),
        ("gre with key", GRE, BLUE, false),
        ("gretap", GRETAP, A, false),
        ("gretap with key", GRETAP, BLUE, false),
        ("vxlan", VXLAN, A, false),
        ("geneve", GENEVE, A, false),
        ("gre, IPv6 outside", over_v6(GRE), A, false),
    ] {
        world(spec, |w| tunnel(w, title, from, v6));
    }
    world(GRE, others);
}

/// Encapsulation and decapsulation in one form.
fn tunnel(w: &World, title: &str, port: Port, v6: bool) {
    let (here, there): (IpAddr, IpAddr) = match v6 {
        false => (port.v4.unwrap().into(), H3_V4.into()),
        true => (port.v6.unwrap().into(), H3_V6.into()),
    };
    let sent = udp(ip(here, there, 0), &[7; 64]);
    let sent = eth(w.spec.gateway_mac(), port.mac, ethertype(&sent), &sent);
    let inner = udp(ip(there, here, 0), &[7; 64]);
    let received = from_peer_in(w.spec, H3, w.spec.encap, port.vni, 0, &inner);
    let outer_len = (received.len() - inner.len()) as u32;
    let received = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(&received), &received);
    let long = eth(gateway_mac(), port.mac, IPV4, &udp_of(ip(H3_V4, H3_V4, 0), 3300));

    let bench = |program, code, frame: &Vec<u8>, ifindex| Bench {
        program,
        code,
        ifindex,
        frame: frame.clone(),
        outer_len,
        repeat: REPEAT,
    };
    let short =
        |program| Bench { repeat: SHORT_REPEAT, ..bench(program, DONE, &long, port.ifindex) };
    // Over IPv6 the kernel would have to be told, to know the packet for one.
    if !v6 && !w.spec.ipv6 {
        loop_back(w, port);
        let mut for_us = sent.clone();
        for_us[..6].copy_from_slice(&UNDERLAY_MAC);
        let [empty, pair] = measure(
            w,
            [
                bench("perf_empty", DONE, &sent, port.ifindex),
                bench("perf_pair", REDIRECT, &for_us, UNDERLAY),
            ],
        );
        row(&format!("encap and decap {title}, each"), pair / 2.0, (pair - empty) / 2.0);
    }
    let [empty, encap, decap, decap_undo, adjust, short_empty, encap_undo, shrink] = measure(
        w,
        [
            bench("perf_empty", DONE, &sent, port.ifindex),
            bench("perf_encap", REDIRECT, &sent, port.ifindex),
            bench("perf_decap", REDIRECT, &received, UNDERLAY),
            bench("perf_decap_undo", DONE, &received, UNDERLAY),
            bench("perf_grow_shrink", DONE, &sent, port.ifindex),
            short("perf_empty"),
            short("perf_encap_undo"),
            short("perf_shrink"),
        ],
    );
    let shrink = shrink - short_empty;
    row(&format!("encap {title}"), encap, encap - empty - (encap_undo - short_empty));
    // The way back takes nothing out, but can not be measured without.
    row(&format!("decap {title}"), decap, decap - decap_undo + shrink);
    row(&format!("  {title}: the kernel's room"), adjust, adjust - empty - shrink);
    row(&format!("  {title}: room taken back"), shrink + short_empty, shrink);
}

/// Lets what `port` sends to H3 be taken off again by the same host, all on the underlay's interface,
/// whose MAC it has.
fn loop_back(w: &World, port: Port) {
    let addr = |ip: Ipv4Addr| Addr::from(IpAddr::from(ip));
    let (me, h3) = (Addr::from(w.spec.me()), Addr::from(H3.at(w.spec)));
    let vni = port.vni;
    let endpoint = w.tables.endpoints.get(&EndpointKey { vni, addr: addr(port.v4.unwrap()) });
    let endpoint = endpoint.unwrap().unwrap();
    let as_port = w.tables.ports.get(&port.ifindex).unwrap().unwrap();
    let as_port = PortInfo { ifindex: UNDERLAY, ..as_port };
    let there = EndpointKey { vni, addr: addr(H3_V4) };
    let own = addr(port.v4.unwrap()).0[3];
    let source = PeerSource {
        peer: H3.index,
        vni,
        local: h3,
        net4: own,
        mask4: u32::MAX,
        ..PeerSource::default()
    };
    let key = PeerKey { outer_source: me, vni };
    w.change(&Plan {
        ports: setting(&[(UNDERLAY, as_port)]),
        endpoints: setting(&[(there, endpoint)]),
        peer_by_addr: setting(&[(key, source)]),
        ..Plan::default()
    });
}

/// What leaves the packet as it is.
fn others(w: &World) {
    let local = udp(ip(A.v4.unwrap(), B.v4.unwrap(), 0), &[7; 64]);
    let foreign = udp(ip(H3.underlay, ME, 0), &[7; 64]);
    let bench = |program, code, ifindex, ip: &[u8]| {
        let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, IPV4, ip);
        Bench { program, code, ifindex, frame, outer_len: 0, repeat: REPEAT }
    };
    let nowhere = udp(ip(A.v4.unwrap(), Ipv4Addr::new(198, 51, 100, 1), 0), &[7; 64]);
    let spoofed = udp(ip(B.v4.unwrap(), H3_V4, 0), &[7; 64]);
    let from_host = udp(ip(HOST.v4.unwrap(), A.v4.unwrap(), 0), &[7; 64]);
    let stranger = from_peer(Peer { underlay: NO_PEER, ..H3 }, Encap::Gre, 0, 0, &local);
    let [empty, deliver, host, pass, lost, spoof, unknown] = measure(
        w,
        [
            bench("perf_empty", DONE, UNDERLAY, &foreign),
            bench(names::FROM_ENDPOINT, REDIRECT, A.ifindex, &local),
            bench(names::FROM_ENDPOINT, REDIRECT, HOST.ifindex, &from_host),
            bench(names::FROM_UNDERLAY, NEXT, UNDERLAY, &foreign),
            bench(names::FROM_ENDPOINT, SHOT, A.ifindex, &nowhere),
            bench(names::FROM_ENDPOINT, SHOT, A.ifindex, &spoofed),
            bench(names::FROM_UNDERLAY, SHOT, UNDERLAY, &stranger),
        ],
    );
    row("local delivery", deliver, deliver - empty);
    row("from the host to a container", host, host - empty);
    row("foreign packet on the underlay", pass, pass - empty);
    row("drop: no route", lost, lost - empty);
    row("drop: spoofed source", spoof, spoof - empty);
    row("drop: unknown peer", unknown, unknown - empty);
    row("nothing", empty, Ns::default());
    let masqueraded = udp(ip(ME, H3.underlay, 0), &[7; 64]);
    let [empty, own, forwarded] = measure(
        w,
        [
            bench("perf_empty", DONE, UNDERLAY, &foreign),
            bench(names::FROM_FORWARD, NEXT, UNDERLAY, &foreign),
            bench("forwarded", NEXT, UNDERLAY, &masqueraded),
        ],
    );
    row("out of the underlay, the host's own", own, own - empty);
    row("out of the underlay, masqueraded UDP", forwarded, forwarded - empty);
}

fn row(title: &str, gross: Ns, net: Ns) {
    if figure::measure().is_some() {
        Figure::cost(title, "net", "ns", vec![net.median]).print();
        return;
    }
    let cell = |ns: Ns| format!("{:.1} ({:.1})", ns.median, ns.min);
    println!("{title:34} {:>15} {:>15}", cell(gross), cell(net));
}

fn measure<const N: usize>(w: &World, benches: [Bench; N]) -> [Ns; N] {
    let programs = benches.each_ref().map(|b| w.program(b.program));
    let mut all = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for ((bench, program), ns) in benches.iter().zip(&programs).zip(&mut all) {
            ns.push(bench.run(program));
        }
    }
    all.map(|mut ns: Vec<f64>| {
        ns.sort_by(f64::total_cmp);
        Ns { median: ns[ns.len() / 2], min: ns[0] }
    })
}

impl Bench {
    /// ns of one run, in the middle of many.
    pub fn run(&self, program: &SchedClassifier) -> f64 {
        let skb = Skb { ifindex: self.ifindex, mark: self.outer_len, ..Skb::default() };
        let start = cpu_time_ns();
        let ran = program
            .test_run(TestRunOptions {
                data_in: Some(&self.frame),
                ctx_in: Some(&skb.bytes()),
                repeat: self.repeat,
                ..TestRunOptions::new()
            })
            .unwrap();
        let elapsed = cpu_time_ns() - start;
        assert_eq!(ran.return_value as i32, self.code, "{} does not do its work", self.program);
        // The kernel's figure is without the system call, but of whole nanoseconds.
        match self.repeat {
            SHORT_REPEAT => ran.duration.as_nanos() as f64,
            _ => elapsed as f64 / f64::from(self.repeat),
        }
    }
}

/// Time that this thread was at work: it stands still while others are.
fn cpu_time_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written to.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) }, 0);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

impl Sub for Ns {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { median: self.median - other.median, min: self.min - other.min }
    }
}

impl Add for Ns {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { median: self.median + other.median, min: self.min + other.min }
    }
}

impl Div<f64> for Ns {
    type Output = Self;

    fn div(self, by: f64) -> Self {
        Self { median: self.median / by, min: self.min / by }
    }
}
