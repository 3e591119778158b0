//! Questions to resolvers by UDP: one socket for each resolver, however many are under way.
//!
//! An answer counts only if it comes from that resolver, to that port, has the id that was made up for
//! the question, and repeats the question. The port is another one every few seconds (RFC 5452, 9.2).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, sync::oneshot, task::AbortHandle};

use super::HEADER;

/// How long a port is used for new questions, and for how many.
const AGE_MAX: Duration = Duration::from_secs(10);
const QUESTIONS_MAX: usize = 2048;
/// After an error of a socket that tells of no question.
const PAUSE: Duration = Duration::from_millis(10);

/// Sockets by resolver. Clones share them.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<HashMap<SocketAddr, Arc<Line>>>>);

/// A socket, for as long as a question that was asked by it is under way.
struct Line {
    way: Arc<Way>,
    reader: AbortHandle,
    made: Instant,
}

struct Way {
    socket: UdpSocket,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// By the id on the line.
    by_id: HashMap<u16, (Vec<u8>, oneshot::Sender<Vec<u8>>)>,
    asked: usize,
}

/// Takes a question off its line, whatever became of it.
struct Ticket {
    line: Arc<Line>,
    id: u16,
}

impl Lines {
    /// Sends a question as it is, but for its id, and waits for the answer. An error if nobody listens
    /// there.
    pub async fn ask(&self, to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let line = self.line(to)?;
        let (ticket, answered) = enter(line, question)?;
        let mut sent = question.to_vec();
        sent[..2].copy_from_slice(&ticket.id.to_be_bytes());
        ticket.line.way.socket.send(&sent).await?;
        let mut answer =
            answered.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        answer[..2].copy_from_slice(&question[..2]);
        Ok(answer)
    }

    fn line(&self, to: SocketAddr) -> io::Result<Arc<Line>> {
        // A map of what is whole each by itself.
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |line: &Line| {
            line.made.elapsed() < AGE_MAX
                && line.way.lock().asked < QUESTIONS_MAX
                && !line.reader.is_finished()
        };
        lines.retain(|_, line| is_good(line));
        if let Some(line) = lines.get(&to) {
            return Ok(line.clone());
        }
        let line = Arc::new(Line::to(to)?);
        lines.insert(to, line.clone());
        Ok(line)
    }
}

impl Line {
    fn to(resolver: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = match resolver {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(resolver)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        let way = Arc::new(Way { socket, waiting: Mutex::default() });
        let reader = tokio::spawn(read(way.clone())).abort_handle();
        Ok(Self { way, reader, made: Instant::now() })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.line.way.lock().by_id.remove(&self.id);
    }
}

/// Gives a question an id that nobody can guess and that no other has.
fn enter(line: Arc<Line>, question: &[u8]) -> io::Result<(Ticket, oneshot::Receiver<Vec<u8>>)> {
    let section = section(question).ok_or(io::ErrorKind::InvalidInput)?.to_vec();
    let (sender, answered) = oneshot::channel();
    let mut waiting = line.way.lock();
    let id = loop {
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        let id = u16::from_ne_bytes(id);
        // At most QUESTIONS_MAX of 65,536 are taken.
        if !waiting.by_id.contains_key(&id) {
            break id;
        }
    };
    waiting.asked += 1;
    waiting.by_id.insert(id, (section, sender));
    drop(waiting);
    Ok((Ticket { line, id }, answered))
}

async fn read(way: Arc<Way>) {
    let mut message = vec![0; usize::from(u16::MAX)];
    loop {
        match way.socket.recv(&mut message).await {
            Ok(len) => way.arrived(&message[..len]),
            // Nobody listens there: so it is for all that wait.
            Err(_) => {
                way.lock().by_id.clear();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Way {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Every change is one insertion or removal.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, message: &[u8]) {
        let Some(&[high, low]) = message.first_chunk::<2>() else { return };
        let id = u16::from_be_bytes([high, low]);
        let mut waiting = self.lock();
        let is_its = waiting.by_id.get(&id).is_some_and(|(asked, _)| answers(message, asked));
        if !is_its {
            return;
        }
        if let Some((_, answer)) = waiting.by_id.remove(&id) {
            // Who asked may have given up.
            _ = answer.send(message.to_vec());
        }
    }
}

/// Returns whether a message is an answer to this question. One that is refused may leave it out.
fn answers(message: &[u8], asked: &[u8]) -> bool {
    let (Some(flags), Some(count)) = (message.get(2..4), message.get(4..6)) else { return false };
    let is_refused = flags[1] & 0xf != 0 && count == [0, 0] && message.len() >= HEADER;
    let is_same = || section(message).is_some_and(|section| section.eq_ignore_ascii_case(asked));
    flags[0] & 0x80 != 0 && (is_refused || is_same())
}

/// The question of a message that has one: name, type and class (RFC 1035, 4.1.2).
pub(super) fn section(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return message.get(HEADER..at + 5),
            label @ 1..64 => at += 1 + label,
            // A name that points elsewhere has nothing before it to point at.
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(id: u16, flags: [u8; 2], name: &str) -> Vec<u8> {
        let [high, low] = id.to_be_bytes();
        let mut bytes = vec![high, low, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn only_an_answer_to_the_question_is_one() {
        let question = message(1, [1, 0], "web");
        let asked = section(&question).unwrap();
        assert_eq!(asked.len(), 9);
        assert!(answers(&message(1, [0x81, 0], "WEB"), asked));
        assert!(!answers(&question, asked), "a question");
        assert!(!answers(&message(1, [0x81, 0], "other"), asked));
        let refused = [0, 1, 0x81, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(answers(&refused, asked));
        assert!(!answers(&refused[..11], asked));
    }

    #[tokio::test]
    async fn many_questions_share_a_socket_and_each_gets_its_own_answer() {
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = resolver.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut bytes, mut held) = ([0; 512], Vec::new());
            while let Ok((len, from)) = resolver.recv_from(&mut bytes).await {
                bytes[2] |= 0x80;
                held.push((bytes[..len].to_vec(), from));
                // In another order, and each with one before it that somebody made up.
                if held.len() == 50 {
                    for (mut message, from) in held.drain(..).rev() {
                        let last = message.len() - 6;
                        message[last] ^= 1;
                        resolver.send_to(&message, from).await.unwrap();
                        message[last] ^= 1;
                        resolver.send_to(&message, from).await.unwrap();
                    }
                }
            }
        });
        let lines = Lines::default();
        let ask = |n: u16| {
            let (lines, question) = (lines.clone(), message(n, [1, 0], &format!("n{n:03}")));
            tokio::spawn(async move {
                let answer = lines.ask(to, &question).await.unwrap();
                assert_eq!(
                    (answer[..2].to_vec(), section(&answer)),
                    (question[..2].to_vec(), section(&question))
                );
            })
        };
        let asked: Vec<_> = (0..50).map(ask).collect();
        for asked in asked {
            asked.await.unwrap();
        }
        let line = lines.line(to).unwrap();
        let waiting = line.way.lock();
        assert_eq!((waiting.asked, waiting.by_id.len()), (50, 0));
    }

    #[tokio::test]
    async fn where_nobody_listens_nobody_is_waited_for() {
        let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = Lines::default().ask(free, &message(1, [1, 0], "web")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_does_harm(
            bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0..40_usize, is in any::<u8>()
        ) {
            let question = message(1, [1, 0], "web");
            let asked = section(&question).unwrap();
            answers(&bytes, asked);
            let mut near = message(1, [0x81, 0], "web");
            let at = at % near.len();
            near[at] = is;
            answers(&near, asked);
            answers(&near[..at], asked);
        }
    }
}
