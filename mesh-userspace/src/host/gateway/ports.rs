//! Ports of the host that are a container's: chosen, held against others, and let go.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt},
};

use super::{
    super::{Host, HostError},
    proxy::Proxy,
};
use crate::{
    state::{Endpoint, Proto, Published, State},
    supervise::Supervisor,
};

/// A port of a container that is to be one of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    pub proto: Proto,
    /// The container's.
    pub port: u16,
    /// Which of the host's addresses; all if there is none.
    pub host_ip: Option<IpAddr>,
    /// The first that is free of these; any if they are 0.
    pub first: u16,
    pub last: u16,
}

/// A socket for each port, so that no program of the host gets it, and for one that has it to be
/// noticed. What is for the port is rewritten before it arrives there, but for what is asked of `[::1]`.
#[derive(Debug, Default)]
pub struct Held {
    sockets: BTreeMap<Key, Socket>,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// Of one that `[::1]` leads to.
    proxy: Option<Proxy>,
}

type Key = (Proto, IpAddr, u16);

impl Host {
    /// Publishes ports of an endpoint, in place of those that it has. All of them, or those of before
    /// stay: they are noted, and others' packets come to them, until the new ones are whole.
    pub async fn publish(&mut self, name: &str, requests: &[PortRequest]) -> Result<(), HostError> {
        let Some(endpoint) = self.state.endpoints.get(name).cloned() else {
            return Err(HostError::Unknown(format!("there is no endpoint {name:?}")));
        };
        if !self.is_gateway_of(&endpoint) {
            return Ok(());
        }
        let mut own: BTreeSet<Key> = held_for(&endpoint).map(|(key, _)| key).collect();
        let mut ports = Vec::new();
        for request in requests {
            let families = [true, false].map(|v4| {
                let has = endpoint.addresses.iter().any(|ip| ip.is_ipv4() == v4);
                has.then(|| any(v4))
            });
            let families: Vec<IpAddr> = families.into_iter().flatten().collect();
            match self.gateways.held.take(request, &families, &mut own) {
                Ok(host_port) => ports.push(Published {
                    proto: request.proto,
                    host_ip: request.host_ip,
                    host_port,
                    port: request.port,
                }),
                Err(e) => {
                    self.gateways.held.follow(&self.state, &self.supervisor);
                    return Err(e);
                }
            }
        }
        self.change_ports(name, ports);
        let published = self.carry_ports().await;
        if published.is_err() {
            self.change_ports(name, endpoint.ports);
            // What is not as before is a fault, and tried again.
            self.note();
            if let Err(e) = self.refresh_gateways().await {
                tracing::debug!("taking the ports of {name} back: {e}");
            }
            self.gateways.held.follow(&self.state, &self.supervisor);
        }
        published
    }

    async fn carry_ports(&mut self) -> Result<(), HostError> {
        self.save()?;
        self.refresh_gateways().await?;
        match &self.gateways.unruled {
            Some(fault) => Err(HostError::User(fault.clone())),
            None => Ok(()),
        }
    }

    /// Takes its ports from an endpoint; one that is gone has none. That they are not noted as taken,
    /// or that the rules are still there, is a fault and tried again.
    pub async fn unpublish(&mut self, name: &str) -> Result<(), HostError> {
        if !self.change_ports(name, Vec::new()) {
            return Ok(());
        }
        self.note();
        self.refresh_gateways().await
    }

    /// Returns whether they differ from those of before.
    fn change_ports(&mut self, name: &str, ports: Vec<Published>) -> bool {
        let Some(endpoint) = self.state.endpoints.get_mut(name) else { return false };
        std::mem::replace(&mut endpoint.ports, ports) != endpoint.ports
    }
}

impl Held {
    /// Holds what is published and nothing else. Returns what somebody else has by now, which an
    /// agent that was away could not hold.
    pub fn follow(&mut self, state: &State, supervisor: &Supervisor) -> Vec<String> {
        let mut wanted = BTreeMap::new();
        for (name, endpoint) in &state.endpoints {
            wanted.extend(held_for(endpoint).map(|(key, to)| (key, (name, to))));
        }
        self.sockets.retain(|key, _| wanted.contains_key(key));
        let mut faults = Vec::new();
        for (key, (name, to)) in wanted {
            let (proto, ip, port) = key;
            let at = SocketAddr::new(ip, port);
            let socket = match self.ensure(key) {
                Ok(socket) => socket,
                Err(e) => {
                    faults.push(format!(
                        "{name} has the port {at}/{proto}, which a program of this host took: {e}"
                    ));
                    continue;
                }
            };
            if has_loopback(ip) && to.is_ipv6() && !socket.leads_to(to) {
                let fd = socket.fd.try_clone();
                let started = fd.and_then(|fd| Proxy::start(supervisor, proto, fd, to));
                socket.proxy = started
                    .map_err(|e| {
                        let port = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
                        faults.push(format!("{name} is not reached by {port}/{proto}: {e}"));
                    })
                    .ok();
            }
        }
        faults
    }

    fn ensure(&mut self, key: Key) -> Result<&mut Socket, Errno> {
        Ok(match self.sockets.entry(key) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => free.insert(Socket { fd: hold(key)?.1, proxy: None }),
        })
    }

    /// The first port that is free. `families`: the unspecified address of each that the container
    /// has. `own`: what the container has already, and may go on to have.
    fn take(
        &mut self,
        request: &PortRequest,
        families: &[IpAddr],
        own: &mut BTreeSet<Key>,
    ) -> Result<u16, HostError> {
        let addresses = match request.host_ip {
            Some(ip) if !families.iter().any(|any| any.is_ipv4() == ip.is_ipv4()) => {
                return Err(HostError::User(format!(
                    "a port of {ip} can not be published: the container has no address of that \
                     family"
                )));
            }
            Some(ip) => vec![ip],
            None => families.to_vec(),
        };
        let mut last_error = Errno::ADDRINUSE;
        for port in request.first..=request.last.max(request.first) {
            match self.take_at(request.proto, &addresses, port, own) {
                Ok(port) => return Ok(port),
                Err(e) => last_error = e,
            }
        }
        let at = request.host_ip.map_or_else(String::new, |ip| format!(" of {ip}"));
        let (proto, first) = (request.proto, request.first);
        let which = match request.last > first {
            true => format!("no port from {first} to {}", request.last),
            false => format!("port {first}"),
        };
        Err(HostError::User(format!(
            "{which}{at} can not be published for {proto}: {last_error} (`ss -lnp` shows who has it)"
        )))
    }

    fn take_at(
        &mut self,
        proto: Proto,
        ips: &[IpAddr],
        port: u16,
        own: &mut BTreeSet<Key>,
    ) -> Result<u16, Errno> {
        let mut port = port;
        let mut taken = Vec::new();
        for ip in ips {
            let key = (proto, *ip, port);
            if self.sockets.contains_key(&key) {
                if own.contains(&key) {
                    continue;
                }
                return Err(Errno::ADDRINUSE);
            }
            let (got, fd) = hold(key)?;
            port = got;
            taken.push(((proto, *ip, got), Socket { fd, proxy: None }));
        }
        self.sockets.extend(taken);
        own.retain(|(of, ip, at)| (*of, *at) != (proto, port) || !ips.contains(ip));
        Ok(port)
    }
}

/// What is held for an endpoint, and where it leads.
fn held_for(endpoint: &Endpoint) -> impl Iterator<Item = (Key, SocketAddr)> {
    endpoint.ports.iter().flat_map(|port| {
        let fits = |ip: &&IpAddr| port.host_ip.is_none_or(|at| at.is_ipv4() == ip.is_ipv4());
        endpoint.addresses.iter().filter(fits).map(|ip| {
            let at = port.host_ip.unwrap_or_else(|| any(ip.is_ipv4()));
            ((port.proto, at, port.host_port), SocketAddr::new(*ip, port.port))
        })
    })
}

impl Socket {
    fn leads_to(&self, to: SocketAddr) -> bool {
        self.proxy.as_ref().is_some_and(|proxy| proxy.leads_to(to))
    }
}

/// Does `[::1]` lead to a socket at this address?
fn has_loopback(at: IpAddr) -> bool {
    matches!(at, IpAddr::V6(ip) if ip.is_unspecified() || ip.is_loopback())
}

/// Bound, but not listening. Port 0: the kernel chooses one.
fn hold((proto, ip, port): Key) -> Result<(u16, OwnedFd), Errno> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match proto {
        Proto::Tcp => SocketType::STREAM,
        Proto::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if ip.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if has_loopback(ip) && proto == Proto::Tcp {
        // Connections that an agent before us took may linger. It will listen, so nobody else gets it.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(ip, port))?;
    let got = SocketAddr::try_from(getsockname(&socket)?).map_or(port, |at| at.port());
    Ok((got, socket))
}

fn any(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Faults;

    fn request(first: u16, last: u16) -> PortRequest {
        let host_ip = Some(Ipv4Addr::LOCALHOST.into());
        PortRequest { proto: Proto::Tcp, port: 80, host_ip, first, last }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_refused_and_a_range_goes_on() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = other.local_addr().unwrap().port();
        let (mut held, mut none) = (Held::default(), BTreeSet::new());
        let error =
            held.take(&request(taken, taken), &[any(true)], &mut none).unwrap_err().to_string();
        assert!(error.contains(&format!("port {taken} of 127.0.0.1")), "{error}");
        let chosen = held.take(&request(0, 0), &[any(true)], &mut none).unwrap();
        assert_ne!(chosen, 0);
        let again =
            held.take(&request(chosen, chosen), &[any(true)], &mut none).unwrap_err().to_string();
        assert!(again.contains("in use"), "{again}");
        assert!(held.take(&request(0, 0), &[any(false)], &mut none).is_err());
        let mut own = [(Proto::Tcp, Ipv4Addr::LOCALHOST.into(), chosen)].into();
        let kept = held.take(&request(chosen, chosen), &[any(true)], &mut own).unwrap();
        assert_eq!(kept, chosen);
        assert!(held.take(&request(chosen, chosen), &[any(true)], &mut own).is_err(), "once");
        let supervisor = Supervisor::new(tokio::runtime::Handle::current(), Faults::default());
        held.follow(&State::default(), &supervisor);
        assert_eq!(held.take(&request(chosen, chosen), &[any(true)], &mut none).unwrap(), chosen);
    }
}
