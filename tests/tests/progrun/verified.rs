//! What the verifier takes to accept each program, for `cargo xtask test --kernel` to compare.

use mesh_userspace::bpf::load::PROGRAMS;

use super::world::{GRE, world};

/// BPF_COMPLEXITY_LIMIT_INSNS, since Linux 5.2.
const LIMIT: u32 = 1_000_000;

#[test]
fn programs_are_far_from_the_verifiers_limit() {
    world(GRE, |w| {
        let uname = rustix::system::uname();
        for name in PROGRAMS {
            let info = w.program(name).info().unwrap();
            // Before Linux 5.16 the kernel does not say.
            let Some(count) = info.verified_instruction_count() else { continue };
            println!("VERIFIED: {} {name} {count}", uname.release().to_string_lossy());
            assert!(count < LIMIT / 4, "{name}: {count}");
        }
    });
}
