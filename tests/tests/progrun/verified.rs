//! What the verifier takes to accept each program, for `cargo xtask test --kernel` to compare.

use aya::programs::{ProgramInfo, loaded_programs};
use mesh_userspace::bpf::load::{PROGRAMS, TAILS};

use super::spec::{GRE, Spec};
use super::world::world;

#[cfg(target_arch = "x86_64")]
use super::verifier_log::processed;

#[cfg(not(target_arch = "x86_64"))]
fn processed(_: &str) -> Option<u32> {
    None
}

/// BPF_COMPLEXITY_LIMIT_INSNS, since Linux 5.2.
const LIMIT: u32 = 1_000_000;

#[test]
fn programs_are_far_from_the_verifiers_limit() {
    world(Spec { flood: true, ..GRE }, |w| {
        let uname = rustix::system::uname();
        let attached = PROGRAMS.map(|name| (name, w.program(name).info().unwrap()));
        let tails = TAILS.map(|(name, index)| {
            let id = w.tables.tails.get(&index).unwrap().expect("a program");
            (name, loaded_programs().flatten().find(|p: &ProgramInfo| p.id() == id).unwrap())
        });
        for (name, info) in attached.into_iter().chain(tails) {
            // Only since Linux 5.16 the kernel says it otherwise than in a log.
            let told = info.verified_instruction_count();
            let logged = processed(name);
            assert!(
                told.is_none() || logged.is_none() || told == logged,
                "{name}: {told:?} {logged:?}"
            );
            let count = logged.or(told);
            assert!(count.is_some() || !cfg!(target_arch = "x86_64"), "{name}: loaded with a log");
            let Some(count) = count else { continue };
            println!("VERIFIED: {} {name} {count}", uname.release().to_string_lossy());
            assert!(count < LIMIT / 4, "{name}: {count}");
        }
    });
}
