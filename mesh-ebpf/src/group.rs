//! Who wants which multicast, as IGMP (RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810) say it, and as
//! RFC 4541 would have a switch use it: what is for a group goes to its members, but for groups on the
//! link alone, which all get.
//!
//! What an endpoint here asks for goes on to the peers, who note that this node wants it. What it wants
//! no more goes on if nobody else here wants it. To other endpoints it does not go: they would keep
//! quiet (RFC 4541, 2.1.1). Nothing expires here: the agent removes what was not renewed.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use mesh_common::{
    maps::{Addr, GroupInfo, GroupKey},
    wire::{IPPROTO_HOPOPTS, IPPROTO_ICMPV6, IPPROTO_IGMP, IPV6_LEN},
};

use crate::{
    inner::Family,
    maps,
    packet::{self, Packet},
};

/// Records of one message that are looked at.
const RECORDS_MAX: u32 = 8;
/// Options for each hop with nothing but the router alert (RFC 2711), which all of MLD has.
const ALERT_LEN: usize = 8;

const IGMP_V1_REPORT: u8 = 0x12;
const IGMP_V2_REPORT: u8 = 0x16;
const IGMP_V2_LEAVE: u8 = 0x17;
const IGMP_V3_REPORT: u8 = 0x22;
const MLD_V1_REPORT: u8 = 131;
const MLD_V1_DONE: u8 = 132;
const MLD_V2_REPORT: u8 = 143;

/// Of a record (RFC 3376, 4.2.12; RFC 3810, 5.2.12).
const IS_INCLUDE: u8 = 1;
const IS_EXCLUDE: u8 = 2;
const TO_INCLUDE: u8 = 3;
const BLOCK_OLD: u8 = 6;

/// In a message of either protocol.
const SUM_AT: usize = 2;
const COUNT_AT: usize = 6;
const RECORDS_AT: usize = 8;

/// A message that asks for groups, or says that they are no longer wanted; or none. Not an option: the
/// verifier wants to see all of it written.
#[derive(Clone, Copy)]
pub struct Report {
    at: usize,
    /// 0 for none.
    kind: u32,
    is_v4: u32,
}

impl Report {
    #[inline(always)]
    pub fn is_some(&self) -> bool {
        self.kind != 0
    }
}

/// What the IP packet at `at` is of that.
#[inline(always)]
pub fn report<F: Family>(packet: &Packet, header: &F::Header, at: usize) -> Report {
    let (kind, at) = if F::IS_V4 {
        let is_igmp = F::next(header) == IPPROTO_IGMP && !F::is_fragment(header);
        let at = at + F::header_len(header);
        (if is_igmp { packet.load(at).unwrap_or_default() } else { 0u8 }, at)
    } else {
        // The next header, and the length in units of 8 bytes beyond the first.
        let [next, more]: [u8; 2] = packet.load(at + IPV6_LEN).unwrap_or_default();
        let has_alert = F::next(header) == IPPROTO_HOPOPTS && next == IPPROTO_ICMPV6 && more == 0;
        let at = at + IPV6_LEN + ALERT_LEN;
        (if has_alert { packet.load(at).unwrap_or_default() } else { 0u8 }, at)
    };
    let is_known = if F::IS_V4 {
        matches!(kind, IGMP_V1_REPORT | IGMP_V2_REPORT | IGMP_V2_LEAVE | IGMP_V3_REPORT)
    } else {
        matches!(kind, MLD_V1_REPORT | MLD_V1_DONE | MLD_V2_REPORT)
    };
    // The verifier need not follow each kind and family alone.
    let any = |n| packet::any_count(packet, n);
    let kind = if is_known { u32::from(kind) } else { 0 };
    Report { at, kind: any(kind), is_v4: any(F::IS_V4.into()) }
}

/// Must a packet to this group have been asked for? Not on the link alone (RFC 4541, 2.1.2 and 3), and
/// not broadcast.
#[inline(always)]
pub fn is_limited<F: Family>(dst: &Addr) -> bool {
    if F::IS_V4 {
        let dst = u32::from_be(dst.0[3]);
        return dst >> 28 == 0xe && dst >> 8 != 0x00e0_0000;
    }
    u32::from_be(dst.0[0]) >> 16 & 0xf > 2
}

/// Did this member ask for the group, or for more than is noted?
#[inline(always)]
pub fn wants(key: &mut GroupKey) -> bool {
    if maps::group(key).is_some() {
        return true;
    }
    let group = core::mem::replace(&mut key.group, GroupKey::ANY);
    let most = GroupKey::most(key.member);
    let all = maps::group(key).is_some_and(|info| info.count > most);
    key.group = group;
    all
}

/// Notes what `member` asks for. Does it go on to others?
#[inline(never)]
pub fn note(packet: &Packet, report: &Report, vni: u32, member: u32) -> bool {
    let mut key = GroupKey { vni, member, group: GroupKey::ANY };
    // In the messages for one group that of IGMP is in place of the count of records.
    let group_at = RECORDS_AT - if report.is_v4 != 0 { 4 } else { 0 };
    match report.kind as u8 {
        IGMP_V1_REPORT | IGMP_V2_REPORT | MLD_V1_REPORT => {
            if load(packet, report, group_at, &mut key) {
                join(&mut key);
            }
            true
        }
        IGMP_V2_LEAVE | MLD_V1_DONE => {
            !(load(packet, report, group_at, &mut key) && is_still_wanted(&mut key))
        }
        _ => {
            note_records(packet, report, &mut key);
            true
        }
    }
}

#[inline(always)]
fn note_records(packet: &Packet, report: &Report, key: &mut GroupKey) {
    let Ok(count) = packet.load::<u16>(report.at + COUNT_AT) else { return };
    let count = u32::from(u16::from_be(count));
    if count > RECORDS_MAX {
        return all(key);
    }
    // The compiler must not know that it is no more than `RECORDS_MAX`, and leave that comparison out:
    // Linux 5.10 forgets what it knows of a number that is put aside.
    let count = packet::any_count(packet, count);
    let size = if report.is_v4 != 0 { 4 } else { 16 };
    let mut at = packet::any_count(packet, RECORDS_AT as u32) as usize;
    let mut i = 0;
    while i < RECORDS_MAX && i < count {
        i += 1;
        // Its kind, words of data behind its sources, how many sources; then the group.
        let Ok([kind, words]) = packet.load::<[u8; 2]>(report.at + at) else { break };
        let Ok(sources) = packet.load::<u16>(report.at + at + 2) else { break };
        if !load(packet, report, at + 4, key) {
            break;
        }
        let sources = usize::from(u16::from_be(sources));
        match kind {
            IS_INCLUDE | TO_INCLUDE if sources == 0 => {
                if is_still_wanted(key) {
                    // This node still is a member, by another endpoint.
                    replace_kind(packet, report, at, [kind, words]);
                }
            }
            0 | BLOCK_OLD.. => {}
            _ => join(key),
        }
        at += 4 + size + sources * size + usize::from(words) * 4;
        // What is longer than any packet ends at the next look; the verifier wants to know.
        at = packet::any_count(packet, at as u32) as usize & 0x1ffff;
    }
}

/// The group at `at` of the message. Is there one?
#[inline(always)]
fn load(packet: &Packet, report: &Report, at: usize, key: &mut GroupKey) -> bool {
    let group = if report.is_v4 != 0 {
        packet.load(report.at + at).map(Addr::from_v4)
    } else {
        packet.load(report.at + at).map(Addr)
    };
    match group {
        Ok(group) => {
            key.group = group;
            true
        }
        Err(_) => false,
    }
}

/// All get groups on the link: not noted.
#[inline(always)]
fn is_noted(group: &Addr) -> bool {
    if group.0[0] | group.0[1] == 0 && group.0[2] == 0xffffu32.to_be() {
        return is_limited::<crate::inner::V4>(group);
    }
    u32::from_be(group.0[0]) >> 24 == 0xff && is_limited::<crate::inner::V6>(group)
}

#[inline(always)]
fn join(key: &mut GroupKey) {
    let heard = packet::seconds();
    if !is_noted(&key.group) {
        return;
    }
    if let Some(known) = maps::group_mut(key) {
        // SAFETY: the verifier checked the pointer; a word is written whole.
        unsafe { (*known).heard = heard }
        said(key, heard, 0);
        return;
    }
    if !said(key, heard, 1) {
        return;
    }
    let info = GroupInfo { heard, count: 1 };
    if maps::set_group(key, &info, BPF_NOEXIST) && key.member & GroupKey::PEER == 0 {
        add_here(key, 1);
    }
}

/// It asks for more groups than are noted: it gets all.
#[inline(always)]
fn all(key: &GroupKey) {
    let key = GroupKey { group: GroupKey::ANY, ..*key };
    let info = GroupInfo {
        heard: packet::seconds(),
        count: GroupKey::most(key.member) + GroupKey::BEYOND,
    };
    maps::set_group(&key, &info, BPF_ANY);
}

/// The member said something, and asks for so many groups more. May it?
#[inline(always)]
fn said(key: &GroupKey, heard: u32, more: u32) -> bool {
    let key = GroupKey { group: GroupKey::ANY, ..*key };
    let new = GroupInfo { heard, count: 0 };
    let of_member = maps::group_mut(&key).or_else(|| {
        // If it fails another CPU was faster, or there is no room, and none for groups then.
        maps::set_group(&key, &new, BPF_NOEXIST);
        maps::group_mut(&key)
    });
    let Some(of_member) = of_member else { return false };
    let most = GroupKey::most(key.member);
    // SAFETY: the verifier checked the pointer; words are written whole, and the agent counts anew.
    unsafe {
        if (*of_member).count > most {
            if more == 0 {
                (*of_member).count = most + GroupKey::SPOKEN_SINCE;
            } else {
                (*of_member).count = most + GroupKey::BEYOND;
                (*of_member).heard = heard;
            }
            return more == 0;
        }
        (*of_member).heard = heard;
        add(of_member, more);
        more == 0 || (*of_member).count <= most
    }
}

/// The member leaves: does another endpoint here still want the group?
#[inline(always)]
fn is_still_wanted(key: &mut GroupKey) -> bool {
    if !is_noted(&key.group) {
        return false;
    }
    if maps::forget_group(key) {
        let of_member = GroupKey { group: GroupKey::ANY, ..*key };
        if let Some(of_member) = maps::group_mut(&of_member) {
            // SAFETY: as above. One that gets all stays so until the agent has counted.
            unsafe {
                let count = (*of_member).count;
                if count != 0 && count <= GroupKey::most(key.member) {
                    add(of_member, u32::MAX);
                }
            }
        }
        if key.member & GroupKey::PEER == 0 {
            add_here(key, u32::MAX);
        }
    }
    maps::group(&GroupKey { member: 0, ..*key }).is_some_and(|here| here.count != 0)
}

/// So many members more among the endpoints here, or with `u32::MAX` one less.
#[inline(always)]
fn add_here(key: &GroupKey, more: u32) {
    let key = GroupKey { member: 0, ..*key };
    if more == 1 && maps::set_group(&key, &GroupInfo { heard: 0, count: 1 }, BPF_NOEXIST) {
        return;
    }
    if let Some(here) = maps::group_mut(&key) {
        add(here, more);
    }
}

/// Adds to the count, on whatever CPUs at once.
#[inline(always)]
fn add(info: *mut GroupInfo, n: u32) {
    // SAFETY: the verifier checked the pointer.
    unsafe {
        asm!(
            "lock *(u32 *)({at} + {off}) += {n}",
            at = in(reg) info,
            off = const offset_of!(GroupInfo, count),
            n = in(reg) u64::from(n),
        );
    }
}

/// Makes a record "in exclude mode", and the checksum right.
#[inline(always)]
fn replace_kind(packet: &Packet, report: &Report, at: usize, [kind, words]: [u8; 2]) {
    let (old, new) = (u16::from_ne_bytes([kind, words]), u16::from_ne_bytes([IS_EXCLUDE, words]));
    packet.replace_word(report.at + SUM_AT, report.at + at, old, new);
}
