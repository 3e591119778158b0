//! Multicast groups: endpoints here are asked for theirs time and again, as IGMP (RFC 3376) and MLD
//! (RFC 3810) have it, and what nobody renewed is forgotten. The programs note the answers, and pass
//! them on to the other nodes.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use mesh_common::maps::{EndpointInfo, FloodInfo, FloodKey, GroupInfo, GroupKey, PortInfo};

use super::{Host, HostError};
use crate::{
    bpf::sync,
    config::Flood,
    net::PacketSocket,
    plan::{Changes, Entries},
};

mod carry;
mod query;
mod status;

pub(super) use carry::carry;
pub use status::GroupStatus;

/// RFC 3376, 8.2 and 8.3.
pub const QUERY_INTERVAL: Duration = Duration::from_secs(125);
const RESPONSE: Duration = Duration::from_secs(10);
const ROBUSTNESS: u32 = 2;

/// Asks.
#[derive(Debug)]
pub struct Querier {
    socket: PacketSocket,
    interval: Duration,
    /// From then on all that are there have been asked.
    since: Instant,
    /// When to ask all again.
    due: Instant,
    /// Who has been asked, and at which [`Host::revision`] they were looked at.
    asked: HashSet<u32>,
    revision: Option<u64>,
}

impl Querier {
    /// Needs CAP_NET_RAW.
    pub fn open(interval: Duration) -> std::io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            socket: PacketSocket::open()?,
            interval,
            since: now,
            due: now,
            asked: HashSet::new(),
            revision: None,
        })
    }

    /// When there is something to do. `revision`: the host's.
    pub fn due(&self, revision: u64) -> Instant {
        if self.revision == Some(revision) { self.due } else { Instant::now() }
    }

    fn response(&self) -> Duration {
        RESPONSE.min(self.interval / 2)
    }

    /// How long a membership lasts that nobody renews (RFC 3376, 8.4).
    fn life(&self) -> Duration {
        self.interval * ROBUSTNESS + self.response()
    }

    fn ask(&self, port: &PortInfo) {
        for query in query::queries(port, self.response(), self.interval) {
            // It may be down, or gone already.
            if let Err(e) = self.socket.send(port.ifindex, &query) {
                tracing::debug!(ifindex = port.ifindex, "asking for groups: {e}");
            }
        }
    }
}

impl Host {
    /// Asks who is to be asked by now, and forgets what is over.
    pub fn renew_groups(&self, querier: &mut Querier) -> Result<(), HostError> {
        let is_due = querier.due <= Instant::now();
        querier.revision = Some(self.revision());
        if is_due {
            querier.due = Instant::now() + querier.interval;
        }
        let floods = |c: &crate::config::Cluster| c.networks.iter().any(|n| n.flood == Flood::All);
        if !self.cluster().is_some_and(floods) {
            querier.asked.clear();
            return Ok(());
        }
        let tables = self.tables()?;
        let flood = sync::flood(tables)?;
        let ports = sync::ports(tables)?;
        // The host's own memberships the kernel tells and takes back without being asked.
        let here = flood.iter().filter(|(key, to)| {
            key.list_vni >> 24 == FloodKey::LOCAL && to.flags & EndpointInfo::HOST == 0
        });
        let here: HashSet<u32> = here.map(|(_, to)| to.target).collect();
        if querier.asked.is_empty() {
            querier.since = Instant::now();
        }
        for port in here.iter().filter(|i| is_due || !querier.asked.contains(i)) {
            if let Some(port) = ports.get(port) {
                querier.ask(port);
            }
        }
        querier.asked = here;
        let asked_long = querier.since.elapsed() > querier.life();
        let clock = Clock { now: uptime(), life: querier.life().as_secs() as u32, asked_long };
        let changes = forget(&sync::groups(tables)?, &members(&flood), clock);
        Ok(sync::change_groups(tables, &changes)?)
    }
}

/// Seconds since boot, as the programs count them.
fn uptime() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written to. It can not fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u32::try_from(now.tv_sec).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// This host itself.
    Host,
    Endpoint,
    Peer,
}

/// By network and [`GroupKey::member`].
type Members = HashMap<(u32, u32), Member>;

fn members(flood: &Entries<FloodKey, FloodInfo>) -> Members {
    let member = |(key, to): (&FloodKey, &FloodInfo)| {
        let vni = key.list_vni & mesh_common::maps::VNI_MAX;
        match key.list_vni >> 24 {
            FloodKey::PEERS => ((vni, GroupKey::PEER | to.target), Member::Peer),
            _ if to.flags & EndpointInfo::HOST != 0 => ((vni, to.target), Member::Host),
            _ => ((vni, to.target), Member::Endpoint),
        }
    };
    flood.iter().map(member).collect()
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    /// In seconds since boot.
    now: u32,
    /// In seconds.
    life: u32,
    /// Endpoints here have been asked for as long as a membership lasts.
    asked_long: bool,
}

/// What is over: of who is gone, and what was not renewed. A peer's memberships are only over if it
/// renewed others since: while its agent is away nobody asks there, and packets go on. Who asked for
/// more than is noted gets all until it has said something else for as long.
fn forget(
    groups: &Entries<GroupKey, GroupInfo>,
    members: &Members,
    clock: Clock,
) -> Changes<GroupKey, GroupInfo> {
    let any = |key: &GroupKey| GroupKey { group: GroupKey::ANY, ..*key };
    let gets_all = |key: &GroupKey, info: &GroupInfo| {
        key.member != 0 && key.group == GroupKey::ANY && info.count > GroupKey::most(key.member)
    };
    let has_spoken_since = |key: &GroupKey, info: &GroupInfo| {
        gets_all(key, info) && info.count >= GroupKey::most(key.member) + GroupKey::SPOKEN_SINCE
    };
    let is_over = |key: &GroupKey, info: &GroupInfo| {
        let newest = match members.get(&(key.vni, key.member)) {
            None => return true,
            Some(Member::Host) => return false,
            Some(Member::Endpoint) if !clock.asked_long => return false,
            Some(Member::Endpoint) => clock.now,
            Some(Member::Peer) if has_spoken_since(key, info) => clock.now,
            Some(Member::Peer) => groups.get(&any(key)).map_or(clock.now, |info| info.heard),
        };
        newest.saturating_sub(info.heard) > clock.life
    };
    // Of each member, and of all here by group: how many are left.
    let mut left = HashMap::<GroupKey, u32>::new();
    let mut changes = Changes { set: Vec::new(), remove: Vec::new() };
    for (key, info) in groups.iter().filter(|(key, _)| key.member != 0) {
        if is_over(key, info) {
            changes.remove.push(*key);
        } else if key.group != GroupKey::ANY {
            *left.entry(any(key)).or_default() += 1;
            if key.member & GroupKey::PEER == 0 {
                *left.entry(GroupKey { member: 0, ..*key }).or_default() += 1;
            }
        }
    }
    for (key, info) in
        groups.iter().filter(|(key, _)| key.member == 0 || key.group == GroupKey::ANY)
    {
        let count = left.get(key).copied().unwrap_or_default();
        if gets_all(key, info) || info.count == count || changes.remove.contains(key) {
            continue;
        }
        match (count, key.member) {
            (0, 0) => changes.remove.push(*key),
            _ => changes.set.push((*key, GroupInfo { count, ..*info })),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use mesh_common::maps::Addr;

    use super::*;

    const LIFE: Clock = Clock { now: 10_000, life: 260, asked_long: true };
    const PEER: u32 = GroupKey::PEER | 3;

    fn group(last: u8) -> Addr {
        Addr::from(IpAddr::from([239, 0, 0, last]))
    }

    fn entry(member: u32, group: Addr, heard: u32, count: u32) -> (GroupKey, GroupInfo) {
        (GroupKey { vni: 7, member, group }, GroupInfo { heard, count })
    }

    fn changes(entries: &[(GroupKey, GroupInfo)], clock: Clock) -> Changes<GroupKey, GroupInfo> {
        let members = [(20, Member::Endpoint), (21, Member::Endpoint), (5, Member::Host)];
        let members = members.into_iter().chain([(PEER, Member::Peer)]);
        let members = members.map(|(member, is)| ((7, member), is)).collect();
        forget(&entries.iter().copied().collect(), &members, clock)
    }

    #[test]
    fn what_is_renewed_stays_and_what_is_not_goes() {
        let entries = [
            entry(20, GroupKey::ANY, 9_990, 2),
            entry(20, group(1), 9_990, 1),
            entry(20, group(2), 9_000, 1),
            entry(0, group(1), 0, 1),
            entry(0, group(2), 0, 1),
            // The host is not asked.
            entry(5, group(1), 1, 1),
        ];
        let changes = changes(&entries, LIFE);
        let removed: HashSet<_> = changes.remove.into_iter().collect();
        assert_eq!(removed, HashSet::from([entries[2].0, entries[4].0]));
        // The host is one of those here.
        let set: HashMap<_, _> = changes.set.into_iter().map(|(k, v)| (k, v.count)).collect();
        assert_eq!(set, HashMap::from([(entries[0].0, 1), (entries[3].0, 2)]));
    }

    #[test]
    fn nothing_here_is_over_before_all_were_asked_long_enough() {
        let entries =
            [entry(20, GroupKey::ANY, 1, 1), entry(20, group(1), 1, 1), entry(0, group(1), 0, 1)];
        let clock = Clock { asked_long: false, ..LIFE };
        assert!(changes(&entries, clock).is_empty());
        assert_eq!(changes(&entries, LIFE).remove.len(), 3);
    }

    #[test]
    fn who_is_gone_takes_its_groups_along() {
        let gone = GroupKey::PEER | 4;
        let entries = [entry(22, group(1), 9_999, 1), entry(gone, GroupKey::ANY, 9_999, 0)];
        assert_eq!(changes(&entries, LIFE).remove.len(), 2);
    }

    #[test]
    fn groups_of_a_silent_peer_stay() {
        let entries = [entry(PEER, GroupKey::ANY, 100, 1), entry(PEER, group(1), 100, 1)];
        assert!(changes(&entries, LIFE).is_empty());
        // But not if it renewed others since.
        let entries = [
            entry(PEER, GroupKey::ANY, 9_000, 2),
            entry(PEER, group(1), 100, 1),
            entry(PEER, group(2), 9_000, 1),
        ];
        assert_eq!(changes(&entries, LIFE).remove, [entries[1].0]);
    }

    #[test]
    fn peer_that_asked_for_too_many_gets_all_until_it_has_said_less_for_long() {
        let all = |heard, count| [entry(PEER, GroupKey::ANY, heard, GroupKey::PEER_MAX + count)];
        // Its agent may be away.
        assert!(changes(&all(1, 1), LIFE).is_empty());
        assert!(changes(&all(9_990, 2), LIFE).is_empty());
        assert_eq!(changes(&all(9_000, 2), LIFE).remove.len(), 1);
    }

    #[test]
    fn who_asked_for_too_many_gets_all_until_it_is_silent() {
        let many = GroupKey::ENDPOINT_MAX + 1;
        assert!(changes(&[entry(20, GroupKey::ANY, 9_999, many)], LIFE).is_empty());
        assert_eq!(changes(&[entry(20, GroupKey::ANY, 1, many)], LIFE).remove.len(), 1);
    }
}
