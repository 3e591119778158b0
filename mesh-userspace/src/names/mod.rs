//! The resolver: names of the mesh's containers, and everything else from the host's resolvers.
//!
//! ```text
//! container -> Docker's 127.0.0.11 -> (what Docker does not know) -> this node's overlay address:53
//! container of another runtime                                    -> the same
//!    -> who asks? -> its networks -> zone, from the directory: at once
//!                                 -> forward, to the host's resolvers: within its asker's limits
//! ```

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};

use crate::{
    docker::{Askers, Source},
    peers::{Place, Shared},
    quota::Share,
    supervise::{Supervisor, Task},
};

mod clients;
pub mod forward;
mod limits;
mod server;
mod upstream;
mod zone;

use forward::World;
use limits::{Asker, Limits};
use zone::Found;

/// Least size that every client takes by UDP (RFC 1035, 4.2.1).
const UDP_LEAST: u16 = 512;
/// What we say we take, and the most that we send by UDP: fits into any path.
const UDP_MOST: u16 = 1232;
/// Longest question in bytes: that of a name of 255, with room for options (RFC 6891).
const QUESTION_MAX: usize = 512;
/// Bytes of a header (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// How an OPT record begins: the root's name and its type (RFC 6891, 6.1.2).
const OPT: [u8; 3] = [0, 0, 41];

/// Answers, one question at a time. Clones share everything.
#[derive(Clone)]
pub struct Resolver {
    shared: Shared,
    askers: Askers,
    limits: Limits,
    world: World,
    /// Turns the answers, so that clients that take the first share them out.
    turn: Arc<AtomicUsize>,
}

/// Where a question comes from.
struct Caller {
    source: IpAddr,
    asker: Asker,
    seen: Source,
    udp: bool,
}

/// A question, read.
struct Question {
    bytes: Vec<u8>,
    request: Message,
    caller: Caller,
}

/// What becomes of a question.
enum Outcome {
    /// Answered, or not worth an answer.
    Done(Option<Vec<u8>>),
    /// It takes its time, and a share of what its asker may have.
    Later(Box<Question>, Step, Share<Asker>),
}

/// What a question waits for.
#[derive(Clone, Copy)]
enum Step {
    /// Docker, to say who asks.
    Who,
    /// The host's resolvers.
    World { brief: bool },
}

impl Resolver {
    /// Serves on this node's overlay addresses, until the task is dropped.
    pub fn start(shared: Shared, askers: Askers, supervisor: &Supervisor) -> Task {
        let (limits, world) = (Limits::new(), World::new());
        let resolver = Self { shared, askers, limits, world, turn: Arc::default() };
        let inner = supervisor.clone();
        supervisor.spawn("answers for names", move || server::run(resolver.clone(), inner.clone()))
    }

    /// Who asks, as far as that is known at once.
    fn caller(&self, source: IpAddr, place: &Place, udp: bool) -> Caller {
        let source = source.to_canonical();
        let seen = if place.interface == server::LOOPBACK {
            Source::Seen(None)
        } else {
            self.askers.of(source)
        };
        let asker = match &seen {
            Source::Seen(None) => Asker::Host,
            Source::Seen(Some(_)) | Source::Stale => Asker::Known(source),
            Source::Unknown => Asker::Unknown(place.index),
        };
        Caller { source, asker, seen, udp }
    }

    /// Answers what can be answered at once: all names of the mesh, for askers that are known.
    fn begin(&self, bytes: &[u8], caller: Caller) -> Outcome {
        if !self.limits.admit(caller.asker, Instant::now()) {
            return Outcome::Done(None);
        }
        let request = match read(bytes) {
            Ok(request) => request,
            Err(answer) => return Outcome::Done(answer),
        };
        let question = Question { bytes: bytes.to_vec(), request, caller };
        if matches!(question.caller.seen, Source::Seen(_)) {
            return self.find(question);
        }
        match self.limits.look_up(question.caller.asker) {
            Some(share) => Outcome::Later(Box::new(question), Step::Who, share),
            None => Outcome::Done(None),
        }
    }

    fn find(&self, question: Question) -> Outcome {
        let networks = match &question.caller.seen {
            Source::Seen(networks) => networks.as_deref(),
            Source::Stale | Source::Unknown => Some(&[][..]),
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let query = &question.request.queries[0];
        let found = zone::find(&self.shared.lock(), networks, query, turn);
        let brief = match found {
            Found::NotOurs => false,
            Found::Doubtful => true,
            found => return Outcome::Done(question.reply(found)),
        };
        match self.limits.forward(question.caller.asker) {
            Some(share) => Outcome::Later(Box::new(question), Step::World { brief }, share),
            None => Outcome::Done(question.reply(Found::Refused(ResponseCode::ServFail))),
        }
    }

    /// Takes the steps that are left.
    async fn finish(
        &self,
        mut question: Box<Question>,
        step: Step,
        share: Share<Asker>,
    ) -> Option<Vec<u8>> {
        if let Step::World { brief } = step {
            let answer = self.forward(&question, brief).await;
            drop(share);
            return answer;
        }
        let caller = &mut question.caller;
        caller.seen = self.askers.look(caller.source).await;
        drop(share);
        match caller.seen {
            Source::Seen(None) => caller.asker = Asker::Host,
            Source::Seen(Some(_)) => caller.asker = Asker::Known(caller.source),
            Source::Stale | Source::Unknown => {}
        }
        match self.find(*question) {
            Outcome::Done(answer) => answer,
            Outcome::Later(question, Step::World { brief }, _share) => {
                self.forward(&question, brief).await
            }
            Outcome::Later(_, Step::Who, _) => None,
        }
    }

    async fn forward(&self, question: &Question, brief: bool) -> Option<Vec<u8>> {
        let own = self.shared.addresses();
        let (answer, otherwise) = if brief {
            (self.world.ask_briefly(question, &own).await, ResponseCode::NXDomain)
        } else {
            (self.world.ask(question, &own).await, ResponseCode::ServFail)
        };
        match answer {
            Some(answer) if answer.len() <= question.answer_most() => Some(answer),
            Some(answer) => question.truncated(ResponseCode::from(0, answer.get(3)? & 0xf)),
            None => question.reply(Found::Refused(otherwise)),
        }
    }
}

impl Question {
    /// Longest answer that may be sent, in bytes. By UDP an address may be made up: who is not known
    /// gets no more than it sent, and the rest by TCP.
    fn answer_most(&self) -> usize {
        if !self.caller.udp {
            return usize::from(u16::MAX);
        }
        if matches!(self.caller.asker, Asker::Unknown(_)) {
            return self.bytes.len();
        }
        self.request.max_payload().clamp(UDP_LEAST, UDP_MOST).into()
    }

    fn reply(&self, found: Found) -> Option<Vec<u8>> {
        let answer = response(&self.request, found).to_vec().ok()?;
        if answer.len() <= self.answer_most() {
            return Some(answer);
        }
        self.truncated(ResponseCode::NoError)
    }

    /// That there is an answer, by TCP.
    fn truncated(&self, code: ResponseCode) -> Option<Vec<u8>> {
        let mut answer = response(&self.request, Found::Refused(code));
        answer.metadata.truncation = true;
        answer.to_vec().ok().filter(|bytes| bytes.len() <= self.answer_most())
    }
}

/// A message with one question that may be answered; else what is answered to it, if anything.
fn read(bytes: &[u8]) -> Result<Message, Option<Vec<u8>>> {
    if !is_plain(bytes) {
        return Err(refuse_unread(bytes));
    }
    let Ok(request) = Message::from_vec(bytes) else { return Err(refuse_unread(bytes)) };
    if request.metadata.message_type != MessageType::Query {
        return Err(None);
    }
    if request.metadata.op_code == OpCode::Query && request.queries.len() == 1 {
        return Ok(request);
    }
    Err(refuse(bytes, request.metadata.op_code, ResponseCode::NotImp))
}

/// Returns whether a message has the form of a question: one name, and at most an OPT record.
/// Compressed names would make others dear to read.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(question) = upstream::section(bytes).filter(|_| bytes.len() <= QUESTION_MAX) else {
        return false;
    };
    match bytes[6..HEADER] {
        [0, 0, 0, 0, 0, 0] => true,
        [0, 0, 0, 0, 0, 1] => bytes[HEADER + question.len()..].starts_with(&OPT),
        _ => false,
    }
}

/// What is no DNS message gets an error, if it has as much as an id and is no answer.
fn refuse_unread(bytes: &[u8]) -> Option<Vec<u8>> {
    if bytes.len() < HEADER || bytes.get(2)? & 0x80 != 0 {
        return None;
    }
    refuse(bytes, OpCode::Query, ResponseCode::FormErr)
}

/// A header and nothing else, which is shorter than whatever was asked.
fn refuse(bytes: &[u8], op_code: OpCode, code: ResponseCode) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(*bytes.first_chunk()?);
    Message::error_msg(id, op_code, code).to_vec().ok()
}

fn response(request: &Message, found: Found) -> Message {
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
    answer
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{Name, RData, Record, RecordType, rdata::A},
    };
    use proptest::prelude::*;

    use super::*;

    fn question(asker: Asker, udp: bool, payload: Option<u16>) -> Question {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii("api.my-net.").unwrap(), RecordType::A));
        if let Some(payload) = payload {
            let mut edns = hickory_proto::op::Edns::new();
            edns.set_max_payload(payload);
            request.set_edns(edns);
        }
        let source = "10.0.9.2".parse().unwrap();
        let caller = Caller { source, asker, seen: Source::Unknown, udp };
        Question { bytes: request.to_vec().unwrap(), request, caller }
    }

    fn records(count: u8) -> Found {
        let name = || Name::from_ascii("api.my-net.").unwrap();
        let record = |n| Record::from_rdata(name(), 1, RData::A(A([10, 0, 9, n].into())));
        Found::Records((0..count).map(record).collect())
    }

    #[test]
    fn by_udp_nobody_gets_more_than_it_may_and_the_rest_is_said_to_be_there() {
        let known = Asker::Known("10.0.9.2".parse().unwrap());
        for (asker, payload, most) in [
            (known, None, 512),
            (known, Some(1000), 1000),
            (known, Some(4096), 1232),
            (Asker::Host, Some(4096), 1232),
            (Asker::Unknown(3), None, 28),
            (Asker::Unknown(3), Some(4096), 39),
        ] {
            let question = question(asker, true, payload);
            assert_eq!(question.answer_most(), most, "{asker:?} {payload:?}");
            let answer = question.reply(records(200)).unwrap();
            assert!(answer.len() <= most, "{} of {most}", answer.len());
            assert!(Message::from_vec(&answer).unwrap().metadata.truncation);
        }
        let whole = question(Asker::Unknown(3), false, None).reply(records(200)).unwrap();
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 200);
        let denied = question(Asker::Unknown(3), true, Some(4096));
        let denied = denied.reply(Found::Refused(ResponseCode::NXDomain)).unwrap();
        assert!(!Message::from_vec(&denied).unwrap().metadata.truncation);
    }

    #[test]
    fn what_is_no_message_gets_an_error_and_an_answer_gets_none() {
        let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff];
        let error = Message::from_vec(&read(&bytes).unwrap_err().unwrap()).unwrap();
        assert_eq!(error.metadata.id, 0x1234);
        assert_eq!(error.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(refuse_unread(&bytes[..11]), None);
        bytes[2] = 0x81;
        assert_eq!(read(&bytes).unwrap_err(), None);
    }

    /// They are in no question, and each points back at a name of 127 labels.
    #[test]
    fn what_is_dear_to_read_is_not_read() {
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend([1, b'a'].repeat(127));
        bytes.extend([0, 0, 1, 0, 1]);
        assert!(read(&bytes).is_ok());
        let with = |section: usize, count: usize, record: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[section] = count as u8;
            bytes.extend(record.repeat(count));
            read(&bytes).map_err(|answer| {
                let answer = Message::from_vec(&answer.unwrap()).unwrap();
                answer.metadata.response_code
            })
        };
        let alias = [0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 0, 0, 2, 0xc0, 12];
        let opt = [&OPT[..], &[4, 208, 0, 0, 0, 0, 0, 0]].concat();
        for (section, count, record) in
            [(7, 1, &alias[..]), (9, 1, &alias), (11, 1, &alias), (7, 120, &alias), (11, 2, &opt)]
        {
            let answer = with(section, count, record).unwrap_err();
            assert_eq!(answer, ResponseCode::FormErr, "{section}");
        }
        assert!(with(11, 1, &opt).unwrap().edns.is_some());
        let long = [&OPT[..], &[4, 208, 0, 0, 0, 0, 1, 0, 0, 12, 0, 252], &[0; 252]].concat();
        assert_eq!(with(11, 1, &long).unwrap_err(), ResponseCode::FormErr, "too long");
    }

    proptest! {
        /// Whatever a stranger sends, an error is no longer than that, and a question has one query.
        #[test]
        fn nothing_that_is_sent_does_harm(
            bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0..100_usize, is in any::<u8>()
        ) {
            let mut near = question(Asker::Host, true, Some(1232)).bytes;
            let at = at % near.len();
            near[at] = is;
            for bytes in [&bytes[..], &near, &near[..at]] {
                match read(bytes) {
                    Ok(request) => {
                        prop_assert_eq!(request.queries.len(), 1);
                        prop_assert!(request.answers.is_empty() && request.authorities.is_empty());
                        prop_assert!(request.additionals.is_empty() && bytes.len() <= QUESTION_MAX);
                    }
                    Err(answer) => prop_assert!(answer.is_none_or(|a| a.len() <= bytes.len())),
                }
            }
        }
    }
}
