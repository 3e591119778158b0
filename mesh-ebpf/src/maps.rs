//! All maps, each behind a function that says what a miss means.
//!
//! Sizes here are the least; the loader raises them to what the cluster needs.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
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
    slots::{SLOTS, Slot, SlotKey},
    verdict::{DROP_COLUMNS, DropReason, HOOKS, Hook, VERDICT_COLUMNS},
};

#[map]
static PORTS: HashMap<u32, PortInfo> = HashMap::with_max_entries(4096, 0);
#[map]
static PORT_SLOTS: Array<Slot<u32, PortInfo>> = Array::with_max_entries(SLOTS, 0);
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointInfo> = HashMap::with_max_entries(8192, 0);
#[map]
static ENDPOINT_SLOTS: Array<Slot<EndpointKey, EndpointInfo>> = Array::with_max_entries(SLOTS, 0);
#[map]
pub static LEARNED: HashMap<LearnedKey, LearnedInfo> = HashMap::with_max_entries(8192, 0);
#[map]
static FIB: HashMap<FibKey, FibInfo> = HashMap::with_max_entries(8192, 0);
#[map]
static FIB_SLOTS: Array<Slot<FibKey, FibInfo>> = Array::with_max_entries(SLOTS, 0);
#[map]
static FIB_LPM: LpmTrie<LpmKey, FibInfo> = LpmTrie::with_max_entries(8192, 0);
#[map]
static PEERS: Array<Halves<PeerInfo>> = Array::with_max_entries(1024, 0);
#[map]
static PEER_BY_ADDR: HashMap<PeerKey, PeerSource> = HashMap::with_max_entries(8192, 0);
#[map]
static PEER_SLOTS: Array<Slot<PeerKey, PeerSource>> = Array::with_max_entries(SLOTS, 0);
#[map]
static NETWORKS: HashMap<u32, NetworkInfo> = HashMap::with_max_entries(1024, 0);
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
static FLOOD: HashMap<FloodKey, FloodInfo> = HashMap::with_max_entries(8192, 0);
/// Bounded for each member too: see [`GroupKey::most`].
#[map]
static GROUPS: HashMap<GroupKey, GroupInfo> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
pub static TAILS: ProgramArray = ProgramArray::with_max_entries(TAIL_COUNT, 0);

#[map]
pub static ENDPOINT_STATS: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(4096, 0);
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

/// The same, off the fast path: what comes from one of two maps the verifier follows twice.
#[inline(always)]
pub fn port_by_hash(ifindex: u32) -> Result<&'static PortInfo, DropReason> {
    // SAFETY: values are only replaced whole, by user space.
    unsafe { PORTS.get(ifindex) }.ok_or(DropReason::UnknownPort)
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

/// Was this learned on that port?
#[inline(always)]
pub fn is_learned(key: &LearnedKey, endpoint: &EndpointKey) -> bool {
    // SAFETY: values are not replaced, only removed and set.
    unsafe { LEARNED.get(key) }.is_some_and(|told| told.endpoint == *endpoint)
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

/// The same, off the fast path: what comes from one of two maps the verifier follows twice.
#[inline(always)]
pub fn peer_source_by_hash(key: &PeerKey) -> Option<&'static PeerSource> {
    // SAFETY: values are only replaced whole, by user space.
    unsafe { PEER_BY_ADDR.get(key) }
}

#[inline(always)]
pub fn network(vni: u32) -> Option<&'static NetworkInfo> {
    // SAFETY: values are only replaced whole, by user space.
    unsafe { NETWORKS.get(vni) }
}

#[inline(always)]
pub fn node() -> Option<&'static NodeInfo> {
    NODE.get(0).map(Halves::good)
}

/// What is known of an address behind a peer that is a switch.
#[inline(always)]
pub fn neighbour(key: &NeighbourKey) -> Option<&'static NeighbourInfo> {
    // SAFETY: values are only replaced whole.
    unsafe { NEIGHBOURS.get(key) }
}

#[inline(always)]
pub fn learn(key: &NeighbourKey, info: &NeighbourInfo) {
    // Full it never is; what else fails is learned from the next packet.
    let _ = NEIGHBOURS.insert(key, info, 0);
}

/// Was an address asked for in this second?
#[inline(always)]
pub fn is_asked(key: &NeighbourKey, now: u32) -> bool {
    // SAFETY: a value is one word.
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
    // SAFETY: values are only replaced whole, by user space.
    unsafe { FLOOD.get(key) }
}

/// Of a member or of many; see [`GroupKey`].
#[inline(always)]
pub fn group(key: &GroupKey) -> Option<&'static GroupInfo> {
    // SAFETY: its words are written one by one, and each is good alone.
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

/// In the key's slot, or else in the map.
#[inline(always)]
fn find<K: SlotKey, V>(
    slots: &'static Array<Slot<K, V>>,
    map: &'static HashMap<K, V>,
    key: &K,
) -> Option<&'static V> {
    if let Some(slot) = slots.get(key.slot())
        && slot.used != 0
        && slot.key == *key
    {
        return Some(&slot.info);
    }
    // SAFETY: values are only replaced whole, by user space.
    unsafe { map.get(key) }
}
