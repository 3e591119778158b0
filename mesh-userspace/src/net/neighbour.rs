//! Neighbours: which MAC an address on a link has.

use std::{collections::HashMap, net::IpAddr};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
    },
};

use super::{Net, NetError, address::family};

/// What the kernel knows of an address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub mac: Option<[u8; 6]>,
    /// The MAC may be sent to.
    pub usable: bool,
    /// The MAC was good, but nobody has confirmed it lately: worth a
    /// [`Net::resolve_neighbour`] if it is in use.
    pub stale: bool,
    /// Set by an administrator: the kernel does not resolve it.
    pub fixed: bool,
}

impl Net {
    /// The neighbours on all links, by interface and address.
    pub async fn neighbours(&self) -> Result<HashMap<(u32, IpAddr), Neighbour>, NetError> {
        let all = self
            .dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))
            .await
            .map_err(|e| e.during("list the neighbours"))?;
        let all = all.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
            _ => None,
        });
        Ok(all.collect())
    }

    /// Has the kernel find out the MAC of an address, or confirm the one that it has. Returns at
    /// once; the answer is seen by [`Net::watch`]. IPv6: without a packet to send, the kernel asks
    /// only from a link-local address (ndisc_send_ns). On an interface that has none this asks
    /// nobody, and the entry fails after three seconds, with all packets that came to wait on it.
    pub async fn resolve_neighbour(&self, ifindex: u32, ip: IpAddr) -> Result<(), NetError> {
        // NTF_USE takes the state "permanent" off an entry (__neigh_update, since Linux 5.16), so
        // what an administrator fixed must not be touched.
        if self.neighbour(ifindex, ip).await.is_some_and(|n| n.fixed) {
            return Ok(());
        }
        let mut message = neighbour_message(ifindex, ip);
        message.header.flags = NeighbourFlags::Use;
        match self.send(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE).await {
            Ok(()) => Ok(()),
            Err(e) => {
                let dev = self.label(ifindex).await;
                Err(e.during(format!("have {ip} resolved on {dev}")))
            }
        }
    }

    /// Fixes the MAC of an address on a link: the kernel never asks for it.
    pub async fn fix_neighbour(
        &self,
        ifindex: u32,
        ip: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetError> {
        if self.neighbour(ifindex, ip).await.is_some_and(|n| n.fixed && n.mac == Some(mac)) {
            return Ok(());
        }
        let mut message = neighbour_message(ifindex, ip);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        let how = NLM_F_CREATE | NLM_F_REPLACE;
        match self.send(RouteNetlinkMessage::NewNeighbour(message), how).await {
            Ok(()) => Ok(()),
            Err(e) => {
                let dev = self.label(ifindex).await;
                Err(e.during(format!("fix the MAC of {ip} on {dev}")))
            }
        }
    }

    async fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<Neighbour> {
        let message = RouteNetlinkMessage::GetNeighbour(neighbour_message(ifindex, ip));
        match self.get(message).await {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message))) => {
                neighbour(message).map(|(_, neighbour)| neighbour)
            }
            // Mostly ENOENT. Anything else shows again when the entry is set.
            _ => None,
        }
    }
}

fn neighbour_message(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(ip)));
    message
}

/// `None` for what is not a neighbour of IP: bridge tables, proxies.
pub(super) fn neighbour(message: NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    let header = message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
        || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(v6.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    let valid = matches!(header.state, Reachable | Stale | Delay | Probe | Permanent | Noarp);
    let neighbour = Neighbour {
        mac,
        usable: valid && mac.is_some(),
        stale: header.state == Stale,
        fixed: matches!(header.state, Permanent | Noarp),
    };
    Some(((header.ifindex, ip?), neighbour))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut message = neighbour_message(7, "192.0.2.1".parse().unwrap());
        message.header.state = state;
        message
            .attributes
            .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    #[test]
    fn a_mac_is_usable_until_it_is_known_to_be_wrong() {
        use NeighbourState::{Delay, Failed, Incomplete, None, Permanent, Probe, Reachable, Stale};
        for (state, usable) in [
            (Reachable, true),
            (Stale, true),
            (Delay, true),
            (Probe, true),
            (Permanent, true),
            (Failed, false),
            (Incomplete, false),
            (None, false),
        ] {
            let (key, n) = neighbour(message(state, Some([2; 6]))).unwrap();
            assert_eq!(key, (7, "192.0.2.1".parse().unwrap()));
            assert_eq!(n.usable, usable, "{state:?}");
            assert_eq!(n.stale, state == Stale);
        }
    }

    #[test]
    fn without_a_mac_nothing_is_usable() {
        let (_, n) = neighbour(message(NeighbourState::Reachable, None)).unwrap();
        assert!(!n.usable);
    }

    #[test]
    fn bridge_tables_and_proxies_are_no_neighbours() {
        let mut bridge = message(NeighbourState::Reachable, Some([2; 6]));
        bridge.header.family = AddressFamily::Bridge;
        assert_eq!(neighbour(bridge), None);
        let mut proxy = message(NeighbourState::Reachable, Some([2; 6]));
        proxy.header.flags = NeighbourFlags::Proxy;
        assert_eq!(neighbour(proxy), None);
    }
}
