//! The kernel's table of connections: what it notes of a conversation in UDP when the first packet
//! comes, it keeps to as long as packets come, whatever the rules say by then.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rtnetlink::packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{self, Timeout},
};

/// linux/netfilter/nfnetlink_conntrack.h: the subsystem's number is the high byte of a message's type.
const NEW: u16 = 0x100;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;

/// `enum ctattr_type`
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ZONE: u16 = 18;
/// `enum ctattr_tuple`
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
/// `enum ctattr_ip`
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
/// `enum ctattr_l4proto`
const PROTO_NUM: u16 = 1;
const SRC_PORT: u16 = 2;
const DST_PORT: u16 = 3;

/// `struct nlmsghdr`, then `struct nfgenmsg`: family, version, and an id that is 0.
const HEADER: usize = 16;
pub(super) const GENERAL: usize = 4;
const NLA_HEADER: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// For a look at all connections, which may be a million.
const LIMIT: Duration = Duration::from_secs(5);
/// The kernel fills no message beyond this.
const BUFFER: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversation {
    /// Whom the first packet was for, as it came.
    pub asked: SocketAddr,
    /// Who gets what is said, and answers: another one if it was rewritten.
    pub answers: SocketAddr,
}

/// Forgets those conversations in UDP that are stale: their next packet counts as the first. Looks
/// at all there are, in this thread's namespace. Returns how many it were. Needs CAP_NET_ADMIN. Blocks for
/// a microsecond for each connection of the host.
///
/// # Errors
///
/// Also if that takes longer than 5 s.
pub fn forget_udp(is_stale: impl Fn(&Conversation) -> bool) -> io::Result<usize> {
    let flags = SocketFlags::CLOEXEC;
    let family = AddressFamily::NETLINK;
    let socket = socket_with(family, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
    let deadline = Instant::now() + LIMIT;
    let mut stale = Vec::new();
    let all = request(GET, NLM_F_DUMP, libc::AF_UNSPEC as u8, &[]);
    exchange(&socket, &all, deadline, |kind, body| {
        if kind == NEW
            && let Some((conversation, key)) = parse(body)
            && is_stale(&conversation)
        {
            stale.push((body[0], key));
        }
    })?;
    for (family, key) in &stale {
        match exchange(&socket, &request(DELETE, NLM_F_ACK, *family, key), deadline, |_, _| {}) {
            // Over by now.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            done => done?,
        }
    }
    Ok(stale.len())
}

fn request(kind: u16, flags: u16, family: u8, attributes: &[DefaultNla]) -> Vec<u8> {
    let len = HEADER + GENERAL + attributes.buffer_len();
    let mut bytes = vec![0; len];
    bytes[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    bytes[HEADER] = family;
    attributes.emit(&mut bytes[HEADER + GENERAL..]);
    bytes
}

/// Sends a request, and reads what is answered to its end.
fn exchange(
    socket: &OwnedFd,
    request: &[u8],
    deadline: Instant,
    mut told: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    send(socket, request, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (len, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..len];
        while let Some((kind, body, next)) = split(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code =
                        body.first_chunk().map_or(-libc::EBADMSG, |c| i32::from_ne_bytes(*c));
                    return if code == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                kind => told(kind, body),
            }
            rest = next;
        }
    }
}

/// Type and body of the first message, and what follows it.
pub(super) fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let body = bytes.get(HEADER..len)?;
    Some((kind, body, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// A conversation in UDP, and the attributes that it is known by.
fn parse(body: &[u8]) -> Option<(Conversation, Vec<DefaultNla>)> {
    let (mut asked, mut answers, mut key) = (None, None, Vec::new());
    for (kind, value) in attributes(body.get(GENERAL..)?) {
        match kind {
            TUPLE_ORIG => asked = Some(ends(value)?.1),
            TUPLE_REPLY => answers = Some(ends(value)?.0),
            ZONE => {}
            _ => continue,
        }
        if kind != TUPLE_REPLY {
            let nested = if kind == TUPLE_ORIG { libc::NLA_F_NESTED as u16 } else { 0 };
            key.push(DefaultNla::new(kind | nested, value.to_vec()));
        }
    }
    Some((Conversation { asked: asked?, answers: answers? }, key))
}

/// From where to where packets of one direction go, if it is UDP.
fn ends(tuple: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut from, mut to, mut from_port, mut to_port) = (None, None, None, None);
    for (kind, value) in attributes(tuple) {
        for (inner, value) in attributes(value) {
            match (kind, inner) {
                (TUPLE_IP, V4_SRC | V6_SRC) => from = address(value),
                (TUPLE_IP, V4_DST | V6_DST) => to = address(value),
                (TUPLE_PROTO, PROTO_NUM) if value != [libc::IPPROTO_UDP as u8] => return None,
                (TUPLE_PROTO, SRC_PORT) => from_port = port(value),
                (TUPLE_PROTO, DST_PORT) => to_port = port(value),
                _ => {}
            }
        }
    }
    Some((SocketAddr::new(from?, from_port?), SocketAddr::new(to?, to_port?)))
}

/// Types and values; up to the first that is cut short.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).filter_map(|nla| {
        let (kind, len) = (nla.kind(), nla.value_length());
        Some((kind, nla.into_inner().get(NLA_HEADER..NLA_HEADER + len)?))
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let nla = [DefaultNla::new(kind, value.to_vec())];
        let mut bytes = vec![0; nla.as_slice().buffer_len()];
        nla.as_slice().emit(&mut bytes);
        bytes
    }

    fn tuple(from: ([u8; 4], u16), to: ([u8; 4], u16), proto: i32) -> Vec<u8> {
        let ip = [nla(V4_SRC, &from.0), nla(V4_DST, &to.0)].concat();
        let ports = [nla(SRC_PORT, &from.1.to_be_bytes()), nla(DST_PORT, &to.1.to_be_bytes())];
        let proto = [nla(PROTO_NUM, &[proto as u8]), ports.concat()].concat();
        [nla(TUPLE_IP, &ip), nla(TUPLE_PROTO, &proto)].concat()
    }

    #[test]
    fn answers_that_never_end_are_not_read_for_ever() {
        let pair = || {
            rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
        };
        let (ours, theirs) = pair().unwrap();
        let talks = std::thread::spawn(move || {
            let more = request(NEW, 0, libc::AF_INET as u8, &[]);
            while send(&theirs, &more, SendFlags::NOSIGNAL).is_ok() {}
        });
        let deadline = Instant::now() + Duration::from_millis(100);
        let error = exchange(&ours, b"all", deadline, |_, _| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(ours);
        talks.join().unwrap();
    }

    #[test]
    fn a_rewritten_conversation_is_read_and_only_that_of_udp() {
        let entry = |proto| {
            let (client, host) = (([192, 0, 2, 12], 4000), ([192, 0, 2, 11], 53));
            let orig = nla(TUPLE_ORIG, &tuple(client, host, proto));
            let reply = nla(TUPLE_REPLY, &tuple(([10, 0, 9, 2], 5353), client, proto));
            [&[2, 0, 0, 0][..], &orig, &reply, &nla(ZONE, &[0, 7])].concat()
        };
        let (conversation, key) = parse(&entry(libc::IPPROTO_UDP)).unwrap();
        assert_eq!(conversation.asked, "192.0.2.11:53".parse().unwrap());
        assert_eq!(conversation.answers, "10.0.9.2:5353".parse().unwrap());
        assert_eq!(key.len(), 2, "{key:?}");
        assert!(parse(&entry(libc::IPPROTO_TCP)).is_none());
        assert!(parse(&entry(libc::IPPROTO_UDP)[..40]).is_none());
    }
}
