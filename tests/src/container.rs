//! A container: a network namespace, and what `mesh attach` gave it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::{Netns, ping, socket};

/// What `mesh attach --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Given {
    pub name: String,
    pub network: String,
    pub vni: u32,
    pub ifname: String,
    pub host_ifname: String,
    /// With prefix length: `10.42.0.2/32`.
    pub addresses: Vec<String>,
    pub gateways: Vec<String>,
    pub routes: Vec<Value>,
    pub mac: String,
    pub mtu: u32,
    pub netns: String,
}

#[derive(Debug)]
pub struct Container {
    /// `h1c1`
    pub name: String,
    pub netns: Netns,
    /// `None` before `attach` and after `detach`.
    pub given: Option<Given>,
}

impl Container {
    pub fn given(&self) -> Result<&Given> {
        self.given.as_ref().with_context(|| format!("{} is not attached", self.name))
    }

    /// Its overlay addresses, as given by `attach`.
    pub fn addresses(&self) -> Result<Vec<IpAddr>> {
        let parse = |text: &String| {
            let address = text.split('/').next().unwrap_or_default();
            address.parse().with_context(|| format!("attach gave the address {text:?}"))
        };
        self.given()?.addresses.iter().map(parse).collect()
    }

    pub fn v4(&self) -> Result<Ipv4Addr> {
        let found = self.addresses()?.into_iter().find_map(|ip| match ip {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        found.with_context(|| format!("{} has no IPv4 address", self.name))
    }

    pub fn v6(&self) -> Result<Ipv6Addr> {
        let found = self.addresses()?.into_iter().find_map(|ip| match ip {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        });
        found.with_context(|| format!("{} has no IPv6 address", self.name))
    }

    pub fn ifname(&self) -> Result<&str> {
        Ok(&self.given()?.ifname)
    }

    /// Sets the MTU by hand, as a container that will not believe what it was given.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.netns.ip_batch(&format!("link set {} mtu {mtu}\n", self.ifname()?))
    }

    /// See [`socket::disable_transmit_offloads`].
    pub fn disable_transmit_offloads(&self) -> Result<()> {
        let ifname = self.ifname()?;
        self.netns.run(|| Ok(socket::disable_transmit_offloads(ifname)?))
    }

    pub fn expect_ping(&self, target: impl Into<IpAddr>) -> Result<()> {
        ping::expect_ping(&self.netns, target.into())
    }
}
