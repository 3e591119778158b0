//! Addresses as all maps have them, of either family in one form.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2): four words, each in
/// network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

/// Word by word, as it was stored. The derived one reads pairs of words, and such a read of what was
/// stored just now waits until all stores before have reached the cache: to put a key into a table
/// took 190 ns instead of 60.
impl core::hash::Hash for Addr {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|word| state.write_u32(*word));
    }
}

impl Addr {
    /// `v4`: in network byte order, as it stands in the header.
    #[inline(always)]
    pub const fn from_v4(v4: u32) -> Self {
        Self([0, 0, 0xffffu32.to_be(), v4])
    }

    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// `len`: bits of the 128 that are kept, so 96 more than the prefix length of an IPv4 address.
    #[inline(always)]
    pub fn masked(self, len: u8) -> Self {
        Self([
            self.0[0] & mask_word(len, 0),
            self.0[1] & mask_word(len, 1),
            self.0[2] & mask_word(len, 2),
            self.0[3] & mask_word(len, 3),
        ])
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        let o = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(a: Addr) -> Self {
        core::net::Ipv6Addr::from(a.octets()).to_canonical()
    }
}

/// The part of a 128-bit mask of `len` bits that covers word `i`, in network byte order.
#[inline(always)]
pub const fn mask_word(len: u8, i: u8) -> u32 {
    let (len, start) = (len as u32, i as u32 * 32);
    if len <= start {
        0
    } else if len >= start + 32 {
        u32::MAX
    } else {
        (u32::MAX << (32 - (len - start))).to_be()
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn addr(s: &str) -> Addr {
        Addr::from(s.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_address_survives_the_way_there_and_back() {
        for s in ["10.42.0.1", "255.255.255.255", "fd00:42::1", "::1"] {
            assert_eq!(IpAddr::from(addr(s)), s.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn an_ipv4_header_word_makes_the_same_address() {
        let word = u32::from_ne_bytes([10, 42, 0, 1]);
        assert_eq!(Addr::from_v4(word), addr("10.42.0.1"));
    }

    #[test]
    fn masks_cut_where_the_prefix_ends() {
        assert_eq!(addr("10.42.191.7").masked(96 + 18), addr("10.42.128.0"));
        assert_eq!(addr("fd00:42:ffff::1").masked(33), addr("fd00:42:8000::"));
        assert_eq!(addr("10.42.191.7").masked(128), addr("10.42.191.7"));
        assert_eq!(addr("fd00::1").masked(0), Addr::default());
    }
}
