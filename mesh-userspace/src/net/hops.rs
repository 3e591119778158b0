//! Where packets to many destinations would go.

use std::{io, net::IpAddr, time::Duration};

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{Hop, Net, NetError, Refusal, route};

/// Questions on their way at once: their answers must fit into the socket's queue.
const BATCH: usize = 64;
/// An answer takes less than the 4 KiB that the kernel first takes for it.
const QUEUE_BYTES: u32 = (BATCH as u32) * (8 << 10);
pub(super) const ANSWER_BYTES: usize = 4 << 10;
/// As in [`super::socket`].
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Net {
    /// [`Net::route_to`] for each of `dsts`, in their order. Asked one by one most of the time goes
    /// into waking up for each answer; here the questions are sent and the answers read in batches,
    /// on a socket that lives for this call. Blocks for about 3 ms for a thousand.
    pub fn routes_to(
        &self,
        dsts: &[IpAddr],
        from: Option<IpAddr>,
    ) -> Result<Vec<Option<Hop>>, NetError> {
        let ask = || {
            let socket = open()?;
            let mut hops = Vec::with_capacity(dsts.len());
            for batch in dsts.chunks(BATCH) {
                hops.extend(exchange(&socket, batch, from)?);
            }
            Ok(hops)
        };
        self.inside(ask).map_err(|e| Refusal::from(e).during("look up routes"))
    }
}

/// A socket for one question after the other, in this thread's namespace.
pub(super) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_rx_buf_sz(QUEUE_BYTES)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// One batch: a question each, numbered from 0, and an answer each, in any order.
fn exchange(
    socket: &Socket,
    dsts: &[IpAddr],
    from: Option<IpAddr>,
) -> io::Result<Vec<Option<Hop>>> {
    let mut questions = Vec::new();
    for (number, dst) in (0..).zip(dsts) {
        let question = RouteNetlinkMessage::GetRoute(route::question(*dst, from));
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST;
        message.header.sequence_number = number;
        message.finalize();
        let start = questions.len();
        // Messages begin at multiples of four (NLMSG_ALIGN).
        questions.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut questions[start..]);
    }
    socket.send(&questions, 0)?;
    let mut hops = vec![None; dsts.len()];
    let mut datagram = Vec::with_capacity(ANSWER_BYTES);
    for _ in dsts {
        datagram.clear();
        socket.recv(&mut datagram, 0)?;
        let (number, hop) = answer(&datagram)?;
        let place = hops.get_mut(number as usize);
        *place.ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))? = hop;
    }
    Ok(hops)
}

fn answer(datagram: &[u8]) -> io::Result<(u32, Option<Hop>)> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    let hop = match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(message)) => route::hop(message),
        NetlinkPayload::Error(e) if route::NOWHERE.contains(&-e.raw_code()) => None,
        NetlinkPayload::Error(e) => return Err(io::Error::from_raw_os_error(-e.raw_code())),
        _ => return Err(io::Error::from_raw_os_error(libc::EPROTO)),
    };
    Ok((message.header.sequence_number, hop))
}
