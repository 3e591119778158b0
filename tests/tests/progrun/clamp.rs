//! The segment size that TCP agrees on with hosts that do not run mesh.

use etherparse::{PacketBuilder, TcpHeader, TcpOptionElement};
use mesh_common::verdict::Verdict;

use super::{
    packet::{eth, ethertype, ip, ip_with},
    spec::{A, GRE, H2, OLD_GENEVE, OLD_GRE, Peer, Spec, UNDERLAY_MTU},
    wire::{Carried, SOURCE_PORT},
    world::{World, world},
};

const OLD: Spec = Spec { foreign: true, ..GRE };
/// Peers and the third number and group of their subnets.
const CLAMPED: [(Peer, u8, u16); 2] = [(OLD_GENEVE, 198, 7), (OLD_GRE, 200, 9)];

use TcpOptionElement::{MaximumSegmentSize, Noop, WindowScale};

/// Between A and a peer's container, in either direction.
fn segment(
    third: u8,
    group: u16,
    v6: bool,
    to_peer: bool,
    edit: impl Fn(&mut TcpHeader),
) -> Vec<u8> {
    let at_peer: [std::net::IpAddr; 2] =
        [[10, 42, third, 9].into(), [0xfd42, 0, 0, group, 0, 0, 0, 9].into()];
    let own = [A.v4.unwrap().into(), A.v6.unwrap().into()];
    let at = usize::from(v6);
    let (src, dst) = if to_peer { (own[at], at_peer[at]) } else { (at_peer[at], own[at]) };
    let mut header = TcpHeader::new(40_000, 80, 1, 1024);
    edit(&mut header);
    let mut packet = Vec::new();
    PacketBuilder::ip(ip(src, dst, 0)).tcp_header(header).write(&mut packet, b"").unwrap();
    packet
}

fn syn(options: &[TcpOptionElement]) -> impl Fn(&mut TcpHeader) + '_ {
    |header| {
        header.syn = true;
        header.set_options(options).unwrap();
    }
}

/// The segment size in a packet, whose checksum must be right.
#[track_caller]
fn mss(packet: &[u8]) -> Option<u16> {
    let frame = eth([0; 6], [0; 6], ethertype(packet), packet);
    let headers = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
    let tcp = headers.transport.unwrap().tcp().unwrap();
    let sum = match headers.net.unwrap() {
        etherparse::NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(&ip, &[]),
        etherparse::NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, &[]),
        etherparse::NetHeaders::Arp(_) => unreachable!(),
    };
    assert_eq!(tcp.checksum, sum.unwrap(), "TCP checksum");
    let mut options = tcp.options_iterator().map(Result::unwrap);
    options.find_map(|o| if let MaximumSegmentSize(mss) = o { Some(mss) } else { None })
}

/// What of a packet is sent to a peer, or handed over of what it sends.
fn through(w: &World, peer: Peer, to_peer: bool, packet: &[u8]) -> Vec<u8> {
    if to_peer {
        let ran = w.sends_ip(A, packet);
        assert_eq!(ran.verdict, Verdict::Encap);
        let carried = Carried::packet(w.spec, peer, 0, packet).frame(w.spec, &ran.frame);
        assert_eq!(ran.frame.len(), carried.len());
        return ran.frame[ran.frame.len() - packet.len()..].to_vec();
    }
    let macs = [w.spec.gateway_mac(), [2, 0, 0, 0, 7, 7]];
    let tunnel = w.spec.tunnel(peer, 0);
    let (protocol, body) = tunnel.around(SOURCE_PORT, macs, ethertype(packet), packet);
    let ran = w.receives(&ip_with(ip(peer.at(w.spec), w.spec.me(), 0), protocol, &body));
    assert_eq!(ran.verdict, Verdict::Deliver);
    ran.frame[14..].to_vec()
}

#[test]
fn segment_size_is_kept_to_what_fits_in_both_directions() {
    for spec in [OLD, Spec { ipv6: true, ..OLD }] {
        world(spec, |w| {
            for (peer, third, group) in CLAMPED {
                for v6 in [false, true] {
                    for to_peer in [false, true] {
                        let mtu = match to_peer {
                            true => spec.path_mtu(peer, 0),
                            false => UNDERLAY_MTU as usize - spec.overhead(peer, 0),
                        };
                        let most = (mtu - if v6 { 60 } else { 40 }) as u16;
                        for (offered, expected) in
                            [(8960, most), (most + 1, most), (most, most), (536, 536), (0, 0)]
                        {
                            let options = [MaximumSegmentSize(offered), Noop, WindowScale(7)];
                            let packet = segment(third, group, v6, to_peer, syn(&options));
                            let sent = through(w, peer, to_peer, &packet);
                            assert_eq!(mss(&sent), Some(expected), "{offered} {to_peer} {v6}");
                        }
                    }
                }
            }
        });
    }
}

#[test]
fn nothing_else_is_changed() {
    world(OLD, |w| {
        let offer = [MaximumSegmentSize(9000)];
        let plain = [
            // Opens nothing; offers nothing.
            segment(200, 9, false, true, |header| header.set_options(&offer).unwrap()),
            segment(200, 9, false, true, syn(&[])),
            segment(200, 9, false, true, syn(&[Noop, Noop, Noop, WindowScale(2)])),
            // Nobody writes it behind others.
            segment(200, 9, false, true, syn(&[Noop, MaximumSegmentSize(9000)])),
        ];
        for packet in plain {
            assert_eq!(through(w, OLD_GRE, true, &packet), packet);
        }
        // Options that lead nowhere.
        for bytes in [[0, 0, 2, 4], [5, 0, 2, 4], [2, 3, 9, 9], [2, 5, 9, 9]] {
            let packet = segment(200, 9, false, true, |header| {
                header.syn = true;
                header.set_options_raw(&[&bytes[..], &[0x23, 0x28, 0, 0]].concat()).unwrap();
            });
            assert_eq!(through(w, OLD_GRE, true, &packet), packet, "{bytes:?}");
        }
        // A later fragment, whose bytes are no header.
        let mut packet = segment(200, 9, false, true, syn(&offer));
        packet[6..8].copy_from_slice(&[0, 1]);
        let mut header = etherparse::Ipv4Header::from_slice(&packet).unwrap().0;
        header.header_checksum = header.calc_header_checksum();
        packet[10..12].copy_from_slice(&header.header_checksum.to_be_bytes());
        assert_eq!(through(w, OLD_GRE, true, &packet), packet);
    });
}

#[test]
fn a_peer_of_which_the_file_does_not_say_it_is_left_alone() {
    world(OLD, |w| {
        for to_peer in [true, false] {
            let packet = segment(64, 1, false, to_peer, syn(&[MaximumSegmentSize(9000)]));
            assert_eq!(mss(&through(w, H2, to_peer, &packet)), Some(9000));
        }
    });
}
