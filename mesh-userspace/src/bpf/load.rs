//! Loads the programs over the pinned maps, and replaces both without a gap.

use std::{
    collections::{HashMap, HashSet},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    panic::resume_unwind,
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    maps::ProgramArray,
    programs::{Program, ProgramError, ProgramInfo, SchedClassifier},
};
use mesh_common::{
    maps::{EndpointKey, FibKey, FloodKey, PeerKey, TAIL_FLOOD_RECEIVE, TAIL_FLOOD_SEND},
    names,
    slots::slots,
};
use serde::{Deserialize, Serialize};

use super::{
    BpfError, Pins, attach,
    probe::{BPF_F_ADJ_ROOM_ENCAP_L2_ETH, KernelFeatures},
    raw,
};

/// The compiled programs.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh"));

/// Programs that only the tests load. The linker leaves them out of `mesh`.
#[doc(hidden)]
pub static TEST_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-test"));

/// Every program that is attached.
pub const PROGRAMS: [&str; 3] = [names::FROM_ENDPOINT, names::FROM_UNDERLAY, names::FROM_FORWARD];

/// Those in which they go on, and where these are in the array of such.
pub const TAILS: [(&str, u32); 2] =
    [(names::FLOOD_SEND, TAIL_FLOOD_SEND), (names::FLOOD_RECEIVE, TAIL_FLOOD_RECEIVE)];

/// Room that a cluster needs; the maps get at least twice as much, so that growth is rare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// A host has at most 4095, which always fit.
    pub endpoints: u32,
    pub peers: u32,
    pub prefixes: u32,
    pub peer_networks: u32,
    pub networks: u32,
    /// Nodes in networks that carry broadcast.
    pub flood: u32,
}

impl Room {
    /// Room for both at once.
    pub fn beside(&self, other: &Self) -> Self {
        Self {
            endpoints: self.endpoints.saturating_add(other.endpoints),
            peers: self.peers.saturating_add(other.peers),
            prefixes: self.prefixes.saturating_add(other.prefixes),
            peer_networks: self.peer_networks.saturating_add(other.peer_networks),
            networks: self.networks.saturating_add(other.networks),
            flood: self.flood.saturating_add(other.flood),
        }
    }

    /// Entries of each map that grows with the cluster.
    fn entries(&self) -> [(&'static str, u32); 8] {
        [
            (names::ENDPOINTS, self.endpoints),
            (names::PEERS, self.peers),
            (names::PEER_STATS, self.peers),
            (names::FIB, self.prefixes),
            (names::FIB_LPM, self.prefixes),
            (names::PEER_BY_ADDR, self.peer_networks),
            (names::NETWORKS, self.networks),
            (names::FLOOD, self.flood),
        ]
    }
}

/// What became of the maps that were pinned before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// They are still in use, and hold what they held.
    Kept,
    /// There are new, empty ones below [`Pins::next_maps`]; [`commit`] puts them in place once they
    /// are filled.
    Fresh,
}

/// The programs, loaded but not yet in place of those that are pinned.
pub struct Staged {
    object: Ebpf,
    pub maps: Loaded,
}

/// Loads the programs over the pinned maps, or over new ones if there are none or they are too
/// small or of another layout.
pub fn stage(pins: &Pins, room: &Room) -> Result<Staged, BpfError> {
    let maps = if fits(pins, room) { Loaded::Kept } else { Loaded::Fresh };
    let dir = match maps {
        Loaded::Kept => pins.maps(),
        Loaded::Fresh => {
            let next = pins.next_maps();
            clear(&next)?;
            fs::create_dir_all(&next).map_err(|e| pin_error("making the folder", &next, e))?;
            next
        }
    };
    let mut loader = EbpfLoader::new();
    // Of a program that is refused only the reason: with each instruction a log may be longer than the
    // kernel has room for, which then says that instead.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let floods = room.flood > 0 || (maps == Loaded::Kept && can_flood(pins));
    for (name, needed) in room.entries() {
        let entries = needed.saturating_mul(2).checked_next_power_of_two().unwrap_or(needed);
        let is_used = name != names::FLOOD || floods;
        let entries = if is_used { entries.max(least(name)) } else { UNUSED };
        loader.map_max_entries(name, entries);
        if let Some((name, slots)) = slots_of(name, entries) {
            loader.map_max_entries(name, if is_used { slots } else { UNUSED });
        }
    }
    for name in names::ALL_MAPS {
        loader.map_pin_path(name, dir.join(name));
    }
    let features = KernelFeatures::probe();
    let decap_l3 = u32::from(features.decap_l3.is_present());
    let room_flags = match features.encap_ethernet.is_present() {
        true => u64::MAX,
        false => !BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    };
    loader.override_global("DECAP_L3", &decap_l3, true);
    loader.override_global("ROOM_FLAGS", &room_flags, true);
    let short_move = short_move();
    loader.override_global("SHORT_MOVE", &short_move, true);
    let has_tail_calls = features.tail_calls.is_present();
    let tail_calls = u32::from(has_tail_calls);
    loader.override_global("TAIL_CALLS", &tail_calls, true);
    let mut object = loader.load(OBJECT).map_err(|e| BpfError::Load(e.into()))?;
    let has_tails = floods && has_tail_calls;
    let tails = TAILS.iter().map(|(name, _)| *name).filter(|_| has_tails);
    verify(&mut object, &PROGRAMS.into_iter().chain(tails).collect::<Vec<_>>())?;
    if has_tails {
        // Of kept maps this has the old programs go on in the new: either pair can.
        set_tails(&mut object)?;
    }
    Ok(Staged { object, maps })
}

/// Has the kernel take these programs, side by side: its verifier needs some tenths of a second for
/// each, on one CPU.
fn verify(object: &mut Ebpf, names: &[&'static str]) -> Result<(), BpfError> {
    let programs = object.programs_mut().filter(|(name, _)| names.contains(name));
    let loaded: Vec<Result<(), ProgramError>> = thread::scope(|scope| {
        let load = |program: &mut Program| <&mut SchedClassifier>::try_from(program)?.load();
        let threads: Vec<_> = programs.map(|(_, p)| scope.spawn(move || load(p))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| resume_unwind(e))).collect()
    });
    let missing = || io::Error::new(io::ErrorKind::NotFound, "a program is not in the object");
    if loaded.len() != names.len() {
        return Err(BpfError::Load(missing().into()));
    }
    loaded.into_iter().try_for_each(|result| result.map_err(|e| BpfError::Load(e.into())))
}

/// Puts staged programs, and the maps if they are new, in place of the old: every pinned link goes
/// over in one step, so that each packet meets either the old pair or the new.
pub fn commit(pins: &Pins, mut staged: Staged) -> Result<(), BpfError> {
    for name in PROGRAMS {
        let program = classifier(&mut staged.object, name)?;
        let pin = pins.program(name);
        if staged.maps == Loaded::Kept && is_in_place(pins, name, program) {
            continue;
        }
        attach::replace(pins, name, program)?;
        // Pinned beside the old one first: there is never none.
        let next = pins.program(&format!("{name}-next"));
        remove_pin(&next)?;
        program.pin(&next).map_err(|e| BpfError::Load(e.into()))?;
        fs::rename(&next, &pin).map_err(|e| pin_error("replacing the pin", &pin, e))?;
    }
    if staged.maps == Loaded::Fresh {
        let (old, next) = (pins.maps(), pins.next_maps());
        clear(&old)?;
        fs::remove_dir(&old).map_err(|e| pin_error("removing", &old, e))?;
        fs::rename(&next, &old).map_err(|e| pin_error("renaming", &next, e))?;
    }
    Ok(())
}

fn set_tails(object: &mut Ebpf) -> Result<(), BpfError> {
    for (name, index) in TAILS {
        let fd = classifier(object, name)?.fd().map_err(|e| BpfError::Load(e.into()))?;
        let fd = fd.try_clone().map_err(|e| BpfError::Load(e.into()))?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no map for tail calls");
        let map = object.map_mut(names::TAILS).ok_or_else(|| BpfError::Load(missing().into()))?;
        ProgramArray::try_from(map)
            .and_then(|mut array| array.set(index, &fd, 0))
            .map_err(|e| BpfError::Load(e.into()))?;
    }
    Ok(())
}

/// What is pinned and from which object it was loaded. The kernel takes up to a second to verify the
/// programs; those that are known to be the same are not loaded to find that out. The numbers are the
/// kernel's and are good until it boots, when the pins are gone as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    object: u64,
    programs: Vec<u32>,
    maps: Vec<u32>,
}

impl Identity {
    /// Of what is pinned now, loaded by this process or by one of the same build.
    pub fn of(pins: &Pins) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        OBJECT.hash(&mut hasher);
        let program = |name: &&str| Some(ProgramInfo::from_pin(pins.program(name)).ok()?.id());
        let map = |name: &&str| Some(pinned_map(pins, name).ok()?.id);
        Some(Self {
            object: hasher.finish(),
            programs: PROGRAMS.iter().map(program).collect::<Option<_>>()?,
            maps: names::ALL_MAPS.iter().map(map).collect::<Option<_>>()?,
        })
    }

    /// Where this is pinned: are the programs on all links, and have the maps room enough?
    pub fn is_in_use(&self, pins: &Pins, room: &Room) -> bool {
        fits(pins, room)
            && PROGRAMS
                .iter()
                .zip(&self.programs)
                .all(|(name, id)| attach::all_run(pins, name, *id))
    }
}

/// A pinned program, to attach to one more interface.
pub fn pinned(pins: &Pins, name: &'static str) -> Result<SchedClassifier, BpfError> {
    SchedClassifier::from_pin(pins.program(name)).map_err(|e| BpfError::Load(e.into()))
}

fn classifier<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, BpfError> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no program {name}"));
    object
        .program_mut(name)
        .ok_or_else(|| BpfError::Load(missing().into()))?
        .try_into()
        .map_err(|e: ProgramError| BpfError::Load(e.into()))
}

/// Is the pinned program the same, by the kernel's own digest of the instructions, with the pinned
/// maps, and on all links? A commit that was interrupted leaves some of each.
fn is_in_place(pins: &Pins, name: &str, program: &SchedClassifier) -> bool {
    let (Ok(new), Ok(old)) = (program.info(), ProgramInfo::from_pin(pins.program(name))) else {
        return false;
    };
    let maps: HashSet<u32> = names::ALL_MAPS
        .iter()
        .filter_map(|name| pinned_map(pins, name).ok())
        .map(|info| info.id)
        .collect();
    let pinned_maps = |program: &ProgramInfo| -> HashSet<u32> {
        let all = program.map_ids().ok().flatten().unwrap_or_default();
        all.into_iter().filter(|id| maps.contains(id)).collect()
    };
    new.tag() == old.tag()
        && pinned_maps(&new) == pinned_maps(&old)
        && attach::all_run(pins, name, old.id())
}

/// Do the pinned maps have the right sizes, and room enough?
pub fn fits(pins: &Pins, room: &Room) -> bool {
    let needed: HashMap<_, _> = room.entries().into_iter().collect();
    names::ALL_MAPS.iter().all(|name| {
        pinned_map(pins, name)
            .is_ok_and(|info| info.max_entries >= needed.get(name).copied().unwrap_or(0))
    })
}

/// Entries of a map that nobody has a use for.
const UNUSED: u32 = 1;

/// Were the pinned maps made for a network that carries broadcast? Only then are there the programs
/// that make its copies, which are half of the verifier's work: the first such network does not fit.
fn can_flood(pins: &Pins) -> bool {
    pinned_map(pins, names::FLOOD).is_ok_and(|info| info.max_entries > UNUSED)
}

fn pinned_map(pins: &Pins, name: &str) -> io::Result<raw::MapInfo> {
    raw::map_info(&raw::open_pin(&pins.map(name))?)
}

/// Those that are in the object.
fn least(name: &str) -> u32 {
    match name {
        names::PEERS | names::PEER_STATS | names::NETWORKS => 1024,
        _ => 8192,
    }
}

/// The array of a map that has the numbers of slots, and how many slots it needs.
fn slots_of(name: &str, entries: u32) -> Option<(&'static str, u32)> {
    Some(match name {
        names::ENDPOINTS => (names::ENDPOINT_SLOTS, slots::<EndpointKey>(entries)),
        names::FIB => (names::FIB_SLOTS, slots::<FibKey>(entries)),
        names::PEER_BY_ADDR => (names::PEER_SLOTS, slots::<PeerKey>(entries)),
        names::NETWORKS => (names::NETWORK_SLOTS, slots::<u32>(entries)),
        names::FLOOD => (names::FLOOD_SLOTS, slots::<FloodKey>(entries)),
        _ => return None,
    })
}

/// Bytes of a short way up in memory, on which `rep movsb` is slow on this CPU, or 0.
///
/// Intel's CPUs with fast short `rep movsb` take 4 ns for each byte there (measured: 14 bytes in
/// 58 ns, against 8 to 14 for a longer way or down; the C library avoids it too,
/// Avoid_Short_Distance_REP_MOVSB), and the kernel has nothing else on these (memmove_64.S, FSRM).
#[doc(hidden)]
pub fn short_move() -> u32 {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |key: &str, word: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key));
        line.is_some_and(|l| l.split_whitespace().any(|w| w == word))
    };
    if has("vendor_id", "GenuineIntel") && has("flags", "fsrm") { 64 } else { 0 }
}

/// Unpins everything in a folder.
fn clear(dir: &Path) -> Result<(), BpfError> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    entries.flatten().try_for_each(|e| remove_pin(&e.path()))
}

fn remove_pin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("removing the pin", path, e))
        }
        _ => Ok(()),
    }
}

fn pin_error(what: &'static str, path: &Path, source: io::Error) -> BpfError {
    BpfError::Pin { what, path: path.to_owned(), source }
}
