//! Ping-pong of one byte.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Job, Latency, Measured, PATIENCE, anywhere, tell};
use crate::bench::usage::Snapshot;

/// An answer that takes longer is lost.
const LOST: Duration = Duration::from_millis(200);
/// Room for the latencies of a window, so that none is spent on making room.
const ROOM: usize = 1 << 20;

pub fn tcp_echo() -> Result<()> {
    let listener = TcpListener::bind(anywhere()).context("listen")?;
    tell(&listener.local_addr()?.port())?;
    let stream = plain(listener.accept().context("accept")?.0)?;
    let mut byte = [0];
    while stream.recv(&mut byte)? == 1 {
        stream.send(&byte)?;
    }
    Ok(())
}

pub fn udp_echo() -> Result<()> {
    let socket = UdpSocket::bind(anywhere())?;
    tell(&socket.local_addr()?.port())?;
    let mut byte = [0];
    loop {
        let (n, from) = socket.recv_from(&mut byte)?;
        socket.send_to(&byte[..n], from)?;
    }
}

pub fn tcp(job: &Job, to: SocketAddr) -> Result<Measured> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    transactions(job, &[plain(stream)?])
}

pub fn udp(job: &Job, to: SocketAddr) -> Result<Measured> {
    let open = |_| {
        let socket = UdpSocket::bind(anywhere())?;
        socket.connect(to)?;
        Ok(socket)
    };
    transactions(job, &(0..job.flows).map(open).collect::<io::Result<Vec<_>>>()?)
}

/// The same `send` and `recv` for both: a [`UdpSocket`] makes the plain system calls.
fn plain(stream: TcpStream) -> Result<UdpSocket> {
    stream.set_nodelay(true)?;
    Ok(UdpSocket::from(OwnedFd::from(stream)))
}

/// Keeps a byte in flight on each socket. The sockets take turns, which is the order in which
/// answers arrive: there is one path and one server.
fn transactions(job: &Job, sockets: &[UdpSocket]) -> Result<Measured> {
    for socket in sockets {
        socket.set_read_timeout(Some(LOST))?;
        socket.send(&[1]).context("send the first byte")?;
    }
    let mut sent = vec![Instant::now(); sockets.len()];
    let mut turns = Turns { sockets, sent: &mut sent, ns: Vec::with_capacity(ROOM), lost: 0 };
    turns.take(job.warm_up)?;
    turns.forget();
    let window = Snapshot::begin()?;
    turns.restart();
    turns.take(job.window)?;
    let usage = window.end()?;
    let (lost, latency) = (turns.lost, Latency::of(turns.ns));
    let latency = latency.context("not one transaction in the window")?;
    let packets = 2 * latency.transactions;
    Ok(Measured { usage, packets, bytes: packets, lost, latency: Some(latency) })
}

struct Turns<'a> {
    sockets: &'a [UdpSocket],
    /// When each socket's byte left.
    sent: &'a mut [Instant],
    ns: Vec<u32>,
    lost: u64,
}

impl Turns<'_> {
    fn take(&mut self, time: Duration) -> Result<()> {
        let (start, mut byte) = (Instant::now(), [0]);
        while start.elapsed() < time {
            for (socket, sent) in self.sockets.iter().zip(&mut *self.sent) {
                let answer = socket.recv(&mut byte);
                let now = Instant::now();
                match answer {
                    Ok(_) => self.ns.push((now - *sent).as_nanos().try_into().unwrap_or(u32::MAX)),
                    Err(e) if mesh_tests::packet::is_timeout(&e) => self.lost += 1,
                    Err(e) => return Err(e).context("receive"),
                }
                *sent = now;
                socket.send(&byte).context("send")?;
            }
        }
        Ok(())
    }

    /// Drops what the warm-up measured.
    fn forget(&mut self) {
        self.ns.clear();
        self.lost = 0;
    }

    /// Answers that came while the counters were read did not take that long.
    fn restart(&mut self) {
        self.sent.fill(Instant::now());
    }
}
