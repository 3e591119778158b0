//! Making pairs of interfaces: veth, or netkit where the kernel has it.

use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            InfoData, InfoKind, InfoNetkit, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
            NetkitMode, NetkitPolicy,
        },
    },
};

use super::{Net, NetError, Refusal, link::check_name};

/// What a pair is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairKind {
    Veth,
    /// With Ethernet. What the peer sends goes nowhere but where a program sends it. Since Linux 6.7
    /// (35dfaad7188c).
    Netkit,
}

/// A pair of interfaces, each end of which receives what the other sends.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    /// In bytes, without Ethernet header.
    pub mtu: u32,
    pub alias: Option<&'a str>,
    pub peer_name: &'a str,
    pub peer_mac: [u8; 6],
    pub peer_mtu: u32,
    /// Where the peer comes into being; this namespace if `None`.
    pub peer_netns: Option<BorrowedFd<'a>>,
}

/// The indices of a new pair, each in its own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPair {
    pub ifindex: u32,
    pub peer_ifindex: u32,
}

impl Net {
    /// Makes a pair, both ends down and without any address, link-local ones included.
    ///
    /// One request makes both ends in their namespaces with name, MAC and MTU. The kernel takes
    /// alias and address generation only of an interface that exists: if that fails, the pair is
    /// removed again. (Killed just in between, what remains has no alias.)
    pub async fn add_veth(&self, kind: PairKind, veth: &Veth<'_>) -> Result<VethPair, NetError> {
        check_name(veth.name)?;
        check_name(veth.peer_name)?;
        let request = RouteNetlinkMessage::NewLink(veth_message(kind, veth));
        if let Err(e) = self.send(request, NLM_F_CREATE | NLM_F_EXCL).await {
            let taken = match self.link_by_name(veth.name).await {
                _ if !e.is(&[libc::EEXIST]) => "",
                Ok(Some(_)) => " (the first name is taken)",
                _ => " (the second name is taken, in the other namespace)",
            };
            let pair = format!("{} and {}", veth.name, veth.peer_name);
            let kind = if kind == PairKind::Veth { "veth" } else { "netkit" };
            return Err(e.during(format!("make the {kind} pair {pair}{taken}")));
        }
        let made = self.link_by_name(veth.name).await?;
        let gone =
            |name: &str| Refusal::new(libc::ENODEV).during(format!("find {name} after making it"));
        let made = made.ok_or_else(|| gone(veth.name))?;
        match self.finish_veth(made.index, veth).await {
            Ok(Some(peer_ifindex)) => Ok(VethPair { ifindex: made.index, peer_ifindex }),
            unfinished => {
                self.delete_link(made.index).await?;
                Err(unfinished.err().unwrap_or_else(|| gone(veth.peer_name)))
            }
        }
    }

    /// Index of the peer.
    async fn finish_veth(&self, ifindex: u32, veth: &Veth<'_>) -> Result<Option<u32>, NetError> {
        self.set_no_link_local(ifindex).await?;
        if let Some(alias) = veth.alias {
            self.set_alias(ifindex, alias).await?;
        }
        let there = match veth.peer_netns {
            Some(ns) => Self::in_netns(ns)?,
            None => self.clone(),
        };
        let Some(peer) = there.link_by_name(veth.peer_name).await? else { return Ok(None) };
        there.set_no_link_local(peer.index).await?;
        Ok(Some(peer.index))
    }
}

fn veth_message(kind: PairKind, veth: &Veth<'_>) -> LinkMessage {
    let mut peer = end(veth.peer_name, veth.peer_mac, veth.peer_mtu);
    if let Some(ns) = veth.peer_netns {
        peer.attributes.push(LinkAttribute::NetNsFd(ns.as_raw_fd()));
    }
    let mut message = end(veth.name, veth.mac, veth.mtu);
    let (kind, data) = match kind {
        PairKind::Veth => (InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer))),
        PairKind::Netkit => (
            InfoKind::Netkit,
            InfoData::Netkit(vec![
                InfoNetkit::Mode(NetkitMode::L2),
                InfoNetkit::PeerPolicy(NetkitPolicy::Drop),
                InfoNetkit::Peer(peer),
            ]),
        ),
    };
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    message
}

fn end(name: &str, mac: [u8; 6], mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
    ];
    message
}
