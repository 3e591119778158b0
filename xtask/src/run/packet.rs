//! One encapsulated packet, byte by byte.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mesh_tests::{Capture, Topology, packet::PacketSocket, ping};
use serde::Serialize;

/// A packet from the underlay and what its bytes mean.
#[derive(Debug, Serialize)]
pub struct Dissected {
    /// `ping h1c1 -> h2c1`
    pub what: String,
    pub bytes: usize,
    pub fields: Vec<Field>,
    /// The same by an independent dissector, if there is one.
    pub tshark: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Field {
    pub offset: usize,
    pub hex: String,
    pub meaning: String,
}

/// Pings once from the first host's first container to the second's, and takes the request from the
/// switch.
pub fn catch(mesh: &Topology, limit: Duration) -> Result<Dissected> {
    let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
    let capture = Capture::start(&mesh.switch, "h1", mesh.dir.join("one-packet.pcap"))?;
    let socket = PacketSocket::open(&mesh.switch, "h1")?;
    ping::ping(&from.netns, to.address(false)?, 1, 16, limit)?;
    let frame = socket.find(limit, is_tunnel)?;
    let frame = frame.context("a ping between two hosts made no tunnel packet on the underlay")?;
    // Without tshark the fields below must do.
    let tshark = capture.stop()?.decode("(gre || vxlan || geneve) && icmp.type == 8").ok();
    Ok(Dissected {
        what: format!("ping {} -> {}", from.name, to.name),
        bytes: frame.len(),
        fields: explain(&frame),
        tshark,
    })
}

/// GRE, or UDP to the port of VXLAN or Geneve.
fn is_tunnel(frame: &[u8]) -> bool {
    let proto = |at| frame.get(at).copied().unwrap_or_default();
    let to = |at: usize| {
        let port = frame.get(at + 2..at + 4).map_or(0, word);
        port == VXLAN_PORT || port == GENEVE_PORT
    };
    match frame.get(12..14).map_or(0, word) {
        IPV4 => proto(23) == GRE || proto(23) == UDP && to(34),
        IPV6 => proto(20) == GRE || proto(20) == UDP && to(54),
        _ => false,
    }
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const GRE: u8 = 47;
const VXLAN_PORT: u16 = 4789;
const GENEVE_PORT: u16 = 6081;

/// Reads the frame from the front, a field at a time.
struct Reader<'a> {
    frame: &'a [u8],
    fields: Vec<Field>,
    at: usize,
}

impl Reader<'_> {
    /// The next `n` bytes, or as many as there are; `meaning` is told what they are.
    fn field(&mut self, n: usize, meaning: impl FnOnce(&[u8]) -> String) {
        let rest = &self.frame[self.at..];
        let bytes = &rest[..n.min(rest.len())];
        if !bytes.is_empty() {
            let meaning = if bytes.len() == n { meaning(bytes) } else { "cut short".into() };
            self.fields.push(Field { offset: self.at, hex: hex(bytes), meaning });
            self.at += bytes.len();
        }
    }

    fn number(&self, offset: usize) -> u16 {
        let word = self.frame.get(self.at + offset..self.at + offset + 2);
        word.map_or(0, |word| u16::from_be_bytes([word[0], word[1]]))
    }

    fn ethernet(&mut self, whose: &str) {
        self.field(6, |mac| format!("{whose} Ethernet, to {}", mac_text(mac)));
        self.field(6, |mac| format!("  from {}", mac_text(mac)));
        self.field(2, |kind| format!("  carries {}", ether_type(word(kind))));
    }

    fn ipv4(&mut self, whose: &str) {
        self.field(2, |b| {
            format!("{whose} IPv4, {} bytes of header, TOS {:#04x}", (b[0] & 15) * 4, b[1])
        });
        self.field(2, |b| format!("  {} bytes in all", word(b)));
        self.field(4, |b| {
            let flags = if b[2] & 0x40 == 0 { "may be cut" } else { "don't fragment" };
            format!("  id {:#06x}, {flags}", word(b))
        });
        self.field(2, |b| format!("  TTL {}, carries protocol {}", b[0], protocol(b[1])));
        self.field(2, |_| "  checksum of this header".into());
        self.field(4, |b| format!("  from {}", Ipv4Addr::new(b[0], b[1], b[2], b[3])));
        self.field(4, |b| format!("  to {}", Ipv4Addr::new(b[0], b[1], b[2], b[3])));
    }

    fn ipv6(&mut self, whose: &str) {
        self.field(4, |b| {
            let class = (word(b) >> 4) & 0xff;
            let label = u32::from_be_bytes([b[0], b[1], b[2], b[3]]) & 0xf_ffff;
            format!("{whose} IPv6, traffic class {class:#04x}, flow label {label:#07x}")
        });
        self.field(2, |b| format!("  {} bytes after this header", word(b)));
        self.field(2, |b| format!("  carries protocol {}, hop limit {}", protocol(b[0]), b[1]));
        self.field(16, |b| format!("  from {}", address(b)));
        self.field(16, |b| format!("  to {}", address(b)));
    }

    /// The outer IP header and all in front of the inner one.
    fn outer(&mut self) {
        self.ethernet("outer");
        let proto = match self.frame.get(12..14).map_or(0, word) {
            IPV6 => {
                self.ipv6("outer");
                self.frame.get(20)
            }
            _ => {
                self.ipv4("outer");
                self.frame.get(23)
            }
        };
        if proto == Some(&UDP) { self.udp() } else { self.gre() }
    }

    fn udp(&mut self) {
        let is_vxlan = self.number(2) == VXLAN_PORT;
        self.field(2, |b| format!("UDP, from port {}, by the flow", word(b)));
        self.field(2, |b| format!("  to port {}", word(b)));
        self.field(2, |b| format!("  {} bytes in all", word(b)));
        self.field(2, |_| "  no checksum: the inner packet has its own".into());
        if is_vxlan {
            self.field(4, |_| "VXLAN, the VNI is valid".into());
        } else {
            self.field(2, |_| "Geneve, no options".into());
            self.field(2, |b| format!("  carries {}", ether_type(word(b))));
        }
        self.field(3, |b| format!("  VNI: network {}", u32::from_be_bytes([0, b[0], b[1], b[2]])));
        self.field(1, |_| "  reserved".into());
        self.ethernet("inner");
    }

    fn gre(&mut self) {
        const KEY: u16 = 0x2000;
        const ETHERNET: u16 = 0x6558;
        let (has_key, inner) = (self.number(0) & KEY != 0, self.number(2));
        let key = if has_key { "a key follows" } else { "no key: the cluster's own network" };
        self.field(2, |_| format!("GRE, {key}"));
        self.field(2, |b| format!("  carries {}", ether_type(word(b))));
        if has_key {
            self.field(4, |b| {
                format!("  key: network {}", u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
            });
        }
        if inner == ETHERNET {
            self.ethernet("inner");
        }
    }
}

fn explain(frame: &[u8]) -> Vec<Field> {
    let mut reader = Reader { frame, fields: Vec::new(), at: 0 };
    reader.outer();
    reader.ipv4("inner");
    reader.field(4, |b| format!("ICMP type {}, code {}, checksum", b[0], b[1]));
    reader.field(4, |b| format!("  id {}, sequence number {}", word(b), word(&b[2..])));
    while reader.at < frame.len() {
        let left = frame.len() - reader.at;
        reader.field(left.min(8), |_| "  payload".into());
    }
    reader.fields
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn hex(bytes: &[u8]) -> String {
    joined(bytes, ' ')
}

fn mac_text(bytes: &[u8]) -> String {
    joined(bytes, ':')
}

fn joined(bytes: &[u8], separator: char) -> String {
    bytes.iter().enumerate().fold(String::new(), |mut text, (i, byte)| {
        if i > 0 {
            text.push(separator);
        }
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Of 16 bytes.
fn address(bytes: &[u8]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    octets.into()
}

fn ether_type(number: u16) -> String {
    match number {
        0x0800 => "IPv4".into(),
        0x86dd => "IPv6".into(),
        0x6558 => "Ethernet".into(),
        other => format!("{other:#06x}"),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "1, ICMP".into(),
        6 => "6, TCP".into(),
        17 => "17, UDP".into(),
        47 => "47, GRE".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_frame_is_explained_once() {
        // Ethernet, IPv4 (GRE), GRE with key 7, IPv4 (ICMP), ICMP echo with 12 bytes.
        let mut frame = vec![0; 14 + 20 + 8 + 20 + 8 + 12];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[23] = 47;
        frame[34..42].copy_from_slice(&[0x20, 0, 8, 0, 0, 0, 0, 7]);
        let fields = explain(&frame);
        let mut at = 0;
        for field in &fields {
            assert_eq!(field.offset, at, "{field:?}");
            at += field.hex.split(' ').count();
        }
        assert_eq!(at, frame.len());
        assert!(fields.iter().any(|field| field.meaning.contains("key: network 7")));
    }

    #[test]
    fn tunnels_in_udp_over_ipv6_are_explained_to_the_inner_packet() {
        // Ethernet, IPv6 (UDP), UDP, VXLAN with VNI 7, Ethernet, IPv4.
        let mut frame = vec![0; 14 + 40 + 8 + 8 + 14 + 20];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[20] = UDP;
        frame[56..58].copy_from_slice(&VXLAN_PORT.to_be_bytes());
        frame[62..70].copy_from_slice(&[8, 0, 0, 0, 0, 0, 7, 0]);
        assert!(is_tunnel(&frame));
        let fields = explain(&frame);
        assert!(fields.iter().any(|field| field.meaning.contains("VNI: network 7")));
        assert!(
            fields.iter().any(|field| field.offset == 84 && field.meaning.contains("inner IPv4"))
        );
        frame[56] = 0;
        assert!(!is_tunnel(&frame));
    }

    #[test]
    fn frame_that_ends_anywhere_is_explained_to_its_end() {
        for len in 0..60 {
            let fields = explain(&vec![0x45; len]);
            let shown: usize = fields.iter().map(|field| field.hex.split(' ').count()).sum();
            assert_eq!(shown, len);
        }
    }
}
