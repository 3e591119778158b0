//! Memberships taken along into new maps: whoever asked for a group is not asked again for two minutes.

use std::collections::HashMap;

use mesh_common::maps::{Addr, GroupInfo, GroupKey, PeerInfo};

use crate::{
    bpf::{BpfError, Pins, sync, tables::Tables},
    plan::{Changes, Entries},
};

/// Copies the memberships of the pinned maps into `new`, which has its peers already. Without pinned
/// maps there are none.
pub(in crate::host) fn carry(pins: &Pins, new: &Tables) -> Result<(), BpfError> {
    let Ok(old) = Tables::open(&pins.maps()) else { return Ok(()) };
    let set = renumbered(&sync::groups(&old)?, &sync::peers(&old)?, &sync::peers(new)?);
    sync::change_groups(new, &Changes { set, remove: Vec::new() })
}

/// As they are where peers have other indices. Of peers that are gone there are none.
fn renumbered(
    groups: &Entries<GroupKey, GroupInfo>,
    old: &Entries<u32, PeerInfo>,
    new: &Entries<u32, PeerInfo>,
) -> Vec<(GroupKey, GroupInfo)> {
    let index_of: HashMap<Addr, u32> = new.iter().map(|(index, p)| (p.remote, *index)).collect();
    let member = |member: u32| match member & GroupKey::PEER {
        0 => Some(member),
        _ => {
            let peer = old.get(&(member & !GroupKey::PEER))?;
            Some(GroupKey::PEER | index_of.get(&peer.remote)?)
        }
    };
    let entries = groups.iter();
    entries
        .filter_map(|(key, info)| Some((GroupKey { member: member(key.member)?, ..*key }, *info)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_peer_keeps_its_memberships_under_another_index() {
        let address = |last: u8| Addr::from(IpAddr::from([192, 0, 2, last]));
        let peer = |last| PeerInfo { remote: address(last), ..PeerInfo::default() };
        let old = Entries::from_iter([(3, peer(11)), (4, peer(12))]);
        let new = Entries::from_iter([(0, peer(13)), (7, peer(11))]);
        let group = Addr::from(IpAddr::from([239, 0, 0, 1]));
        let info = GroupInfo { heard: 5, count: 1 };
        let of = |member| GroupKey { vni: 9, member, group };
        let here = [0, 20].map(of);
        let [stays, is_gone, unknown] = [3, 4, 5].map(|index| of(GroupKey::PEER | index));
        let all = here.into_iter().chain([stays, is_gone, unknown]);
        let groups = all.map(|key| (key, info)).collect();

        let mut carried = renumbered(&groups, &old, &new);

        carried.sort_by_key(|(key, _)| key.member);
        assert_eq!(carried, [here[0], here[1], of(GroupKey::PEER | 7)].map(|key| (key, info)));
    }
}
