//! Room in front of what containers send, so that outer headers go on without a copy of the packet.
//!
//! The kernel leaves as much room in front of a packet as the interface it is for asks for, and a
//! veth asks for none. It asks for more only when a bridge tells it to (ndo_set_rx_headroom), and a
//! bridge asks for as much as its neediest port. So there is a bridge with all host sides of the
//! containers' interfaces, and one port that needs room for outer headers. Bridge and port stay
//! down: the bridge carries nothing, and what the programs did not take ends there.

use super::{ALIAS, Host, HostError, mesh0};
use crate::net::{Link, Single};

const BRIDGE: &str = "mesh-room";
/// A VXLAN interface asks for 50 bytes; the kernel rounds up to 66 behind an Ethernet header.
const NEEDY: &str = "mesh-room-vx";
/// Never in use, since the interface stays down.
const PORT: u16 = 1;
const BRIDGE_MAC: [u8; 6] = [0x02, 0x6d, 0, 0, 0, 1];
const NEEDY_MAC: [u8; 6] = [0x02, 0x6d, 0, 0, 0, 2];

impl Host {
    /// Makes the bridge, and all interfaces of ours that want headroom its ports: also those of an
    /// earlier version. A kernel without bridges or VXLAN works too, only slower for what is not TCP.
    pub(super) async fn ensure_headroom(&mut self) -> Result<(), HostError> {
        let links = self.net.links().await?;
        match self.make_headroom(&links).await {
            Ok(bridge) => {
                let made_here = self.state.endpoints.values().filter(|e| e.bridged.is_none());
                let containers = made_here.map(|e| e.host.index);
                let wanted: Vec<u32> = containers.chain(mesh0::other_end(&links)).collect();
                let without = |l: &&Link| wanted.contains(&l.index) && l.controller.is_none();
                for link in links.iter().filter(without) {
                    self.join_room(link.index, bridge).await;
                }
                self.headroom = Some(bridge);
                Ok(())
            }
            Err(HostError::Net(e)) => {
                tracing::debug!("packets get no room for outer headers in advance: {e}");
                self.headroom = None;
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// The same for one new interface, of an endpoint that was noted.
    pub(super) async fn give_headroom(&mut self, ifindex: u32) -> Result<(), HostError> {
        match self.headroom {
            Some(bridge) => {
                self.join_room(ifindex, bridge).await;
                Ok(())
            }
            None => self.ensure_headroom().await,
        }
    }

    /// One that is gone by now, or that the bridge does not take, works without, only slower.
    async fn join_room(&self, ifindex: u32, bridge: u32) {
        if let Err(e) = self.net.set_controller(ifindex, bridge).await {
            tracing::debug!("an interface gets no room for outer headers: {e}");
        }
    }

    /// The index of the bridge.
    async fn make_headroom(&self, links: &[Link]) -> Result<u32, HostError> {
        let bridge = match self.own(links, BRIDGE).await? {
            Some(bridge) => bridge.index,
            None => {
                let alias = &format!("{ALIAS}room");
                self.net.add_bridge(&Single { name: BRIDGE, mac: BRIDGE_MAC, alias }).await?
            }
        };
        // Docker, since 28.0, waits in vain for 200 ms until the port of a container forwards, and not
        // at all if the bridge has a spanning tree, which may take longer. This one never forwards.
        self.net.enable_stp(BRIDGE).await?;
        let (needy, controller) = match self.own(links, NEEDY).await? {
            Some(needy) => (needy.index, needy.controller),
            None => {
                let alias = &format!("{ALIAS}needs-room");
                let needy = Single { name: NEEDY, mac: NEEDY_MAC, alias };
                (self.net.add_vxlan(&needy, PORT).await?, None)
            }
        };
        if controller != Some(bridge) {
            self.net.set_controller(needy, bridge).await?;
        }
        Ok(bridge)
    }

    /// An interface of ours by its name; one that was being made when we were killed is removed.
    async fn own<'a>(&self, links: &'a [Link], name: &str) -> Result<Option<&'a Link>, HostError> {
        match links.iter().find(|l| l.name == name) {
            Some(link) if mesh0::is_unfinished(link) => {
                self.net.delete_link(link.index).await?;
                Ok(None)
            }
            Some(link) if !mesh0::is_ours(link) => Err(HostError::User(format!(
                "there is an interface {name} that mesh did not make: rename it \
                 (`ip link set {name} name OTHER`)"
            ))),
            other => Ok(other),
        }
    }
}
