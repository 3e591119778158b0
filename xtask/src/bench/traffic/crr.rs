//! Connections: made, used for one byte each way, reset.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::net::sockopt::set_socket_linger;

use super::{Job, Latency, Measured, PATIENCE, anywhere, tell};
use crate::bench::usage::Snapshot;

/// SYN, SYN and ACK, ACK, request, its ACK, answer, its ACK, FIN of the server, RST.
const PACKETS: u64 = 9;

pub fn server() -> Result<()> {
    let listener = TcpListener::bind(anywhere()).context("listen")?;
    tell(&listener.local_addr()?.port())?;
    let mut byte = [0];
    loop {
        let (mut stream, _) = listener.accept().context("accept")?;
        // A client that went away in the middle is no reason to stop.
        if let Ok(1) = stream.read(&mut byte) {
            _ = stream.write(&byte);
        }
    }
}

pub fn client(job: &Job, to: SocketAddr) -> Result<Measured> {
    connect_for(to, job.warm_up)?;
    let window = Snapshot::begin()?;
    let ns = connect_for(to, job.window)?;
    let usage = window.end()?;
    let latency = Latency::of(ns).context("not one connection in the window")?;
    let packets = latency.transactions * PACKETS;
    let bytes = latency.transactions * 2;
    Ok(Measured { usage, packets, bytes, lost: 0, latency: Some(latency) })
}

/// Returns the nanoseconds of each connection.
fn connect_for(to: SocketAddr, time: Duration) -> Result<Vec<u32>> {
    let (start, mut ns) = (Instant::now(), Vec::new());
    let mut byte = [0];
    while start.elapsed() < time {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(to).context("connect")?;
        // Closed by a reset, so that no port waits in TIME_WAIT: there are only 28,000.
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).context("answer")?;
        drop(stream);
        ns.push(begin.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
    }
    Ok(ns)
}
