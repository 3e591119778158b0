//! What can happen to a packet, by number. Numbers never change and are never reused.

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $n:literal, $label:literal, $text:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name { $(#[doc = $text] $(#[$vmeta])* $variant = $n,)+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in `mesh status --json` and in metrics.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// One sentence for a person.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

numbered! {
    /// Where a packet is looked at; the row of `VERDICTS` and `DROPS`.
    Hook {
        FromContainer = 0, "from_container", "What a container sends.";
        FromUnderlay = 1, "from_underlay", "What arrives on the underlay's network card.";
        FromHost = 2, "from_host", "What the host itself sends into the overlay.";
        FromForward = 3, "from_forward", "What the host forwards out of the underlay's network card.";
    }
}

numbered! {
    /// What became of a packet; the column of `VERDICTS`. At each hook the sum over all verdicts is
    /// the number of packets seen.
    Verdict {
        Pass = 0, "passed", "Not ours: left to the next program and the host's stack.";
        Deliver = 1, "delivered", "Handed to a container on this host.";
        Host = 2, "host", "Handed to this host's own stack, on mesh0 or to ask for its MAC on a bridge.";
        Encap = 3, "encapsulated", "Sent to a peer.";
        Answer = 4, "answered", "Turned into an ARP or neighbour reply to its sender.";
        Drop = 5, "dropped", "Dropped, with the reason counted in DROPS.";
        Learn = 6, "learned", "An ARP or neighbour message of a peer without mesh, or what multicast somebody asks for: noted.";
        Flood = 7, "flooded", "Broadcast or multicast: sent as copies, of which those to peers are counted as packets.";
    }
}

numbered! {
    /// Why a packet was dropped; the column of `DROPS`.
    DropReason {
        Truncated = 1, "truncated", "Shorter than the headers it claims to have.";
        NotIp = 2, "not_ip", "Neither IPv4, IPv6, ARP nor neighbour discovery.";
        SpoofedSource = 3, "spoofed_source", "The sender does not own its source address.";
        NoRoute = 4, "no_route", "No node of this network has the destination.";
        NoEndpoint = 5, "no_endpoint", "The destination is in this node's subnet, but nobody has it.";
        Multicast = 6, "multicast", "Broadcast and multicast are not carried in this network.";
        TooBig = 7, "too_big", "Larger than the MTU; answered with ICMP where a program can.";
        UnknownPeer = 8, "unknown_peer", "Encapsulated by a host that is not a node of this mesh.";
        UnknownVni = 9, "unknown_vni", "From a peer, for a network that this mesh does not have.";
        SourceNotPeers = 10, "source_not_peers", "From a peer, with an inner source that is not in its subnets.";
        OuterFragment = 11, "outer_fragment", "A fragment of an encapsulated packet.";
        UnsupportedOuter = 12, "unsupported_outer", "IP options, or bits in the tunnel's header that mesh does not know.";
        NoRoom = 13, "no_room", "The kernel refused to make or take room for the outer header.";
        PeerIncomplete = 14, "peer_incomplete", "The peer has no route on the underlay at the moment.";
        NoReply = 15, "no_reply", "An ARP or neighbour message that asks for nothing mesh can answer.";
        Congestion = 16, "congestion", "Marked CE on the underlay, but the sender has no ECN (RFC 6040).";
        UnknownPort = 17, "unknown_port", "From an interface that is not attached to the mesh, or in a tunnel past the underlay's program.";
        VlanTagged = 18, "vlan_tagged", "A container sent a VLAN tag.";
        Hairpin = 19, "hairpin", "Sent to the sender's own address.";
        Unresolved = 20, "unresolved", "The MAC of an address behind a peer without mesh is not known; asked for, once a second.";
        NoMember = 21, "no_member", "Broadcast or multicast that nobody here or on other nodes gets.";
        ForgedTunnel = 22, "forged_tunnel", "Forwarded by this host, a tunnel packet to a node with this host's own address.";
    }
}

/// Columns of `VERDICTS`, a power of two.
pub const VERDICT_COLUMNS: u32 = 8;
/// Columns of `DROPS`, a power of two.
pub const DROP_COLUMNS: u32 = 64;
/// Rows of both.
pub const HOOKS: u32 = 4;

/// Index into `VERDICTS`.
pub const fn verdict_index(hook: Hook, verdict: Verdict) -> u32 {
    hook as u32 * VERDICT_COLUMNS + verdict as u32
}

/// Index into `DROPS`.
pub const fn drop_index(hook: Hook, reason: DropReason) -> u32 {
    hook as u32 * DROP_COLUMNS + reason as u32
}
