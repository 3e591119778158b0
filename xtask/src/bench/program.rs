//! `cargo xtask bench --program`: what the programs cost by themselves, and how that grows with what
//! the maps hold.

use super::figures::{Bar, Source};

const GROWTH: &str = "hot key, 1000000 entries against 10";

pub const PROGRAM: Source = Source {
    file: "progrun",
    tests: &["perf::perf", "growth::growth"],
    notes: "BPF_PROG_TEST_RUN; net is without a run of nothing; hot key: one packet again and again; \
            random keys: another packet each time, each run once",
    bars: &[
        Bar { workload: "encap", metric: GROWTH, bar: 1.3 },
        Bar { workload: "decap", metric: GROWTH, bar: 1.3 },
        Bar { workload: "local delivery", metric: GROWTH, bar: 1.3 },
    ],
};
