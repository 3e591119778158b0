//! The words of agents among themselves: one request, one answer, each a JSON object.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{NetworkRecord, View};

/// Where it is asked for; another version has another path.
pub const PATH: &str = "/v1/exchange";
/// Ports that an agent asks from. Without CAP_NET_BIND_SERVICE nobody on its host can.
pub const RESERVED: Range<u16> = 600..1024;

/// Longest message in bytes: 4095 containers with long names fit.
pub const MESSAGE_MAX: usize = 4 << 20;

/// A request. An answer has the same form, for agents of before, and says neither names nor networks:
/// only who asks shows by its port that it is an agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct News {
    /// The sender's name, for messages; who it is says its address.
    pub node: String,
    /// The version of the receiver's names that the sender has.
    pub have: Option<Version>,
    /// The sender's names, unless the receiver has them.
    pub view: Option<View>,
    /// The version of the sender's names.
    pub version: Version,
    pub networks: Vec<NetworkRecord>,
}

/// All that is read of an answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    /// The version of our names that the peer has.
    pub have: Option<Version>,
}

/// Of a node's names. Of one life of its agent the higher is the newer; of two lives the one with the
/// higher epoch, unless that is silent by now ([`Directory`](super::Directory)).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// Another one for each life of an agent. Agents of before took the ms since 1970.
    pub epoch: u64,
    pub count: u64,
}

impl Version {
    /// Above all that clocks have told, for those who compare with it.
    const FLOOR: u32 = 1 << 20;

    /// Of the agent that was started as the `starts`th on its node. `life`: a random number, by which
    /// it differs from one before whose count was lost.
    pub fn epoch(starts: u32, life: u32) -> u64 {
        u64::from(Self::FLOOR.saturating_add(starts)) << 32 | u64::from(life)
    }

    /// The number of starts that an epoch was made of; 0 for one of a clock.
    pub fn starts(epoch: u64) -> u32 {
        ((epoch >> 32) as u32).saturating_sub(Self::FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_start_and_any_start_after_a_clock_is_higher() {
        // In the year 2100.
        let clock = 4_102_444_800_000;
        assert_eq!(Version::starts(clock), 0);
        assert!(Version::epoch(1, 0) > clock);
        assert!(Version::epoch(2, 0) > Version::epoch(1, u32::MAX));
        assert_eq!(Version::starts(Version::epoch(7, 9)), 7);
        assert_eq!(Version::epoch(u32::MAX, 0) >> 32, u64::from(u32::MAX));
    }
}
