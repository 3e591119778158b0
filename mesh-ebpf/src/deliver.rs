//! To an endpoint on this host.

use mesh_common::{
    maps::{EndpointInfo, PortInfo},
    verdict::{DropReason, Verdict},
    wire::ETH_LEN,
};

use crate::{
    count,
    end::Done,
    packet::{self, Packet},
};

/// A packet that never left this host. `bytes`: without the Ethernet header.
#[inline(always)]
pub fn local(
    packet: &Packet,
    port: &PortInfo,
    to: &EndpointInfo,
    bytes: u32,
) -> Result<Done, DropReason> {
    packet.front::<ETH_LEN>()?.put_macs::<0>(&to.macs);
    // Nor from a bridge's port: the frame came for another MAC than the port's, and a kernel that does not
    // scrub what it redirects to a peer drops it for that at the other end.
    let queued = PortInfo::HOST | PortInfo::NETKIT | PortInfo::BRIDGED;
    Ok(hand_over(to, bytes, port.flags & queued == 0))
}

/// The frame has its Ethernet header for `to`: hand it over. `at_ingress`: the hook is one from
/// which the veth's backlog can be skipped.
#[inline(always)]
pub fn hand_over(to: &EndpointInfo, bytes: u32, at_ingress: bool) -> Done {
    count::endpoint_rx(to.id, bytes);
    if to.flags & EndpointInfo::HOST != 0 {
        (Verdict::Host, packet::redirect_ingress(to.ifindex))
    } else if at_ingress {
        (Verdict::Deliver, packet::redirect_peer(to.ifindex))
    } else {
        (Verdict::Deliver, packet::redirect(to.ifindex))
    }
}
