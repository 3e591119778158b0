//! Being told of changes.

use std::{collections::VecDeque, fmt, net::IpAddr};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

use super::{Neighbour, Net, NetError, Refusal, neighbour::neighbour};

/// Something changed in the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// An interface came, went, or is not as it was.
    Link { ifindex: u32 },
    /// An address came or went.
    Address { ifindex: u32 },
    /// Some route came or went, in any table, or a rule that says which table counts.
    Route,
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
    datagram: Vec<u8>,
    changes: VecDeque<Change>,
}

/// Room for some ten thousand changes; the kernel cuts it to net.core.rmem_max.
const QUEUE_BYTES: u32 = 4 << 20;

/// Larger than any message of the kernel's (NLMSG_GOODSIZE is a page, links may take a few).
const DATAGRAM_BYTES: usize = 64 << 10;

impl Net {
    /// Starts watching links, addresses, routes and neighbours of this namespace.
    pub fn watch(&self) -> Result<Watch, NetError> {
        let socket = self
            .inside(subscribe)
            .map_err(|e| Refusal::from(e).during("watch the network for changes"))?;
        Ok(Watch { socket, datagram: Vec::with_capacity(DATAGRAM_BYTES), changes: VecDeque::new() })
    }
}

fn subscribe() -> std::io::Result<TokioSocket> {
    use MulticastGroup::{
        Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link, Neigh,
    };
    let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Route, Ipv6Rule, Neigh];
    let groups = groups.into_iter().fold(0, |all, group| all | 1 << (group as u32 - 1));
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
            match self.socket.recv_from(&mut self.datagram).await {
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

/// The changes that a datagram of one or more messages tells of.
fn changes(mut datagram: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Some(len) = datagram.first_chunk().map(|len| u32::from_ne_bytes(*len) as usize) {
        let Some(message) = datagram.get(..len) else { break };
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
            M::NewLink(m) | M::DelLink(m) => Change::Link { ifindex: m.header.index },
            M::NewAddress(m) | M::DelAddress(m) => Change::Address { ifindex: m.header.index },
            M::NewRoute(_) | M::DelRoute(_) | M::NewRule(_) | M::DelRule(_) => Change::Route,
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

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

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
        let expected = [Change::Link { ifindex: 3 }, Change::Link { ifindex: 4 }];
        assert_eq!(changes(&datagram), expected);
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
        assert_eq!(changes(&[0; 12]), [Change::Overrun; 3]);
    }
}
