//! Sets of prefixes: which overlap, which holds another, and how one is shared out.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::value::longest;

/// Each pair of which one holds the other, as places in `nets`: the smaller place first. Of equal
/// prefixes each makes a pair with the first only. Prefixes either nest or are apart, so after
/// sorting those that hold the next one are a stack, at most as deep as an address has bits.
pub(super) fn overlaps(nets: &[IpNet]) -> Vec<(usize, usize)> {
    // Nearly every file is in order: each prefix is behind the one before.
    if nets.windows(2).all(|pair| pair[0] < pair[1] && !pair[0].contains(&pair[1])) {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..nets.len()).collect();
    order.sort_by_key(|i| (nets[*i], *i));
    let mut pairs = Vec::new();
    let mut holders: Vec<usize> = Vec::new();
    for i in order {
        while holders.last().is_some_and(|holder| !nets[*holder].contains(&nets[i])) {
            holders.pop();
        }
        pairs.extend(holders.iter().map(|holder| (i.min(*holder), i.max(*holder))));
        if holders.last().is_none_or(|holder| nets[*holder] != nets[i]) {
            holders.push(i);
        }
    }
    pairs
}

/// Prefixes in which others are looked up.
pub(super) struct Cover<T> {
    /// Sorted and apart from each other.
    nets: Vec<(IpNet, T)>,
}

impl<T: Copy> Cover<T> {
    pub fn new(nets: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut nets: Vec<_> = nets.into_iter().collect();
        nets.sort_by_key(|(net, _)| *net);
        // The holder sorts before what it holds, and stays.
        nets.dedup_by(|next, kept| kept.0.contains(&next.0));
        Self { nets }
    }

    pub fn is_empty(&self) -> bool {
        self.nets.is_empty()
    }

    /// The prefix that holds all of `net`.
    pub fn holder(&self, net: IpNet) -> Option<(IpNet, T)> {
        // An equal or wider prefix sorts before the longest one with the same address.
        let after = self.nets.partition_point(|(kept, _)| *kept <= net);
        let (holder, label) = *self.nets.get(after.checked_sub(1)?)?;
        holder.contains(&net).then_some((holder, label))
    }
}

/// Prefix length of each share if `net` is divided evenly among so many nodes: their number
/// rounded up to a power of two. `None` if a share could not hold a host.
pub(super) fn share_len(net: IpNet, nodes: usize) -> Option<u8> {
    let bits = nodes.max(1).checked_next_power_of_two()?.trailing_zeros();
    let len = u32::from(net.prefix_len()) + bits;
    u8::try_from(len).ok().filter(|len| *len <= longest(net))
}

/// The share of the node in place `index`.
pub fn share(net: IpNet, nodes: usize, index: usize) -> Option<IpNet> {
    let len = share_len(net, nodes)?;
    match net {
        IpNet::V4(net) => {
            let at = u32::try_from(index).ok()?.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Ipv4Net::new((net.network().to_bits() | at).into(), len).ok().map(IpNet::V4)
        }
        IpNet::V6(net) => {
            let at = (index as u128).checked_shl(128 - u32::from(len)).unwrap_or(0);
            Ipv6Net::new((net.network().to_bits() | at).into(), len).ok().map(IpNet::V6)
        }
    }
}
