//! Single packets through the real programs: loaded, their maps filled the way the agent does it,
//! and run by BPF_PROG_TEST_RUN. Needs root.
//!
//! After every packet the sum law is asserted: one verdict more at the hook, a reason more for a
//! drop, and nothing else. What the kernel does not show here is which interface a redirect names.

#![expect(clippy::unwrap_used, reason = "a test that can not go on says so by panicking")]

mod answer;
mod bridge;
mod cases;
mod clamp;
mod cluster;
mod counters;
mod datagram;
mod decap;
mod deliver;
mod encap;
mod features;
mod flood;
mod forward;
mod fuzz;
mod gateway;
mod growth;
mod model;
mod outer;
mod outside;
mod packet;
mod perf;
mod place;
mod slots;
mod spec;
mod switch;
mod toobig;
mod torn;
mod truncate;
mod verified;
#[cfg(target_arch = "x86_64")]
mod verifier_log;
mod wire;
mod world;
