//! All maps, each behind a function that says what a miss means.
//!
//! Sizes here are the least; the loader raises them to what the cluster needs.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, lpm_trie::Key},
};
use mesh_common::{
    halves::Halves,
    maps::{
        Addr, EndpointInfo, EndpointKey, FibInfo, FibKey, FloodInfo, FloodKey, GroupInfo, GroupKey,
        LearnedInfo, LearnedKey, LpmKey, NeighbourInfo, NeighbourKey, NetworkInfo, NodeInfo,
        PeerInfo, PeerKey, PeerSource, PortInfo, TAILS as TAIL_COUNT, Traffic,
    },
    slots::{PORTS_MAX, Slot, SlotKey, learned_slot, slots},
    verdict::{DROP_COLUMNS, DropReason, HOOKS, Hook, VERDICT_COLUMNS},
};

#[map]
static PORTS: HashMap<u32, u32> = HashMap::with_max_entries(PORTS_MAX, 0);
#[map]
static PORT_SLOTS: Array<Slot<u32, PortInfo>> = Array::with_max_entries(slots::<u32>(PORTS_MAX), 0);
#[map]
static ENDPOINTS: HashMap<EndpointKey, u32> = HashMap::with_max_entries(8192, 0);
#[map]
static ENDPOINT_SLOTS: Array<Slot<EndpointKey, EndpointInfo>> =
    Array::with_max_entries(slots::<EndpointKey>(8192), 0);
#[map]
pub static LEARNED: HashMap<LearnedKey, LearnedInfo> = HashMap::with_max_entries(8192, 0);
#[map]
static FIB: HashMap<FibKey, u32> = HashMap::with_max_entries(8192, 0);
#[map]
static FIB_SLOTS: Array<Slot<FibKey, FibInfo>> = Array::with_max_entries(slots::<FibKey>(8192), 0);
#[map]
static FIB_LPM: LpmTrie<LpmKey, FibInfo> = LpmTrie::with_max_entries(8192, 0);
#[map]
static PEERS: Array<Halves<PeerInfo>> = Array::with_max_entries(1024, 0);
#[map]
static PEER_BY_ADDR: HashMap<PeerKey, u32> = HashMap::with_max_entries(8192, 0);
#[map]
static PEER_SLOTS: Array<Slot<PeerKey, PeerSource>> =
    Array::with_max_entries(slots::<PeerKey>(8192), 0);
#[map]
static NETWORKS: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);
#[map]
static NETWORK_SLOTS: Array<Slot<u32, NetworkInfo>> =
    Array::with_max_entries(slots::<u32>(1024), 0);
#[map]
static NODE: Array<Halves<NodeInfo>> = Array::with_max_entries(1, 0);
/// Bounded: who floods it with addresses makes the oldest forgotten, no more.
#[map]
static NEIGHBOURS: LruHashMap<NeighbourKey, NeighbourInfo> = LruHashMap::with_max_entries(8192, 0);
/// When an address behind such a peer was asked for in vain. Apart from those that are known, so that
/// who asks for many makes none of them forgotten.
#[map]
static ASKED: LruHashMap<NeighbourKey, u32> = LruHashMap::with_max_entries(8192, 0);
#[map]
static FLOOD: HashMap<FloodKey, u32> = HashMap::with_max_entries(8192, 0);
#[map]
static FLOOD_SLOTS: Array<Slot<FloodKey, FloodInfo>> =
    Array::with_max_entries(slots::<FloodKey>(8192), 0);
/// Bounded for each member too: see [`GroupKey::most`].
#[map]
static GROUPS: HashMap<GroupKey, GroupInfo> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
pub static TAILS: ProgramArray = ProgramArray::with_max_entries(TAIL_COUNT, 0);

#[map]
pub static ENDPOINT_STATS: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(PORTS_MAX, 0);
#[map]
pub static PEER_STATS: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(1024, 0);
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS * VERDICT_COLUMNS, 0);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS * DROP_COLUMNS, 0);

/// The port behind an interface.
#[inline(always)]
pub fn port(ifindex: u32) -> Result<&'static PortInfo, DropReason> {
    find(&PORT_SLOTS, &PORTS, &ifindex).ok_or(DropReason::UnknownPort)
}

/// The same, off the fast path: what comes from one of two lookups the verifier follows twice.
#[inline(always)]
pub fn port_by_number(ifindex: u32) -> Result<&'static PortInfo, DropReason> {
    find_by_number(&PORT_SLOTS, &PORTS, &ifindex).ok_or(DropReason::UnknownPort)
}

/// Where what this port sends is looked at.
#[inline(always)]
pub fn hook(port: &PortInfo) -> Hook {
    if port.flags & PortInfo::HOST != 0 { Hook::FromHost } else { Hook::FromContainer }
}

#[inline(always)]
pub fn endpoint(vni: u32, addr: Addr) -> Result<&'static EndpointInfo, DropReason> {
    find(&ENDPOINT_SLOTS, &ENDPOINTS, &EndpointKey { vni, addr }).ok_or(DropReason::NoEndpoint)
}

/// What was learned on a port.
#[inline(always)]
pub fn learned(key: &LearnedKey) -> Option<&'static LearnedInfo> {
    // SAFETY: another port may take it meanwhile: then this port's is forgotten, and what is made of
    // it is found by nobody.
    unsafe { LEARNED.get(key) }
}

/// Gives an address to the port that is in `info`, if nobody has it.
#[inline(always)]
pub fn learn_endpoint(key: EndpointKey, is_v4: bool, info: EndpointInfo) -> bool {
    let number = learned_slot(info.id, is_v4);
    let Some(slot) = ENDPOINT_SLOTS.get_ptr_mut(number) else { return false };
    // SAFETY: within the map. It is this port's alone, and all who write it write what was learned
    // first.
    unsafe {
        (*slot).key = key;
        (*slot).info = info;
    }
    ENDPOINTS.insert(key, number, BPF_NOEXIST.into()).is_ok()
}

#[inline(always)]
pub fn fib(key: &FibKey) -> Option<FibInfo> {
    find(&FIB_SLOTS, &FIB, key).map(read)
}

/// The longest matching prefix, for networks with many prefix lengths.
#[inline(always)]
pub fn fib_lpm(vni: u32, addr: Addr) -> Option<FibInfo> {
    FIB_LPM.get(Key::new(160, LpmKey { vni_be: vni.to_be(), addr })).map(read)
}

/// Here and not later, from wherever it is: the verifier follows a way for each map that a pointer may
/// be into, for as long as the pointer is of use.
#[inline(always)]
fn read(info: &FibInfo) -> FibInfo {
    let word = |at: &u32| {
        // SAFETY: a reference. Volatile, so that it is not put off.
        unsafe { core::ptr::from_ref(at).read_volatile() }
    };
    let (kind, peer, vni) = (word(&info.kind), word(&info.peer), word(&info.vni));
    FibInfo { kind, peer, vni, backup: info.backup }
}

#[inline(always)]
pub fn peer(index: u32) -> Result<&'static PeerInfo, DropReason> {
    match PEERS.get(index).map(Halves::good) {
        Some(peer) if peer.ifindex != 0 => Ok(peer),
        _ => Err(DropReason::PeerIncomplete),
    }
}

#[inline(always)]
pub fn peer_source(key: &PeerKey) -> Option<&'static PeerSource> {
    find(&PEER_SLOTS, &PEER_BY_ADDR, key)
}

/// The same, off the fast path: what comes from one of two lookups the verifier follows twice.
#[inline(always)]
pub fn peer_source_by_number(key: &PeerKey) -> Option<&'static PeerSource> {
    find_by_number(&PEER_SLOTS, &PEER_BY_ADDR, key)
}

/// Is there one?
#[inline(always)]
pub fn is_peer_source(key: &PeerKey) -> bool {
    number(&PEER_BY_ADDR, key).is_some()
}

#[inline(always)]
pub fn network(vni: u32) -> Option<&'static NetworkInfo> {
    find(&NETWORK_SLOTS, &NETWORKS, &vni)
}

#[inline(always)]
pub fn node() -> Option<&'static NodeInfo> {
    NODE.get(0).map(Halves::good)
}

/// What is known of an address behind a peer that is a switch. The kernel may give the element to another
/// address at any time: the MAC is never that one's, but once the other words may be.
pub struct Neighbour {
    at: *mut NeighbourInfo,
    pub mac: [u16; 3],
}

#[inline(always)]
pub fn neighbour(key: &NeighbourKey) -> Option<Neighbour> {
    // Once more if it was another's.
    read_neighbour(key)?.or_else(|| read_neighbour(key)?)
}

/// `Some(None)` if it is another's.
#[inline(always)]
fn read_neighbour(key: &NeighbourKey) -> Option<Option<Neighbour>> {
    let at = NEIGHBOURS.get_ptr_mut(key)?;
    // SAFETY: of a map. The MAC says whose it is.
    Some(unsafe { &*at }.mac(key).map(|mac| Neighbour { at, mac }))
}

impl Neighbour {
    #[inline(always)]
    fn info(&self) -> &NeighbourInfo {
        // SAFETY: of a map, and any words are good.
        unsafe { &*self.at }
    }

    #[inline(always)]
    pub fn peer(&self) -> u32 {
        self.info().peer
    }

    #[inline(always)]
    pub fn heard(&self) -> u32 {
        self.info().heard
    }

    #[inline(always)]
    pub fn asked(&self) -> u32 {
        self.info().asked
    }

    #[inline(always)]
    pub fn set_heard(&self, now: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.at).heard).write_volatile(now) }
    }

    #[inline(always)]
    pub fn set_asked(&self, now: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.at).asked).write_volatile(now) }
    }
}

#[inline(always)]
pub fn learn(key: &NeighbourKey, info: &NeighbourInfo) {
    // Full it never is; what else fails is learned from the next packet.
    let _ = NEIGHBOURS.insert(key, info, 0);
}

/// Was an address asked for in this second?
#[inline(always)]
pub fn is_asked(key: &NeighbourKey, now: u32) -> bool {
    // SAFETY: a value is one word. If another address takes the element meanwhile, it is that one's:
    // this one is asked for once more, or a second later.
    unsafe { ASKED.get(key) }.is_some_and(|asked| *asked == now)
}

#[inline(always)]
pub fn set_asked(key: &NeighbourKey, now: u32) {
    // As in `learn`: what fails only has it asked for once more.
    let _ = ASKED.insert(key, now, 0);
}

/// Who gets copies, by its index in the list of the network.
#[inline(always)]
pub fn flood(key: &FloodKey) -> Option<&'static FloodInfo> {
    // Once is enough: of a list that changes, some may be missing.
    let slot = FLOOD_SLOTS.get(number(&FLOOD, key)?)?;
    (slot.key == *key).then_some(&slot.info)
}

/// Of a member or of many; see [`GroupKey`].
#[inline(always)]
pub fn group(key: &GroupKey) -> Option<&'static GroupInfo> {
    // SAFETY: its words are written one by one, and each is good alone. If another key takes the element
    // meanwhile, one packet goes where it was not asked for, within its network, or not where it was.
    unsafe { GROUPS.get(key) }
}

/// To change its words one by one.
#[inline(always)]
pub fn group_mut(key: &GroupKey) -> Option<*mut GroupInfo> {
    GROUPS.get_ptr_mut(key)
}

/// Is it there now?
#[inline(always)]
pub fn set_group(key: &GroupKey, info: &GroupInfo, flags: u32) -> bool {
    GROUPS.insert(key, info, flags.into()).is_ok()
}

/// Was it there?
#[inline(always)]
pub fn forget_group(key: &GroupKey) -> bool {
    GROUPS.remove(key).is_ok()
}

/// In the key's own slot, or else in the one whose number the map has.
#[inline(always)]
fn find<K: SlotKey, V>(
    slots: &'static Array<Slot<K, V>>,
    numbers: &'static HashMap<K, u32>,
    key: &K,
) -> Option<&'static V> {
    if let Some(slot) = slots.get(key.slot())
        && slot.used != 0
        && slot.key == *key
    {
        return Some(&slot.info);
    }
    find_by_number(slots, numbers, key)
}

/// The same, without a look at the key's own slot: half the ways for the verifier.
#[inline(always)]
fn find_by_number<K: SlotKey, V>(
    slots: &'static Array<Slot<K, V>>,
    numbers: &'static HashMap<K, u32>,
    key: &K,
) -> Option<&'static V> {
    let number = number(numbers, key)?;
    match slots.get(number) {
        Some(slot) if slot.key == *key => Some(&slot.info),
        // An element that another key takes meanwhile has that one's number: then once more.
        _ => Some(&slots.get(self::number(numbers, key)?).filter(|slot| slot.key == *key)?.info),
    }
}

#[inline(always)]
fn number<K>(numbers: &'static HashMap<K, u32>, key: &K) -> Option<u32> {
    // SAFETY: one word, and whatever it says is checked against the slot.
    unsafe { numbers.get(key) }.copied()
}
