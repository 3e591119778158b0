//! What this kernel's BPF can do, found by asking it. Nothing is attached and nothing stays.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use mesh_common::{tunnel, wire::ETH_LEN};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::raw;

/// Whether the kernel can do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    Present,
    Absent,
    /// The kernel would not tell; an error number as in errno(3).
    Unseen(i32),
}

impl Feature {
    pub fn is_present(self) -> bool {
        self == Self::Present
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Programs for tc can be loaded at all, by this process.
    pub load: Feature,
    /// Attaching by tcx links (Linux 6.6).
    pub tcx: Feature,
    /// Handing a packet straight into a container's namespace (Linux 5.10).
    pub redirect_peer: Feature,
    /// Sending a packet while the next hop's MAC is not known (Linux 5.10).
    pub redirect_neigh: Feature,
    /// Making room for the outer headers (Linux 5.2 with what mesh asks of it).
    pub adjust_room: Feature,
    /// Taking off outer headers of another IP version than the inner one (Linux 6.3).
    pub decap_l3: Feature,
    /// Telling the kernel of an inner Ethernet header (Linux 5.13).
    pub encap_ethernet: Feature,
    /// Going on in another program, from one that has functions: for broadcast and multicast (Linux 5.10
    /// on x86, 6.0 on arm64, and only where programs are compiled).
    pub tail_calls: Feature,
}

impl KernelFeatures {
    /// Needs CAP_BPF and CAP_NET_ADMIN; without them everything is [`Feature::Unseen`].
    pub fn probe() -> Self {
        raise_memlock();
        let load = match load(&[MOV_R0_0, EXIT]) {
            Ok(_) => Feature::Present,
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Feature::Absent,
            Err(e) => Feature::Unseen(errno(&e)),
        };
        let helper = |id, args| match load {
            Feature::Present => calls(id, args),
            without => without,
        };
        Self {
            load,
            tcx: tcx(),
            redirect_peer: helper(BPF_FUNC_REDIRECT_PEER, &[mov(R1, 1), mov(R2, 0)]),
            redirect_neigh: helper(
                BPF_FUNC_REDIRECT_NEIGH,
                &[mov(R1, 1), mov(R2, 0), mov(R3, 0), mov(R4, 0)],
            ),
            // R1 is the packet already.
            adjust_room: helper(BPF_FUNC_SKB_ADJUST_ROOM, &[mov(R2, 0), mov(R3, 0), mov(R4, 0)]),
            decap_l3: room_flags(-OVERHEAD, DECAP_L3_IPV4),
            encap_ethernet: room_flags(OVERHEAD, ENCAP_ETHERNET),
            tail_calls: tail_calls(),
        }
    }
}

/// Before Linux 5.11 all BPF memory of a user counts against one limit, of 64 KiB where nobody set
/// another: what was loaded before may leave no room for a question. The agent needs more anyway, and
/// once it runs it has no power to raise the limit.
fn raise_memlock() {
    let old = getrlimit(Resource::Memlock);
    let unlimited = Rlimit { current: None, maximum: None };
    let as_allowed = Rlimit { current: old.maximum, maximum: old.maximum };
    if old.current.is_some() && setrlimit(Resource::Memlock, unlimited).is_err() {
        // Without CAP_SYS_RESOURCE. What is not enough is told when something is loaded.
        _ = setrlimit(Resource::Memlock, as_allowed);
    }
}

/// Of GRE with Ethernet inside.
const OVERHEAD: i32 = tunnel::GRETAP.overhead(0, false) as i32;
/// BPF_F_ADJ_ROOM_DECAP_L3_IPV4.
const DECAP_L3_IPV4: u64 = 1 << 7;
/// BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, _ENCAP_L4_GRE, _ENCAP_L2_ETH and the length of that.
const ENCAP_ETHERNET: u64 = 1 << 1 | 1 << 3 | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | (ETH_LEN as u64) << 56;
/// What old kernels do not know of it.
pub const BPF_F_ADJ_ROOM_ENCAP_L2_ETH: u64 = 1 << 6;

/// Does `bpf_skb_adjust_room` know these flags? Asked with a packet that has the room.
fn room_flags(diff: i32, flags: u64) -> Feature {
    let [low, high] = wide(R4, flags);
    let known = load(&[mov(R2, diff), mov(R3, BPF_ADJ_ROOM_MAC), low, high, ADJUST_ROOM, EXIT])
        .and_then(|program| test_run(&program));
    match known {
        Ok(0) => Feature::Present,
        Ok(error) if error == -libc::EINVAL => Feature::Absent,
        Ok(error) => Feature::Unseen(-error),
        Err(e) => Feature::Unseen(errno(&e)),
    }
}

/// Does a program with a function and a tail call pass the verifier?
fn tail_calls() -> Feature {
    let known = create_map(BPF_MAP_TYPE_PROG_ARRAY).and_then(|array| {
        let [low, high] = wide(R2, array.as_raw_fd() as u64);
        let low = Insn { registers: R2 | BPF_PSEUDO_MAP_FD << 4, ..low };
        // The function returns, as the program does: it is the last two instructions.
        load(&[low, high, mov(R3, 0), call(BPF_FUNC_TAIL_CALL), FUNCTION, EXIT, MOV_R0_0, EXIT])
    });
    accepted(known)
}

/// What the kernel's answer to a program says.
fn accepted(loaded: io::Result<OwnedFd>) -> Feature {
    match loaded {
        Ok(_) => Feature::Present,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Feature::Absent,
        Err(e) => Feature::Unseen(errno(&e)),
    }
}

/// What a program returns for an IPv4 packet of [`OVERHEAD`] bytes and more.
fn test_run(program: &OwnedFd) -> io::Result<i32> {
    let mut packet = [0u8; 128];
    packet[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0x00]);
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        ..TestRunAttr::default()
    };
    raw::bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval as i32)
}

fn errno(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EIO)
}

/// Does a tc program that calls this helper pass the verifier?
fn calls(id: i32, args: &[Insn]) -> Feature {
    let program = [args, &[call(id), MOV_R0_0, EXIT]].concat();
    accepted(load(&program))
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const MOV_R0_0: Insn = mov(0, 0);
const EXIT: Insn = Insn { code: 0x95, registers: 0, offset: 0, immediate: 0 };
const BPF_FUNC_SKB_ADJUST_ROOM: i32 = 50;
const BPF_ADJ_ROOM_MAC: i32 = 1;
const ADJUST_ROOM: Insn = call(BPF_FUNC_SKB_ADJUST_ROOM);
const BPF_FUNC_TAIL_CALL: i32 = 12;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_PSEUDO_CALL: u8 = 1;
/// A call of what is one instruction further than the next.
const FUNCTION: Insn = Insn { registers: BPF_PSEUDO_CALL << 4, ..call(1) };
const BPF_FUNC_REDIRECT_NEIGH: i32 = 152;
const BPF_FUNC_REDIRECT_PEER: i32 = 155;

const fn mov(register: u8, immediate: i32) -> Insn {
    Insn { code: 0xb7, registers: register, offset: 0, immediate }
}

const fn call(id: i32) -> Insn {
    Insn { code: 0x85, registers: 0, offset: 0, immediate: id }
}

/// A 64-bit value, which takes two instructions.
const fn wide(register: u8, value: u64) -> [Insn; 2] {
    let low = Insn { code: 0x18, registers: register, offset: 0, immediate: value as i32 };
    [low, Insn { code: 0, registers: 0, offset: 0, immediate: (value >> 32) as i32 }]
}

const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;

/// The start of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// `union bpf_attr` for BPF_PROG_QUERY, as of Linux 6.6; before that the rest must be zero.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    _pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

fn load(program: &[Insn]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        insn_count: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..LoadAttr::default()
    };
    let fd = raw::bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// With one entry, a word for a word.
fn create_map(kind: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr { kind, key_size: 4, value_size: 4, max_entries: 1 };
    let fd = raw::bpf(BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Asks for the number of programs on the loopback interface, which is 1 in every namespace.
fn tcx() -> Feature {
    let mut attr = QueryAttr { ifindex: 1, attach_type: BPF_TCX_INGRESS, ..QueryAttr::default() };
    match raw::bpf(BPF_PROG_QUERY, &mut attr) {
        Ok(_) => Feature::Present,
        Err(e) => match errno(&e) {
            // Nothing was ever attached.
            libc::ENOENT => Feature::Present,
            libc::EINVAL | libc::ENOSYS => Feature::Absent,
            other => Feature::Unseen(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs CAP_BPF, as every test that speaks to the verifier; without it says so.
    #[test]
    fn a_helper_that_does_not_exist_is_absent() {
        match KernelFeatures::probe().load {
            Feature::Present => {
                assert_eq!(calls(100_000, &[]), Feature::Absent);
                assert_eq!(KernelFeatures::probe().redirect_peer, Feature::Present);
            }
            Feature::Absent => panic!("no kernel that runs these tests lacks bpf(2)"),
            Feature::Unseen(e) => eprintln!("SKIP: programs can not be loaded here: errno {e}"),
        }
    }
}
