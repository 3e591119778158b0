//! What routers on the way say of packets that were too big for them.

use std::{
    io,
    mem::{size_of_val, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use libc::c_int;
use mesh_common::wire::{IPPROTO_ICMPV6, IPV4_LEN, IPV6_LEN};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use tokio::{io::Interest, net::UdpSocket};

use super::{NetError, Refusal};

/// A packet of this host did not fit on its way (RFC 1191, RFC 8201). Whoever can send to this host
/// can say so: what it quotes is to be compared with what may have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig {
    /// The address of this host that was told so, and the interface that it was told by.
    pub told: IpAddr,
    pub ifindex: u32,
    /// From and to where the packet was.
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    /// Bytes 2 and 3 of what follows the IP header: UDP's destination port, GRE's protocol (RFC 2784,
    /// 2.1). `None` if they are not quoted.
    pub next: Option<u16>,
    /// Of the packet, with its IP header, in bytes.
    pub length: u32,
    /// Largest that would have fitted.
    pub mtu: u32,
}

/// Where a message arrived: the address that it was sent to, and the index of the interface.
type Arrival = (IpAddr, u32);

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
        set(&v4, SOL_RAW, ICMP_FILTER, &all_but_one).map_err(fail)?;
        set(&v4, libc::IPPROTO_IP, libc::IP_PKTINFO, &1_i32).map_err(fail)?;
        let v6 = match open(AddressFamily::INET6, ipproto::ICMPV6) {
            Ok(v6) => Some(v6),
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(e) => return Err(fail(e)),
        };
        if let Some(v6) = &v6 {
            let mut all_but_one = [u32::MAX; 8];
            all_but_one[0] = !(1 << PACKET_TOO_BIG);
            set(v6, IPPROTO_ICMPV6.into(), ICMPV6_FILTER, &all_but_one).map_err(fail)?;
            set(v6, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1_i32).map_err(fail)?;
        }
        let follow = |fd: OwnedFd| UdpSocket::from_std(fd.into()).map_err(fail);
        Ok(Self { v4: follow(v4)?, v6: v6.map(follow).transpose()? })
    }

    /// The next one. May be dropped while it waits.
    pub async fn next(&self) -> io::Result<TooBig> {
        let (mut v4, mut v6) = ([0; MESSAGE_BYTES], [0; MESSAGE_BYTES]);
        loop {
            let heard = tokio::select! {
                got = receive(Some(&self.v4), &mut v4) => {
                    let (len, arrival) = got?;
                    arrival.and_then(|arrival| parse_v4(&v4[..len], arrival))
                }
                got = receive(self.v6.as_ref(), &mut v6) => {
                    let (len, arrival) = got?;
                    arrival.and_then(|arrival| parse_v6(&v6[..len], arrival))
                }
            };
            if let Some(too_big) = heard {
                return Ok(too_big);
            }
        }
    }
}

/// The length of a message, and where it arrived.
async fn receive(
    socket: Option<&UdpSocket>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Arrival>)> {
    match socket {
        Some(socket) => socket.async_io(Interest::READABLE, || receive_now(socket, buffer)).await,
        None => std::future::pending().await,
    }
}

/// recvmsg(2); `rustix` knows no control messages of IP.
fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Option<Arrival>)> {
    // As words, since control messages are aligned. Room for the larger of the two, and more.
    let mut control = [0_u64; 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: what the header points to outlives the call and is as long as it says.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled the header in, and `control` is still there.
    Ok((len, unsafe { arrival(&header) }))
}

/// From IP_PKTINFO (ip(7)) or IPV6_PKTINFO (RFC 3542, 6.2).
///
/// # Safety
///
/// The header is of a message that was received, and its control messages are still there.
unsafe fn arrival(header: &libc::msghdr) -> Option<Arrival> {
    // SAFETY: by the caller's promise; the macros keep within the length that the header has.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = next.as_ref() {
            let data = libc::CMSG_DATA(message);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                    return Some((to.into(), u32::try_from(info.ipi_ifindex).ok()?));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some((
                        Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
                        info.ipi6_ifindex,
                    ));
                }
                _ => next = libc::CMSG_NXTHDR(header, next),
            }
        }
    }
    None
}

fn open(family: AddressFamily, protocol: rustix::net::Protocol) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::RAW, flags, Some(protocol))?)
}

fn set<T>(socket: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
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
fn parse_v4(message: &[u8], (told, ifindex): Arrival) -> Option<TooBig> {
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
    Some(TooBig {
        told,
        ifindex,
        from: address(12)?,
        to: address(16)?,
        protocol,
        next: be16(payload, 2),
        length,
        mtu,
    })
}

/// `message`: from the ICMPv6 header on.
fn parse_v6(message: &[u8], (told, ifindex): Arrival) -> Option<TooBig> {
    let (&[kind, _, _, _, mtu @ ..], quoted) = message.split_first_chunk::<ICMP_LEN>()?;
    let [a, b, c, d] = mtu;
    if kind != PACKET_TOO_BIG || quoted.first()? >> 4 != 6 {
        return None;
    }
    let payload = quoted.get(IPV6_LEN..)?;
    let address = |at| Some(Ipv6Addr::from(*quoted.get(at..)?.first_chunk::<16>()?).into());
    let protocol = *quoted.get(6)?;
    Some(TooBig {
        told,
        ifindex,
        from: address(8)?,
        to: address(24)?,
        protocol,
        next: be16(payload, 2),
        length: u32::from(be16(quoted, 4)?) + IPV6_LEN as u32,
        mtu: u32::from_be_bytes([a, b, c, d]),
    })
}

fn v4_header_len(packet: &[u8]) -> Option<usize> {
    let first = packet.first()?;
    let len = usize::from(first & 0x0f) * 4;
    (first >> 4 == 4 && len >= IPV4_LEN).then_some(len)
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

    /// By an interface, to an address that is not the quoted one.
    const ARRIVAL: Arrival = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)), 7);

    fn too_big(protocol: u8, next: u16, mtu: u32) -> TooBig {
        let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (told, ifindex) = ARRIVAL;
        TooBig { told, ifindex, from, to, protocol, next: Some(next), length: 1500, mtu }
    }

    #[test]
    fn gre_that_does_not_fit_is_understood() {
        let gre = [0, 0, 8, 0, 0, 0, 0, 0];
        let quoted = [&v4(47, 1500, [10, 0, 0, 1], [10, 0, 0, 2])[..], &gre].concat();
        let heard = parse_v4(&v4_message(1400, &quoted), ARRIVAL);
        assert_eq!(heard, Some(too_big(47, 0x0800, 1400)));
    }

    #[test]
    fn udp_is_quoted_with_its_port() {
        let udp = [0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0];
        let quoted = [&v4(17, 1500, [10, 0, 0, 1], [10, 0, 0, 2])[..], &udp].concat();
        assert_eq!(parse_v4(&v4_message(1400, &quoted), ARRIVAL), Some(too_big(17, 4789, 1400)));
    }

    #[test]
    fn a_router_that_names_no_mtu_means_the_next_plateau() {
        let quoted = [v4(47, 1500, [10, 0, 0, 1], [10, 0, 0, 2]), vec![0; 8]].concat();
        assert_eq!(parse_v4(&v4_message(0, &quoted), ARRIVAL), Some(too_big(47, 0, 1492)));
    }

    #[test]
    fn other_reasons_why_a_host_is_unreachable_are_not_meant() {
        let mut message = v4_message(1400, &v4(47, 1500, [10, 0, 0, 1], [10, 0, 0, 2]));
        message[IPV4_LEN + 1] = 3;
        assert_eq!(parse_v4(&message, ARRIVAL), None);
    }

    #[test]
    fn packet_too_big_is_understood() {
        let [from, to]: [Ipv6Addr; 2] = ["2001:db8::1", "2001:db8::2"].map(|a| a.parse().unwrap());
        let mut message = vec![PACKET_TOO_BIG, 0, 0, 0, 0, 0, 0x05, 0x78];
        message.extend([0x60, 0, 0, 0, 0x05, 0xb4, 47, 64]);
        for address in [from, to] {
            message.extend(address.octets());
        }
        // Longer it is not quoted.
        let (told, ifindex) = ARRIVAL;
        let (from, to) = (from.into(), to.into());
        let (protocol, next) = (47, None);
        let expected = TooBig { told, ifindex, from, to, protocol, next, length: 1500, mtu: 1400 };
        assert_eq!(parse_v6(&message, ARRIVAL), Some(expected));
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            _ = parse_v4(&bytes, ARRIVAL);
            _ = parse_v6(&bytes, ARRIVAL);
        }

        #[test]
        fn what_is_cut_off_does_no_harm(len in 0..56_usize) {
            let quoted = [v4(17, 1500, [10, 0, 0, 1], [10, 0, 0, 2]), vec![0; 8]].concat();
            _ = parse_v4(&v4_message(1400, &quoted)[..len], ARRIVAL);
        }
    }
}
