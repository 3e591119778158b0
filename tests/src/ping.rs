//! ICMP echo, measured in this process.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Netns,
    packet::is_timeout,
    socket,
    wait::{arrival, left_until},
};

const ECHO_LEN: usize = 8;

/// What came back. Round-trip times are sorted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub sent: usize,
    pub rtts: Vec<Duration>,
}

impl Report {
    pub fn received(&self) -> usize {
        self.rtts.len()
    }

    /// `p`: 0.0..=1.0. `None` if nothing came back.
    pub fn percentile(&self, p: f64) -> Option<Duration> {
        let last = self.rtts.len().checked_sub(1)?;
        self.rtts.get((p * last as f64).round() as usize).copied()
    }
}

/// After so many in a row without an answer there is nobody.
const GIVE_UP: usize = 3;

/// Sends `count` echo requests one after the other, each waiting at most `limit` for its answer.
/// Fewer if nobody answers.
/// `payload`: bytes after the ICMP header.
pub fn ping(
    from: &Netns,
    target: IpAddr,
    count: usize,
    payload: usize,
    limit: Duration,
) -> Result<Report> {
    static NEXT_ID: AtomicU16 = AtomicU16::new(1);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let socket = open(from, target)?;
    let (mut report, mut silent) = (Report::default(), 0);
    for seq in 0..count {
        if silent == GIVE_UP {
            break;
        }
        let request = echo(target, id, seq as u16, payload);
        let start = Instant::now();
        report.sent += 1;
        // A lost route or neighbour is a lost packet here, not an error of the measurement.
        if socket.send(&request).is_ok() && answered(&socket, target, &request, start + limit)? {
            report.rtts.push(start.elapsed());
            silent = 0;
        } else {
            silent += 1;
        }
    }
    report.rtts.sort_unstable();
    Ok(report)
}

/// Fails unless every one of three small pings is answered.
pub fn expect_ping(from: &Netns, target: IpAddr) -> Result<()> {
    let report = ping(from, target, 3, 56, arrival())?;
    let name = from.name();
    ensure!(report.received() == 3, "{name} -> {target}: {} of 3 pings", report.received());
    Ok(())
}

/// Fails if a ping is answered.
pub fn expect_no_ping(from: &Netns, target: IpAddr) -> Result<()> {
    let report = ping(from, target, 3, 56, Duration::from_millis(100))?;
    let name = from.name();
    ensure!(report.received() == 0, "{name} -> {target} must not be answered, but was");
    Ok(())
}

fn open(from: &Netns, target: IpAddr) -> Result<UdpSocket> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    from.run(|| {
        let socket = socket::open(family, libc::SOCK_RAW, protocol).context("raw ICMP socket")?;
        let to = SocketAddr::new(target, 0);
        socket.connect(to).with_context(|| format!("no route from {} to {target}", from.name()))?;
        Ok(socket)
    })
}

/// Type, code, checksum, id, sequence number, payload. The kernel computes ICMPv6 checksums.
fn echo(target: IpAddr, id: u16, seq: u16, payload: usize) -> Vec<u8> {
    let mut message = vec![0; ECHO_LEN + payload];
    message[0] = if target.is_ipv4() { 8 } else { 128 };
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[6..8].copy_from_slice(&seq.to_be_bytes());
    for (i, byte) in message[ECHO_LEN..].iter_mut().enumerate() {
        *byte = i as u8;
    }
    if target.is_ipv4() {
        let sum = internet_checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// Waits for the reply with the id, number and payload of `request`.
fn answered(socket: &UdpSocket, target: IpAddr, request: &[u8], deadline: Instant) -> Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    for left in left_until(deadline) {
        socket.set_read_timeout(Some(left))?;
        let n = match socket.recv(&mut buffer) {
            Ok(n) => n,
            Err(e) if is_timeout(&e) => return Ok(false),
            // An ICMP error for an earlier packet.
            Err(_) => continue,
        };
        // Raw IPv4 sockets give the IP header too, raw IPv6 sockets do not.
        let skip = if target.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let reply = if target.is_ipv4() { 0 } else { 129 };
        let message = buffer.get(skip..n).unwrap_or_default();
        if message.first() == Some(&reply) && message.get(4..) == request.get(4..) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// RFC 1071.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
