//! Whoever keeps sending to a published port in UDP follows it to another container: the kernel would
//! go on with the one before for as long as packets come. In TCP a new connection is a new choice.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use crate::{
    net::{Conversation, forget_udp},
    state::{Endpoint, Proto},
};

/// Where ports in UDP lead.
pub(super) type Ways = BTreeMap<At, SocketAddr>;

/// A port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    v4: bool,
    /// At all of the host's addresses if there is none.
    ip: Option<IpAddr>,
    port: u16,
}

pub(super) fn ways<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Ways {
    let mut ways = Ways::new();
    for endpoint in endpoints {
        for port in endpoint.ports.iter().filter(|port| port.proto == Proto::Udp) {
            for to in &endpoint.addresses {
                let ip = port.host_ip.filter(|ip| !ip.is_unspecified());
                let at = At { v4: to.is_ipv4(), ip, port: port.host_port };
                ways.insert(at, SocketAddr::new(*to, port.port));
            }
        }
    }
    ways
}

/// Lets go what the kernel remembers of ports that led elsewhere `before`. `own`: the host's addresses.
pub(super) fn follow(before: &Ways, now: &Ways, own: &[IpAddr]) -> std::io::Result<()> {
    let changed: Vec<At> = before
        .keys()
        .chain(now.keys())
        .filter(|at| before.get(at) != now.get(at))
        .copied()
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let forgotten = forget_udp(|known| is_stale(known, &changed, now, own))?;
    if forgotten > 0 {
        tracing::debug!(forgotten, "conversations in UDP begin anew");
    }
    Ok(())
}

fn is_stale(known: &Conversation, changed: &[At], now: &Ways, own: &[IpAddr]) -> bool {
    let asked = known.asked.ip();
    let is_of = |at: &&At| {
        at.port == known.asked.port()
            && at.v4 == asked.is_ipv4()
            && at.ip.map_or(own.contains(&asked) || asked.is_loopback(), |ip| ip == asked)
    };
    changed.iter().find(is_of).is_some_and(|at| now.get(at) != Some(&known.answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_led_elsewhere_is_stale_and_what_is_others_is_not() {
        let at = At { v4: true, ip: None, port: 53 };
        let now = Ways::from([(at, "10.0.9.3:5353".parse().unwrap())]);
        let own = ["192.0.2.11".parse().unwrap()];
        let is_stale = |asked: &str, answers: &str| {
            let (asked, answers) = (asked.parse().unwrap(), answers.parse().unwrap());
            is_stale(&Conversation { asked, answers }, &[at], &now, &own)
        };
        // The container before, nobody, and itself.
        assert!(is_stale("192.0.2.11:53", "10.0.9.2:5353"));
        assert!(is_stale("127.0.0.1:53", "127.0.0.1:53"));
        assert!(!is_stale("192.0.2.11:53", "10.0.9.3:5353"));
        // Another port, and somebody else's, who is asked through this host.
        assert!(!is_stale("192.0.2.11:54", "10.0.9.2:5353"));
        assert!(!is_stale("198.51.100.1:53", "198.51.100.1:53"));
        assert!(!is_stale("[2001:db8::11]:53", "[2001:db8::11]:53"));
    }
}
