//! The one module that touches an skb: bounds checks, room, redirects.
//!
//! Every pointer into the packet is void after a call that moves it ([`Packet::need`] of bytes that
//! are not linear, [`Packet::grow`], [`Packet::shrink`], [`Packet::trim`], [`Packet::become_v4`]); get
//! it anew.

use aya_ebpf::{
    Global,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS,
        TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{
        bpf_clone_redirect, bpf_csum_update, bpf_get_hash_recalc, bpf_ktime_get_ns,
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_adjust_room, bpf_skb_change_proto, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_tail_call,
    },
    programs::TcContext,
};
use core::{arch::asm, mem::MaybeUninit};
use mesh_common::{
    maps::Addr,
    verdict::DropReason,
    wire::{ETH_LEN, ETH_P_IP, IPV4_LEN, IPV6_LEN},
};

use crate::maps::TAILS;

const PACKET_HOST: u32 = 0;
/// Of a tag's control information.
const VLAN_ID: u32 = 0xfff;
/// Says beside a packet that a program of ours sends it; see [`Packet::set_sent`].
const SENT: u32 = 0xb7d3_9ea5;
/// The word of the control block for it.
const SENT_AT: usize = 2;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Bytes below which moving a few bytes up in memory is slow on this CPU; 0 for none.
#[unsafe(no_mangle)]
static SHORT_MOVE: Global<u32> = Global::new(0);

/// The kernel takes tail calls in programs that have functions (5.10 on x86, 6.0 on arm64).
#[unsafe(no_mangle)]
static TAIL_CALLS: Global<u32> = Global::new(1);

pub struct Packet {
    skb: *mut __sk_buff,
}

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    /// Bytes, Ethernet header included.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: the context is valid for the program's run; so below.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ifindex }
    }

    /// Ethernet type as the kernel sees it, in network byte order.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.skb).protocol as u16 }
    }

    /// Carries a VLAN tag that the card or a veth took out of the bytes.
    #[inline(always)]
    pub fn is_vlan(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// The number of its VLAN; 0 also where the tag only tells a priority (IEEE 802.1Q-2022, 6.9).
    #[inline(always)]
    pub fn vlan(&self) -> u32 {
        // SAFETY: as above.
        if self.is_vlan() { unsafe { (*self.skb).vlan_tci & VLAN_ID } } else { 0 }
    }

    /// Takes the tag off, if there is one. Is there none after that? Moves pointers.
    #[inline(always)]
    pub fn untag(&self) -> bool {
        // SAFETY: a helper call with a valid context.
        !self.is_vlan() || unsafe { bpf_skb_vlan_pop(self.skb) } == 0 && !self.is_vlan()
    }

    /// Addressed to this host's MAC.
    #[inline(always)]
    pub fn is_for_us(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb).pkt_type == PACKET_HOST }
    }

    /// Payload of each segment of a super-packet in bytes, 0 for an ordinary packet.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).gso_size }
    }

    /// `T` at `offset`, if it is there and linear.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: as above; the kernel rewrites these two loads into pointers.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        if data + offset + size_of::<T>() > end {
            return None;
        }
        Some((data + offset) as *mut T)
    }

    /// `T` at `offset`, made linear if it is not.
    #[inline(always)]
    pub fn need<T>(&self, offset: usize) -> Result<*mut T, DropReason> {
        if let Some(t) = self.at(offset) {
            return Ok(t);
        }
        // SAFETY: a helper call with a valid context.
        unsafe { bpf_skb_pull_data(self.skb, (offset + size_of::<T>()) as u32) };
        self.at(offset).ok_or(DropReason::Truncated)
    }

    /// A copy of `T`, plain old data, at `offset`. For the slow paths.
    #[inline(always)]
    pub fn load<T: Copy>(&self, offset: usize) -> Result<T, DropReason> {
        // Not zero first: that is a call of a function, with a part of the stack of its own.
        let mut t = MaybeUninit::<T>::uninit();
        // SAFETY: `t` has room for the bytes asked for.
        let r = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                t.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        // SAFETY: the helper wrote all of it.
        if r == 0 { Ok(unsafe { t.assume_init() }) } else { Err(DropReason::Truncated) }
    }

    /// Writes `t` at `offset`. For the slow paths.
    #[inline(always)]
    pub fn store<T>(&self, offset: usize, t: &T) -> Result<(), DropReason> {
        // SAFETY: `t` has the bytes.
        let r = unsafe {
            bpf_skb_store_bytes(
                self.skb,
                offset as u32,
                (&raw const *t).cast(),
                size_of::<T>() as u32,
                0,
            )
        };
        if r == 0 { Ok(()) } else { Err(DropReason::Truncated) }
    }

    /// Corrects the checksum of TCP or UDP at `offset` for two bytes that changed, if it is there
    /// already. For the slow paths. Is it there, or the packet's end before it?
    #[inline(always)]
    pub fn resum(&self, offset: usize, old: u16, new: u16) -> bool {
        // SAFETY: a helper call with a valid context.
        unsafe { bpf_l4_csum_replace(self.skb, offset as u32, old.into(), new.into(), 2) == 0 }
    }

    /// Makes room for `bytes` behind the Ethernet header. `flags`: BPF_F_ADJ_ROOM_*, besides that
    /// segments keep their size (the container's MTU already leaves the room).
    #[inline(always)]
    pub fn grow(&self, bytes: u32, flags: u64) -> Result<(), DropReason> {
        self.adjust(bytes as i32, flags)
    }

    /// Takes out `bytes` behind the Ethernet header.
    ///
    /// The kernel moves the Ethernet header by `rep movsb`, which on some CPUs goes byte by byte
    /// where the way is shorter than [`SHORT_MOVE`]. There the way is made longer first.
    #[inline(always)]
    pub fn shrink(&self, bytes: u32, flags: u64) -> Result<(), DropReason> {
        let far = SHORT_MOVE.load();
        if bytes < far && self.gso_size() == 0 && self.grow(far - bytes, 0).is_ok() {
            return self.adjust(-(far as i32), flags);
        }
        self.adjust(-(bytes as i32), flags)
    }

    /// Has the kernel take a packet of IPv6, which is no super-packet, for one of IPv4; the bytes by which
    /// that header is shorter go, and are what this gives.
    #[inline(always)]
    pub fn become_v4(&self) -> Result<u32, DropReason> {
        // SAFETY: a helper call with a valid context.
        let r = unsafe { bpf_skb_change_proto(self.skb, ETH_P_IP.to_be(), 0) };
        if r == 0 { Ok((IPV6_LEN - IPV4_LEN) as u32) } else { Err(DropReason::NoRoom) }
    }

    #[inline(always)]
    fn adjust(&self, diff: i32, flags: u64) -> Result<(), DropReason> {
        // NO_CSUM_RESET: the outer header has no checksum over the inner packet, so what the card
        // said of that still holds.
        let flags =
            flags | u64::from(BPF_F_ADJ_ROOM_FIXED_GSO) | u64::from(BPF_F_ADJ_ROOM_NO_CSUM_RESET);
        // SAFETY: a helper call with a valid context.
        let r = unsafe { bpf_skb_adjust_room(self.skb, diff, BPF_ADJ_ROOM_MAC, flags) };
        if r == 0 { Ok(()) } else { Err(DropReason::NoRoom) }
    }

    /// Sets the length to `len`, Ethernet header included; a super-packet becomes an ordinary one.
    #[inline(always)]
    pub fn trim(&self, len: u32) -> Result<(), DropReason> {
        // SAFETY: a helper call with a valid context.
        let r = unsafe { bpf_skb_change_tail(self.skb, len, 0) };
        if r == 0 { Ok(()) } else { Err(DropReason::NoRoom) }
    }

    /// Makes a word at `at` another, and the checksum over it at `sum_at` right.
    #[inline(always)]
    pub fn replace_word(&self, sum_at: usize, at: usize, old: u16, new: u16) {
        // What is not there stays as it is.
        if self.resum(sum_at, old, new) {
            let _ = self.store(at, &new);
        }
    }

    /// Sends a copy of the packet out of an interface, or into it as if received there. Did it get
    /// that far?
    #[inline(always)]
    pub fn copy_to(&self, ifindex: u32, into: bool) -> bool {
        self.copy_by(ifindex, copy_flags(into))
    }

    /// The same, by [`copy_flags`].
    #[inline(always)]
    pub fn copy_by(&self, ifindex: u32, flags: u32) -> bool {
        // SAFETY: a helper call with a valid context.
        unsafe { bpf_clone_redirect(self.skb, ifindex, flags.into()) == 0 }
    }

    /// Leaves `words` beside the packet, for [`Self::words`] here or in the next program.
    #[inline(always)]
    pub fn leave(&self, words: [u32; 5]) {
        let [a, b, c, d, e] = words;
        // SAFETY: as above; the kernel lets a program write this field. Nothing here needs to be dropped.
        unsafe {
            // Volatile: through a pointer into the context, as a loop has it, nothing may be written.
            let cb = &raw mut (*self.skb).cb;
            (&raw mut (*cb)[0]).write_volatile(a);
            (&raw mut (*cb)[1]).write_volatile(b);
            (&raw mut (*cb)[2]).write_volatile(c);
            (&raw mut (*cb)[3]).write_volatile(d);
            (&raw mut (*cb)[4]).write_volatile(e);
        }
    }

    /// Goes on in another program, for which there is what [`Self::leave`] left. Returns where there is
    /// none.
    #[inline(always)]
    pub fn go_on(&self, program: u32) {
        if TAIL_CALLS.load() == 0 {
            return;
        }
        // SAFETY: a helper call with a valid context.
        unsafe { bpf_tail_call(self.skb.cast(), (&raw const TAILS).cast_mut().cast(), program) };
    }

    /// An aligned word of the packet was changed, which a card may have summed up as a whole
    /// (CHECKSUM_COMPLETE).
    #[inline(always)]
    pub fn word_changed(&self, old: u32, new: u32) {
        let sum = u64::from(!old) + u64::from(new);
        let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
        // SAFETY: a helper call with a valid context. It fails where there is no such sum.
        unsafe { bpf_csum_update(self.skb, sum) };
    }

    /// What [`Self::leave`] left.
    #[inline(always)]
    pub fn words(&self) -> [u32; 5] {
        // SAFETY: as above.
        unsafe {
            let cb = &raw const (*self.skb).cb;
            [
                (&raw const (*cb)[0]).read_volatile(),
                (&raw const (*cb)[1]).read_volatile(),
                (&raw const (*cb)[2]).read_volatile(),
                (&raw const (*cb)[3]).read_volatile(),
                (&raw const (*cb)[4]).read_volatile(),
            ]
        }
    }

    /// The interface by which the packet came into this host, as the kernel noted it last; 0 for what
    /// the host itself sends.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Notes that a program of ours sends the packet, for the one at the egress of the underlay.
    ///
    /// In the control block, which a redirect leaves as it is, also where the packet waits for its next
    /// hop's MAC. Nobody else has a use for it there, as for the mark, and no sender can write to it:
    /// it is no part of the packet, and IP clears it for each that it takes (ip_rcv_core,
    /// ip6_rcv_core). What IP itself writes at this place can not be [`SENT`]: with IPv4 the upper half
    /// ends in padding, with IPv6 its flags are the lower half, of which the highest bit is none.
    #[inline(always)]
    pub fn set_sent(&self) {
        // SAFETY: as above; the kernel lets a program write this field.
        unsafe { (&raw mut (*self.skb).cb[SENT_AT]).write_volatile(SENT) }
    }

    /// As [`Self::set_sent`] noted.
    #[inline(always)]
    pub fn is_sent(&self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.skb).cb[SENT_AT]).read_volatile() == SENT }
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.skb).mark }
    }

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: as above; the kernel lets a program write this field.
        unsafe { (*self.skb).mark = mark }
    }

    /// The first `N` bytes, to write to.
    #[inline(always)]
    pub fn front<const N: usize>(&self) -> Result<Part<N>, DropReason> {
        self.part(0)
    }

    /// `N` bytes at `offset`, to write to.
    #[inline(always)]
    pub fn part<const N: usize>(&self, offset: usize) -> Result<Part<N>, DropReason> {
        self.at::<[u8; N]>(offset).map(|at| Part { at: at.cast() }).ok_or(DropReason::NoRoom)
    }

    /// The flow's hash: the socket's or the card's if they left one, else of the headers.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: the context is valid for the program's run.
        match unsafe { (*self.skb).hash } {
            // SAFETY: a helper call with a valid context.
            0 => unsafe { bpf_get_hash_recalc(self.skb) },
            known => known,
        }
    }

    /// Bytes without the Ethernet header.
    #[inline(always)]
    pub fn l3_len(&self) -> u32 {
        self.len() - ETH_LEN as u32
    }
}

/// `N` checked bytes of a packet, written in wide stores. A frame is aligned to two bytes,
/// for which the compiler would store two at a time, or call a loop over bytes (measured: 38 bytes
/// in 45 ns); the kernel takes wide stores wherever the CPU does.
pub struct Part<const N: usize> {
    at: *mut u8,
}

macro_rules! put {
    ($name:ident, $t:ty, $width:literal, $insn:literal) => {
        /// Writes `v` as it is at `AT`.
        #[inline(always)]
        pub fn $name<const AT: usize>(&self, v: $t) {
            const { assert!(AT + $width <= N) };
            // SAFETY: within the `N` bytes that `Packet::part` checked.
            unsafe { asm!($insn, at = in(reg) self.at, off = const AT, v = in(reg) v) }
        }
    };
}

impl<const N: usize> Part<N> {
    put!(put64, u64, 8, "*(u64 *)({at} + {off}) = {v}");
    put!(put32, u32, 4, "*(u32 *)({at} + {off}) = {v}");
    put!(put16, u16, 2, "*(u16 *)({at} + {off}) = {v}");

    /// An Ethernet header at `AT`. `proto`: network byte order.
    #[inline(always)]
    pub fn put_eth<const AT: usize>(&self, macs: &[u32; 3], proto: u16) {
        self.put_macs::<AT>(macs);
        // Generic constants can not be computed with: from where the MACs end.
        Part::<2> { at: self.at.wrapping_add(AT + 12) }.put16::<0>(proto);
    }

    /// Both MACs of an Ethernet header at `AT`.
    #[inline(always)]
    pub fn put_macs<const AT: usize>(&self, macs: &[u32; 3]) {
        const { assert!(AT + 14 <= N) };
        let macs_at = Part::<12> { at: self.at.wrapping_add(AT) };
        macs_at.put32::<0>(macs[0]);
        macs_at.put32::<4>(macs[1]);
        macs_at.put32::<8>(macs[2]);
    }
}

/// The first and the second four bytes of a word in memory.
#[inline(always)]
pub fn halves(v: u64) -> [u32; 2] {
    let (a, b) = (v as u32, (v >> 32) as u32);
    if cfg!(target_endian = "little") { [a, b] } else { [b, a] }
}

/// The first and the second two bytes of a word in memory.
#[inline(always)]
pub fn word_halves(v: u32) -> [u16; 2] {
    let (a, b) = (v as u16, (v >> 16) as u16);
    if cfg!(target_endian = "little") { [a, b] } else { [b, a] }
}

/// A word in memory of these.
#[inline(always)]
pub fn word_of([a, b]: [u16; 2]) -> u32 {
    if cfg!(target_endian = "little") {
        u32::from(b) << 16 | u32::from(a)
    } else {
        u32::from(a) << 16 | u32::from(b)
    }
}

/// `offset`, which is below 256, in a form of which the verifier knows only that. It follows every
/// value that it knows on a path of its own: where many ways lead to one place, each with another
/// offset, it would look at all that comes after as many times.
#[inline(always)]
pub fn any_offset(packet: &Packet, mut offset: usize) -> usize {
    let unknown = packet.len() as usize;
    // SAFETY: arithmetic on registers, which the compiler must not leave out.
    unsafe {
        asm!("{0} ^= {1}", "{0} ^= {1}", "{0} &= 255", inout(reg) offset, in(reg) unknown);
    }
    offset
}

/// What the kernel is told where a copy is to go into an interface, and not out of it.
#[inline(always)]
pub fn copy_flags(into: bool) -> u32 {
    if into { BPF_F_INGRESS } else { 0 }
}

/// `count` in a form of which the verifier knows nothing. What is counted in a loop would else be
/// another number for it in each state that it compares, and all that comes after be followed for each
/// (Linux 5.10 compares all numbers exactly where functions are called).
#[inline(always)]
pub fn any_count(packet: &Packet, mut count: u32) -> u32 {
    let unknown = packet.len();
    // SAFETY: arithmetic on registers, which the compiler must not leave out.
    unsafe {
        asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) count, in(reg) unknown);
    }
    count
}

/// Seconds since boot.
#[inline(always)]
pub fn seconds() -> u32 {
    // SAFETY: no pointers.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32
}

/// Out of an interface.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: no pointers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Into an interface, as if received there.
#[inline(always)]
pub fn redirect_ingress(ifindex: u32) -> i32 {
    // SAFETY: no pointers.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32 }
}

/// Into the other end of a veth, without its backlog queue. Only from an ingress hook.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: no pointers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}

/// Out of an interface to `next_hop`, whose MAC the kernel finds out.
#[inline(always)]
pub fn redirect_neigh(ifindex: u32, is_v4: bool, next_hop: &Addr) -> i32 {
    let (family, address) =
        if is_v4 { (AF_INET, [next_hop.0[3], 0, 0, 0]) } else { (AF_INET6, next_hop.0) };
    let mut params = bpf_redir_neigh {
        nh_family: family,
        // The whole union, since the helper reads all of it.
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: address },
    };
    // SAFETY: `params` lives on the stack for the call.
    let code = unsafe {
        bpf_redirect_neigh(ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0)
    };
    if code < 0 { TC_ACT_SHOT } else { code as i32 }
}
