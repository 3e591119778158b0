//! A host without traffic: namespaces, interfaces, programs, and maps filled as the agent does it.

use std::{
    cell::OnceCell,
    collections::HashMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    process::{Command, Stdio},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use mesh_common::{
    names,
    verdict::{DropReason, Hook, Verdict},
};
use mesh_userspace::{
    bpf::{
        Pins,
        load::{self, Room},
        sync,
        tables::Tables,
    },
    compile::{self, Attachment, AttachmentKind, ByAddress, Desired, Facts},
    config::{self, Cluster, Vni},
    plan::plan,
};

use super::{
    counters::{Counter, Counters},
    packet::{Mac, eth, ethertype, may_be_answered},
};

/// An interface with something behind it.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub ifindex: u32,
    /// Index of its counters.
    pub id: u32,
    pub vni: u32,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub mac: Mac,
}

const fn port(ifindex: u32, id: u32, vni: u32, v4: Option<u8>, v6: Option<(u16, u16)>) -> Port {
    let v4 = match v4 {
        Some(last) => Some(Ipv4Addr::new(10, 42, 0, last)),
        None => None,
    };
    let v6 = match v6 {
        Some((first, last)) => Some(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)),
        None => None,
    };
    Port { ifindex, id, vni, v4, v6, mac: [2, 0, 0, 0, 1, id as u8] }
}

/// The host itself, on mesh0.
pub const HOST: Port = port(20, 0, 0, Some(1), Some((0xfd42, 1)));
pub const A: Port = port(21, 1, 0, Some(2), Some((0xfd42, 2)));
/// Has no IPv6 address.
pub const B: Port = port(22, 2, 0, Some(3), None);
/// In network 7, with the IPv4 address that A has in network 0.
pub const BLUE: Port = port(23, 3, BLUE_VNI, Some(2), Some((0xfd43, 2)));
/// Shares A's place among the `PORT_SLOTS`.
pub const D: Port = port(21 + mesh_common::maps::PORT_SLOTS, 4, 0, Some(5), Some((0xfd42, 5)));
/// In a network that has no IPv4.
pub const SIX: Port = port(24, 5, SIX_VNI, None, Some((0xfd49, 2)));
pub const BLUE_2: Port = port(25, 6, BLUE_VNI, Some(3), Some((0xfd43, 3)));
pub const PORTS: [Port; 7] = [HOST, A, B, BLUE, D, SIX, BLUE_2];

/// Ports of a bridge, in a world that has one; the second one's address is known to the agent.
pub const TELLS: Port = port(26, 7, 0, Some(9), Some((0xfd42, 9)));
pub const TOLD: Port = port(27, 8, 0, Some(10), Some((0xfd42, 10)));
pub const BRIDGE: u32 = 28;

pub const BLUE_VNI: u32 = 7;
pub const SIX_VNI: u32 = 9;

pub const UNDERLAY: u32 = 30;
/// An interface that mesh has nothing to do with.
pub const STRAY: u32 = 31;
pub const UNDERLAY_MAC: Mac = [2, 0, 0, 0, 0, 11];
pub const NEXT_HOP_MAC: Mac = [2, 0, 0, 0, 0, 99];
pub const UNDERLAY_MTU: u32 = 1500;
/// Containers' MTU in every network of `gre`, by the headroom that mesh chooses.
pub const MTU: usize = 1462;

pub const ME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
pub const H2: Peer = Peer { index: 0, underlay: Ipv4Addr::new(192, 0, 2, 12) };
/// Has several subnets of each family.
pub const H3: Peer = Peer { index: 1, underlay: Ipv4Addr::new(192, 0, 2, 13) };
/// Has no route on the underlay.
pub const H4: Peer = Peer { index: 2, underlay: Ipv4Addr::new(192, 0, 2, 14) };
/// Its next hop's MAC is not known, and the way there has a smaller MTU.
pub const H5: Peer = Peer { index: 3, underlay: Ipv4Addr::new(192, 0, 2, 15) };
pub const H5_MTU: u32 = 1300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub index: u32,
    pub underlay: Ipv4Addr,
}

const CONFIG: &str = "
[cluster]
name = 'progrun'
cidr = ['10.42.0.0/16', 'fd42::/48']
encap = 'ENCAP'

[[node]]
name = 'h1'
underlay = '192.0.2.11'
subnet = ['10.42.0.0/18', 'fd42::/64']
subnets.blue = ['10.42.0.0/18', 'fd43::/64']
subnets.six = 'fd49::/64'

[[node]]
name = 'h2'
underlay = '192.0.2.12'
subnet = ['10.42.64.0/18', 'fd42:0:0:1::/64']
subnets.blue = ['10.42.64.0/18', 'fd43:0:0:1::/64']
subnets.six = 'fd49:0:0:1::/64'

[[node]]
name = 'h3'
underlay = '192.0.2.13'
subnet = ['10.42.128.0/24', '10.42.130.0/24', 'fd42:0:0:2::/64', 'fd42:0:0:4::/64' MANY]
subnets.blue = ['10.42.128.0/24', 'fd43:0:0:2::/64']
subnets.six = 'fd49:0:0:2::/64'

[[node]]
name = 'h4'
underlay = '192.0.2.14'
subnet = '10.42.192.0/24'
subnets.blue = ['10.42.192.0/24', 'fd43:0:0:3::/64']
subnets.six = 'fd49:0:0:3::/64'

[[node]]
name = 'h5'
underlay = '192.0.2.15'
subnet = ['10.42.193.0/24', 'fd42:0:0:5::/64']
subnets.blue = ['10.42.193.0/24', 'fd43:0:0:4::/64']
subnets.six = 'fd49:0:0:4::/64'

[[network]]
name = 'blue'
vni = 7
cidr = ['10.42.0.0/16', 'fd43::/48']

[[network]]
name = 'six'
vni = 9
cidr = 'fd49::/48'
";

/// More prefix lengths than the list of them holds, so that the trie is used.
const MANY: &str = ", '10.42.194.0/25', '10.42.195.0/26', '10.42.196.0/27', \
    'fd42:0:0:a::/65', 'fd42:0:0:b::/66', 'fd42:0:0:c::/67', 'fd42:0:0:d::/68'";

/// How worlds differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spec {
    pub gretap: bool,
    /// The host has GRE tunnels of its own.
    pub foreign_gre: bool,
    /// More prefix lengths than `PrefixLens` holds.
    pub many_lengths: bool,
    /// There is a bridge, with [`TELLS`] and [`TOLD`].
    pub bridge: bool,
    /// Room for so many more endpoints, prefixes and peers.
    pub entries: u32,
}

pub const GRE: Spec =
    Spec { gretap: false, foreign_gre: false, many_lengths: false, bridge: false, entries: 0 };
pub const GRETAP: Spec = Spec { gretap: true, ..GRE };

pub struct World {
    pub spec: Spec,
    pub cluster: Cluster,
    pub desired: Desired,
    pins: Pins,
    pub tables: Tables,
    programs: HashMap<Hook, SchedClassifier>,
    for_tests: OnceCell<Ebpf>,
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

/// Runs `test` in a world of its own, on a thread whose namespaces end with it: no pin, mount or
/// interface outlives the test, however it ends.
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
            isolate();
            let mut number = 0..;
            let worlds = specs.map(|spec| World::new(spec, number.next().unwrap_or(0)));
            test(worlds.each_ref());
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Says why, where a test can not run. With MESH_TESTS_NO_SKIP it then fails.
fn able() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("MESH_TESTS_NO_SKIP").is_none(), "loading programs needs root");
        println!("SKIP: loading programs needs root");
    }
    root
}

/// Gives this thread a network and a mount namespace, and in that a bpf file system.
fn isolate() {
    // SAFETY: only this thread gets other namespaces, and it ends with the test.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
    use rustix::mount::{MountFlags, MountPropagationFlags as Propagation, mount, mount_change};
    mount_change("/", Propagation::REC | Propagation::PRIVATE).unwrap();
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).unwrap();
    let mut batch = format!("link add u index {UNDERLAY} type veth peer u1\n");
    batch += &format!("link add s index {STRAY} type veth peer s1\n");
    for port in PORTS.into_iter().chain([TELLS, TOLD]) {
        let i = port.ifindex;
        batch += &format!("link add p{i} index {i} type veth peer q{i}\n");
    }
    let mac = UNDERLAY_MAC.map(|b| format!("{b:02x}")).join(":");
    batch += &format!("link set dev u address {mac}\n");
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

impl World {
    fn new(spec: Spec, number: u32) -> Self {
        let config = CONFIG
            .replace("ENCAP", if spec.gretap { "gretap" } else { "gre" })
            .replace("MANY", if spec.many_lengths { MANY } else { "" });
        let cluster = config::parse(config.as_bytes()).unwrap_or_else(|faults| panic!("{faults}"));
        let me = cluster.node("h1").unwrap();
        let desired = compile::compile(&cluster, me, &facts(spec));
        for peer in [H2, H3, H4, H5] {
            assert_eq!(desired.peer_indices[&peer.underlay.into()], peer.index);
        }

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
        let changes = plan(&desired, &sync::observe(&tables).unwrap());
        sync::apply(&tables, &changes).unwrap();
        load::commit(&pins, staged).unwrap();
        let programs = [
            (Hook::FromContainer, names::FROM_CONTAINER),
            (Hook::FromUnderlay, names::FROM_UNDERLAY),
            (Hook::FromHost, names::FROM_HOST),
        ]
        .map(|(hook, name)| (hook, load::pinned(&pins, name).unwrap()));
        Self {
            spec,
            cluster,
            desired,
            pins,
            tables,
            programs: HashMap::from(programs),
            for_tests: OnceCell::new(),
        }
    }

    /// A program by its name: one of the real ones, or of those for tests.
    pub fn program(&self, name: &str) -> &SchedClassifier {
        match self.programs.iter().find(|(hook, _)| hook.label() == name) {
            Some((_, program)) => program,
            None => {
                let object = self.for_tests.get_or_init(|| load_over(&self.pins));
                object.program(name).unwrap().try_into().unwrap()
            }
        }
    }

    /// Bytes of kernel memory that a map takes.
    pub fn memory(&self, map: &str) -> u64 {
        let map = aya::maps::MapData::from_pin(self.pins.map(map)).unwrap();
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
        self.sends(port, &eth(gateway_mac(), port.mac, ethertype(ip), ip))
    }

    /// A super-packet of segments with this much payload; 0 for an ordinary one.
    #[track_caller]
    pub fn sends_segments(&self, port: Port, frame: &[u8], gso_size: u32) -> Ran {
        let hook = if port.id == HOST.id { Hook::FromHost } else { Hook::FromContainer };
        self.run(hook, port.ifindex, frame, gso_size)
    }

    /// What comes in on the underlay's interface: an IPv4 packet to this host's MAC.
    #[track_caller]
    pub fn receives(&self, ip: &[u8]) -> Ran {
        self.receives_frame(&eth(UNDERLAY_MAC, NEXT_HOP_MAC, 0x0800, ip))
    }

    #[track_caller]
    pub fn receives_frame(&self, frame: &[u8]) -> Ran {
        self.run(Hook::FromUnderlay, UNDERLAY, frame, 0)
    }

    /// Runs one packet through the program of a hook and asserts the sum law.
    #[track_caller]
    pub fn run(&self, hook: Hook, ifindex: u32, frame: &[u8], gso_size: u32) -> Ran {
        let skb = Skb { ifindex, gso_size, ..Skb::default() };
        self.run_as(hook.label(), hook, skb, frame)
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
            (Verdict::Drop, _) => SHOT,
            _ => REDIRECT,
        };
        assert_eq!(code, expected, "{moved:?}");
        Ran { verdict: moved.verdict, reason: moved.reason, code, frame, traffic: moved.traffic }
    }
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
    for (_, program) in object.programs_mut() {
        let program: &mut SchedClassifier = program.try_into().unwrap();
        program.load().unwrap();
    }
    object
}

/// Runs a program on a packet once: what it returned, and the packet as it left it.
fn test_run(program: &SchedClassifier, skb: Skb, frame: &[u8]) -> (i32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 256];
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

/// What a test may say of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skb {
    pub ifindex: u32,
    pub gso_size: u32,
    pub mark: u32,
}

impl Skb {
    /// `struct __sk_buff`.
    pub fn bytes(self) -> [u8; 192] {
        let mut skb = [0; 192];
        for (offset, value) in [(8, self.mark), (40, self.ifindex), (176, self.gso_size)] {
            skb[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        skb
    }
}

/// The MAC of all gateways of this node.
pub fn gateway_mac() -> Mac {
    compile::node_mac(ME.into())
}

fn facts(spec: Spec) -> Facts {
    let path = |peer: Peer, mtu, next_hop_mac| {
        let path = compile::Path {
            ifindex: UNDERLAY,
            mtu,
            mac: UNDERLAY_MAC,
            next_hop: peer.underlay.into(),
            next_hop_mac,
        };
        (peer.underlay.into(), path)
    };
    Facts {
        paths: ByAddress::from_iter([
            path(H2, UNDERLAY_MTU, Some(NEXT_HOP_MAC)),
            path(H3, UNDERLAY_MTU, Some(NEXT_HOP_MAC)),
            path(H5, H5_MTU, None),
        ]),
        attachments: PORTS
            .iter()
            .map(attachment)
            .chain([TELLS, TOLD].iter().filter(|_| spec.bridge).map(bridged))
            .collect(),
        underlay_mtu: UNDERLAY_MTU,
        bridge: if spec.bridge { BRIDGE } else { 0 },
        foreign_gre: spec.foreign_gre,
        foreign_ports: Vec::new(),
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
