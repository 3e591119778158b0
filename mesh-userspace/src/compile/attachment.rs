//! What is attached to this host.

use std::net::IpAddr;

use mesh_common::{
    maps::{Addr, EndpointInfo, EndpointKey, PortInfo},
    wire::{mac_pair, mac_words},
};

use super::{Attachment, AttachmentKind, Desired, flood, node_mac};
use crate::config::{Node, gateway};

impl Desired {
    pub(super) fn add_attachment(&mut self, me: &Node, a: &Attachment) {
        let gateway_mac = mac_words(node_mac(me.underlay));
        let mac = mac_words(a.mac);
        let subnets = || me.subnets.iter().filter(|(vni, _)| *vni == a.vni).map(|(_, net)| net);
        let gateway_of = |v4: bool| {
            subnets().find(|net| net.addr().is_ipv4() == v4).map(|net| Addr::from(gateway(*net)))
        };
        let is_bridged = a.kind == AttachmentKind::Bridged;
        let mut port = PortInfo {
            ifindex: a.ifindex,
            vni: a.vni.get(),
            id: a.id,
            mtu: self.maps.networks.get(&a.vni.get()).map_or(0, |n| n.mtu),
            gateway_mac,
            mac,
            lens: self.lens(a.vni),
            gateway4: gateway_of(true).unwrap_or_default().0[3],
            gateway6: gateway_of(false).unwrap_or_default().0,
            flags: match a.kind {
                AttachmentKind::Host => PortInfo::HOST,
                AttachmentKind::Container => 0,
                AttachmentKind::Netkit => PortInfo::NETKIT,
                AttachmentKind::Bridged => PortInfo::BRIDGED,
            } | if flood::is_on(&self.maps.networks, a.vni.get())
                && a.kind != AttachmentKind::Netkit
            {
                PortInfo::FLOOD
            } else {
                0
            },
            ..PortInfo::default()
        };
        let info = EndpointInfo {
            ifindex: a.ifindex,
            id: a.id,
            flags: match a.kind {
                AttachmentKind::Host => EndpointInfo::HOST,
                AttachmentKind::Container | AttachmentKind::Netkit => 0,
                AttachmentKind::Bridged => EndpointInfo::BRIDGED,
            },
            macs: mac_pair(a.mac, node_mac(me.underlay)),
            identity: 0,
        };
        // An address that the file no longer gives this node is nobody's: the peers would not take
        // what it sends.
        for ip in a.addresses.iter().filter(|ip| subnets().any(|net| net.contains(*ip))) {
            let addr = Addr::from(*ip);
            match ip {
                IpAddr::V4(_) if is_bridged => port.flags |= PortInfo::BOUND4,
                IpAddr::V6(_) if is_bridged => port.flags |= PortInfo::BOUND6,
                // The first of each family stands here, which is looked at first.
                IpAddr::V4(_) if port.addr4 == 0 => port.addr4 = addr.0[3],
                IpAddr::V6(_) if port.addr6 == [0; 4] => port.addr6 = addr.0,
                _ => {}
            }
            self.maps.endpoints.insert(EndpointKey { vni: a.vni.get(), addr }, info);
        }
        self.maps.ports.insert(a.ifindex, port);
    }
}
