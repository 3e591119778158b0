//! Values of the file, each judged by itself: what a string or a number must be.
//!
//! A value that can be read but may not be used is still returned by `parse_*` and refused by
//! `*_fault`, so that a duplicate or an overlap of it is found in the same run.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Interfaces, Vni};

/// Characters in a name: the longest DNS label.
pub(super) const NAME_MAX: usize = 63;
/// Node and cluster names, as a regular expression.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$";
/// Network names, as a regular expression.
pub(super) const NETWORK_PATTERN: &str = "^[a-z0-9][a-z0-9_.-]*$";
/// Every IPv4 host must take this much (RFC 791, 3.1), so no MTU is smaller.
pub(super) const MTU_MIN: u16 = 576;
/// The same for IPv6 (RFC 8200, 5).
pub(super) const MTU_MIN_IPV6: u16 = 1280;
/// Longest prefixes that hold the network's address, a gateway and another host.
const LONGEST: (u8, u8) = (30, 126);
/// No container can have an address of these.
const NEVER_OVERLAY: [(IpNet, &str); 9] = [
    (v4([0, 0, 0, 0], 8), "\"this network\""),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255, 255, 255, 255], 32), "broadcast"),
    (v6(Ipv6Addr::UNSPECIFIED, 127), "unspecified and loopback"),
    (v6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96), "IPv4 written as IPv6"),
    (v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "link-local"),
    (v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "multicast"),
];

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6(address: Ipv6Addr, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, len))
}

/// A node's or the cluster's name.
pub(super) fn name_fault(name: &str) -> Option<String> {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c));
    let rule = "letters, digits, '-', '_' and '.', with a letter or digit at both ends";
    common_fault(name, odd, rule).or_else(|| {
        let ends = |c: char| c.is_ascii_alphanumeric();
        (!name.starts_with(ends) || !name.ends_with(ends))
            .then(|| format!("{name:?} begins or ends with a sign: a name is {rule}"))
    })
}

/// Why this can not be a label of `name`, which a container has.
pub(super) fn label_fault(name: &str, label: &str) -> Option<String> {
    let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c));
    match label.len() {
        1..=NAME_MAX if !label.contains(odd) => None,
        0..=NAME_MAX => Some(format!("{name:?} has more than letters, digits, '-', '_' and '.'")),
        len => Some(format!("it has a label of {len} characters, at most {NAME_MAX} are allowed")),
    }
}

pub(super) fn network_name_fault(name: &str) -> Option<String> {
    let odd = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c));
    let rule = "small letters, digits, '-', '_' and '.', with a letter or digit first";
    if name == super::DEFAULT_NETWORK {
        return Some("\"default\" is the cluster's own network: choose another name".into());
    }
    common_fault(name, odd, rule).or_else(|| {
        (!name.starts_with(|c: char| c.is_ascii_alphanumeric()))
            .then(|| format!("{name:?} begins with a sign: a network's name is {rule}"))
    })
}

fn common_fault(name: &str, odd: impl Fn(char) -> bool, rule: &str) -> Option<String> {
    if name.is_empty() {
        return Some(format!("a name must not be empty: write {rule}"));
    }
    if let Some(c) = name.chars().find(|c| odd(*c)) {
        return Some(format!("{name:?} has the character {c:?}: a name is {rule}"));
    }
    (name.len() > NAME_MAX)
        .then(|| format!("the name has {} characters, at most {NAME_MAX} are allowed", name.len()))
}

/// Of a socket.
pub(super) fn parse_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    // linux/un.h
    match text.len() {
        0..108 if path.is_absolute() => Ok(path),
        0..108 => Err(format!("{text:?} is no absolute path, such as /run/docker.sock")),
        len => Err(format!("the path of a socket has at most 107 bytes, and this one {len}")),
    }
}

pub(super) fn parse_interfaces(text: &str) -> Result<Interfaces, String> {
    Interfaces::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        format!("{text:?} is no kind of interface: write \"veth\", \"netkit\" or \"auto\"")
    })
}

/// The kernel's rule for names of interfaces (dev_valid_name).
pub(super) fn parse_ifname(text: &str) -> Result<String, String> {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    match text.len() {
        1..16 if text != "." && text != ".." && !text.contains(bad) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} can not be the name of an interface, such as docker0")),
    }
}

pub(super) fn parse_vni(number: i128) -> Result<Vni, String> {
    let max = mesh_common::maps::VNI_MAX;
    match number {
        0 => Err(format!("0 is the cluster's own network: write one of 1 to {max}")),
        n => u32::try_from(n)
            .ok()
            .and_then(Vni::new)
            .ok_or_else(|| format!("{n} does not fit into the 24 bits of a VNI: 1 to {max}")),
    }
}

/// Bounds that hold for each cluster; those that depend on its networks come later.
pub(super) fn parse_mtu(number: i128) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(mtu) if mtu >= MTU_MIN => Ok(mtu),
        Ok(mtu) => Err(format!("{mtu} is too small: IPv4 needs at least {MTU_MIN}")),
        Err(_) => Err(format!("{number} can not fit: no IP packet is longer than 65535")),
    }
}

pub(super) fn parse_underlay(text: &str) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    Err(match text.split_once(['/', '%']) {
        Some((address, _)) if is_address(address) => {
            let what = if text.contains('/') { "a prefix length" } else { "a zone" };
            format!("{text} has {what}: write the host's address alone, {address}")
        }
        _ if is_address(bare) => format!("{text} is in brackets: write {bare}"),
        _ => format!(
            "{text:?} is no IP address, such as 192.0.2.11 or 2001:db8::11 (names are not looked \
             up, a port is not part of it)"
        ),
    })
}

/// Why no host can have this address.
pub(super) fn underlay_fault(address: IpAddr) -> Option<String> {
    let what = match address {
        IpAddr::V4(v4) => match ipv4_fault(v4)? {
            Ok(what) => what,
            Err(message) => return Some(message),
        },
        IpAddr::V6(v6) => ipv6_fault(v6)?,
    };
    Some(format!("{address} is {what}: write the address by which other nodes reach this host"))
}

/// What an address is that no host has; or the whole message.
///
/// Which prefix an underlay address belongs to the file does not say. Those that end in .0 or .255
/// are the network's and the broadcast address of every prefix from /24 on, and much equipment
/// refuses them in shorter ones too, so they count as faults.
fn ipv4_fault(address: Ipv4Addr) -> Option<Result<&'static str, String>> {
    let of_all = |what, [a, b, c]: [u8; 3]| {
        Err(format!(
            "{address} is the {what} address of {a}.{b}.{c}.0/24: write the address of a host in \
             it, {a}.{b}.{c}.1 to {a}.{b}.{c}.254"
        ))
    };
    Some(match address.octets() {
        [0, ..] => Ok("no host's address (\"this network\")"),
        [127, ..] => Ok("a loopback address, that no other host can reach"),
        [224..=239, ..] => Ok("a multicast address"),
        [255, 255, 255, 255] => Ok("the broadcast address"),
        [240..=255, ..] => Ok("a reserved address (240.0.0.0/4)"),
        [a, b, c, 0] => of_all("network's", [a, b, c]),
        [a, b, c, 255] => of_all("broadcast", [a, b, c]),
        _ => return None,
    })
}

fn ipv6_fault(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("no host's address (unspecified)")
    } else if address.is_loopback() {
        Some("a loopback address, that no other host can reach")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.is_unicast_link_local() {
        // Which of several links is meant it does not say, and no route leads to it.
        Some("a link-local address, that only hosts on one link can reach")
    } else {
        address.to_ipv4_mapped().map(|_| "an IPv4 address written as IPv6")
    }
}

/// Host bits are kept.
pub(super) fn parse_prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse() {
        return Ok(net);
    }
    let Some((address, len)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(_) => format!("{text} has no prefix length: write one, such as {text}/18"),
            Err(_) => format!("{text:?} is no prefix, such as 10.42.0.0/18 or fd42::/64"),
        });
    };
    Err(match address.parse::<IpAddr>() {
        Ok(address) => {
            let max = if address.is_ipv4() { 32 } else { 128 };
            format!("{len:?} is no prefix length: write {address}/ and one of 0 to {max}")
        }
        Err(_) => format!("{address:?} in {text:?} is no IP address"),
    })
}

/// Host bits are ignored.
pub(super) fn prefix_fault(net: IpNet) -> Option<String> {
    if net.prefix_len() > longest(net) {
        return Some(format!(
            "{net} is too small: it must hold the gateway and a container, so /{} at most",
            longest(net)
        ));
    }
    if is_ordinary(net) {
        return None;
    }
    NEVER_OVERLAY.iter().find_map(|(never, what)| {
        let overlap = never.contains(&net) || net.contains(never);
        overlap.then(|| format!("{net} holds addresses of {never} ({what}), no container's"))
    })
}

/// Nearly all are: IPv4, and apart from [`NEVER_OVERLAY`] by the first octet.
fn is_ordinary(net: IpNet) -> bool {
    let IpNet::V4(net) = net else { return false };
    let [first, ..] = net.addr().octets();
    net.prefix_len() >= 8 && !matches!(first, 0 | 127 | 169 | 224..)
}

/// Longest prefix of this family that a subnet may have.
pub(super) fn longest(net: IpNet) -> u8 {
    if net.addr().is_ipv4() { LONGEST.0 } else { LONGEST.1 }
}
