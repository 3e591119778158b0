//! Interfaces.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoGeneve, InfoVxlan, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    },
    nsid::{NsidAttribute, NsidMessage},
};

use super::{Net, NetError, Refusal, wait::until};

/// The index of an interface of this thread's network namespace, if there is one of that name.
pub fn interface_index(name: &str) -> Option<u32> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    rustix::net::netdevice::name_to_index(socket.ok()?, name).ok()
}

const RUNNING: Duration = Duration::from_secs(1);

/// An interface of this namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `gre`, `gretap`, ... as `ip -d link` shows it; a network card has none.
    pub kind: Option<String>,
    pub mac: Option<[u8; 6]>,
    /// Largest packet without link-layer header, in bytes.
    pub mtu: u32,
    /// Set up by its administrator; it may still be without carrier.
    pub up: bool,
    /// Has carrier, and its queue takes packets.
    pub running: bool,
    /// Has an Ethernet header. Loopback, which has one too, counts as not.
    pub ethernet: bool,
    pub loopback: bool,
    pub alias: Option<String>,
    /// The interface below or at the other end, an index in the namespace where that one is.
    pub peer: Option<u32>,
    /// The namespace where that one is, by this namespace's number for it; `None` if it is this one.
    pub peer_netns: Option<i32>,
    /// The bridge, bond or VRF that it belongs to.
    pub controller: Option<u32>,
    /// Of VXLAN and Geneve: the UDP port that it receives on.
    pub udp_port: Option<u16>,
}

impl Net {
    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Link>, NetError> {
        let all = self
            .dump(get_link(LinkMessage::default()))
            .await
            .map_err(|e| e.during("list the interfaces"))?;
        Ok(all.into_iter().filter_map(link).collect())
    }

    /// The interface named `name`; alternative names count too.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetError> {
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(message).await.map_err(|e| e.during(format!("look up interface {name}")))
    }

    pub async fn link(&self, ifindex: u32) -> Result<Option<Link>, NetError> {
        self.get_link(link_message(ifindex))
            .await
            .map_err(|e| e.during(format!("look up interface {ifindex}")))
    }

    /// Waits until an interface that is up has its queue, or is gone; for no longer than a second. The
    /// kernel gives it one a moment after the other end came up (linkwatch), and drops what is sent
    /// there before: the answer to a container's first ARP request would be lost, and the next is a
    /// second later.
    pub async fn wait_until_running(&self, ifindex: u32) -> Result<(), NetError> {
        until(RUNNING, async || Ok(self.link(ifindex).await?.is_none_or(|link| link.running)))
            .await
            .map(drop)
    }

    /// This namespace's number for another one, as in [`Link::peer_netns`]; `None` if it has none,
    /// since no interface here has its other end there.
    pub async fn netns_number(&self, ns: BorrowedFd<'_>) -> Result<Option<i32>, NetError> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(ns.as_raw_fd() as u32));
        let answer = self.get(RouteNetlinkMessage::GetNsId(message)).await;
        let answer = answer.map_err(|e| e.during("look up the number of a network namespace"))?;
        let Some(RouteNetlinkMessage::NewNsId(answer)) = answer else { return Ok(None) };
        Ok(answer.attributes.into_iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) if id >= 0 => Some(id),
            _ => None,
        }))
    }

    pub async fn set_up(&self, ifindex: u32) -> Result<(), NetError> {
        let mut message = link_message(ifindex);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set_link(message, |dev| format!("set {dev} up")).await
    }

    /// `mtu`: in bytes, without link-layer header.
    pub async fn set_mtu(&self, ifindex: u32, mtu: u32) -> Result<(), NetError> {
        let message = link_message_with(ifindex, LinkAttribute::Mtu(mtu));
        self.set_link(message, |dev| format!("set the MTU of {dev} to {mtu}")).await
    }

    pub async fn set_mac(&self, ifindex: u32, mac: [u8; 6]) -> Result<(), NetError> {
        let message = link_message_with(ifindex, LinkAttribute::Address(mac.to_vec()));
        self.set_link(message, |dev| format!("set the MAC of {dev}")).await
    }

    pub async fn set_alias(&self, ifindex: u32, alias: &str) -> Result<(), NetError> {
        let message = link_message_with(ifindex, LinkAttribute::IfAlias(alias.to_owned()));
        self.set_link(message, |dev| format!("set the alias of {dev} to {alias:?}")).await
    }

    /// The interface asks for no MACs: frames go out without neighbour resolution.
    pub async fn set_no_arp(&self, ifindex: u32) -> Result<(), NetError> {
        let mut message = link_message(ifindex);
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        self.set_link(message, |dev| format!("switch ARP off on {dev}")).await
    }

    /// No IPv6 link-local address is made up when the interface goes up.
    pub async fn set_no_link_local(&self, ifindex: u32) -> Result<(), NetError> {
        let message = link_message_with(ifindex, address_generation(In6AddrGenMode::None));
        let attempt = |dev: &str| format!("switch IPv6 address generation off on {dev}");
        match self.set_link(message, attempt).await {
            // There is no IPv6 on it: the kernel has none, or the MTU is below 1280.
            Err(e) if e.errno() == Some(libc::EAFNOSUPPORT) => Ok(()),
            done => done,
        }
    }

    /// Lets the kernel make a link-local address when the interface comes up.
    pub async fn set_link_local(&self, ifindex: u32) -> Result<(), NetError> {
        let message = link_message_with(ifindex, address_generation(In6AddrGenMode::Eui64));
        let attempt = |dev: &str| format!("switch IPv6 address generation on on {dev}");
        self.set_link(message, attempt).await
    }

    /// Before Linux 6.2 the interface must be down.
    pub async fn rename(&self, ifindex: u32, name: &str) -> Result<(), NetError> {
        check_name(name)?;
        let message = link_message_with(ifindex, LinkAttribute::IfName(name.to_owned()));
        self.set_link(message, |dev| format!("rename {dev} to {name}")).await
    }

    /// Removes an interface, and with a veth its peer; one that is not there is no error.
    pub async fn delete_link(&self, ifindex: u32) -> Result<(), NetError> {
        let message = RouteNetlinkMessage::DelLink(link_message(ifindex));
        match self.send(message, 0).await {
            Err(e) if !e.is(&[libc::ENODEV]) => {
                let dev = self.label(ifindex).await;
                Err(e.during(format!("remove {dev}")))
            }
            _ => Ok(()),
        }
    }

    /// How an interface is called in an error.
    pub(super) async fn label(&self, ifindex: u32) -> String {
        match self.get_link(link_message(ifindex)).await {
            Ok(Some(link)) => link.name,
            _ => format!("interface {ifindex}"),
        }
    }

    async fn set_link(
        &self,
        message: LinkMessage,
        attempt: impl FnOnce(&str) -> String,
    ) -> Result<(), NetError> {
        let ifindex = message.header.index;
        match self.send(RouteNetlinkMessage::SetLink(message), 0).await {
            Ok(()) => Ok(()),
            Err(e) => Err(e.during(attempt(&self.label(ifindex).await))),
        }
    }

    async fn get_link(&self, message: LinkMessage) -> Result<Option<Link>, Refusal> {
        match self.get(get_link(message)).await {
            Ok(answer) => Ok(answer.and_then(link)),
            Err(e) if e.is(&[libc::ENODEV]) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The kernel's rule (dev_valid_name).
pub(super) fn check_name(name: &str) -> Result<(), NetError> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(NetError::Name { name: name.to_owned() });
    }
    Ok(())
}

fn link_message(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message
}

fn link_message_with(ifindex: u32, attribute: LinkAttribute) -> LinkMessage {
    let mut message = link_message(ifindex);
    message.attributes.push(attribute);
    message
}

fn address_generation(mode: In6AddrGenMode) -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
}

fn get_link(mut message: LinkMessage) -> RouteNetlinkMessage {
    // Counters of every interface are most of the answer, and nobody here reads them.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(link_of(message)),
        _ => None,
    }
}

pub(super) fn link_of(message: LinkMessage) -> Link {
    let loopback = message.header.flags.contains(LinkFlags::Loopback);
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback,
        alias: None,
        peer: None,
        peer_netns: None,
        controller: None,
        udp_port: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Link(peer) => link.peer = Some(peer).filter(|p| *p != 0),
            LinkAttribute::LinkNetNsId(nsid) => link.peer_netns = Some(nsid).filter(|id| *id >= 0),
            LinkAttribute::Controller(controller) => link.controller = Some(controller),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(data) => link.udp_port = udp_port(&data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// The port of a tunnel in UDP.
fn udp_port(data: &InfoData) -> Option<u16> {
    match data {
        InfoData::Vxlan(all) => all.iter().find_map(|info| match info {
            InfoVxlan::Port(port) => Some(*port),
            _ => None,
        }),
        InfoData::Geneve(all) => all.iter().find_map(|info| match info {
            InfoGeneve::Port(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_the_kernel_sees_them() {
        for good in ["eth0", "mesh0", "ümlaut", "exactly15bytes_"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen_bytes_xx", "a\nb", "a\0"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
