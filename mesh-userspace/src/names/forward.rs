//! Questions that are not ours, for the host's resolvers: as they came, and the answer as it comes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use hickory_proto::op::ResponseCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as the C library looks at.
const RESOLVERS_MAX: usize = 3;
/// For one resolver. Docker's own waits 4 s in all for us.
const PATIENCE: Duration = Duration::from_millis(1200);

/// For all of them together, where the name is most likely nobody's.
const BRIEF: Duration = Duration::from_millis(500);
const PORT: u16 = 53;

/// Asks one resolver after the other, but for `own` addresses, which would be us.
pub async fn ask(question: &[u8], own: &[IpAddr], udp: bool) -> Option<Vec<u8>> {
    for resolver in of_host(own) {
        if let Ok(Some(answer)) = timeout(PATIENCE, ask_one(resolver, question, udp)).await {
            return Some(answer);
        }
        tracing::debug!("resolver {resolver} does not answer");
    }
    None
}

/// Asks all at once, and takes the first answer that is one.
pub async fn ask_briefly(question: &[u8], own: &[IpAddr], udp: bool) -> Option<Vec<u8>> {
    first_of(of_host(own), question, udp).await
}

async fn first_of(resolvers: Vec<SocketAddr>, question: &[u8], udp: bool) -> Option<Vec<u8>> {
    let asked = resolvers.into_iter().map(|resolver| ask_one(resolver, question, udp));
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

fn of_host(own: &[IpAddr]) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let others = resolvers(&text).into_iter().filter(|resolver| !own.contains(resolver));
    others.map(|resolver| SocketAddr::new(resolver, PORT)).collect()
}

async fn ask_one(resolver: SocketAddr, question: &[u8], udp: bool) -> Option<Vec<u8>> {
    let asked =
        if udp { by_udp(resolver, question).await } else { by_tcp(resolver, question).await };
    asked.inspect_err(|e| tracing::debug!("resolver {resolver}: {e}")).ok()
}

/// And not a failure of the one who was asked.
fn is_answer(message: &[u8]) -> bool {
    let code = message.get(3).map(|flags| ResponseCode::from(0, flags & 0xf));
    !matches!(code, None | Some(ResponseCode::ServFail | ResponseCode::Refused))
}

async fn by_udp(to: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let len = socket.recv(&mut answer).await?;
        // Not one to an older question of the same port.
        if answer.get(..2) == question.get(..2) {
            answer.truncate(len);
            return Ok(answer);
        }
    }
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
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    resolvers(&text).into_iter().filter(|resolver| !resolver.is_loopback()).collect()
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
    use super::*;

    /// A resolver whose answers have this code; none answers with nothing.
    async fn resolver(code: Option<u8>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut message = [0; 12];
            while let Ok((_, from)) = socket.recv_from(&mut message).await {
                if let Some(code) = code {
                    message[3] = code;
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
        let question = [7; 12];
        let answer = first_of(vec![silent, failing, knowing], &question, true).await.unwrap();
        assert_eq!(answer[3], 0);
        let began = std::time::Instant::now();
        assert_eq!(first_of(vec![failing], &question, true).await, None);
        assert_eq!(first_of(vec![silent, failing], &question, true).await, None);
        assert!(began.elapsed() >= BRIEF);
    }

    #[test]
    fn resolvers_are_read_from_the_file() {
        let text = "# x\nsearch a.b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # y\nnameserver x\noptions ndots:1\n";
        let expected: Vec<IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(resolvers(text), expected);
    }
}
