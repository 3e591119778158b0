//! Empty on purpose: lets mesh-userspace depend on this crate, so that cargo rebuilds the programs
//! when they change.
#![no_std]
