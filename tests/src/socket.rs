//! Sockets beyond `std::net`: raw ones, and the options that path MTU tests need.
//!
//! Every socket here is wrapped in [`UdpSocket`], whose `send`, `recv` and timeouts are plain system
//! calls that work on any datagram or raw socket.

use std::{
    io,
    mem::{size_of, size_of_val, zeroed},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use libc::{c_int, c_void};

/// socket(2), closed on exec.
pub fn open(family: c_int, kind: c_int, protocol: c_int) -> io::Result<UdpSocket> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Connects a TCP socket from this port.
pub fn connect_from(socket: UdpSocket, port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = OwnedFd::from(socket);
    rustix::net::bind(&socket, &SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// setsockopt(2) for options whose value is an int.
pub fn set(socket: &impl AsRawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let (pointer, len) = ((&raw const value).cast::<c_void>(), size_of_val(&value));
    // SAFETY: pointer and length describe `value`, which outlives the call.
    let code = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, pointer, len as libc::socklen_t)
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// getsockopt(2) for options whose value is an int.
pub fn get(socket: &impl AsRawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    let pointer = (&raw mut value).cast::<c_void>();
    // SAFETY: pointer and length describe `value`, which is written at most `len` bytes of.
    let code = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Whether the stack may cut what is larger than the path MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Set DF, obey the path MTU that ICMP teaches.
    Never,
    /// No DF, cut as needed.
    Allowed,
}

pub fn set_fragment(socket: &UdpSocket, ip: IpAddr, fragment: Fragment) -> io::Result<()> {
    let (v4, v6) = match fragment {
        Fragment::Never => (libc::IP_PMTUDISC_DO, libc::IPV6_PMTUDISC_DO),
        Fragment::Allowed => (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_DONT),
    };
    match ip {
        IpAddr::V4(_) => set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4),
        IpAddr::V6(_) => set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6),
    }
}

/// Path MTU that the stack believes in for a connected socket, in bytes of IP packet.
pub fn path_mtu(socket: &UdpSocket, ip: IpAddr) -> io::Result<u32> {
    let mtu = match ip {
        IpAddr::V4(_) => get(socket, libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => get(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU),
    }?;
    u32::try_from(mtu).map_err(io::Error::other)
}

/// Room for `bytes` of received packets, past the system's limit (needs CAP_NET_ADMIN).
pub fn set_receive_buffer(socket: &impl AsRawFd, bytes: c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// Index of an interface in the calling thread's namespace.
pub fn ifindex(ifname: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(ifname)?;
    // SAFETY: `name` is a valid C string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Binds an AF_PACKET socket to one interface, all protocols.
pub fn bind_packet(socket: &UdpSocket, ifindex: u32) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain old data, all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe `address`.
    let code = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Offloads of an interface, by their number in `linux/ethtool.h`.
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;

/// Makes the stack compute every checksum and cut every segment itself before a packet reaches the
/// interface. On a veth neither is ever done otherwise, and a capture shows unfinished checksums and
/// packets larger than the MTU. For the interface of that name in the calling thread's namespace.
pub fn disable_transmit_offloads(ifname: &str) -> io::Result<()> {
    [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_STXCSUM]
        .iter()
        .try_for_each(|o| set_offload(ifname, *o, 0))
}

/// Puts segments together that arrive, as a network card's driver does (GRO). On a veth it also
/// makes them arrive as on a card, rather than in the sender's own call.
pub fn enable_gro(ifname: &str) -> io::Result<()> {
    set_offload(ifname, ETHTOOL_SGRO, 1)
}

fn set_offload(ifname: &str, command: u32, data: u32) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = open(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut value = Value { command, data };
    // SAFETY: ifreq is plain old data, all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if ifname.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` and the `value` it points to are what SIOCETHTOOL expects, and both outlive
    // the call.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
