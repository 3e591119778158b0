//! Making bridges, and the device that gives their ports headroom.

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            BridgeStpState, InfoBridge, InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute,
            LinkInfo, LinkMessage,
        },
    },
};

use super::{Net, NetError, link::check_name};

/// An interface on its own, made down.
#[derive(Debug, Clone, Copy)]
pub struct Single<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    pub alias: &'a str,
}

impl Net {
    /// Makes a bridge.
    pub async fn add_bridge(&self, bridge: &Single<'_>) -> Result<u32, NetError> {
        self.add_single(bridge, vec![LinkInfo::Kind(InfoKind::Bridge)], "bridge").await
    }

    /// Turns on the spanning tree protocol of a bridge, which speaks it once the bridge is up.
    pub async fn enable_stp(&self, bridge: &str) -> Result<(), NetError> {
        let data = vec![InfoBridge::StpState(BridgeStpState::KernelStp)];
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(data))];
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::IfName(bridge.to_owned()), LinkAttribute::LinkInfo(info)];
        // Only a message of this kind changes what is particular to a kind of interface.
        let done = self.send(RouteNetlinkMessage::NewLink(message), 0).await;
        done.map_err(|e| e.during(format!("turn on the spanning tree of {bridge}")))
    }

    /// Makes a VXLAN interface without peers, in metadata mode, so that it has no VNI of its own.
    /// `port`: UDP port, in use only while the interface is up.
    pub async fn add_vxlan(&self, vxlan: &Single<'_>, port: u16) -> Result<u32, NetError> {
        let data = vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Port(port)];
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
        self.add_single(vxlan, info, "vxlan interface").await
    }

    /// As [`Net::add_vxlan`], of Geneve.
    pub async fn add_geneve(&self, geneve: &Single<'_>, port: u16) -> Result<u32, NetError> {
        let data = vec![InfoGeneve::CollectMetadata, InfoGeneve::Port(port)];
        let info = vec![LinkInfo::Kind(InfoKind::Geneve), LinkInfo::Data(InfoData::Geneve(data))];
        self.add_single(geneve, info, "geneve interface").await
    }

    /// Makes an interface a port of a bridge.
    pub async fn set_controller(&self, ifindex: u32, bridge: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes.push(LinkAttribute::Controller(bridge));
        match self.send(RouteNetlinkMessage::SetLink(message), 0).await {
            Ok(()) => Ok(()),
            Err(e) => {
                let (port, bridge) = (self.label(ifindex).await, self.label(bridge).await);
                Err(e.during(format!("make {port} a port of {bridge}")))
            }
        }
    }

    /// The index of what was made. If it can not be given its alias, it is removed again.
    async fn add_single(
        &self,
        single: &Single<'_>,
        info: Vec<LinkInfo>,
        kind: &str,
    ) -> Result<u32, NetError> {
        check_name(single.name)?;
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(single.name.to_owned()),
            LinkAttribute::Address(single.mac.to_vec()),
            LinkAttribute::LinkInfo(info),
        ];
        let attempt = || format!("make the {kind} {}", single.name);
        self.send(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .await
            .map_err(|e| e.during(attempt()))?;
        let made = self.link_by_name(single.name).await?;
        let made = made.ok_or_else(|| super::Refusal::new(libc::ENODEV).during(attempt()))?;
        match self.set_alias(made.index, single.alias).await {
            Ok(()) => Ok(made.index),
            Err(e) => {
                self.delete_link(made.index).await?;
                Err(e)
            }
        }
    }
}
