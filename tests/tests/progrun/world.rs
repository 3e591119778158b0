//! A host without traffic: namespaces, interfaces, programs, and maps filled as the agent does it.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::OnceLock,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use mesh_common::{
    maps::PeerInfo,
    names,
    verdict::{DropReason, Hook, Verdict},
};
use mesh_userspace::{
    bpf::{
        BpfError, Pins,
        load::{self, Room},
        sync,
        tables::Tables,
    },
    compile::{self, Attachment, AttachmentKind, ByAddress, Desired, Facts},
    config::{self, Cluster, Vni},
    plan::{Changes, Plan, plan},
};

use super::{
    counters::{Counter, Counters},
    packet::{Mac, eth, ethertype, may_be_answered},
    place::Place,
    spec::{
        BLUE, BRIDGE, GRE, H4, H5, H5_MTU, HOST, NEXT_HOP_MAC, OLD_GRETAP, PORTS, Peer, Port, Spec,
        TELLS, TOLD, UNDERLAY, UNDERLAY_MAC, UNDERLAY_MTU,
    },
};

pub struct World {
    pub spec: Spec,
    pub cluster: Cluster,
    pub desired: Desired,
    pins: Pins,
    pub tables: Tables,
    programs: HashMap<&'static str, SchedClassifier>,
    for_tests: OnceLock<Ebpf>,
}

/// What became of one packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub verdict: Verdict,
    pub reason: Option<DropReason>,
    /// What the program returned to the kernel.
    pub code: i32,
    pub frame: Vec<u8>,
    /// Counters of endpoints and peers that moved by one packet, and by how many bytes.
    pub traffic: Vec<(Counter, u64)>,
}

pub const NEXT: i32 = -1;
pub const SHOT: i32 = 2;
pub const REDIRECT: i32 = 7;

/// Runs `test` in a world of its own, on a thread in namespaces that no other test is in: no pin, mount
/// or interface outlives the process, however it ends.
pub fn world(spec: Spec, test: impl FnOnce(&World) + Send) {
    worlds([spec], |[world]| test(world));
}

/// The same with several worlds that share their interfaces.
pub fn worlds<const N: usize>(specs: [Spec; N], test: impl FnOnce([&World; N]) + Send) {
    if !able() {
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut place = Place::enter();
            let worlds = specs.map(|spec| place.world(spec));
            test(worlds.each_ref());
            place.leave(worlds);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Says why, where a test can not run. With MESH_TESTS_NO_SKIP it then fails.
pub fn able() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("MESH_TESTS_NO_SKIP").is_none(), "loading programs needs root");
        println!("SKIP: loading programs needs root");
    }
    root
}

impl World {
    pub fn new(spec: Spec, number: usize) -> Self {
        let (cluster, desired) = compiled(spec);
        let pins = Pins::new(Path::new(&format!("/sys/fs/bpf/mesh{number}")));
        pins.prepare().unwrap();
        let more = Room {
            endpoints: spec.entries,
            prefixes: spec.entries,
            peer_networks: spec.entries,
            ..Room::default()
        };
        let staged = load::stage(&pins, &compile::room(&cluster).beside(&more)).unwrap();
        let tables = Tables::open(&pins.next_maps()).unwrap();
        fill(&tables, &desired);
        load::commit(&pins, staged).unwrap();
        let programs = load::PROGRAMS.map(|name| (name, load::pinned(&pins, name).unwrap()));
        Self {
            spec,
            cluster,
            desired,
            pins,
            tables,
            programs: HashMap::from(programs),
            for_tests: OnceLock::new(),
        }
    }

    /// Do the programs and maps of this world do for another? For one that needs more room they are
    /// made anew, by the next test as well: it does not want to pay for what it has no use for.
    pub fn does_for(&self, spec: Spec) -> bool {
        self.spec.flood == spec.flood && self.spec.entries == 0 && spec.entries == 0
    }

    /// The same programs and maps as another world, without a trace of what happened in this one but
    /// the counters, which only go on.
    pub fn made(mut self, spec: Spec) -> Self {
        let learned: Vec<_> = sync::learned(&self.tables).unwrap().into_keys().collect();
        wait_for(sync::forget_learned(&self.tables, &learned, &[]));
        let groups = sync::groups(&self.tables).unwrap().into_keys().collect();
        sync::change_groups(&self.tables, &Changes { set: Vec::new(), remove: groups }).unwrap();
        self.forget_neighbours();
        (self.cluster, self.desired) = compiled(spec);
        self.spec = spec;
        fill(&self.tables, &self.desired);
        self
    }

    /// Changes the maps as the agent does.
    pub fn change(&self, plan: &Plan) {
        change(&self.tables, plan);
    }

    /// All that are attached to this host.
    pub fn attachments(&self) -> Vec<Attachment> {
        facts(self.spec).attachments
    }

    /// What the maps are to contain with these attached instead.
    pub fn desired_with(&self, attachments: Vec<Attachment>) -> Desired {
        let facts = Facts { attachments, ..facts(self.spec) };
        compile::compile(&self.cluster, self.cluster.node("h1").unwrap(), &facts)
    }

    /// Brings the maps to `here`, and says how they get `there` and back.
    pub fn ways(&self, here: &Desired, there: &Desired) -> [Plan; 2] {
        let go = |to| plan(to, &sync::observe(&self.tables).unwrap());
        self.change(&go(here));
        let forth = go(there);
        self.change(&forth);
        let back = go(here);
        self.change(&back);
        [forth, back]
    }

    pub fn set_peers(&self, set: &[(u32, PeerInfo)]) {
        self.change(&Plan { peers: setting(set), ..Plan::default() });
    }

    /// A program by its name: one of the real ones, or of those for tests.
    pub fn program(&self, name: &str) -> &SchedClassifier {
        match self.programs.get(name) {
            Some(program) => program,
            None => {
                let object = self.for_tests.get_or_init(|| load_over(&self.pins));
                object.program(name).unwrap().try_into().unwrap()
            }
        }
    }

    /// A map that only the programs fill.
    pub fn neighbours(&self) -> aya::maps::HashMap<MapData, [u8; 20], [u8; 24]> {
        let pin = MapData::from_pin(self.pins.map(names::NEIGHBOURS)).unwrap();
        Map::LruHashMap(pin).try_into().unwrap()
    }

    /// When an address was asked for, by the key of [`World::neighbours`].
    pub fn asked(&self) -> aya::maps::HashMap<MapData, [u8; 20], u32> {
        let pin = MapData::from_pin(self.pins.map(names::ASKED)).unwrap();
        Map::LruHashMap(pin).try_into().unwrap()
    }

    /// Empties both.
    pub fn forget_neighbours(&self) {
        empty(&mut self.neighbours());
        self.forget_asked();
    }

    pub fn forget_asked(&self) {
        empty(&mut self.asked());
    }

    /// Bytes of kernel memory that a map takes.
    pub fn memory(&self, map: &str) -> u64 {
        let map = MapData::from_pin(self.pins.map(map)).unwrap();
        let fd = map.fd().as_fd().as_raw_fd();
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
        bytes.trim().parse().unwrap()
    }

    /// What a container, or the host itself, sends.
    #[track_caller]
    pub fn sends(&self, port: Port, frame: &[u8]) -> Ran {
        self.sends_segments(port, frame, 0)
    }

    /// [`Self::sends`] an IP packet to the gateway's MAC.
    #[track_caller]
    pub fn sends_ip(&self, port: Port, ip: &[u8]) -> Ran {
        self.sends(port, &eth(self.spec.gateway_mac(), port.mac, ethertype(ip), ip))
    }

    /// A super-packet of segments with this much payload; 0 for an ordinary one.
    #[track_caller]
    pub fn sends_segments(&self, port: Port, frame: &[u8], gso_size: u32) -> Ran {
        self.run(port.hook(), port.ifindex, frame, gso_size)
    }

    /// What comes in on the underlay's interface: an IP packet to this host's MAC.
    #[track_caller]
    pub fn receives(&self, ip: &[u8]) -> Ran {
        self.receives_frame(&eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(ip), ip))
    }

    /// As [`Self::receives`], what is left alone.
    #[track_caller]
    pub fn assert_passes(&self, ip: &[u8]) {
        let frame = eth(UNDERLAY_MAC, NEXT_HOP_MAC, ethertype(ip), ip);
        self.receives_frame(&frame).assert_passed(&frame);
    }

    #[track_caller]
    pub fn receives_frame(&self, frame: &[u8]) -> Ran {
        self.run(Hook::FromUnderlay, UNDERLAY, frame, 0)
    }

    /// Runs one packet through the program of a hook and asserts the sum law.
    #[track_caller]
    pub fn run(&self, hook: Hook, ifindex: u32, frame: &[u8], gso_size: u32) -> Ran {
        let skb = Skb { ifindex, gso_size, ..Skb::default() };
        self.run_as(names::program(hook), hook, skb, frame)
    }

    /// [`Self::run`] of a program that does what the hook's does.
    #[track_caller]
    pub fn run_as(&self, program: &str, hook: Hook, skb: Skb, frame: &[u8]) -> Ran {
        let program = self.program(program);
        let before = Counters::read(&self.tables);
        let sent = frame;
        let (code, frame) = test_run(program, skb, sent);
        let moved = before.moved(&Counters::read(&self.tables), hook);
        let expected = match (moved.verdict, moved.reason) {
            (Verdict::Pass, _) => NEXT,
            // Turned into an ICMP error, which goes back.
            (Verdict::Drop, Some(DropReason::TooBig)) if may_be_answered(sent) => REDIRECT,
            // Turned into a question to the peer.
            (Verdict::Drop, Some(DropReason::Unresolved)) if frame != sent => REDIRECT,
            (Verdict::Learn | Verdict::Flood, _) => SHOT,
            (Verdict::Drop, _) => SHOT,
            _ => REDIRECT,
        };
        assert_eq!(code, expected, "{moved:?}");
        Ran { verdict: moved.verdict, reason: moved.reason, code, frame, traffic: moved.traffic }
    }
}

/// The config file of a world, and what the maps are to contain.
fn compiled(spec: Spec) -> (Cluster, Desired) {
    let file = super::cluster::config(spec);
    let cluster = config::parse(file.as_bytes()).unwrap_or_else(|faults| panic!("{faults}"));
    let me = cluster.node("h1").unwrap();
    let desired = compile::compile(&cluster, me, &facts(spec));
    for peer in spec.peers() {
        assert_eq!(desired.peer_indices[&peer.at(spec)], peer.index);
    }
    (cluster, desired)
}

/// As the agent does it, whatever they contained.
fn fill(tables: &Tables, desired: &Desired) {
    change(tables, &plan(desired, &sync::observe(tables).unwrap()));
}

/// Sets these.
pub fn setting<K: Copy, V: Copy>(set: &[(K, V)]) -> Changes<K, V> {
    Changes { set: set.to_vec(), ..Changes::default() }
}

/// Removes these.
pub fn removing<K: Copy, V>(remove: &[K]) -> Changes<K, V> {
    Changes { remove: remove.to_vec(), ..Changes::default() }
}

fn change(tables: &Tables, plan: &Plan) {
    wait_for(sync::apply(tables, plan));
}

fn wait_for(change: impl Future<Output = Result<(), BpfError>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(change).unwrap();
}

/// The programs for tests, on the maps of the world.
fn load_over(pins: &Pins) -> Ebpf {
    let mut loader = EbpfLoader::new();
    for name in names::ALL_MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    // A packet that was IPv6 once could not be made IPv4 again.
    loader.override_global("DECAP_L3", &0u32, true);
    let short_move = load::short_move();
    loader.override_global("SHORT_MOVE", &short_move, true);
    let mut object = loader.load(load::TEST_OBJECT).unwrap();
    // Those that measure time are of no use in an emulated machine, and before Linux 6 their own part of
    // the stack is too much.
    let is_emulated = std::env::var_os("MESH_TESTS_PATIENCE").is_some();
    for (name, program) in object.programs_mut() {
        if is_emulated && name.starts_with("perf_") {
            continue;
        }
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
    }
    object
}

/// Runs a program on a packet once: what it returned, and the packet as it left it.
fn test_run(program: &SchedClassifier, skb: Skb, frame: &[u8]) -> (i32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 512];
    let ran = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&skb.bytes()),
            ..TestRunOptions::new()
        })
        .unwrap_or_else(|e| panic!("{e:?}: {} bytes", frame.len()));
    out.truncate(ran.data_size_out as usize);
    (ran.return_value as i32, out)
}

/// In `struct __sk_buff`.
const CB_AT: usize = 48;

/// What a test may say of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skb {
    pub ifindex: u32,
    pub gso_size: u32,
    pub mark: u32,
    /// Where it came in. Not all kernels let a test say it.
    pub ingress_ifindex: u32,
    /// The words that a program may leave beside it.
    pub cb: [u32; 5],
}

impl Skb {
    /// `struct __sk_buff`.
    pub fn bytes(self) -> [u8; 192] {
        let mut skb = [0; 192];
        let Self { ifindex, gso_size, mark, ingress_ifindex, cb } = self;
        let words = [(8, mark), (36, ingress_ifindex), (40, ifindex), (176, gso_size)];
        let cb = cb.into_iter().enumerate().map(|(i, word)| (CB_AT + 4 * i, word));
        for (offset, value) in words.into_iter().chain(cb) {
            skb[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        skb
    }

    /// [`Self::cb`] of a `struct __sk_buff`.
    pub fn cb_of(skb: &[u8; 192]) -> [u32; 5] {
        std::array::from_fn(|i| {
            let at = CB_AT + 4 * i;
            u32::from_ne_bytes([skb[at], skb[at + 1], skb[at + 2], skb[at + 3]])
        })
    }
}

/// The MAC of all gateways of this node, where the underlay is IPv4.
pub fn gateway_mac() -> Mac {
    GRE.gateway_mac()
}

fn facts(spec: Spec) -> Facts {
    let path = |peer: &Peer| {
        let mtu = if *peer == H5 { H5_MTU } else { UNDERLAY_MTU };
        let is_resolved = ![H5, OLD_GRETAP].contains(peer);
        let path = compile::Path {
            ifindex: UNDERLAY,
            mtu,
            learned_mtu: None,
            mac: UNDERLAY_MAC,
            next_hop: peer.at(spec),
            next_hop_mac: is_resolved.then_some(NEXT_HOP_MAC),
        };
        (peer.at(spec), path)
    };
    Facts {
        worlds: spec.gateway.then_some((BLUE.vni, HOST.ifindex)).into_iter().collect(),
        paths: spec.peers().iter().filter(|peer| **peer != H4).map(path).collect(),
        attachments: PORTS
            .iter()
            .map(attachment)
            .chain([TELLS, TOLD].iter().filter(|_| spec.bridge).map(bridged))
            .collect(),
        underlay_mtu: UNDERLAY_MTU,
        bridge: if spec.bridge { BRIDGE } else { 0 },
        foreign_gre: spec.foreign_gre,
        foreign_ports: spec.shared_port.into_iter().collect(),
        netns: 0,
        peer_indices: ByAddress::default(),
    }
}

fn attachment(port: &Port) -> Attachment {
    Attachment {
        vni: Vni::new(port.vni).unwrap(),
        ifindex: port.ifindex,
        id: port.id,
        addresses: port.v4.map(IpAddr::V4).into_iter().chain(port.v6.map(IpAddr::V6)).collect(),
        mac: port.mac,
        kind: if port.id == HOST.id { AttachmentKind::Host } else { AttachmentKind::Container },
    }
}

fn bridged(port: &Port) -> Attachment {
    let whole = Attachment { kind: AttachmentKind::Bridged, ..attachment(port) };
    if port.id == TOLD.id { whole } else { Attachment { addresses: Vec::new(), ..whole } }
}

impl Ran {
    #[track_caller]
    pub fn assert_dropped(&self, reason: DropReason) {
        assert_eq!((self.verdict, self.reason), (Verdict::Drop, Some(reason)), "{self:?}");
    }

    /// Left to the stack as it came, and nothing counted but that.
    #[track_caller]
    pub fn assert_passed(&self, frame: &[u8]) {
        assert_eq!((self.verdict, &self.traffic[..]), (Verdict::Pass, &[][..]), "{self:?}");
        assert_eq!(self.frame, frame);
    }
}

fn empty<V: Pod>(map: &mut aya::maps::HashMap<MapData, [u8; 20], V>) {
    let known: Vec<_> = map.keys().map(Result::unwrap).collect();
    known.iter().for_each(|key| map.remove(key).unwrap());
}
