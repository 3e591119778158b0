//! Questions that are not ours, for the host's resolvers: as they came, and the answer as it comes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

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

/// Asks one resolver after the other, but for `own` addresses, which would be us.
pub async fn ask(question: &[u8], own: &[IpAddr], udp: bool) -> Option<Vec<u8>> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    for resolver in resolvers(&text).into_iter().filter(|r| !own.contains(r)) {
        let to = SocketAddr::new(resolver, 53);
        let asked =
            async { if udp { by_udp(to, question).await } else { by_tcp(to, question).await } };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(e)) => tracing::debug!("resolver {resolver}: {e}"),
            Err(_) => tracing::debug!("resolver {resolver} does not answer"),
        }
    }
    None
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

    #[test]
    fn resolvers_are_read_from_the_file() {
        let text = "# x\nsearch a.b\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # y\nnameserver x\noptions ndots:1\n";
        let expected: Vec<IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(resolvers(text), expected);
    }
}
