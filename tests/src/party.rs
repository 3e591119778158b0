//! Whoever has overlay addresses: a container, or a host itself.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{Container, Host, Netns, Topology, ping, traffic};

#[derive(Clone, Debug)]
pub struct Party {
    /// `h1c1` or `h1`
    pub name: String,
    pub netns: Netns,
    pub addresses: Vec<IpAddr>,
    /// Of its interface to the overlay, in bytes.
    pub mtu: u32,
}

impl Party {
    pub fn address(&self, ipv6: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|ip| ip.is_ipv6() == ipv6);
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        found.copied().with_context(|| format!("{} has no {family} address", self.name))
    }

    /// Fails unless ping, TCP (compared by hash), and UDP packets of the least length and of the full MTU
    /// reach every address of `to`.
    pub fn expect_reaches(&self, to: &Self) -> Result<()> {
        for target in &to.addresses {
            let what = || format!("{} -> {} ({target})", self.name, to.name);
            ping::expect_ping(&self.netns, *target).with_context(what)?;
            traffic::tcp_transfer(&self.netns, &to.netns, *target, 256 << 10).with_context(what)?;
            for bytes in [traffic::least_udp(*target), self.mtu.min(to.mtu)] {
                traffic::expect_udp(&self.netns, &to.netns, *target, bytes).with_context(what)?;
            }
        }
        Ok(())
    }

    /// Fails if any address of `to` answers a ping.
    pub fn expect_cut_off_from(&self, to: &Self) -> Result<()> {
        for target in &to.addresses {
            let report = ping::ping(&self.netns, *target, 2, 56, Duration::from_millis(100));
            // Without a route there is not even something to send.
            let received = report.map_or(0, |report| report.received());
            ensure!(received == 0, "{} must not reach {} ({target})", self.name, to.name);
        }
        Ok(())
    }
}

impl Container {
    pub fn party(&self) -> Result<Party> {
        Ok(Party {
            name: self.name.clone(),
            netns: self.netns.clone(),
            addresses: self.addresses()?,
            mtu: self.given()?.mtu,
        })
    }
}

impl Host {
    pub fn party(&self) -> Result<Party> {
        Ok(Party {
            name: self.name.clone(),
            netns: self.netns.clone(),
            addresses: self.overlay_addresses()?,
            mtu: self.netns.mtu("mesh0")?,
        })
    }
}

impl Topology {
    /// The attached container of that name.
    pub fn party(&self, name: &str) -> Result<Party> {
        self.container(name)?.party()
    }

    /// All attached containers.
    pub fn parties(&self) -> Result<Vec<Party>> {
        self.containers().filter(|c| c.given.is_some()).map(Container::party).collect()
    }
}

/// All ordered pairs of different elements.
pub fn pairs(parties: &[Party]) -> impl Iterator<Item = (&Party, &Party)> {
    let different = |(i, j): &(usize, usize)| i != j;
    let indices = (0..parties.len()).flat_map(|i| (0..parties.len()).map(move |j| (i, j)));
    indices.filter(different).map(|(i, j)| (&parties[i], &parties[j]))
}
