//! Frames exactly as given, past the stack: spoofed sources, malformed headers, strangers.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{Netns, socket, wait::left_until};

/// Largest frame that is read: a GSO super-packet with its headers.
pub const FRAME_MAX: usize = 1 << 17;

/// An AF_PACKET socket on one interface.
#[derive(Debug)]
pub struct PacketSocket(UdpSocket);

impl PacketSocket {
    pub fn open(netns: &Netns, ifname: &str) -> Result<Self> {
        let open = || -> io::Result<UdpSocket> {
            // Protocol 0: nothing is received before the socket is bound to its interface.
            let socket = socket::open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
            socket::set_receive_buffer(&socket, 32 << 20)?;
            socket::bind_packet(&socket, socket::ifindex(ifname)?)?;
            Ok(socket)
        };
        netns.run(|| {
            let socket = open().with_context(|| format!("packet socket on {ifname}"))?;
            Ok(Self(socket))
        })
    }

    /// Sends one frame, Ethernet header first.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.0.send(frame).context("send frame")?;
        Ok(())
    }

    /// The next frame, either direction, into `buffer`. `None` if there is none within `limit`.
    pub fn receive<'a>(&self, buffer: &'a mut [u8], limit: Duration) -> Result<Option<&'a [u8]>> {
        self.0.set_read_timeout(Some(limit.max(Duration::from_micros(1))))?;
        match self.0.recv(buffer) {
            Ok(n) => Ok(Some(&buffer[..n])),
            Err(e) if is_timeout(&e) => Ok(None),
            // The interface is down or gone: nothing more will come, which is what a timeout says.
            Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
            Err(e) => Err(e).context("receive frame"),
        }
    }

    /// The first frame that `wanted` accepts.
    pub fn find(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let (deadline, mut buffer) = (Instant::now() + limit, vec![0; FRAME_MAX]);
        for left in left_until(deadline) {
            match self.receive(&mut buffer, left)? {
                Some(frame) if wanted(frame) => return Ok(Some(frame.to_vec())),
                _ => {}
            }
        }
        Ok(None)
    }
}

pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
