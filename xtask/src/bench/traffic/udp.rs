//! Small UDP packets, as many as go. Each carries its number, by which the receiver knows what it
//! misses.

use std::{
    io,
    mem::zeroed,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    ptr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use mesh_tests::Netns;

use super::{Job, LONGEST, Measured, PATIENCE, anywhere, tell};
use crate::bench::usage::Snapshot;

/// Of UDP payload.
const BYTES: usize = 64;
/// Packets for each system call.
const BATCH: usize = 64;
const RECEIVE_BUFFER: i32 = 32 << 20;

/// Buffers for one sendmmsg or recvmmsg. The headers point into the buffers, which do not move.
struct Batch {
    payloads: Box<[[u8; BYTES]; BATCH]>,
    _parts: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl Batch {
    fn new() -> Self {
        let mut payloads = Box::new([[0; BYTES]; BATCH]);
        let part = |payload: &mut [u8; BYTES]| libc::iovec {
            iov_base: ptr::from_mut(payload).cast(),
            iov_len: BYTES,
        };
        let mut parts: Box<[_]> = payloads.iter_mut().map(part).collect();
        let header = |part: &mut libc::iovec| {
            // SAFETY: plain old data, for which all zeroes is a valid value.
            let mut header: libc::mmsghdr = unsafe { zeroed() };
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header
        };
        let headers = parts.iter_mut().map(header).collect();
        Self { payloads, _parts: parts, headers }
    }

    /// Returns how many packets went out.
    fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: the headers describe buffers that live as long as self.
        let n = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BATCH as u32, 0)
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for the first packet, and returns how many there are.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let (headers, flags) = (self.headers.as_mut_ptr(), libc::MSG_WAITFORONE);
        // SAFETY: the headers describe buffers that live as long as self, and are written to through
        // them alone; no timeout is passed.
        let n = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers, BATCH as u32, flags, ptr::null_mut())
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    fn number(&self, i: usize) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.payloads[i];
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Both ends of a path in one process, for where one processor does all the work.
pub struct UdpBatch {
    batch: Batch,
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl UdpBatch {
    /// Of one batch.
    pub const PACKETS: usize = BATCH;

    pub fn connect(client: &Netns, server: &Netns, address: IpAddr) -> Result<Self> {
        let receiver = server.run(|| Ok(UdpSocket::bind((address, 0))?))?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        mesh_tests::socket::set_receive_buffer(&receiver, RECEIVE_BUFFER)?;
        let sender = client.run(|| Ok(UdpSocket::bind(anywhere())?))?;
        sender.connect(receiver.local_addr()?).context("connect")?;
        Ok(Self { batch: Batch::new(), sender, receiver })
    }

    /// Sends that many batches, and receives each before the next.
    pub fn round_trip(&mut self, batches: usize) -> Result<()> {
        for _ in 0..batches {
            let mut left = self.batch.send(&self.sender).context("send")?;
            ensure!(left == BATCH, "sent only {left} packets of {BATCH}");
            while left > 0 {
                left -= self.batch.receive(&self.receiver).context("receive")?.min(left);
            }
        }
        Ok(())
    }
}

/// Sends until it is ended.
pub fn source(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(anywhere())?;
    socket.connect(to).context("connect")?;
    let (mut batch, mut next, start) = (Batch::new(), 0_u64, Instant::now());
    while start.elapsed() < LONGEST {
        for (payload, number) in batch.payloads.iter_mut().zip(next..) {
            payload[..8].copy_from_slice(&number.to_le_bytes());
        }
        // What the sender's own stack refuses is lost like what the path loses.
        next += batch.send(&socket).unwrap_or(1) as u64;
    }
    Ok(())
}

pub fn sink(job: &Job) -> Result<Measured> {
    let socket = UdpSocket::bind(anywhere())?;
    mesh_tests::socket::set_receive_buffer(&socket, RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    tell(&socket.local_addr()?.port())?;
    let mut batch = Batch::new();
    receive_for(&socket, &mut batch, Duration::ZERO).context("wait for the first packet")?;
    receive_for(&socket, &mut batch, job.warm_up)?;
    let window = Snapshot::begin()?;
    let (first, last, packets) = receive_for(&socket, &mut batch, job.window)?;
    let usage = window.end()?;
    ensure!(packets > 0 && last >= first, "packets came out of order");
    let lost = (last - first + 1).saturating_sub(packets);
    let bytes = packets * BYTES as u64;
    Ok(Measured { usage, packets, bytes, lost, latency: None })
}

/// Receives for this long. Returns the first and the last number, and how many packets there were.
fn receive_for(socket: &UdpSocket, batch: &mut Batch, time: Duration) -> Result<(u64, u64, u64)> {
    let start = Instant::now();
    let mut n = batch.receive(socket).context("receive")?;
    let (first, mut packets) = (batch.number(0), n as u64);
    while start.elapsed() < time {
        n = batch.receive(socket).context("receive")?;
        packets += n as u64;
    }
    Ok((first, batch.number(n - 1), packets))
}
