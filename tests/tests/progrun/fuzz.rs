//! Random and mutated packets through all programs, compared with the model; and those that were
//! worth keeping, in `tests/corpus/frames.txt`.
//!
//! MESH_FUZZ_PACKETS sets how many run in each world. With MESH_FUZZ_KEEP the shortest frame is
//! printed, as a line of the corpus, of each end that none in the corpus has.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_common::{
    maps::{Addr, NeighbourInfo},
    verdict::{DropReason, Hook, Verdict},
    wire::{mac_bytes, mac_words},
};
use proptest::test_runner::{Config, TestRunner};

use super::{
    cases::{Case, cases},
    counters::Counter,
    model::{Frame, KNOWN, Model, clamp::is_clamped, known_mac},
    packet::{Mac, assert_well_formed},
    spec::{GENEVE, GRE, GRETAP, PORTS, Peer, Spec, UNDERLAY, VXLAN},
    world::{Ran, World, world},
};

const PACKETS: u32 = 3000;
const CORPUS: &str = include_str!("../../corpus/frames.txt");

/// Bytes of a frame that any interface takes.
const LONGEST_COPY: usize = 1514;

/// How worlds are called in the corpus.
const WORLDS: [(&str, Spec); 8] = [
    ("gre", GRE),
    ("gretap", Spec { foreign_gre: true, ..GRETAP }),
    ("many", Spec { many_lengths: true, ..GRE }),
    ("vxlan6", Spec { ipv6: true, ..VXLAN }),
    ("geneve", Spec { port: Some(7777), shared_port: Some(7777), ..GENEVE }),
    ("foreign", Spec { foreign: true, ..VXLAN }),
    ("flood", Spec { flood: true, foreign: true, ..GRE }),
    ("foreign6", Spec { foreign: true, ipv6: true, shared_port: Some(4789), ..GRE }),
];

/// How a packet ended.
type End = (Hook, Verdict, Option<DropReason>);

struct Fuzz<'a> {
    w: &'a World,
    model: Model<'a>,
    neighbours: Neighbours,
}

impl<'a> Fuzz<'a> {
    fn new(w: &'a World) -> Self {
        let model = Model { cluster: &w.cluster, spec: w.spec };
        Self { w, model, neighbours: Neighbours::default() }
    }

    /// Runs one packet and compares.
    fn check(&self, case: &Case) -> End {
        let Case { from, frame, gso_size } = case;
        // Of what is in a super-packet depends whether the kernel can cut it for a copy.
        let gso_size = if self.w.spec.flood { &0 } else { gso_size };
        // Nor copies the kernel what is larger than the MTU of the interface that it is for.
        let longest = if self.w.spec.flood && from.is_none() { LONGEST_COPY } else { usize::MAX };
        let frame = &frame[..frame.len().min(longest)];
        let port = PORTS.into_iter().find(|p| Some(p.ifindex) == *from);
        let hook = match (from, port) {
            (None, _) => Hook::FromUnderlay,
            (_, Some(port)) => port.hook(),
            _ => Hook::FromContainer,
        };
        let expected = match from {
            None => self.model.receives(frame, *gso_size as usize),
            Some(_) => self.model.sends(port, frame, *gso_size as usize),
        };
        if self.w.spec.foreign {
            self.neighbours.fresh(self.w);
        }
        let ran = self.w.run(hook, from.unwrap_or(UNDERLAY), frame, *gso_size);
        if ran.reason == Some(DropReason::Unresolved) {
            self.w.forget_asked();
        }
        let counted: Vec<_> = ran.traffic.iter().map(|(counter, _)| *counter).collect();
        assert_eq!(
            (ran.verdict, ran.reason, counted),
            (expected.verdict, expected.reason, expected.counted),
            "{case:?}"
        );
        match expected.frame {
            Frame::Any if ran.verdict == Verdict::Answer => drop(assert_well_formed(&ran.frame)),
            Frame::Any => {}
            Frame::Bytes(bytes) => assert_eq!(ran.frame, bytes, "{case:?}"),
            Frame::To(carried) => carried.assert_in(self.w.spec, &ran.frame),
        }
        if self.w.spec.foreign {
            self.neighbours.assert_learned(self.w, expected.learned);
        }
        if hook == Hook::FromUnderlay {
            assert_could_be_sent(self.w, frame, &ran);
        }
        (hook, ran.verdict, ran.reason)
    }
}

/// What is delivered came from the underlay address of a peer, to ours, and is from a subnet of that
/// very peer in the network of the endpoint, whose own address it is for.
fn assert_could_be_sent(w: &World, outer: &[u8], ran: &Ran) {
    // There is no one endpoint.
    if ran.verdict == Verdict::Flood {
        return;
    }
    let Some(to) = ran.traffic.iter().find_map(|(counter, _)| match counter {
        Counter::EndpointRx(id) => PORTS.iter().find(|port| port.id == *id),
        _ => None,
    }) else {
        assert!(![Verdict::Deliver, Verdict::Host].contains(&ran.verdict), "handed to nobody");
        return;
    };
    let [from, our] = ends(outer);
    let [src, dst] = ends(&ran.frame);
    assert_eq!(our, w.spec.me());
    let peer = w.cluster.nodes.iter().find(|node| node.underlay == from).unwrap();
    assert_ne!(peer.name, "h1");
    let networks = peer.subnets.iter().filter(|(vni, _)| vni.get() == to.vni);
    assert!(networks.into_iter().any(|(_, net)| net.contains(&src)), "{src} of {}", peer.name);
    assert!(to.has(dst), "{dst} at {to:?}");
    // And it is what came, but for congestion marks and what TCP is told.
    let inner = &ran.frame[14..];
    if w.spec.peers().iter().any(|p| p.at(w.spec) == from && is_clamped(*p)) {
        return;
    }
    assert_eq!(inner[16..], outer[outer.len() - inner.len() + 16..]);
}

/// Source and destination of an IP packet in a frame.
fn ends(frame: &[u8]) -> [IpAddr; 2] {
    let v4 = |at: usize| IpAddr::from(*frame[at..].first_chunk::<4>().unwrap());
    let v6 = |at: usize| IpAddr::from(*frame[at..].first_chunk::<16>().unwrap());
    if frame[12..14] == [8, 0] { [v4(26), v4(30)] } else { [v6(22), v6(38)] }
}

/// What is known of addresses behind switches: the same before each packet.
#[derive(Default)]
struct Neighbours {
    set: Cell<Option<Instant>>,
}

impl Neighbours {
    /// Well before they are asked for anew.
    const FRESH: Duration = Duration::from_secs(10);

    fn fresh(&self, w: &World) {
        if self.set.get().is_some_and(|set| set.elapsed() < Self::FRESH) {
            return;
        }
        w.forget_neighbours();
        let mut map = w.neighbours();
        for (key, value) in known() {
            map.insert(key, neighbour_value(key, value, seconds(), 0), 0).unwrap();
        }
        self.set.set(Some(Instant::now()));
    }

    /// One is new or heard again, or none is.
    fn assert_learned(&self, w: &World, learned: Option<(u32, IpAddr, Peer, Mac)>) {
        let mut expected: BTreeMap<_, _> = known().collect();
        if let Some((vni, addr, peer, mac)) = learned {
            expected.insert(neighbour_key(vni, addr), (peer.index, mac));
        }
        let found: BTreeMap<_, _> = w.neighbours().iter().map(Result::unwrap).collect();
        let found = found.into_iter().map(|(key, value)| (key, neighbour(key, value)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
        if learned.is_some() {
            self.set.set(None);
        }
    }
}

/// The key and the value of `NEIGHBOURS`, as their types are laid out.
pub fn neighbour_key(vni: u32, addr: IpAddr) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&vni.to_ne_bytes());
    key[4..].copy_from_slice(&Addr::from(addr).octets());
    key
}

pub fn neighbour_value(key: [u8; 20], (peer, mac): (u32, Mac), heard: u32, asked: u32) -> [u8; 24] {
    bytemuck::cast(NeighbourInfo::new(&bytemuck::cast(key), mac_words(mac), peer, heard, asked))
}

/// The peer and the MAC that are known.
pub fn neighbour(key: [u8; 20], value: [u8; 24]) -> (u32, Mac) {
    let info: NeighbourInfo = bytemuck::cast(value);
    (info.peer, mac_bytes(info.mac(&bytemuck::cast(key)).unwrap()))
}

/// Seconds since boot, as the programs count them.
pub fn seconds() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written to.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    now.tv_sec as u32
}

fn known() -> impl Iterator<Item = ([u8; 20], (u32, Mac))> {
    KNOWN.into_iter().map(|(vni, peer, addr)| {
        let addr = addr.parse().unwrap();
        (neighbour_key(vni, addr), (peer.index, known_mac(vni, addr).unwrap()))
    })
}

/// Frames of the corpus in a world, with how they end.
fn corpus(name: &str) -> impl Iterator<Item = (Case, String)> {
    let lines = CORPUS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.filter_map(move |line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [world, case @ .., end] = &words[..] else { panic!("{line}") };
        let case = Case::parse(case).unwrap_or_else(|| panic!("{line}"));
        (*world == name).then(|| (case, (*end).to_owned()))
    })
}

/// As in the corpus.
fn label((_, verdict, reason): End) -> String {
    reason.map_or(verdict.label(), DropReason::label).to_owned()
}

fn fuzz(name: &str) {
    let (_, spec) = WORLDS.into_iter().find(|(n, _)| *n == name).unwrap();
    let packets = std::env::var("MESH_FUZZ_PACKETS").map_or(PACKETS, |n| n.parse().unwrap());
    world(spec, |w| {
        let fuzz = Fuzz::new(w);
        let mut kept = Vec::new();
        for (case, end) in corpus(name) {
            let ended = fuzz.check(&case);
            assert_eq!(label(ended), end, "{case:?}");
            kept.push(ended);
        }
        let config = Config { cases: packets, failure_persistence: None, ..Config::default() };
        let seen = RefCell::new(BTreeMap::new());
        let run = TestRunner::new(config).run(&cases(spec), |case| {
            let ended = fuzz.check(&case);
            let mut seen = seen.borrow_mut();
            let kept = seen.entry(ended).or_insert_with(|| case.clone());
            if case.frame.len() < kept.frame.len() {
                *kept = case;
            }
            Ok(())
        });
        run.unwrap_or_else(|e| panic!("in the world {name}: {e}"));
        // A fuzzer that meets the first check only finds nothing.
        let seen = seen.into_inner();
        assert!(packets < PACKETS || seen.len() >= 30, "only {:?}", seen.keys());
        if std::env::var_os("MESH_FUZZ_KEEP").is_some() {
            for (end, case) in seen.iter().filter(|(end, _)| !kept.contains(end)) {
                println!("KEEP: {name} {case:?} {}", label(*end));
            }
        }
    });
}

#[test]
fn random_packets_end_as_the_model_says() {
    fuzz("gre");
}

#[test]
fn random_packets_end_as_the_model_says_with_gretap_and_other_tunnels() {
    fuzz("gretap");
}

#[test]
fn random_packets_end_as_the_model_says_with_many_prefix_lengths() {
    fuzz("many");
}

#[test]
fn random_packets_end_as_the_model_says_with_vxlan_over_ipv6() {
    fuzz("vxlan6");
}

#[test]
fn random_packets_end_as_the_model_says_with_geneve_on_a_shared_port() {
    fuzz("geneve");
}

#[test]
fn random_packets_end_as_the_model_says_with_peers_that_do_not_run_mesh() {
    fuzz("foreign");
}

#[test]
fn random_packets_end_as_the_model_says_where_broadcast_is_carried() {
    fuzz("flood");
}

#[test]
fn random_packets_end_as_the_model_says_with_such_peers_over_ipv6() {
    fuzz("foreign6");
}
