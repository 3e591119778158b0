//! Routes: what there is, where a packet would go, and our own.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
            RouteScope, RouteType, RouteVia,
        },
    },
};

use super::{Net, NetError, address::family};

/// Of what the kernel counts in ticks for user space, in a second.
const USER_HZ: u64 = 100;

/// Where the kernel would send a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub ifindex: u32,
    /// The next hop; `None` if the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that the kernel would take.
    pub source: Option<IpAddr>,
    /// Largest packet, in bytes, where the route or path MTU discovery says so; otherwise the
    /// interface's MTU counts.
    pub mtu: Option<u32>,
    /// For how long that MTU holds, where path MTU discovery says so.
    pub mtu_expires: Option<Duration>,
    /// The destination is this host.
    pub local: bool,
}

/// A route of the main table. One with several next hops appears once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub dst: IpNet,
    /// `None` for a route that drops or refuses.
    pub ifindex: Option<u32>,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    /// Largest packet, in bytes, if the route says so.
    pub mtu: Option<u32>,
    /// Who made it, as in rtnetlink(7): 2 is the kernel, 3 boot, 4 an administrator, ...
    pub protocol: u8,
    /// The smaller wins.
    pub metric: u32,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        match self.ifindex {
            Some(ifindex) => write!(f, " on interface {ifindex}")?,
            None => write!(f, " to nowhere")?,
        }
        write!(f, " (protocol {}, metric {})", self.protocol, self.metric)
    }
}

/// A route that ought to be in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteSpec {
    pub dst: IpNet,
    pub ifindex: u32,
    /// `None`: the destinations themselves are on the link.
    pub gateway: Option<IpAddr>,
    /// The address from which this host speaks to them.
    pub source: Option<IpAddr>,
    /// The gateway is on the link though no prefix says so.
    pub onlink: bool,
    /// Largest packet, in bytes, if it is not the interface that says so.
    pub mtu: Option<u32>,
    /// Marks it as ours. Must not be one that others use.
    pub protocol: u8,
}

impl Net {
    /// Where a packet to `dst` would go, from the address `from` of this host if given. `None` if
    /// nowhere: no route, or one that drops or refuses, or `from` is not an address of this host.
    pub async fn route_to(
        &self,
        dst: IpAddr,
        from: Option<IpAddr>,
    ) -> Result<Option<Hop>, NetError> {
        match self.get(RouteNetlinkMessage::GetRoute(question(dst, from))).await {
            Ok(Some(RouteNetlinkMessage::NewRoute(message))) => Ok(hop(message)),
            Ok(_) => Ok(None),
            Err(e) if e.is(&NOWHERE) => Ok(None),
            Err(e) => Err(e.during(format!("look up the route to {dst}"))),
        }
    }

    /// The routes of the main table, IPv4 and IPv6.
    pub async fn routes(&self) -> Result<Vec<Route>, NetError> {
        let mut routes = self.routes_of(AddressFamily::Inet).await?;
        routes.extend(self.routes_of(AddressFamily::Inet6).await?);
        Ok(routes)
    }

    /// Adds or corrects a route of ours. Somebody else's route to the same prefix, whatever its
    /// metric, is [`NetError::RouteTaken`].
    pub async fn add_route(&self, spec: &RouteSpec) -> Result<(), NetError> {
        let dst = spec.dst.trunc();
        let there: Vec<Route> = self
            .routes_of(family(dst.addr()))
            .await?
            .into_iter()
            .filter(|r| r.dst == dst)
            .collect();
        if let Some(holder) = there.iter().find(|r| r.protocol != spec.protocol) {
            let dev = self.label(spec.ifindex).await;
            return Err(NetError::RouteTaken { dst, dev, holder: Box::new(holder.clone()) });
        }
        if there.iter().any(|r| r.is(spec)) {
            return Ok(());
        }
        // What is there is ours. If somebody is quicker than this, EEXIST says so.
        let how = if there.is_empty() { NLM_F_EXCL } else { NLM_F_REPLACE };
        let message = RouteNetlinkMessage::NewRoute(route_message(spec));
        match self.send(message, NLM_F_CREATE | how).await {
            Ok(()) => Ok(()),
            Err(e) => {
                let dev = self.label(spec.ifindex).await;
                Err(e.during(format!("route {dst} through {dev}")))
            }
        }
    }

    /// Removes a route of ours; one that is not there is no error. Only one with the same protocol
    /// is removed.
    pub async fn remove_route(&self, spec: &RouteSpec) -> Result<(), NetError> {
        let mut message = route_message(spec);
        message.header.scope = RouteScope::NoWhere; // whatever scope it has
        match self.send(RouteNetlinkMessage::DelRoute(message), 0).await {
            Err(e) if !e.is(&[libc::ESRCH, libc::ENODEV]) => {
                let dev = self.label(spec.ifindex).await;
                Err(e.during(format!("remove the route to {} through {dev}", spec.dst)))
            }
            _ => Ok(()),
        }
    }

    async fn routes_of(&self, family: AddressFamily) -> Result<Vec<Route>, NetError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        match self.dump(RouteNetlinkMessage::GetRoute(message)).await {
            Ok(all) => Ok(all.into_iter().flat_map(|m| routes(m, family)).collect()),
            // The table comes into being with its first route.
            Err(e) if e.is(&[libc::ENOENT]) => Ok(Vec::new()),
            Err(e) => Err(e.during("list the routes")),
        }
    }
}

impl Route {
    /// Is it that, whatever prefix it is for?
    pub fn is(&self, spec: &RouteSpec) -> bool {
        self.ifindex == Some(spec.ifindex)
            && self.gateway == spec.gateway
            && self.source == spec.source
            && self.mtu == spec.mtu
            && self.protocol == spec.protocol
    }
}

/// EINVAL is how the kernel answers for a black hole, and for a source that is not ours.
pub(super) const NOWHERE: [i32; 5] =
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::EAGAIN];

/// The way to `dst`, asked of the kernel.
pub(super) fn question(dst: IpAddr, from: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst);
    message.header.destination_prefix_length = bits(dst);
    message.attributes.push(RouteAttribute::Destination(dst.into()));
    if let Some(from) = from {
        message.header.source_prefix_length = bits(from);
        message.attributes.push(RouteAttribute::Source(from.into()));
    }
    message
}

fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn route_message(spec: &RouteSpec) -> RouteMessage {
    let dst = spec.dst.trunc();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(dst.addr());
    header.destination_prefix_length = dst.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = spec.protocol.into();
    header.kind = RouteType::Unicast;
    // IPv6 knows no scopes.
    let on_link = spec.gateway.is_none() && dst.addr().is_ipv4();
    header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
    if spec.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(dst.addr().into()));
    attributes.push(RouteAttribute::Oif(spec.ifindex));
    attributes.extend(spec.gateway.map(|gateway| match (dst, gateway) {
        (IpNet::V4(_), IpAddr::V6(v6)) => RouteAttribute::Via(RouteVia::Inet6(v6)),
        _ => RouteAttribute::Gateway(gateway.into()),
    }));
    attributes.extend(spec.source.map(|source| RouteAttribute::PrefSource(source.into())));
    let mtu = |mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]);
    attributes.extend(spec.mtu.map(mtu));
    message
}

/// What the attributes of a route, or of one of its next hops, say.
#[derive(Default)]
struct Parts {
    dst: Option<IpAddr>,
    ifindex: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: u32,
    mtu: Option<u32>,
    expires: Option<Duration>,
    /// (interface, gateway)
    hops: Vec<(u32, Option<IpAddr>)>,
}

fn parts(attributes: Vec<RouteAttribute>) -> Parts {
    let mut parts = Parts::default();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(a) => parts.dst = ip(a),
            RouteAttribute::Oif(ifindex) => parts.ifindex = Some(ifindex),
            RouteAttribute::Gateway(a) => parts.gateway = ip(a),
            RouteAttribute::Via(RouteVia::Inet(v4)) => parts.gateway = Some(v4.into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => parts.gateway = Some(v6.into()),
            RouteAttribute::PrefSource(a) => parts.source = ip(a),
            RouteAttribute::Priority(metric) => parts.metric = metric,
            RouteAttribute::Metrics(metrics) => {
                parts.mtu = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(mtu),
                    _ => None,
                });
            }
            RouteAttribute::CacheInfo(info) => {
                // Signed: negative for what ended just now.
                let ticks = i32::from_ne_bytes(info.expires.to_ne_bytes());
                let ticks = u64::try_from(ticks).ok().filter(|ticks| *ticks != 0);
                parts.expires = ticks.map(|ticks| Duration::from_millis(ticks * 1000 / USER_HZ));
            }
            RouteAttribute::MultiPath(hops) => {
                let hop = |hop: rtnetlink::packet_route::route::RouteNextHop| {
                    (hop.interface_index, self::parts(hop.attributes).gateway)
                };
                parts.hops = hops.into_iter().map(hop).collect();
            }
            _ => {}
        }
    }
    parts
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(v4.into()),
        RouteAddress::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}

pub(super) fn hop(message: RouteMessage) -> Option<Hop> {
    use RouteType::{BlackHole, Prohibit, Throw, Unreachable};
    if matches!(message.header.kind, BlackHole | Prohibit | Throw | Unreachable) {
        return None;
    }
    let parts = parts(message.attributes);
    Some(Hop {
        ifindex: parts.ifindex?,
        gateway: parts.gateway,
        source: parts.source,
        mtu: parts.mtu,
        mtu_expires: parts.expires.filter(|_| parts.mtu.is_some()),
        local: message.header.kind == RouteType::Local,
    })
}

/// The destination of a route, in any table.
pub(super) fn destination(message: RouteMessage) -> Option<IpNet> {
    let len = message.header.destination_prefix_length;
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(parts(message.attributes).dst.unwrap_or(any), len).ok()
}

fn routes(message: RouteNetlinkMessage, family: AddressFamily) -> Vec<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return Vec::new() };
    let header = message.header;
    // A kernel without IPv6 answers for all families.
    if header.address_family != family || header.table != RouteHeader::RT_TABLE_MAIN {
        return Vec::new();
    }
    let parts = parts(message.attributes);
    let any: IpAddr = match family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let Ok(dst) = IpNet::new(parts.dst.unwrap_or(any), header.destination_prefix_length) else {
        return Vec::new();
    };
    let route = |ifindex, gateway| Route {
        dst,
        ifindex,
        gateway,
        source: parts.source,
        mtu: parts.mtu,
        protocol: header.protocol.into(),
        metric: parts.metric,
    };
    if parts.hops.is_empty() {
        return vec![route(parts.ifindex, parts.gateway)];
    }
    parts.hops.iter().map(|(ifindex, gateway)| route(Some(*ifindex), *gateway)).collect()
}
