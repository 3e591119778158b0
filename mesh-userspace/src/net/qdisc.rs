//! The clsact qdisc, where programs are attached as filters.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
    },
};

use super::{
    Net, NetError,
    hops::{ANSWER_BYTES, open},
};

/// The kernel's number of the BPF program that a filter at clsact runs, in this thread's namespace.
/// `None` if there is no such filter, or if it is another kind's.
pub fn filter_program(
    ifindex: u32,
    is_egress: bool,
    priority: u16,
    handle: u32,
) -> io::Result<Option<u32>> {
    let minor = if is_egress { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS };
    let mut filter = TcMessage::with_index(ifindex as i32);
    filter.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor };
    filter.header.handle = handle.into();
    // The protocol is in network byte order.
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    filter.header.info = u32::from(priority) << 16 | u32::from(protocol);
    let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(filter));
    question.header.flags = NLM_F_REQUEST;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    let socket = open()?;
    socket.send(&bytes, 0)?;
    let mut datagram = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut datagram, 0)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
            Ok(program(filter))
        }
        // No filter, no qdisc, no interface.
        NetlinkPayload::Error(e)
            if [libc::ENOENT, libc::EINVAL, libc::ENODEV].contains(&-e.raw_code()) =>
        {
            Ok(None)
        }
        NetlinkPayload::Error(e) => Err(io::Error::from_raw_os_error(-e.raw_code())),
        _ => Err(io::Error::from_raw_os_error(libc::EPROTO)),
    }
}

fn program(filter: TcMessage) -> Option<u32> {
    filter.attributes.into_iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.into_iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(id),
            _ => None,
        }),
        _ => None,
    })
}

impl Net {
    /// Removes the clsact qdisc of an interface if no filter is left on it; one that is not there
    /// is no error.
    pub async fn remove_clsact(&self, ifindex: u32) -> Result<(), NetError> {
        let dev = self.label(ifindex).await;
        for side in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            let mut filters = TcMessage::with_index(ifindex as i32);
            filters.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor: side };
            match self.dump(RouteNetlinkMessage::GetTrafficFilter(filters)).await {
                Ok(filters) if filters.is_empty() => {}
                Ok(_) => return Ok(()),
                Err(e) if e.is(&[libc::EINVAL, libc::ENODEV]) => return Ok(()),
                Err(e) => return Err(e.during(format!("list the filters of {dev}"))),
            }
        }
        let mut qdisc = TcMessage::with_index(ifindex as i32);
        qdisc.header.parent = TcHandle::CLSACT;
        qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        match self.send(RouteNetlinkMessage::DelQueueDiscipline(qdisc), 0).await {
            Err(e) if !e.is(&[libc::EINVAL, libc::ENOENT, libc::ENODEV]) => {
                Err(e.during(format!("remove the clsact qdisc of {dev}")))
            }
            _ => Ok(()),
        }
    }
}
