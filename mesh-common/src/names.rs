//! Names of programs and maps, as in the object file and under the pin folder.
//! The kernel keeps at most 15 characters.

use crate::verdict::Hook;

/// tcx ingress on the host side of a container's veth, and egress on `mesh0`, the host's own
/// interface to the overlay.
pub const FROM_ENDPOINT: &str = "from_endpoint";
/// tcx ingress on the underlay's network card.
pub const FROM_UNDERLAY: &str = "from_underlay";
/// tcx egress on the underlay's network card.
pub const FROM_FORWARD: &str = "from_forward";
/// Where `from_endpoint` goes on with what is for many.
pub const FLOOD_SEND: &str = "flood_send";
/// Where `from_underlay` goes on with what is for many.
pub const FLOOD_RECEIVE: &str = "flood_receive";

/// The program at a hook.
pub const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::FromContainer | Hook::FromHost => FROM_ENDPOINT,
        Hook::FromUnderlay => FROM_UNDERLAY,
        Hook::FromForward => FROM_FORWARD,
    }
}

pub const PORTS: &str = "PORTS";
pub const PORT_SLOTS: &str = "PORT_SLOTS";
pub const ENDPOINTS: &str = "ENDPOINTS";
pub const ENDPOINT_SLOTS: &str = "ENDPOINT_SLOTS";
pub const LEARNED: &str = "LEARNED";
pub const FIB: &str = "FIB";
pub const FIB_SLOTS: &str = "FIB_SLOTS";
pub const FIB_LPM: &str = "FIB_LPM";
pub const PEERS: &str = "PEERS";
pub const PEER_BY_ADDR: &str = "PEER_BY_ADDR";
pub const PEER_SLOTS: &str = "PEER_SLOTS";
pub const NETWORKS: &str = "NETWORKS";
pub const NETWORK_SLOTS: &str = "NETWORK_SLOTS";
pub const NODE: &str = "NODE";
pub const NEIGHBOURS: &str = "NEIGHBOURS";
pub const ASKED: &str = "ASKED";
pub const FLOOD: &str = "FLOOD";
pub const FLOOD_SLOTS: &str = "FLOOD_SLOTS";
pub const GROUPS: &str = "GROUPS";
pub const TAILS: &str = "TAILS";
pub const ENDPOINT_STATS: &str = "ENDPOINT_STATS";
pub const PEER_STATS: &str = "PEER_STATS";
pub const VERDICTS: &str = "VERDICTS";
pub const DROPS: &str = "DROPS";

/// Every map, in the order of their mention in the docs.
pub const ALL_MAPS: [&str; 24] = [
    PORTS,
    PORT_SLOTS,
    ENDPOINTS,
    ENDPOINT_SLOTS,
    LEARNED,
    FIB,
    FIB_SLOTS,
    FIB_LPM,
    PEERS,
    PEER_BY_ADDR,
    PEER_SLOTS,
    NETWORKS,
    NETWORK_SLOTS,
    NODE,
    NEIGHBOURS,
    ASKED,
    FLOOD,
    FLOOD_SLOTS,
    GROUPS,
    TAILS,
    ENDPOINT_STATS,
    PEER_STATS,
    VERDICTS,
    DROPS,
];
