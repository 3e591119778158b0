//! The clsact qdisc, where programs are attached as filters.

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

use super::{Net, NetError};

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
