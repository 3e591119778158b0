//! What endpoints are asked by.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use mesh_common::{
    maps::PortInfo,
    wire::{ETH_P_IP, ETH_P_IPV6, IPPROTO_HOPOPTS, IPPROTO_ICMPV6, IPPROTO_IGMP, mac_bytes},
};

use super::ROBUSTNESS;
use crate::host::choice::link_local;

/// General queries, one for each family that the port has.
pub(super) fn queries(port: &PortInfo, response: Duration, interval: Duration) -> Vec<Vec<u8>> {
    let mac = mac_bytes(port.gateway_mac);
    let gateway4 = (port.gateway4 != 0).then(|| Ipv4Addr::from(port.gateway4.to_ne_bytes()));
    // In a byte up to 127 seconds stand as they are (RFC 3376, 4.1.7).
    let interval = interval.as_secs().clamp(1, 127) as u8;
    let igmp = gateway4.map(|from| igmp_query(mac, from, response, interval));
    let mld = (port.gateway6 != [0; 4]).then(|| mld_query(mac, response, interval));
    igmp.into_iter().chain(mld).collect()
}

/// RFC 3376, 4.1, with the router alert of RFC 2113.
fn igmp_query(mac: [u8; 6], from: Ipv4Addr, response: Duration, interval: u8) -> Vec<u8> {
    // In tenths of a second, as they are up to 127.
    let tenths = (response.as_millis() / 100).clamp(1, 127) as u8;
    let mut igmp = [0x11, tenths, 0, 0, 0, 0, 0, 0, ROBUSTNESS as u8, interval, 0, 0];
    let sum = checksum(&igmp);
    igmp[2..4].copy_from_slice(&sum);
    let mut ip = [0u8; 24];
    ip[..4].copy_from_slice(&[0x46, 0xc0, 0, 36]);
    (ip[8], ip[9]) = (1, IPPROTO_IGMP);
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&[224, 0, 0, 1]);
    ip[20..].copy_from_slice(&[0x94, 4, 0, 0]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [&[1, 0, 0x5e, 0, 0, 1][..], &mac, &ETH_P_IP.to_be_bytes(), &ip, &igmp].concat()
}

/// RFC 3810, 5.1, with the router alert of RFC 2711.
fn mld_query(mac: [u8; 6], response: Duration, interval: u8) -> Vec<u8> {
    let (from, to) = (link_local(mac), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    let alert = [IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let mut mld = [0u8; 28];
    mld[0] = 130;
    // In milliseconds, as they are below 32768.
    mld[4..6].copy_from_slice(&(response.as_millis().clamp(1, 32_767) as u16).to_be_bytes());
    (mld[24], mld[25]) = (ROBUSTNESS as u8, interval);
    let pseudo =
        [&from.octets()[..], &to.octets(), &[0, 0, 0, 28, 0, 0, 0, IPPROTO_ICMPV6], &mld].concat();
    mld[2..4].copy_from_slice(&checksum(&pseudo));
    let head = [&[0x60, 0, 0, 0, 0, 36, IPPROTO_HOPOPTS, 1][..], &from.octets(), &to.octets()];
    let ip = [head.concat(), alert.to_vec(), mld.to_vec()].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &ETH_P_IPV6.to_be_bytes(), &ip].concat()
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_as_the_kernel_takes_them() {
        let igmp = igmp_query([2; 6], Ipv4Addr::new(10, 42, 1, 1), Duration::from_secs(10), 125);
        assert_eq!(igmp.len(), 14 + 24 + 12);
        assert_eq!(checksum(&igmp[14..38]), [0, 0]);
        assert_eq!(checksum(&igmp[38..]), [0, 0]);
        assert_eq!((igmp[22], &igmp[38..40]), (1, &[0x11, 100][..]));
        let mld = mld_query([2; 6], Duration::from_secs(10), 125);
        assert_eq!(mld.len(), 14 + 40 + 8 + 28);
        // Hop limit 1, and 10 s.
        assert_eq!((mld[21], &mld[62..64], &mld[66..68]), (1, &[130, 0][..], &[0x27, 0x10][..]));
    }
}
