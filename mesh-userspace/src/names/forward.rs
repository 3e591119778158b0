//! Questions that are not ours, for the host's resolvers: as they came, and the answer as it comes.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

use super::upstream::Lines;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What systemd-resolved forwards to, where it is itself what the file above names.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// As many as the C library looks at.
const RESOLVERS_MAX: usize = 3;
/// For one resolver. Docker's own waits 4 s in all for us.
const PATIENCE: Duration = Duration::from_millis(1200);
/// For all of them together, where the name is most likely nobody's.
const BRIEF: Duration = Duration::from_millis(500);
/// How long one that did not answer is asked after the others.
const SHUNNED: Duration = Duration::from_secs(30);
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
    /// When a resolver did not answer.
    silent: Mutex<HashMap<SocketAddr, Instant>>,
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
    pub async fn ask(&self, question: &[u8], own: &[IpAddr], udp: bool) -> Option<Vec<u8>> {
        self.ask_each(self.resolvers(own), question, udp).await
    }

    /// Asks all at once, and takes the first answer that is one.
    pub async fn ask_briefly(&self, question: &[u8], own: &[IpAddr], udp: bool) -> Option<Vec<u8>> {
        self.first_of(self.resolvers(own), question, udp).await
    }

    async fn ask_each(
        &self,
        mut resolvers: Vec<SocketAddr>,
        question: &[u8],
        udp: bool,
    ) -> Option<Vec<u8>> {
        // Those that answered before come first; else the order is the file's.
        resolvers.sort_by_key(|resolver| self.is_silent(*resolver));
        for resolver in resolvers {
            let asked = timeout(PATIENCE, self.ask_one(resolver, question, udp)).await;
            let answer = asked.ok().flatten();
            self.heard(resolver, answer.is_some());
            if answer.is_some() {
                return answer;
            }
            tracing::debug!("resolver {resolver} does not answer");
        }
        None
    }

    async fn first_of(
        &self,
        resolvers: Vec<SocketAddr>,
        question: &[u8],
        udp: bool,
    ) -> Option<Vec<u8>> {
        let asked = resolvers.into_iter().map(|resolver| self.ask_one(resolver, question, udp));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let first = async {
            while let Some(answer) = asked.next().await {
                if let Some(answer) = answer.filter(|answer| is_answer(answer)) {
                    return Some(answer);
                }
            }
            None
        };
        timeout(BRIEF, first).await.ok().flatten()
    }

    /// By UDP, and if the answer is too long for that and need not be short, by TCP.
    async fn ask_one(&self, resolver: SocketAddr, question: &[u8], udp: bool) -> Option<Vec<u8>> {
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

    fn is_silent(&self, resolver: SocketAddr) -> bool {
        // Every change is one insertion or removal.
        let silent = self.0.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.get(&resolver).is_some_and(|at| at.elapsed() < SHUNNED)
    }

    fn heard(&self, resolver: SocketAddr, has_answered: bool) {
        let mut silent = self.0.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, at| at.elapsed() < SHUNNED);
        if has_answered {
            silent.remove(&resolver);
        } else {
            silent.insert(resolver, Instant::now());
        }
    }
}

/// And not a failure of the one who was asked.
fn is_answer(message: &[u8]) -> bool {
    let code = message.get(3).map(|flags| ResponseCode::from(0, flags & 0xf));
    !matches!(code, None | Some(ResponseCode::ServFail | ResponseCode::Refused))
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

    /// A resolver whose answers have this code; none answers with nothing.
    async fn resolver(code: Option<u8>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut message = [0; 17];
            while let Ok((_, from)) = socket.recv_from(&mut message).await {
                if let Some(code) = code {
                    (message[2], message[3]) = (0x80, code);
                    let _ = socket.send_to(&message, from).await;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn the_first_that_knows_is_heard_and_none_is_waited_for_long() {
        let (silent, failing, knowing) =
            (resolver(None).await, resolver(Some(2)).await, resolver(Some(0)).await);
        let world = World::new();
        let first_of = |resolvers| world.first_of(resolvers, &QUESTION, true);
        let answer = first_of(vec![silent, failing, knowing]).await.unwrap();
        assert_eq!(answer[3], 0);
        let began = Instant::now();
        assert_eq!(first_of(vec![failing]).await, None);
        assert_eq!(first_of(vec![silent, failing]).await, None);
        assert!(began.elapsed() >= BRIEF);
    }

    #[test]
    fn resolvers_are_read_from_the_file() {
        let text = "# x\nsearch a.b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # y\nnameserver x\noptions ndots:1\n";
        let expected: Vec<IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(resolvers(text), expected);
    }

    #[tokio::test]
    async fn one_that_is_silent_is_asked_last_from_then_on() {
        let (silent, knowing) = (resolver(None).await, resolver(Some(0)).await);
        let world = World::new();
        let ask = || world.ask_each(vec![silent, knowing], &QUESTION, true);
        assert_eq!(ask().await.unwrap()[..2], QUESTION[..2]);
        assert!(world.is_silent(silent) && !world.is_silent(knowing));
        let began = Instant::now();
        assert!(ask().await.is_some());
        assert!(began.elapsed() < PATIENCE);
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
        assert!(is_truncated(&world.ask_one(at, &QUESTION, true).await.unwrap()));
        assert_eq!(world.ask_one(at, &QUESTION, false).await.unwrap(), [9; 1000]);
    }
}
