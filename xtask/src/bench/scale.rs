//! `cargo xtask bench --scale`: what the agent costs with many peers.

use super::figures::{Bar, Source};

const LARGE: &str = "10000 peers";

pub const SCALE: Source = Source {
    file: "mesh_scale",
    tests: &["measure::measure"],
    notes: "the agent on a host in a namespace, all peers behind one router; times until the entry \
            is seen in the map, at the highest priority",
    bars: &[
        Bar { workload: LARGE, metric: "resident", bar: 30.0 },
        Bar { workload: LARGE, metric: "change to kernel", bar: 20.0 },
        Bar { workload: LARGE, metric: "restart", bar: 200.0 },
        Bar { workload: LARGE, metric: "CPU when idle", bar: 0.0 },
        Bar { workload: "10000 peers, 100000 subnets", metric: "map fill", bar: 2.0 },
    ],
};
