//! Counters. All per CPU: no atomics, nothing shared.

use mesh_common::{
    maps::Traffic,
    verdict::{DropReason, Hook, Verdict, drop_index, verdict_index},
};

use crate::maps::{DROPS, ENDPOINT_STATS, PEER_STATS, VERDICTS};

#[inline(always)]
pub fn verdict(hook: Hook, verdict: Verdict) {
    if let Some(n) = VERDICTS.get_ptr_mut(verdict_index(hook, verdict)) {
        // SAFETY: the verifier checked the pointer; the value is this CPU's own.
        unsafe { *n += 1 }
    }
}

#[inline(always)]
pub fn drop(hook: Hook, reason: DropReason) {
    if let Some(n) = DROPS.get_ptr_mut(drop_index(hook, reason)) {
        // SAFETY: as above.
        unsafe { *n += 1 }
    }
}

/// The endpoint sent a packet of `bytes`.
#[inline(always)]
pub fn endpoint_tx(id: u32, bytes: u32) {
    if let Some(t) = ENDPOINT_STATS.get_ptr_mut(id) {
        tx(t, bytes);
    }
}

/// Takes back what [`endpoint_tx`] counted of this packet.
#[inline(always)]
pub fn endpoint_tx_back(id: u32, bytes: u32) {
    if let Some(t) = ENDPOINT_STATS.get_ptr_mut(id) {
        // SAFETY: the verifier checked the pointer; the value is this CPU's own.
        unsafe {
            (*t).tx_packets -= 1;
            (*t).tx_bytes -= u64::from(bytes);
        }
    }
}

/// The endpoint was handed a packet of `bytes`.
#[inline(always)]
pub fn endpoint_rx(id: u32, bytes: u32) {
    if let Some(t) = ENDPOINT_STATS.get_ptr_mut(id) {
        rx(t, bytes);
    }
}

/// We sent the peer a packet of `bytes`.
#[inline(always)]
pub fn peer_tx(index: u32, bytes: u32) {
    if let Some(t) = PEER_STATS.get_ptr_mut(index) {
        tx(t, bytes);
    }
}

/// The peer sent us a packet of `bytes`.
#[inline(always)]
pub fn peer_rx(index: u32, bytes: u32) {
    if let Some(t) = PEER_STATS.get_ptr_mut(index) {
        rx(t, bytes);
    }
}

#[inline(always)]
fn tx(t: *mut Traffic, bytes: u32) {
    // SAFETY: the verifier checked the pointer; the value is this CPU's own.
    unsafe {
        (*t).tx_packets += 1;
        (*t).tx_bytes += u64::from(bytes);
    }
}

#[inline(always)]
fn rx(t: *mut Traffic, bytes: u32) {
    // SAFETY: the verifier checked the pointer; the value is this CPU's own.
    unsafe {
        (*t).rx_packets += 1;
        (*t).rx_bytes += u64::from(bytes);
    }
}
