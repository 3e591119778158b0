//! Addresses of interfaces.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use ipnet::IpNet;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    },
};

use super::{Net, NetError, wait::until};

/// RFC 8200, 5. On an interface with less the kernel has no IPv6.
const IPV6_MIN_MTU: u32 = 1280;
/// It is less than a millisecond nearly always; 90 were seen beside namespaces that came and went.
const LOCAL: Duration = Duration::from_secs(3);

/// An address of an interface of this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ifindex: u32,
    /// The address itself with its prefix length: host bits are kept.
    pub net: IpNet,
}

impl Address {
    pub fn ip(&self) -> IpAddr {
        self.net.addr()
    }
}

impl Net {
    /// All addresses of all interfaces.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetError> {
        let all = self
            .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .await
            .map_err(|e| e.during("list the addresses"))?;
        Ok(all.into_iter().filter_map(address).collect())
    }

    /// The interfaces that have a link-local IPv6 address which duplicate address detection has passed.
    pub async fn with_link_local(&self) -> Result<HashSet<u32>, NetError> {
        let mut all = AddressMessage::default();
        all.header.family = AddressFamily::Inet6;
        let all = self
            .dump(RouteNetlinkMessage::GetAddress(all))
            .await
            .map_err(|e| e.during("list the IPv6 addresses"))?;
        let ready = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewAddress(m) => !m
                .header
                .flags
                .intersects(AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed),
            _ => false,
        };
        let link_local = |address: &Address| match address.ip() {
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
            IpAddr::V4(_) => false,
        };
        let all = all.into_iter().filter(ready).filter_map(address).filter(link_local);
        Ok(all.map(|address| address.ifindex).collect())
    }

    /// Adds an address. IPv6: without duplicate address detection; it can still not be used at once, see
    /// [`Self::wait_until_local`].
    /// One that is there already is left as it is.
    pub async fn add_address(
        &self,
        ifindex: u32,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetError> {
        let mut message = address_message(ifindex, ip, prefix_len);
        if ip.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        match self.send(message, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(e) if !e.is(&[libc::EEXIST]) => {
                let dev = self.label(ifindex).await;
                let small = match self.link(ifindex).await {
                    Ok(Some(link)) if ip.is_ipv6() && link.mtu < IPV6_MIN_MTU => {
                        format!(" (its MTU is {}: IPv6 needs {IPV6_MIN_MTU})", link.mtu)
                    }
                    _ => String::new(),
                };
                Err(e.during(format!("add address {ip}/{prefix_len} to {dev}{small}")))
            }
            _ => Ok(()),
        }
    }

    /// Waits until what is sent to an address of an interface that is up is received; whether it is.
    /// The kernel acknowledges an IPv6 address first and makes its local route later
    /// (addrconf_dad_work), which takes the longer the more others want the RTNL lock. Packets that
    /// arrive before are dropped, answers to neighbour solicitations too.
    pub async fn wait_until_local(&self, ip: IpAddr) -> Result<bool, NetError> {
        until(LOCAL, async || Ok(self.route_to(ip, None).await?.is_some_and(|hop| hop.local))).await
    }

    /// Removes an address; one that is not there is no error.
    pub async fn remove_address(
        &self,
        ifindex: u32,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetError> {
        let message = RouteNetlinkMessage::DelAddress(address_message(ifindex, ip, prefix_len));
        match self.send(message, 0).await {
            Err(e) if !e.is(&[libc::EADDRNOTAVAIL, libc::ENODEV]) => {
                let dev = self.label(ifindex).await;
                Err(e.during(format!("remove address {ip}/{prefix_len} from {dev}")))
            }
            _ => Ok(()),
        }
    }
}

fn address_message(ifindex: u32, ip: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.index = ifindex;
    message.header.prefix_len = prefix_len;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address(message: RouteNetlinkMessage) -> Option<Address> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => address_of(message),
        _ => None,
    }
}

pub(super) fn address_of(message: AddressMessage) -> Option<Address> {
    let (mut local, mut prefix) = (None, None);
    for attribute in message.attributes {
        match attribute {
            // On a point-to-point link the prefix is the far end's address.
            AddressAttribute::Local(ip) => local = Some(ip),
            AddressAttribute::Address(ip) => prefix = Some(ip),
            _ => {}
        }
    }
    let net = IpNet::new(local.or(prefix)?, message.header.prefix_len).ok()?;
    Some(Address { ifindex: message.header.index, net })
}
