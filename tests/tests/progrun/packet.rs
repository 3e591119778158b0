//! Packets, written and read with etherparse: an implementation independent of the programs'.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    PacketBuilder, SlicedPacket, TransportSlice, ip_number,
};

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;
/// Ethernet in GRE.
pub const TEB: u16 = 0x6558;

pub type Mac = [u8; 6];

/// Ethernet II.
pub fn eth(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

/// Ethertype of an IP packet, by its version.
pub fn ethertype(ip: &[u8]) -> u16 {
    if ip[0] >> 4 == 6 { IPV6 } else { IPV4 }
}

/// An IP header without transport. `src` and `dst` are of one family.
pub fn ip(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, tos: u8) -> IpHeaders {
    match (src.into(), dst.into()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header {
                time_to_live: 64,
                source: src.octets(),
                destination: dst.octets(),
                dont_fragment: true,
                ..Ipv4Header::default()
            };
            header.dscp = IpDscp::try_new(tos >> 2).unwrap();
            header.ecn = IpEcn::try_new(tos & 3).unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = Ipv6Header {
                traffic_class: tos,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
        other => panic!("two families: {other:?}"),
    }
}

/// UDP over IP, all checksums right.
pub fn udp(ip: IpHeaders, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ip(ip).udp(40_000, 53);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// UDP of this many bytes in all.
pub fn udp_of(ip: IpHeaders, len: usize) -> Vec<u8> {
    let headers = udp(ip.clone(), &[]).len();
    let payload: Vec<u8> = (0..len - headers).map(|i| i as u8).collect();
    udp(ip, &payload)
}

pub fn tcp(ip: IpHeaders, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ip(ip).tcp(40_000, 80, 1, 1024);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// IPv4 around anything: what a tunnel puts in front. Don't fragment, TTL 64, no identification.
pub fn outer_ipv4(src: Ipv4Addr, dst: Ipv4Addr, tos: u8, payload: &[u8]) -> Vec<u8> {
    let IpHeaders::Ipv4(mut header, _) = ip(src, dst, tos) else { unreachable!() };
    header.protocol = ip_number::GRE;
    ipv4_with(header, payload)
}

/// A header with length and checksum set, then the payload.
pub fn ipv4_with(mut header: Ipv4Header, payload: &[u8]) -> Vec<u8> {
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut packet = Vec::new();
    header.write_raw(&mut packet).unwrap();
    packet.extend(payload);
    packet
}

/// GRE with the key bit if there is a key (RFC 2890).
pub fn gre(proto: u16, key: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let flags: u16 = if key.is_some() { 0x2000 } else { 0 };
    let key = key.map(u32::to_be_bytes);
    let key = key.as_ref().map_or(&[][..], |k| k);
    [&flags.to_be_bytes()[..], &proto.to_be_bytes(), key, payload].concat()
}

/// Parses a frame strictly; all checksums of IPv4, ICMP, ICMPv6 and UDP are checked, but for the UDP
/// of tunnels, which has none.
#[track_caller]
pub fn assert_well_formed(frame: &[u8]) -> SlicedPacket<'_> {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap_or_else(|e| panic!("{e}: {frame:02x?}"));
    let headers = etherparse::PacketHeaders::from_ethernet_slice(frame).unwrap();
    match headers.net.unwrap() {
        etherparse::NetHeaders::Ipv4(h, _) => {
            assert_eq!(h.header_checksum, h.calc_header_checksum(), "IPv4 checksum");
            match sliced.transport.clone() {
                Some(TransportSlice::Icmpv4(icmp)) => {
                    let sum = icmp.icmp_type().calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), sum, "ICMP checksum");
                }
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    let sum = udp.to_header().calc_checksum_ipv4(&h, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), sum, "UDP checksum");
                }
                _ => {}
            }
        }
        etherparse::NetHeaders::Ipv6(h, _) => match sliced.transport.clone() {
            Some(TransportSlice::Icmpv6(icmp)) => {
                assert!(icmp.is_checksum_valid(h.source, h.destination), "ICMPv6 checksum");
            }
            Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                let sum = udp.to_header().calc_checksum_ipv6(&h, udp.payload()).unwrap();
                assert_eq!(udp.checksum(), sum, "UDP checksum");
            }
            _ => {}
        },
        etherparse::NetHeaders::Arp(_) => {}
    }
    sliced
}

/// Whether an ICMP error may be sent about a packet: not about an error, nor about a later fragment
/// (RFC 1122, 3.2.2; RFC 4443, 2.4).
pub fn may_be_answered(frame: &[u8]) -> bool {
    let ip = &frame[14..];
    match u16::from_be_bytes([frame[12], frame[13]]) {
        IPV4 => {
            let later = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
            let icmp = ip.get(usize::from(ip[0] & 15) * 4).filter(|_| ip[9] == 1);
            let is_to_many = ip[16] >= 224 || ip[18..20] == [255, 255];
            !later && !is_to_many && !matches!(icmp, Some(3 | 4 | 5 | 11 | 12))
        }
        _ => ip[24] != 0xff && (ip[6] != 58 || ip[40] >= 128),
    }
}

/// An IP packet with a payload of any protocol.
pub fn ip_with(ip: IpHeaders, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match ip {
        IpHeaders::Ipv4(mut header, _) => {
            header.protocol = IpNumber(protocol);
            ipv4_with(header, payload)
        }
        IpHeaders::Ipv6(mut header, _) => {
            header.next_header = IpNumber(protocol);
            header.payload_length = payload.len() as u16;
            [&header.to_bytes()[..], payload].concat()
        }
    }
}
