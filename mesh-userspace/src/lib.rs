//! The agent and the command line of mesh.
//!
//! ```text
//! config  ->  compile  ->  Desired  \
//!                                     plan  ->  apply  ->  kernel (bpf, net)
//!         kernel (bpf, net) -> Observed /
//! ```

pub mod agent;
pub mod bpf;
pub mod busy;
pub mod callers;
pub mod claim;
pub mod cli;
pub mod cni;
pub mod compile;
pub mod config;
pub mod docker;
pub mod doctor;
pub mod durable;
pub mod faults;
pub mod foreign;
pub mod holder;
pub mod host;
pub mod lock;
pub mod mountns;
pub mod names;
pub mod near;
pub mod net;
pub mod peers;
pub mod plan;
pub mod program;
pub mod quota;
pub mod serving;
pub mod shown;
pub mod state;
pub mod state_dir;
pub mod supervise;
