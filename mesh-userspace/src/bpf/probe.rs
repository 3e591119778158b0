//! What this kernel's BPF can do, found by asking it. Nothing is attached and nothing stays.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

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
}

impl KernelFeatures {
    /// Needs CAP_BPF and CAP_NET_ADMIN; without them everything is [`Feature::Unseen`].
    pub fn probe() -> Self {
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
        }
    }
}

fn errno(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(libc::EIO)
}

/// Does a tc program that calls this helper pass the verifier?
fn calls(id: i32, args: &[Insn]) -> Feature {
    let program = [args, &[call(id), MOV_R0_0, EXIT]].concat();
    match load(&program) {
        Ok(_) => Feature::Present,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Feature::Absent,
        Err(e) => Feature::Unseen(errno(&e)),
    }
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
const BPF_FUNC_REDIRECT_NEIGH: i32 = 152;
const BPF_FUNC_REDIRECT_PEER: i32 = 155;

const fn mov(register: u8, immediate: i32) -> Insn {
    Insn { code: 0xb7, registers: register, offset: 0, immediate }
}

const fn call(id: i32) -> Insn {
    Insn { code: 0x85, registers: 0, offset: 0, immediate: id }
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;

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
