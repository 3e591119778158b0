//! Being told of changes.

use std::{collections::VecDeque, fmt, net::IpAddr};

use ipnet::IpNet;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage, link::LinkMessage},
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

use super::{
    Neighbour, Net, NetError, Refusal,
    address::address_of,
    conntrack::{attributes, split},
    link::link_of,
    neighbour::neighbour,
    route::destination,
    tables::Tables,
};

/// Something changed in the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An interface came, went, or is not as it was. `kind` and `controller`: as of [`Link`]; what a
    /// bridge says of a port has the kind `bridge`.
    ///
    /// [`Link`]: super::Link
    Link { ifindex: u32, name: String, kind: Option<String>, controller: Option<u32> },
    /// An address came or went; `None` if it can not be told which.
    Address { ifindex: u32, ip: Option<IpAddr> },
    /// A route came or went, in any table. `None`: a rule that says which table counts.
    Route { dst: Option<IpNet> },
    /// A qdisc or a filter of an interface went.
    Filter { ifindex: u32 },
    /// A table of nftables whose name begins with [`TABLES`] came, went, or has other rules.
    Tables,
    /// Forwarding was switched on or off: off only where it is for all interfaces.
    Forwarding { on: bool },
    /// `now`: what is known of the neighbour; `None` if it was forgotten.
    Neighbour { ifindex: u32, ip: IpAddr, now: Option<Neighbour> },
    /// Changes were missed: everything must be read again.
    Overrun,
}

/// The changes of a namespace, in order, from [`Net::watch`] on.
///
/// The queue is the socket's: a reader that does not keep up gets [`Change::Overrun`], never an
/// agent that grows.
pub struct Watch {
    socket: TokioSocket,
    /// `None` where the kernel has no nftables.
    tables: Option<Tables>,
    datagram: Vec<u8>,
    changes: VecDeque<Change>,
}

/// Begins the names of all tables of nftables that mesh makes.
pub const TABLES: &str = "mesh_";

/// Room for some ten thousand changes; the kernel cuts it to net.core.rmem_max.
const QUEUE_BYTES: u32 = 4 << 20;

/// Larger than any message of the kernel's (NLMSG_GOODSIZE is a page, links may take a few).
const DATAGRAM_BYTES: usize = 64 << 10;

impl Net {
    /// Starts watching links, addresses, routes, neighbours and qdiscs of this namespace, whether it
    /// forwards, and the tables of nftables that are ours.
    pub fn watch(&self) -> Result<Watch, NetError> {
        let socket = self
            .inside(subscribe)
            .map_err(|e| Refusal::from(e).during("watch the network for changes"))?;
        let tables = self.inside(|| Tables::subscribe(TABLES));
        let tables = tables.inspect_err(|e| tracing::debug!("changes of nftables: {e}")).ok();
        let datagram = Vec::with_capacity(DATAGRAM_BYTES);
        Ok(Watch { socket, tables, datagram, changes: VecDeque::new() })
    }
}

fn subscribe() -> std::io::Result<TokioSocket> {
    use MulticastGroup::{
        Ipv4Ifaddr, Ipv4Netconf, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Netconf, Ipv6Route, Ipv6Rule,
        Link, Neigh, Tc,
    };
    let v4 = [Ipv4Ifaddr, Ipv4Netconf, Ipv4Route, Ipv4Rule];
    let v6 = [Ipv6Ifaddr, Ipv6Netconf, Ipv6Route, Ipv6Rule];
    let groups = [Link, Neigh, Tc].into_iter().chain(v4).chain(v6);
    let groups = groups.fold(0, |all, group| all | 1 << (group as u32 - 1));
    let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_ROUTE)?;
    socket.socket_mut().set_rx_buf_sz(QUEUE_BYTES)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

impl Watch {
    /// The next change. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Change, NetError> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            self.datagram.clear();
            let told = tokio::select! {
                told = self.socket.recv_from(&mut self.datagram) => told,
                told = changed(self.tables.as_mut()) => match told {
                    Ok(()) => return Ok(Change::Tables),
                    Err(e) => Err(e),
                },
            };
            match told {
                Ok(_) => self.changes.extend(changes(&self.datagram)),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.drain();
                    return Ok(Change::Overrun);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Refusal::from(e).during("watch the network for changes")),
            }
        }
    }
}

impl Watch {
    /// Empties the queue. Until then the kernel drops more without saying so again
    /// (NETLINK_S_CONGESTED), and what is in it is about to be read anew anyway.
    fn drain(&mut self) {
        loop {
            self.datagram.clear();
            match self.socket.socket_ref().recv(&mut self.datagram, 0) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("changes", &self.changes).finish_non_exhaustive()
    }
}

/// Returns when a table of ours was changed; never without a watch.
async fn changed(tables: Option<&mut Tables>) -> std::io::Result<()> {
    match tables {
        Some(tables) => tables.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether forwarding was switched, as a message of netconf says it.
fn forwarding(body: &[u8]) -> Option<Change> {
    let of = |wanted: u16| {
        let value = attributes(body.get(NETCONF..)?).find(|(kind, _)| *kind == wanted)?.1;
        Some(i32::from_ne_bytes(*value.first_chunk()?))
    };
    let on = of(NETCONFA_FORWARDING)? != 0;
    (on || of(NETCONFA_IFINDEX) == Some(NETCONFA_IFINDEX_ALL)).then_some(Change::Forwarding { on })
}

/// linux/netconf.h. `struct netconfmsg` is one byte, with padding.
const NETCONF: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// linux/rtnetlink.h
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;

/// The changes that a datagram of one or more messages tells of.
fn changes(mut datagram: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Some(len) = datagram.first_chunk().map(|len| u32::from_ne_bytes(*len) as usize) {
        let Some(message) = datagram.get(..len) else { break };
        if let Some((kind @ (RTM_NEWNETCONF | RTM_DELNETCONF), body, _)) = split(message) {
            changes.extend(forwarding(body).filter(|_| kind == RTM_NEWNETCONF));
            datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
            continue;
        }
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
            Ok(message) => changes.extend(change(message.payload)),
            // Of something that changed we know only that: as good as missed.
            Err(_) => changes.push(Change::Overrun),
        }
        // Messages begin at multiples of four (NLMSG_ALIGN).
        datagram = datagram.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

fn change(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    use RouteNetlinkMessage as M;
    Some(match payload {
        NetlinkPayload::InnerMessage(message) => match message {
            M::NewLink(m) | M::DelLink(m) => link_change(m),
            M::NewAddress(m) | M::DelAddress(m) => Change::Address {
                ifindex: m.header.index,
                ip: address_of(m).map(|address| address.ip()),
            },
            M::NewRoute(m) | M::DelRoute(m) => Change::Route { dst: Some(destination(m)?) },
            M::NewRule(_) | M::DelRule(_) => Change::Route { dst: None },
            M::DelQueueDiscipline(m) | M::DelTrafficFilter(m) => {
                Change::Filter { ifindex: m.header.index as u32 }
            }
            M::NewNeighbour(m) => {
                let ((ifindex, ip), now) = neighbour(m)?;
                Change::Neighbour { ifindex, ip, now: Some(now) }
            }
            M::DelNeighbour(m) => {
                let ((ifindex, ip), _) = neighbour(m)?;
                Change::Neighbour { ifindex, ip, now: None }
            }
            _ => return None,
        },
        NetlinkPayload::Overrun(_) => Change::Overrun,
        _ => return None,
    })
}

fn link_change(message: LinkMessage) -> Change {
    let is_of_bridge = message.header.interface_family == AddressFamily::Bridge;
    let link = link_of(message);
    let kind = if is_of_bridge { Some("bridge".to_owned()) } else { link.kind };
    Change::Link { ifindex: link.index, name: link.name, kind, controller: link.controller }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::{FromRawFd, IntoRawFd},
    };

    use super::*;

    impl Watch {
        /// One that can read nothing: what is its socket is a pipe.
        pub fn broken() -> std::io::Result<Self> {
            let (reader, mut writer) = std::io::pipe()?;
            writer.write_all(&[0])?;
            // SAFETY: nobody else owns the descriptor.
            let socket = unsafe { TokioSocket::from_raw_fd(reader.into_raw_fd()) };
            let (datagram, changes) = (Vec::with_capacity(DATAGRAM_BYTES), VecDeque::new());
            Ok(Self { socket, tables: None, datagram, changes })
        }
    }

    fn gone(ifindex: u32) -> Change {
        Change::Link { ifindex, name: String::new(), kind: None, controller: None }
    }

    fn link_gone(ifindex: u32) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.header.index = ifindex;
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::DelLink(link));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn every_message_of_a_datagram_is_read() {
        let datagram = [link_gone(3), link_gone(4)].concat();
        assert_eq!(changes(&datagram), [gone(3), gone(4)]);
    }

    /// RTM_NEWNETCONF with an interface and whether it forwards.
    fn netconf(ifindex: i32, forwarding: i32) -> Vec<u8> {
        let attribute = |kind: u16, value: i32| {
            [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat()
        };
        let attributes =
            [attribute(NETCONFA_IFINDEX, ifindex), attribute(NETCONFA_FORWARDING, forwarding)];
        let header = [&36u32.to_ne_bytes()[..], &RTM_NEWNETCONF.to_ne_bytes(), &[0; 10]].concat();
        [&header[..], &[2, 0, 0, 0], &attributes.concat()].concat()
    }

    #[test]
    fn forwarding_is_on_from_one_interface_and_off_for_all() {
        let of = |ifindex, value| changes(&netconf(ifindex, value));
        assert_eq!(of(3, 1), [Change::Forwarding { on: true }]);
        assert_eq!(of(NETCONFA_IFINDEX_ALL, 1), [Change::Forwarding { on: true }]);
        assert_eq!(of(NETCONFA_IFINDEX_ALL, 0), [Change::Forwarding { on: false }]);
        assert_eq!(of(3, 0), []);
        let both = [netconf(3, 0), link_gone(4)].concat();
        assert_eq!(changes(&both), [gone(4)]);
    }

    #[test]
    fn a_datagram_cut_short_ends_the_reading() {
        let datagram = link_gone(3);
        for len in 0..datagram.len() {
            assert_eq!(changes(&datagram[..len]), [], "{len}");
        }
    }

    #[test]
    fn a_message_that_makes_no_sense_means_read_again() {
        let mut datagram = link_gone(3);
        datagram.truncate(20);
        datagram[..4].copy_from_slice(&20u32.to_ne_bytes());
        assert_eq!(changes(&datagram), [Change::Overrun]);
        assert_eq!(changes(&[0; 12]), [const { Change::Overrun }; 3]);
    }
}
