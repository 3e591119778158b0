//! The resolver: names of the mesh's containers, and everything else from the host's resolvers.
//!
//! ```text
//! container -> Docker's 127.0.0.11 -> (what Docker does not know) -> this node's overlay address:53
//! container of another runtime                                    -> the same
//!    -> who asks? -> its networks -> zone, from the directory
//!                                 -> forward, to the host's resolvers
//! ```

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};

use crate::{docker::Askers, peers::Shared, supervise};

pub mod forward;
mod server;
mod zone;

use zone::Found;

/// Least size that every client takes by UDP (RFC 1035, 4.2.1).
const UDP_LEAST: u16 = 512;
/// What we say we take, and the most that we send by UDP: fits into any path.
const UDP_MOST: u16 = 1232;

/// Answers, one question at a time.
#[derive(Clone)]
pub struct Resolver {
    shared: Shared,
    askers: Askers,
    /// Turns the answers, so that clients that take the first share them out.
    turn: Arc<AtomicUsize>,
}

impl Resolver {
    /// Serves on this node's overlay addresses, from now on.
    pub fn start(shared: Shared, askers: Askers) {
        let faults = shared.faults().clone();
        let resolver = Self { shared, askers, turn: Arc::default() };
        supervise::spawn(faults, "answers for names", move || server::run(resolver.clone()));
    }

    /// The answer to a message from `source`; `None` if it deserves none.
    async fn answer(&self, bytes: &[u8], source: std::net::IpAddr, udp: bool) -> Option<Vec<u8>> {
        let request = match Message::from_vec(bytes) {
            Ok(request) => request,
            Err(_) => return refuse_unread(bytes),
        };
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let [query] = request.queries.as_slice() else {
            return reply(&request, Found::Refused(ResponseCode::FormErr), udp);
        };
        if request.metadata.op_code != OpCode::Query {
            return reply(&request, Found::Refused(ResponseCode::NotImp), udp);
        }
        let networks = self.askers.networks_of(source).await;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let found = zone::find(&self.shared.lock(), networks.as_deref(), query, turn);
        match found {
            Found::NotOurs => {
                let own = self.shared.addresses();
                match forward::ask(bytes, &own, udp).await {
                    Some(answer) => Some(answer),
                    None => reply(&request, Found::Refused(ResponseCode::ServFail), udp),
                }
            }
            Found::Doubtful => {
                let own = self.shared.addresses();
                match forward::ask_briefly(bytes, &own, udp).await {
                    Some(answer) => Some(answer),
                    None => reply(&request, Found::Refused(ResponseCode::NXDomain), udp),
                }
            }
            found => reply(&request, found, udp),
        }
    }
}

/// What is no DNS message gets an error, if it has as much as an id and is no answer.
fn refuse_unread(bytes: &[u8]) -> Option<Vec<u8>> {
    let (id, flags) = (bytes.get(..2)?, bytes.get(2)?);
    if bytes.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([id[0], id[1]]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

fn reply(request: &Message, found: Found, udp: bool) -> Option<Vec<u8>> {
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&request.queries);
    match found {
        Found::Records(records) => {
            answer.metadata.authoritative = true;
            answer.answers = records;
        }
        Found::Refused(code) => answer.metadata.response_code = code,
        Found::Doubtful | Found::NotOurs => {}
    }
    if request.edns.is_some() {
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(UDP_MOST);
        answer.set_edns(edns);
    }
    let bytes = answer.to_vec().ok()?;
    let most = request.max_payload().clamp(UDP_LEAST, UDP_MOST);
    if udp && bytes.len() > usize::from(most) {
        return answer.truncate().to_vec().ok();
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_gets_an_error_and_an_answer_gets_none() {
        let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff];
        let error = Message::from_vec(&refuse_unread(&bytes).unwrap()).unwrap();
        assert_eq!(error.metadata.id, 0x1234);
        assert_eq!(error.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(refuse_unread(&bytes[..11]), None);
        bytes[2] = 0x81;
        assert_eq!(refuse_unread(&bytes), None);
    }
}
