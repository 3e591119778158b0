//! Addresses of containers: each node gives out those of its own blocks, one after the other, so
//! that an address comes back as late as possible. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{bits, from_bits};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("{address} is taken on this node")]
    Taken { address: IpAddr },
    #[error(
        "{address} is not in this node's part of {pool}, which is {}: addresses of one part are \
         given out by one node, so start the container where it belongs or choose another address",
        list(blocks)
    )]
    Elsewhere { address: IpAddr, pool: IpNet, blocks: Vec<IpNet> },
    #[error(
        "{address} is not for a container: it is the gateway, network or broadcast address of {pool}"
    )]
    Reserved { address: IpAddr, pool: IpNet },
    #[error("no address is free in this node's part of {pool}, {}", list(blocks))]
    Full { pool: IpNet, blocks: Vec<IpNet> },
}

fn list(nets: &[IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What is taken of a pool on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    taken: BTreeSet<IpAddr>,
    /// The last one that was chosen here.
    last: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// Of all pools that Docker asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    pools: BTreeMap<IpNet, Pool>,
}

impl Ipam {
    pub fn contains(&self, pool: IpNet) -> bool {
        self.pools.contains_key(&pool)
    }

    /// All that are taken, and the gateways.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pools.values().flat_map(|pool| pool.taken.iter().copied().chain(pool.gateway))
    }

    /// A pool that overlaps.
    pub fn overlapping(&self, net: IpNet) -> Option<IpNet> {
        self.pools.keys().copied().find(|pool| overlap(*pool, net))
    }

    pub fn add(&mut self, pool: IpNet) {
        self.pools.entry(pool).or_default();
    }

    pub fn remove(&mut self, pool: IpNet) {
        self.pools.remove(&pool);
    }

    /// The gateway's address, the same on all nodes: as asked, or the first.
    pub fn gateway(&mut self, pool: IpNet, asked: Option<IpAddr>) -> IpAddr {
        let gateway = asked.unwrap_or_else(|| crate::config::gateway(pool));
        self.pools.entry(pool).or_default().gateway = Some(gateway);
        gateway
    }

    /// An address for a container: the one asked for, or the next that is free in `blocks`, this
    /// node's parts of the pool.
    pub fn take(
        &mut self,
        pool: IpNet,
        blocks: &[IpNet],
        asked: Option<IpAddr>,
    ) -> Result<IpAddr, IpamError> {
        let known = self.pools.entry(pool).or_default();
        let address = match asked {
            Some(address) => known.check(pool, blocks, address).map(|()| address)?,
            None => {
                let next = known.next(pool, blocks);
                let next = next.ok_or_else(|| IpamError::Full { pool, blocks: blocks.to_vec() })?;
                known.last = Some(next);
                next
            }
        };
        known.taken.insert(address);
        Ok(address)
    }

    pub fn release(&mut self, pool: IpNet, address: IpAddr) {
        if let Some(known) = self.pools.get_mut(&pool) {
            known.taken.remove(&address);
        }
    }

    /// Takes an address that a container has already.
    pub fn hold(&mut self, pool: IpNet, address: IpAddr) {
        self.pools.entry(pool).or_default().taken.insert(address);
    }

    /// Releases what nobody has who is in `held`, if it was in `suspects`: returns what is to be a
    /// suspect the next time.
    pub fn release_loose(
        &mut self,
        held: &BTreeSet<IpAddr>,
        suspects: &BTreeSet<IpAddr>,
    ) -> BTreeSet<IpAddr> {
        let mut loose = BTreeSet::new();
        for known in self.pools.values_mut() {
            known.taken.retain(|ip| held.contains(ip) || !suspects.contains(ip));
            loose.extend(known.taken.iter().filter(|ip| !held.contains(ip)));
        }
        loose
    }
}

impl Pool {
    fn check(&self, pool: IpNet, blocks: &[IpNet], address: IpAddr) -> Result<(), IpamError> {
        if self.is_reserved(pool, address) {
            return Err(IpamError::Reserved { address, pool });
        }
        if !blocks.iter().any(|block| block.contains(&address)) {
            return Err(IpamError::Elsewhere { address, pool, blocks: blocks.to_vec() });
        }
        if self.taken.contains(&address) {
            return Err(IpamError::Taken { address });
        }
        Ok(())
    }

    /// The next free one behind the last, from the first again at the end.
    fn next(&self, pool: IpNet, blocks: &[IpNet]) -> Option<IpAddr> {
        let is_free = |ip: &IpAddr| !self.taken.contains(ip) && !self.is_reserved(pool, *ip);
        // More than these can not be passed over.
        let tries = self.taken.len() + 4;
        let from = |block: &IpNet, first: u128| {
            let (low, high) = bounds(*block);
            // An address whose host bits are all zero looks like a network's, and some refuse it.
            let low = low + 1;
            let v4 = block.addr().is_ipv4();
            (low.max(first)..=high).take(tries).map(move |bits| from_bits(bits, v4))
        };
        let after = self.last.map_or(0, |last| bits(last).saturating_add(1));
        let of_last = |block: &&IpNet| self.last.is_none_or(|last| bounds(**block).1 >= bits(last));
        let behind = blocks.iter().filter(of_last).flat_map(|block| from(block, after));
        behind.chain(blocks.iter().flat_map(|block| from(block, 0))).find(is_free)
    }

    fn is_reserved(&self, pool: IpNet, address: IpAddr) -> bool {
        let edge =
            address == pool.network() || pool.addr().is_ipv4() && address == pool.broadcast();
        edge || Some(address) == self.gateway
    }
}

pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn bounds(net: IpNet) -> (u128, u128) {
    (bits(net.network()), bits(net.broadcast()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn addresses_come_in_turn_and_return_late() {
        let (pool, blocks) = (net("10.0.9.0/24"), [net("10.0.9.0/29")]);
        let mut ipam = Ipam::default();
        assert_eq!(ipam.gateway(pool, None), ip("10.0.9.1"));
        let first = ipam.take(pool, &blocks, None).unwrap();
        assert_eq!(first, ip("10.0.9.2"));
        ipam.release(pool, first);
        for n in 3..=7 {
            assert_eq!(ipam.take(pool, &blocks, None), Ok(ip(&format!("10.0.9.{n}"))));
        }
        assert_eq!(ipam.take(pool, &blocks, None), Ok(first));
        assert!(matches!(ipam.take(pool, &blocks, None), Err(IpamError::Full { .. })));
        ipam.release(pool, ip("10.0.9.5"));
        assert_eq!(ipam.take(pool, &blocks, None), Ok(ip("10.0.9.5")));
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_with_the_reason() {
        let (pool, blocks) = (net("10.0.9.0/24"), [net("10.0.9.192/26")]);
        let mut ipam = Ipam::default();
        ipam.gateway(pool, Some(ip("10.0.9.200")));
        let mut ask = |s: &str| ipam.take(pool, &blocks, Some(ip(s)));
        assert_eq!(ask("10.0.9.222"), Ok(ip("10.0.9.222")));
        assert_eq!(ask("10.0.9.222"), Err(IpamError::Taken { address: ip("10.0.9.222") }));
        assert!(matches!(ask("10.0.9.9"), Err(IpamError::Elsewhere { .. })));
        for reserved in ["10.0.9.200", "10.0.9.0", "10.0.9.255"] {
            assert!(matches!(ask(reserved), Err(IpamError::Reserved { .. })), "{reserved}");
        }
    }

    #[test]
    fn a_large_pool_is_not_walked() {
        let (pool, blocks) = (net("fd00:9::/64"), [net("fd00:9::4000:0:0:0/66")]);
        let mut ipam = Ipam::default();
        let taken: Vec<_> = (0..3).map(|_| ipam.take(pool, &blocks, None).unwrap()).collect();
        assert_eq!(taken[2], ip("fd00:9::4000:0:0:3"));
    }

    proptest! {
        /// An address is never given twice, and always from a block.
        #[test]
        fn what_is_taken_is_nobody_elses(steps in prop::collection::vec((any::<bool>(), 0..40usize), 0..200)) {
            let (pool, blocks) = (net("10.0.9.0/24"), [net("10.0.9.16/29"), net("10.0.9.64/28")]);
            let (mut ipam, mut held) = (Ipam::default(), Vec::new());
            ipam.gateway(pool, None);
            for (take, at) in steps {
                if take {
                    match ipam.take(pool, &blocks, None) {
                        Ok(ip) => {
                            prop_assert!(!held.contains(&ip));
                            prop_assert!(blocks.iter().any(|b| b.contains(&ip)));
                            held.push(ip);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 22),
                    }
                } else if !held.is_empty() {
                    ipam.release(pool, held.swap_remove(at % held.len()));
                }
            }
        }
    }
}
