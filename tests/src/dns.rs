//! Questions for names, and a resolver that knows one answer to all of them.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Netns, wait};

pub const PORT: u16 = 53;
/// Bytes of a header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// A question for the IPv4 addresses of a name, as a resolver of libc sends it.
pub fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap_or(63));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: u16,
    /// RCODE: 0 is success, 2 a failure of the server, 3 no such name.
    pub code: u8,
    pub truncated: bool,
    /// The data of the last record, if that is an address.
    pub address: Option<Ipv4Addr>,
    /// Of the whole message, in bytes.
    pub len: usize,
}

impl Answer {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let tail = bytes.len().checked_sub(4).and_then(|at| bytes[at..].try_into().ok());
        let tail = tail.map(|ip: [u8; 4]| Ipv4Addr::from(ip));
        Some(Self {
            id: word(0)?,
            code: bytes.get(3)? & 0xf,
            truncated: bytes.get(2)? & 2 != 0,
            address: tail.filter(|_| word(6) != Some(0)),
            len: bytes.len(),
        })
    }
}

/// Asks once by UDP, and waits for `limit`. `None`: no answer, or the port is closed.
pub fn ask(from: &Netns, server: IpAddr, name: &str, limit: Duration) -> Result<Option<Answer>> {
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = from.run(|| Ok(UdpSocket::bind((any, 0))?))?;
    socket.connect((server, PORT)).context("connect a UDP socket")?;
    socket.set_read_timeout(Some(limit))?;
    let id = rand(&socket)?;
    let mut bytes = [0; 4096];
    if socket.send(&question(id, name)).is_err() {
        return Ok(None);
    }
    loop {
        match socket.recv(&mut bytes) {
            Ok(len) => match Answer::read(&bytes[..len]) {
                Some(answer) if answer.id == id => return Ok(Some(answer)),
                _ => {}
            },
            Err(_) => return Ok(None),
        }
    }
}

/// Waits until this server has the address of a name.
pub fn wait_known(from: &Netns, server: IpAddr, name: &str) -> Result<Ipv4Addr> {
    let limit = wait::patient(Duration::from_secs(2));
    wait::until(&format!("the address of {name}"), Duration::from_secs(40), || {
        let answer = ask(from, server, name, limit).map_err(|e| format!("{e:#}"))?;
        answer.and_then(|answer| answer.address).ok_or_else(|| format!("{answer:?}"))
    })
}

/// Asks by a connection that there is.
pub fn ask_tcp(stream: &mut TcpStream, name: &str) -> io::Result<Answer> {
    let question = question(7, name);
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], &question].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut answer = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut answer)?;
    Answer::read(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A number that the next question is unlikely to have too.
fn rand(socket: &UdpSocket) -> io::Result<u16> {
    use std::hash::{BuildHasher, RandomState};
    let port = socket.local_addr()?.port();
    Ok(RandomState::new().hash_one(port) as u16)
}

/// A resolver on an address of a namespace that answers each question with one address, and `padding`
/// more bytes of text.
#[derive(Debug)]
pub struct World {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl World {
    pub fn start(netns: &Netns, address: IpAddr, says: Ipv4Addr, padding: usize) -> Result<Self> {
        let at = SocketAddr::new(address, PORT);
        let socket = netns.run(|| UdpSocket::bind(at).with_context(|| format!("bind {at}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = ends.clone();
        let thread = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !told.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut bytes) else { continue };
                if let Some(answer) = reply(&bytes[..len], says, padding) {
                    _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// The question, a TXT record of `padding` bytes for each 255 of it, and an address.
fn reply(question: &[u8], says: Ipv4Addr, padding: usize) -> Option<Vec<u8>> {
    let name = question.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let end = HEADER + name + 5;
    let mut bytes = question.get(..end)?.to_vec();
    bytes[2] |= 0x80;
    bytes[3] = 0x80;
    let texts = padding / 256;
    bytes[6..8].copy_from_slice(&u16::try_from(texts + 1).ok()?.to_be_bytes());
    bytes[8..12].fill(0);
    for _ in 0..texts {
        bytes.extend([0xc0, 0x0c, 0, 16, 0, 1, 0, 0, 0, 1, 1, 0, 255]);
        bytes.extend([b'x'; 255]);
    }
    bytes.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
    bytes.extend(says.octets());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_what_a_question_is_answered_with() {
        let says = Ipv4Addr::new(192, 0, 2, 7);
        let answer = Answer::read(&reply(&question(9, "go.dev"), says, 600).unwrap()).unwrap();
        assert_eq!((answer.id, answer.code, answer.address), (9, 0, Some(says)));
        assert!(answer.len > 512 && !answer.truncated);
        assert_eq!(Answer::read(&question(9, "go.dev")).unwrap().address, None);
    }
}
