//! What routers on the way say of packets that were too big for them.

use std::{
    io,
    mem::size_of_val,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use mesh_common::wire::{IPPROTO_ICMPV6, IPPROTO_UDP, IPV4_LEN, IPV6_LEN};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::net::UdpSocket;

use super::{NetError, Refusal};

/// A packet of this host did not fit on its way (RFC 1191, RFC 8201). Whoever can send to this host
/// can say so: what it quotes is to be compared with what may have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig {
    /// From and to where the packet was.
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    /// UDP destination port; `None` for other protocols.
    pub port: Option<u16>,
    /// Of the packet, with its IP header, in bytes.
    pub length: u32,
    /// Largest that would have fitted.
    pub mtu: u32,
}

/// Hears of packets that were too big. Must be made and used in a tokio runtime.
#[derive(Debug)]
pub struct Icmp {
    /// Raw ones, which are read in the same way.
    v4: UdpSocket,
    /// `None` where the kernel has no IPv6.
    v6: Option<UdpSocket>,
}

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
const ICMP_LEN: usize = 8;

/// linux/icmp.h, linux/icmpv6.h
const SOL_RAW: i32 = 255;
const ICMP_FILTER: i32 = 1;
const ICMPV6_FILTER: i32 = 1;

/// More than any message quotes that is looked at.
const MESSAGE_BYTES: usize = 256;

/// What the next smaller link may have, for routers that do not say (RFC 1191, 7.1).
const PLATEAUS: [u32; 9] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296];

impl Icmp {
    /// Needs CAP_NET_RAW, now and not later.
    pub fn listen() -> Result<Self, NetError> {
        let fail = |e: io::Error| Refusal::from(e).during("listen for ICMP");
        let v4 = open(AddressFamily::INET, ipproto::ICMP).map_err(fail)?;
        let all_but_one: u32 = !(1 << UNREACHABLE);
        filter(&v4, SOL_RAW, ICMP_FILTER, &all_but_one).map_err(fail)?;
        let v6 = match open(AddressFamily::INET6, ipproto::ICMPV6) {
            Ok(v6) => Some(v6),
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(e) => return Err(fail(e)),
        };
        if let Some(v6) = &v6 {
            let mut all_but_one = [u32::MAX; 8];
            all_but_one[0] = !(1 << PACKET_TOO_BIG);
            filter(v6, IPPROTO_ICMPV6.into(), ICMPV6_FILTER, &all_but_one).map_err(fail)?;
        }
        let follow = |fd: OwnedFd| UdpSocket::from_std(fd.into()).map_err(fail);
        Ok(Self { v4: follow(v4)?, v6: v6.map(follow).transpose()? })
    }

    /// The next one. May be dropped while it waits.
    pub async fn next(&self) -> io::Result<TooBig> {
        let (mut v4, mut v6) = ([0; MESSAGE_BYTES], [0; MESSAGE_BYTES]);
        loop {
            let heard = tokio::select! {
                len = self.v4.recv(&mut v4) => parse_v4(&v4[..len?]),
                len = receive(self.v6.as_ref(), &mut v6) => parse_v6(&v6[..len?]),
            };
            if let Some(too_big) = heard {
                return Ok(too_big);
            }
        }
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.recv(buffer).await,
        None => std::future::pending().await,
    }
}

fn open(family: AddressFamily, protocol: rustix::net::Protocol) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::RAW, flags, Some(protocol))?)
}

fn filter<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is read only, as far as it is long.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `message`: from the IPv4 header on.
fn parse_v4(message: &[u8]) -> Option<TooBig> {
    let icmp = message.get(v4_header_len(message)?..)?;
    let (&[kind, code, _, _, _, _, high, low], quoted) = icmp.split_first_chunk::<ICMP_LEN>()?;
    if (kind, code) != (UNREACHABLE, FRAGMENTATION_NEEDED) {
        return None;
    }
    let payload = quoted.get(v4_header_len(quoted)?..)?;
    let length = u32::from(be16(quoted, 2)?);
    let address = |at| Some(Ipv4Addr::from(*quoted.get(at..)?.first_chunk::<4>()?).into());
    let protocol = *quoted.get(9)?;
    let mtu = match u16::from_be_bytes([high, low]) {
        0 => PLATEAUS.into_iter().find(|plateau| *plateau < length)?,
        mtu => mtu.into(),
    };
    let port = port(protocol, payload);
    Some(TooBig { from: address(12)?, to: address(16)?, protocol, port, length, mtu })
}

/// `message`: from the ICMPv6 header on.
fn parse_v6(message: &[u8]) -> Option<TooBig> {
    let (&[kind, _, _, _, mtu @ ..], quoted) = message.split_first_chunk::<ICMP_LEN>()?;
    let [a, b, c, d] = mtu;
    if kind != PACKET_TOO_BIG || quoted.first()? >> 4 != 6 {
        return None;
    }
    let payload = quoted.get(IPV6_LEN..)?;
    let address = |at| Some(Ipv6Addr::from(*quoted.get(at..)?.first_chunk::<16>()?).into());
    let protocol = *quoted.get(6)?;
    Some(TooBig {
        from: address(8)?,
        to: address(24)?,
        protocol,
        port: port(protocol, payload),
        length: u32::from(be16(quoted, 4)?) + IPV6_LEN as u32,
        mtu: u32::from_be_bytes([a, b, c, d]),
    })
}

fn v4_header_len(packet: &[u8]) -> Option<usize> {
    let first = packet.first()?;
    let len = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && len >= IPV4_LEN).then_some(len)
}

fn port(protocol: u8, payload: &[u8]) -> Option<u16> {
    if protocol == IPPROTO_UDP { be16(payload, 2) } else { None }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// IPv4 without options.
    fn v4(protocol: u8, length: u16, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let head = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        [&head[..], &from, &to].concat()
    }

    fn v4_message(mtu: u16, quoted: &[u8]) -> Vec<u8> {
        let [high, low] = mtu.to_be_bytes();
        let icmp = [UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, high, low];
        let outside = v4(1, 56, [192, 0, 2, 1], [10, 0, 0, 1]);
        [&outside[..], &icmp, quoted].concat()
    }

    fn too_big(protocol: u8, port: Option<u16>, mtu: u32) -> TooBig {
        let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        TooBig { from, to, protocol, port, length: 1500, mtu }
    }

    #[test]
    fn gre_that_does_not_fit_is_understood() {
        let quoted = [v4(47, 1500, [10, 0, 0, 1], [10, 0, 0, 2]), vec![0; 8]].concat();
        assert_eq!(parse_v4(&v4_message(1400, &quoted)), Some(too_big(47, None, 1400)));
    }

    #[test]
    fn udp_is_quoted_with_its_port() {
        let udp = [0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0];
        let quoted = [&v4(17, 1500, [10, 0, 0, 1], [10, 0, 0, 2])[..], &udp].concat();
        assert_eq!(parse_v4(&v4_message(1400, &quoted)), Some(too_big(17, Some(4789), 1400)));
    }

    #[test]
    fn a_router_that_names_no_mtu_means_the_next_plateau() {
        let quoted = [v4(47, 1500, [10, 0, 0, 1], [10, 0, 0, 2]), vec![0; 8]].concat();
        assert_eq!(parse_v4(&v4_message(0, &quoted)), Some(too_big(47, None, 1492)));
    }

    #[test]
    fn other_reasons_why_a_host_is_unreachable_are_not_meant() {
        let mut message = v4_message(1400, &v4(47, 1500, [10, 0, 0, 1], [10, 0, 0, 2]));
        message[IPV4_LEN + 1] = 3;
        assert_eq!(parse_v4(&message), None);
    }

    #[test]
    fn packet_too_big_is_understood() {
        let [from, to]: [Ipv6Addr; 2] = ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().unwrap());
        let mut message = vec![PACKET_TOO_BIG, 0, 0, 0, 0, 0, 0x05, 0x78];
        message.extend([0x60, 0, 0, 0, 0x05, 0xb4, 47, 64]);
        for address in [from, to] {
            message.extend(address.octets());
        }
        let (from, to) = (from.into(), to.into());
        let expected = TooBig { from, to, protocol: 47, port: None, length: 1500, mtu: 1400 };
        assert_eq!(parse_v6(&message), Some(expected));
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            _ = parse_v4(&bytes);
            _ = parse_v6(&bytes);
        }

        #[test]
        fn what_is_cut_off_does_no_harm(len in 0..56_usize) {
            let quoted = [v4(17, 1500, [10, 0, 0, 1], [10, 0, 0, 2]), vec![0; 8]].concat();
            _ = parse_v4(&v4_message(1400, &quoted)[..len]);
        }
    }
}
