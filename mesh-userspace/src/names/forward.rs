//! Questions that are not ours, for the host's resolvers: as they came, and the answer as it comes.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesOrdered, FuturesUnordered},
};
use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

use super::{Question, limits::Asker, upstream::Lines};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What systemd-resolved forwards to, where it is itself what the file above names.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// As many as the C library looks at.
const RESOLVERS_MAX: usize = 3;
/// For one resolver. Docker's own waits 4 s in all for us.
const PATIENCE: Duration = Duration::from_millis(1200);
/// For all of them together, where the name is most likely nobody's.
const BRIEF: Duration = Duration::from_millis(500);
/// How long one that did not answer an asker is waited for no longer than [`GRACE`], for that asker.
const SHUNNED: Duration = Duration::from_secs(10);
/// How long the answer of another is kept back for one that was silent but comes first.
const GRACE: Duration = Duration::from_millis(200);
/// Silences that are remembered. Askers are few: containers of this host, and interfaces.
const SILENCES: usize = 4096;
/// Connections at once, for answers that are too long for UDP.
const CONNECTIONS: usize = 32;
const PORT: u16 = 53;

/// The host's resolvers. Clones share what is known of them.
#[derive(Clone)]
pub(super) struct World(Arc<Inner>);

struct Inner {
    lines: Lines,
    connections: Semaphore,
    file: Mutex<File>,
    /// When a resolver did not answer an asker. It may be for what this one asks: to others it means
    /// nothing.
    silent: Mutex<HashMap<(Asker, SocketAddr), Instant>>,
}

/// The resolvers of [`RESOLV_CONF`] as it was.
#[derive(Default)]
struct File {
    /// Device, inode, size and time of change.
    of: Option<(u64, u64, u64, i64, i64)>,
    resolvers: Vec<IpAddr>,
}

impl World {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            lines: Lines::default(),
            connections: Semaphore::new(CONNECTIONS),
            file: Mutex::default(),
            silent: Mutex::default(),
        }))
    }

    /// Asks one resolver after the other, but for `own` addresses, which would be us.
    pub async fn ask(&self, question: &Question, own: &[IpAddr]) -> Option<Vec<u8>> {
        self.ask_each(self.resolvers(own), question.into()).await
    }

    /// Asks all at once. Who has the name is heard before who does not, however late.
    pub async fn ask_briefly(&self, question: &Question, own: &[IpAddr]) -> Option<Vec<u8>> {
        self.best_of(self.resolvers(own), question.into()).await
    }

    /// In the order of the file. One that was silent is asked together with the next, and still comes
    /// first if it answers in time: whoever made it silent does not choose who answers.
    async fn ask_each(&self, resolvers: Vec<SocketAddr>, asked: Asked<'_>) -> Option<Vec<u8>> {
        let mut before = Before::default();
        for resolver in resolvers {
            if self.is_silent(asked.asker, resolver) {
                before.push_back(self.ask_patiently(resolver, asked).boxed());
                continue;
            }
            let mut own = pin!(self.ask_patiently(resolver, asked));
            let answer = tokio::select! {
                biased;
                Some(answer) = first(&mut before) => return Some(answer),
                answer = &mut own => answer,
            };
            if let Some(answer) = answer {
                let earlier = timeout(GRACE, first(&mut before)).await.ok().flatten();
                return Some(earlier.unwrap_or(answer));
            }
        }
        first(&mut before).await
    }

    async fn ask_patiently(&self, resolver: SocketAddr, asked: Asked<'_>) -> Option<Vec<u8>> {
        let answer = timeout(PATIENCE, self.ask_one(resolver, asked)).await.ok().flatten();
        self.heard(asked.asker, resolver, answer.is_some());
        if answer.is_none() {
            tracing::debug!("resolver {resolver} does not answer");
        }
        answer
    }

    async fn best_of(&self, resolvers: Vec<SocketAddr>, asked: Asked<'_>) -> Option<Vec<u8>> {
        let all = resolvers.into_iter().map(|resolver| self.ask_one(resolver, asked));
        let mut all: FuturesUnordered<_> = all.collect();
        let mut best = None;
        let whole = async {
            while let Some(answer) = all.next().await {
                let Some(answer) = answer else { continue };
                let rank = rank(&answer);
                if rank.is_some()
                    && rank > best.as_ref().and_then(|best: &Vec<u8>| self::rank(best))
                {
                    best = Some(answer);
                }
                if rank == Some(Rank::Records) {
                    return;
                }
            }
        };
        // Whatever was heard by then counts.
        _ = timeout(BRIEF, whole).await;
        best
    }

    /// By UDP, and if the answer is too long for that and need not be short, by TCP.
    async fn ask_one(
        &self,
        resolver: SocketAddr,
        Asked { question, udp, .. }: Asked<'_>,
    ) -> Option<Vec<u8>> {
        let asked = async {
            let answer = self.0.lines.ask(resolver, question).await?;
            if udp || !is_truncated(&answer) {
                return Ok(answer);
            }
            let _turn = self.0.connections.acquire().await.map_err(io::Error::other)?;
            by_tcp(resolver, question).await
        };
        let asked: io::Result<Vec<u8>> = asked.await;
        asked.inspect_err(|e| tracing::debug!("resolver {resolver}: {e}")).ok()
    }

    fn resolvers(&self, own: &[IpAddr]) -> Vec<SocketAddr> {
        let stat = fs::metadata(RESOLV_CONF).ok();
        let of = stat.map(|s| (s.dev(), s.ino(), s.size(), s.mtime(), s.mtime_nsec()));
        // Both fields are set at once.
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        if of.is_none() || file.of != of {
            let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            *file = File { of, resolvers: resolvers(&text) };
        }
        let others = file.resolvers.iter().filter(|resolver| !own.contains(resolver));
        others.map(|resolver| SocketAddr::new(*resolver, PORT)).collect()
    }

    fn is_silent(&self, asker: Asker, resolver: SocketAddr) -> bool {
        // Every change is one insertion or removal.
        let silent = self.0.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.get(&(asker, resolver)).is_some_and(|at| at.elapsed() < SHUNNED)
    }

    fn heard(&self, asker: Asker, resolver: SocketAddr, has_answered: bool) {
        let mut silent = self.0.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if has_answered {
            silent.remove(&(asker, resolver));
            return;
        }
        if silent.len() >= SILENCES {
            silent.retain(|_, at| at.elapsed() < SHUNNED);
        }
        if silent.len() < SILENCES {
            silent.insert((asker, resolver), Instant::now());
        }
    }
}

/// What is asked, and who waits for it.
#[derive(Clone, Copy)]
struct Asked<'a> {
    question: &'a [u8],
    asker: Asker,
    udp: bool,
}

impl<'a> From<&'a Question> for Asked<'a> {
    fn from(question: &'a Question) -> Self {
        let caller = &question.caller;
        Self { question: &question.bytes, asker: caller.asker, udp: caller.udp }
    }
}

/// Resolvers that were asked before the one whose turn it is, in their order.
type Before<'a> = FuturesOrdered<BoxFuture<'a, Option<Vec<u8>>>>;

/// The answer of the first that has one.
async fn first(asked: &mut Before<'_>) -> Option<Vec<u8>> {
    while let Some(answer) = asked.next().await {
        if answer.is_some() {
            return answer;
        }
    }
    None
}

/// What an answer is worth, where several came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// There is no such name, or the question was not understood.
    Denied,
    /// There is the name, and nothing of this type.
    Empty,
    Records,
}

/// `None`: a failure of the one who was asked.
fn rank(message: &[u8]) -> Option<Rank> {
    let records = message.get(6..8)?;
    match ResponseCode::from(0, message.get(3)? & 0xf) {
        ResponseCode::ServFail | ResponseCode::Refused => None,
        ResponseCode::NoError if records != [0, 0] || is_truncated(message) => Some(Rank::Records),
        ResponseCode::NoError => Some(Rank::Empty),
        _ => Some(Rank::Denied),
    }
}

/// There is more of it by TCP (RFC 1035, 4.1.1).
fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 2 != 0)
}

async fn by_tcp(to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The host's resolvers that a container reaches too.
pub fn public_resolvers() -> Vec<IpAddr> {
    // As Docker does.
    let of = |path| resolvers(&fs::read_to_string(path).unwrap_or_default());
    let public = |path| of(path).into_iter().filter(|ip| !ip.is_loopback()).collect::<Vec<_>>();
    let named = public(RESOLV_CONF);
    if named.is_empty() { public(BEHIND_RESOLVED) } else { named }
}

/// resolv.conf(5)
fn resolvers(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        // A zone (`fe80::1%eth0`) is left out: such a resolver is of one link only.
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(address).take(RESOLVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    /// A question for the root (RFC 1035, 4.1).
    const QUESTION: [u8; 17] = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];

    const ONE: Asker = Asker::Host;
    const OTHER: Asker = Asker::Unknown(7);

    fn asked(asker: Asker, udp: bool) -> Asked<'static> {
        Asked { question: &QUESTION, asker, udp }
    }

    /// A resolver whose answers have this code; none answers with nothing.
    async fn resolver(code: Option<u8>) -> SocketAddr {
        resolver_after(code.map(|code| (code, 0)), Duration::ZERO).await
    }

    /// One whose answers have this code and count of records, and come after some time.
    async fn resolver_after(says: Option<(u8, u8)>, after: Duration) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut message = [0; 17];
            while let Ok((_, from)) = socket.recv_from(&mut message).await {
                if let Some((code, records)) = says {
                    tokio::time::sleep(after).await;
                    (message[2], message[3], message[7]) = (0x80, code, records);
                    let _ = socket.send_to(&message, from).await;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn who_has_the_name_is_heard_and_none_is_waited_for_long() {
        let (silent, failing) = (resolver(None).await, resolver(Some(2)).await);
        let (denying, empty) = (resolver(Some(3)).await, resolver(Some(0)).await);
        let late = resolver_after(Some((0, 1)), Duration::from_millis(50)).await;
        let world = World::new();
        let best_of = |resolvers| world.best_of(resolvers, asked(ONE, true));
        let answer = best_of(vec![silent, failing, denying, empty, late]).await.unwrap();
        assert_eq!((answer[3], answer[7]), (0, 1), "the one that has it, which is the last");
        for both in [vec![denying, empty], vec![empty, denying]] {
            assert_eq!(best_of(both).await.unwrap()[3], 0, "the name is there");
        }
        assert_eq!(best_of(vec![failing, denying]).await.unwrap()[3], 3);
        assert_eq!(best_of(vec![failing]).await, None);
        let began = Instant::now();
        assert_eq!(best_of(vec![silent, denying]).await.unwrap()[3], 3);
        assert_eq!(best_of(vec![silent, failing]).await, None);
        assert!(began.elapsed() >= BRIEF * 2);
    }

    #[test]
    fn resolvers_are_read_from_the_file() {
        let text = "# x\nsearch a.b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # y\nnameserver x\noptions ndots:1\n";
        let expected: Vec<IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(resolvers(text), expected);
    }

    #[tokio::test]
    async fn one_that_is_silent_is_waited_for_no_longer_than_a_moment() {
        let (silent, knowing) = (resolver(None).await, resolver(Some(0)).await);
        let world = World::new();
        let ask = || world.ask_each(vec![silent, knowing], asked(ONE, true));
        assert_eq!(ask().await.unwrap()[..2], QUESTION[..2]);
        assert!(world.is_silent(ONE, silent) && !world.is_silent(ONE, knowing));
        assert!(!world.is_silent(OTHER, silent), "others ask for something else");
        let began = Instant::now();
        assert!(ask().await.is_some());
        assert!(began.elapsed() < PATIENCE);
    }

    /// Who shares an asker's place with one that asks for what the first resolver does not answer.
    #[tokio::test]
    async fn one_that_was_silent_comes_first_if_it_answers() {
        let first = resolver_after(Some((0, 1)), Duration::from_millis(20)).await;
        let second = resolver(Some(3)).await;
        let world = World::new();
        world.heard(ONE, first, false);
        let answer = world.ask_each(vec![first, second], asked(ONE, true)).await.unwrap();
        assert_eq!((answer[3], answer[7]), (0, 1));
        assert!(!world.is_silent(ONE, first));
        // Those that were all silent are all asked.
        world.heard(ONE, first, false);
        assert!(world.ask_each(vec![first], asked(ONE, true)).await.is_some());
    }

    #[test]
    fn the_memory_of_silence_has_an_end() {
        let world = World::new();
        for n in 0..10_000 {
            world.heard(Asker::Unknown(n), ([192, 0, 2, 1], PORT).into(), false);
        }
        assert_eq!(world.0.silent.lock().unwrap().len(), SILENCES);
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_fetched_by_tcp_for_who_came_by_it() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(at).await.unwrap();
        tokio::spawn(async move {
            let mut message = [0; 17];
            while let Ok((_, from)) = udp.recv_from(&mut message).await {
                message[2] = 0x82;
                let _ = udp.send_to(&message, from).await;
            }
        });
        std::thread::spawn(move || {
            let tcp = tcp.into_std().unwrap();
            tcp.set_nonblocking(false).unwrap();
            let (mut stream, _) = tcp.accept().unwrap();
            stream.write_all(&[&[3, 0xe8][..], &[9; 1000]].concat()).unwrap();
        });
        let world = World::new();
        assert!(is_truncated(&world.ask_one(at, asked(ONE, true)).await.unwrap()));
        assert_eq!(world.ask_one(at, asked(ONE, false)).await.unwrap(), [9; 1000]);
    }
}
