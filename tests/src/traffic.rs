//! TCP and UDP between two namespaces, in this process.

use std::{
    hash::{DefaultHasher, Hasher},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{
    Netns,
    packet::is_timeout,
    socket::{self, Fragment},
    wait::{arrival, left_until, patient},
};

/// A connection that makes no progress for this long has failed.
const STALLED: Duration = Duration::from_secs(10);
const CHUNK: usize = 256 << 10;

/// Sends `bytes` of pseudo-random data over TCP and compares the hashes of both ends.
pub fn tcp_transfer(from: &Netns, to: &Netns, target: IpAddr, bytes: usize) -> Result<()> {
    let pair = tcp_pair(from, to, target)?;
    transfer(pair, bytes).with_context(|| format!("{} -> {target}", from.name()))
}

/// [`tcp_transfer`] over the two ends of a connection that is open, which it closes.
pub fn transfer((mut client, mut server): (TcpStream, TcpStream), bytes: usize) -> Result<()> {
    let sent = thread::spawn(move || -> Result<u64> {
        let (mut noise, mut hasher) = (Noise(bytes as u64 | 1), DefaultHasher::new());
        let (mut left, mut chunk) = (bytes, vec![0; CHUNK]);
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK)];
            noise.fill(part);
            hasher.write(part);
            client.write_all(part).context("send")?;
            left -= part.len();
        }
        Ok(hasher.finish())
    });
    let (mut data, mut hasher) = (Vec::with_capacity(bytes), DefaultHasher::new());
    let read = server.read_to_end(&mut data);
    let sent = sent.join().map_err(|_| anyhow!("sender panicked"))?;
    let sent = sent?;
    read.context("receive")?;
    ensure!(data.len() == bytes, "{} of {bytes} bytes arrived", data.len());
    data.chunks(CHUNK).for_each(|part| hasher.write(part));
    ensure!(hasher.finish() == sent, "{bytes} bytes arrived, but not those that were sent");
    Ok(())
}

/// TCP goodput in bits per second, over about `time`.
pub fn tcp_throughput(from: &Netns, to: &Netns, target: IpAddr, time: Duration) -> Result<f64> {
    let (mut client, mut server) = tcp_pair(from, to, target)?;
    let sender = thread::spawn(move || -> io::Result<()> {
        let (chunk, start) = (vec![0x5a; CHUNK], Instant::now());
        while start.elapsed() < time {
            client.write_all(&chunk)?;
        }
        Ok(())
    });
    let (mut buffer, mut total, start) = (vec![0; CHUNK], 0, Instant::now());
    loop {
        match server.read(&mut buffer).context("receive")? {
            0 => break,
            n => total += n,
        }
    }
    let elapsed = start.elapsed();
    sender.join().map_err(|_| anyhow!("sender panicked"))?.context("send")?;
    Ok(total as f64 * 8.0 / elapsed.as_secs_f64())
}

/// Whether a TCP connection can be made within `limit`.
pub fn tcp_connects(from: &Netns, target: SocketAddr, limit: Duration) -> Result<bool> {
    from.run(|| Ok(TcpStream::connect_timeout(&target, limit).is_ok()))
}

/// The two ends of a new connection, that of `from` first.
pub fn tcp_pair(from: &Netns, to: &Netns, target: IpAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = to.run(|| Ok(TcpListener::bind((any(target), 0))?)).context("listen")?;
    let target = SocketAddr::new(target, listener.local_addr()?.port());
    let connect = || {
        TcpStream::connect_timeout(&target, patient(STALLED))
            .with_context(|| format!("TCP {} -> {target}", from.name()))
    };
    let client = from.run(connect)?;
    let (server, _) = listener.accept().context("accept")?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(patient(STALLED)))?;
        stream.set_write_timeout(Some(patient(STALLED)))?;
    }
    Ok((client, server))
}

/// Two UDP sockets, the first connected to the second.
#[derive(Debug)]
pub struct UdpPair {
    target: IpAddr,
    pub tx: UdpSocket,
    pub rx: UdpSocket,
}

impl UdpPair {
    pub fn new(from: &Netns, to: &Netns, target: IpAddr, fragment: Fragment) -> Result<Self> {
        let rx = to.run(|| Ok(UdpSocket::bind((any(target), 0))?)).context("bind receiver")?;
        let port = rx.local_addr()?.port();
        let connect = || -> Result<UdpSocket> {
            let tx = UdpSocket::bind((any(target), 0))?;
            socket::set_fragment(&tx, target, fragment)?;
            tx.connect((target, port)).with_context(|| format!("no route to {target}"))?;
            Ok(tx)
        };
        Ok(Self { target, tx: from.run(connect)?, rx })
    }

    /// Sends one datagram whose IP packet has exactly `packet_len` bytes, before any fragmentation,
    /// and waits for it. `Ok(false)`: it was sent and did not arrive within `limit`.
    pub fn carries(&self, packet_len: u32, limit: Duration) -> Result<bool> {
        let mut payload = vec![0; packet_len as usize - header_len(self.target)];
        Noise(u64::from(packet_len) | 1).fill(&mut payload);
        self.tx.send(&payload).with_context(|| format!("send a packet of {packet_len} bytes"))?;
        let (deadline, mut buffer) = (Instant::now() + limit, vec![0; 1 << 16]);
        for left in left_until(deadline) {
            self.rx.set_read_timeout(Some(left))?;
            match self.rx.recv(&mut buffer) {
                Ok(n) if buffer[..n] == payload => return Ok(true),
                Ok(n) if n == payload.len() => bail!("{packet_len} bytes arrived changed"),
                // A late one of another size.
                Ok(_) => {}
                Err(e) if is_timeout(&e) => break,
                Err(e) => return Err(e).context("receive"),
            }
        }
        Ok(false)
    }

    /// Path MTU that the sender's stack believes in.
    pub fn path_mtu(&self) -> Result<u32> {
        Ok(socket::path_mtu(&self.tx, self.target)?)
    }
}

/// Fails unless a UDP datagram in an IP packet of exactly `packet_len` bytes arrives in one piece.
pub fn expect_udp(from: &Netns, to: &Netns, target: IpAddr, packet_len: u32) -> Result<()> {
    let what = || format!("UDP {} -> {target}, packet of {packet_len} bytes", from.name());
    let pair = UdpPair::new(from, to, target, Fragment::Never).with_context(what)?;
    // UDP has no second chance, so give it one: under load a receiver may start late.
    for _ in 0..2 {
        if pair.carries(packet_len, arrival()).with_context(what)? {
            return Ok(());
        }
    }
    bail!("{}: did not arrive", what())
}

/// Length of the IP packet of a datagram with one byte: shorter over IPv4 than the header of IPv6.
pub fn least_udp(target: IpAddr) -> u32 {
    header_len(target) as u32 + 1
}

/// IP and UDP headers.
fn header_len(target: IpAddr) -> usize {
    if target.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Xorshift: cheap bytes that do not repeat.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            part.copy_from_slice(&self.0.to_le_bytes()[..part.len()]);
        }
    }
}
