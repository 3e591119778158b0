//! What the verifier says of a program that it takes. Before Linux 5.16 it is only in its log, and aya
//! asks for a log when a program was refused.

use std::{
    arch::asm,
    collections::BTreeMap,
    ffi::{CStr, c_long},
    mem,
    sync::{Mutex, PoisonError},
};

/// Instructions processed, by the name of the program, as of its last load.
static PROCESSED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

pub fn processed(program: &str) -> Option<u32> {
    PROCESSED.lock().unwrap_or_else(PoisonError::into_inner).get(program).copied()
}

const BPF_PROG_LOAD: c_long = 5;
/// Only the numbers.
const BPF_LOG_STATS: u32 = 4;

/// `union bpf_attr` for BPF_PROG_LOAD: its start, and as much as any kernel knows.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoadAttr {
    _before: [u64; 3],
    log_level: u32,
    log_size: u32,
    log: u64,
    _between: [u32; 2],
    name: [u8; 16],
    _after: [u64; 24],
}

/// In place of the C library's for this whole test binary. A program that is loaded without a log gets
/// one.
///
/// # Safety
///
/// As syscall(2). Callers with fewer arguments leave the others open, as there.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let size = c as usize;
    let is_load = number == libc::SYS_bpf && a == BPF_PROG_LOAD;
    if !is_load || size < mem::offset_of!(LoadAttr, _after) || size > size_of::<LoadAttr>() {
        // SAFETY: the caller's.
        return told(unsafe { enter([number, a, b, c, d, e, f]) });
    }
    // SAFETY: plain numbers; zero is good for those that this caller does not know.
    let mut attr: LoadAttr = unsafe { mem::zeroed() };
    // SAFETY: the caller gives that many bytes.
    unsafe { (&raw mut attr).cast::<u8>().copy_from(b as *const u8, size) };
    let mut log = [0u8; 4096];
    if attr.log_level == 0 {
        attr.log_level = BPF_LOG_STATS;
        attr.log_size = log.len() as u32;
        attr.log = log.as_mut_ptr() as u64;
    }
    // SAFETY: as above; the copy and the log live until it returns.
    let done = unsafe { enter([number, a, (&raw mut attr) as c_long, c, d, e, f]) };
    note(&attr.name, &log);
    told(done)
}

/// "processed 1234 insns (limit 1000000) ..."
fn note(name: &[u8], log: &[u8]) {
    let text = |bytes| CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok();
    let said = text(log).and_then(|log| log.split_once("processed ")?.1.split_once(" insns"));
    if let (Some(name), Some(count)) = (text(name), said.and_then(|(n, _)| n.parse().ok())) {
        let mut all = PROCESSED.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), count);
    }
}

/// # Safety
///
/// That of the system call.
unsafe fn enter([number, a, b, c, d, e, f]: [c_long; 7]) -> c_long {
    let done;
    // SAFETY: the caller's; the registers are those of the kernel's convention.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => done,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    done
}

/// As the C library returns it.
fn told(done: c_long) -> c_long {
    if !(-4095..0).contains(&done) {
        return done;
    }
    // SAFETY: this thread's own.
    unsafe { *libc::__errno_location() = -done as i32 };
    -1
}
