//! What this host forwards out of the underlay's interface.

use aya::programs::{TestRun as _, TestRunOptions};
use etherparse::{IpFragOffset, IpHeaders, Ipv4Options};
use mesh_common::{
    names,
    verdict::{DropReason, Hook},
};

use super::{
    packet::{IPV4, IPV6, Mac, eth, ethertype, gre, ip, ip_with, tcp, udp},
    spec::{A, GENEVE, GRE, H2, H3, H4, ME, NEXT_HOP_MAC, STRAY, Spec, UNDERLAY, VXLAN},
    world::{NEXT, REDIRECT, Ran, SHOT, Skb, World, world},
};

const GRE_PROTO: u8 = 47;
const UDP_PROTO: u8 = 17;
const FRAGMENT_PROTO: u8 = 44;
/// Extension headers of eight bytes each: hop-by-hop, routing, destination options, mobility.
const EXTENSIONS: [u8; 4] = [0, 43, 60, 135];
const OTHER_NODE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 200);
const V6: Spec = Spec { ipv6: true, ..GRE };

/// Of UDP alone, to a port.
fn udp_to(port: u16) -> Vec<u8> {
    [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 16, 0, 0], &[8; 8]].concat()
}

/// GRE, and UDP to the ports where all worlds here may be sent tunnel packets.
fn tunnels() -> [(u8, Vec<u8>); 4] {
    let key = gre(IPV4, Some(7), &[0; 40]);
    [
        (GRE_PROTO, gre(IPV4, None, &[0; 40])),
        (GRE_PROTO, key),
        (UDP_PROTO, udp_to(4789)),
        (UDP_PROTO, udp_to(6081)),
    ]
}

const MAC: Mac = [2, 0, 0, 0, 0, 11];

fn frame(packet: &[u8]) -> Vec<u8> {
    eth(NEXT_HOP_MAC, MAC, ethertype(packet), packet)
}

#[track_caller]
fn forwards_frame(w: &World, frame: &[u8], gso_size: u32) -> Ran {
    let skb = Skb { ifindex: UNDERLAY, gso_size, ..Skb::default() };
    w.run_as("forwarded", Hook::FromForward, skb, frame)
}

#[track_caller]
fn assert_dropped(w: &World, packet: &[u8]) {
    let sent = frame(packet);
    let ran = forwards_frame(w, &sent, 0);
    ran.assert_dropped(DropReason::ForgedTunnel);
    assert_eq!((&ran.traffic[..], ran.frame), (&[][..], sent));
}

#[track_caller]
fn assert_passes(w: &World, packet: &[u8]) {
    let sent = frame(packet);
    forwards_frame(w, &sent, 0).assert_passed(&sent);
}

/// From this host to a peer.
fn to_peer(w: &World) -> IpHeaders {
    ip(w.spec.me(), H2.at(w.spec), 0)
}

#[test]
fn tunnel_packet_with_this_hosts_address_to_a_node_is_dropped() {
    for spec in [GRE, V6, VXLAN] {
        world(spec, |w| {
            for (proto, tunnel) in tunnels() {
                for peer in [H2, H3, H4] {
                    let outer = ip(w.spec.me(), peer.at(spec), 0);
                    assert_dropped(w, &ip_with(outer, proto, &tunnel));
                }
            }
        });
    }
    world(Spec { port: Some(8472), ..VXLAN }, |w| {
        assert_dropped(w, &ip_with(to_peer(w), UDP_PROTO, &udp_to(8472)));
    });
}

#[test]
fn what_is_no_tunnel_packet_or_not_between_nodes_passes() {
    for spec in [GRE, V6, GENEVE] {
        world(spec, |w| {
            for other in [tcp(to_peer(w), b"x"), udp(to_peer(w), b"x")] {
                assert_passes(w, &other);
            }
            assert_passes(w, &ip_with(to_peer(w), 1, &[8, 0, 0, 0]));
            for (proto, tunnel) in tunnels() {
                let (me, peer) = (w.spec.me(), H2.at(spec));
                // Of a node that this host routes for, and to who is no node.
                assert_passes(w, &ip_with(ip(peer, H3.at(spec), 0), proto, &tunnel));
                if !spec.ipv6 {
                    assert_passes(w, &ip_with(ip(me, OTHER_NODE, 0), proto, &tunnel));
                    assert_passes(w, &ip_with(ip(OTHER_NODE, peer, 0), proto, &tunnel));
                }
            }
            let arp = eth(NEXT_HOP_MAC, MAC, 0x0806, &[0; 28]);
            forwards_frame(w, &arp, 0).assert_passed(&arp);
        });
    }
}

/// An IPv4-mapped source is no IPv4 source, though the maps have the two alike.
#[test]
fn mapped_addresses_pass() {
    world(GRE, |w| {
        let outer = ip(ME.to_ipv6_mapped(), H2.underlay.to_ipv6_mapped(), 0);
        assert_passes(w, &ip_with(outer, GRE_PROTO, &gre(IPV4, None, &[0; 40])));
    });
}

#[test]
fn options_and_fragments_of_ipv4_hide_nothing() {
    world(GRE, |w| {
        for (proto, tunnel) in tunnels() {
            for options in [0usize, 4, 40] {
                for (offset, more) in [(0, false), (0, true), (8, true), (180, false)] {
                    let IpHeaders::Ipv4(mut header, rest) = to_peer(w) else { unreachable!() };
                    header.options = Ipv4Options::try_from(&vec![1; options][..]).unwrap();
                    header.more_fragments = more;
                    header.dont_fragment = false;
                    header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
                    let packet = ip_with(IpHeaders::Ipv4(header, rest), proto, &tunnel);
                    // A later fragment of UDP is of no use without the first.
                    if proto == UDP_PROTO && offset != 0 {
                        assert_passes(w, &packet);
                    } else {
                        assert_dropped(w, &packet);
                    }
                }
            }
        }
        for len in 0..8 {
            let cut = frame(&ip_with(to_peer(w), UDP_PROTO, &udp_to(4789)[..len]));
            forwards_frame(w, &cut, 0).assert_dropped(DropReason::Truncated);
        }
    });
}

/// A fragment's header of IPv6, of what begins with `next`, with an offset in units of 8 bytes.
fn fragment(next: u8, offset: u16, more: bool) -> [u8; 8] {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    [next, 0, high, low, 0, 0, 0, 1]
}

#[test]
fn extension_headers_and_fragments_of_ipv6_hide_nothing() {
    world(V6, |w| {
        for (proto, tunnel) in tunnels() {
            for kind in EXTENSIONS {
                for count in [1usize, 2, 8] {
                    // All but the last are of this kind, too; each is longer than the one before.
                    let mut chain = Vec::new();
                    for n in 0..count {
                        let next = if n + 1 == count { proto } else { kind };
                        let more = (n % 3) as u8;
                        chain.extend([next, more]);
                        chain.resize(chain.len() + 6 + usize::from(more) * 8, 0);
                    }
                    chain.extend(&tunnel);
                    assert_dropped(w, &ip_with(to_peer(w), kind, &chain));
                    let first = [&fragment(kind, 0, true)[..], &chain].concat();
                    assert_dropped(w, &ip_with(to_peer(w), FRAGMENT_PROTO, &first));
                }
                let later = [&fragment(kind, 1, false)[..], &tunnel].concat();
                assert_dropped(w, &ip_with(to_peer(w), FRAGMENT_PROTO, &later));
            }
            for (offset, more) in [(0, false), (0, true), (5, true), (8191, false)] {
                let packet = [&fragment(proto, offset, more)[..], &tunnel].concat();
                let packet = ip_with(to_peer(w), FRAGMENT_PROTO, &packet);
                if proto == UDP_PROTO && offset != 0 {
                    assert_passes(w, &packet);
                } else {
                    assert_dropped(w, &packet);
                }
            }
        }
        // TCP behind headers is none of our business, and ESP is nobody's to look into.
        for last in [6, 50, 59] {
            assert_passes(w, &ip_with(to_peer(w), 60, &[last, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]));
        }
        let cut = frame(&ip_with(to_peer(w), 60, &[17]));
        forwards_frame(w, &cut, 0).assert_dropped(DropReason::Truncated);
    });
}

#[test]
fn vlan_tags_and_segments_hide_nothing() {
    for spec in [GRE, V6] {
        world(spec, |w| {
            for (proto, tunnel) in tunnels() {
                let packet = ip_with(to_peer(w), proto, &tunnel);
                let plain = frame(&packet);
                let skb = Skb { ifindex: UNDERLAY, ..Skb::default() };
                let ran = w.run_as("tagged_forwarded", Hook::FromForward, skb, &plain);
                ran.assert_dropped(DropReason::ForgedTunnel);
                let kind = if spec.ipv6 { IPV6 } else { IPV4 }.to_be_bytes();
                for tags in [&[[0x81, 0, 0, 0]][..], &[[0x88, 0xa8, 0, 5], [0x81, 0, 0xa0, 0]]] {
                    let tagged = [&plain[..12], &tags.concat(), &kind, &packet].concat();
                    forwards_frame(w, &tagged, 0).assert_dropped(DropReason::ForgedTunnel);
                }
                let segments =
                    frame(&ip_with(to_peer(w), proto, &[&tunnel[..], &[0; 3000]].concat()));
                forwards_frame(w, &segments, 1000).assert_dropped(DropReason::ForgedTunnel);
            }
        });
    }
}

/// The program itself, which tells by the packet's context who sends it.
#[test]
fn what_the_host_or_the_mesh_sends_is_not_looked_at() {
    let peer = ip(A.v4.unwrap(), std::net::Ipv4Addr::new(10, 42, 64, 9), 0);
    for spec in [GRE, V6, VXLAN] {
        world(spec, |w| {
            let forged = frame(&ip_with(to_peer(w), GRE_PROTO, &gre(IPV4, None, &[0; 40])));
            assert_eq!(leaves(w, Skb::default(), &forged), Some(NEXT), "the host's own");
            let skb = Skb { ingress_ifindex: STRAY, ..Skb::default() };
            let Some(code) = leaves(w, skb, &forged) else {
                println!("this kernel runs no program on a packet that came in somewhere");
                return;
            };
            assert_eq!(code, SHOT);

            let sent = eth(w.spec.gateway_mac(), A.mac, IPV4, &udp(peer.clone(), b"x"));
            let mut out = vec![0; sent.len() + 512];
            let mut ctx = [0; 192];
            let options = TestRunOptions {
                data_in: Some(&sent),
                data_out: Some(&mut out),
                ctx_in: Some(&Skb { ifindex: A.ifindex, ..Skb::default() }.bytes()),
                ctx_out: Some(&mut ctx),
                ..TestRunOptions::new()
            };
            let ran = w.program(names::FROM_ENDPOINT).test_run(options).unwrap();
            assert_eq!(ran.return_value as i32, REDIRECT);
            out.truncate(ran.data_size_out as usize);
            let cb = Skb::cb_of(&ctx);
            assert_eq!(leaves(w, Skb { cb, ..skb }, &out), Some(NEXT), "what a program sends");
            assert_eq!(leaves(w, skb, &out), Some(SHOT), "the same of somebody else");
            for word in 0..cb.len() {
                let mut other = cb;
                other[word] ^= 1;
                // Only one word of it counts.
                let expected = if word == 2 { SHOT } else { NEXT };
                assert_eq!(leaves(w, Skb { cb: other, ..skb }, &out), Some(expected), "{word}");
            }
        });
    }
}

/// The code of the program at the underlay's egress; `None` on kernels that let nobody say where a
/// packet came in.
fn leaves(w: &World, skb: Skb, frame: &[u8]) -> Option<i32> {
    let skb = Skb { ifindex: UNDERLAY, ..skb };
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&skb.bytes()),
        ..TestRunOptions::new()
    };
    let ran = w.program(names::FROM_FORWARD).test_run(options);
    match ran {
        Ok(ran) => Some(ran.return_value as i32),
        Err(_) if skb.ingress_ifindex != 0 => None,
        Err(e) => panic!("{e:?}"),
    }
}
