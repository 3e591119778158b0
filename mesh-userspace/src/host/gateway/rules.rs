//! Masquerading and published ports, in a table of our own. Pure.

use std::{fmt::Write, net::IpAddr};

use ipnet::IpNet;

use super::super::{
    firewall::{of_family, quoted},
    mesh0,
};
use crate::state::Published;

pub(super) const TABLE: &str = "mesh_gateways";

/// Prefixes by what they are.
pub(super) struct Nets {
    /// Of the networks that this host is the gateway of.
    pub gateway: Vec<IpNet>,
    /// Of all networks besides the cluster's own.
    pub networks: Vec<IpNet>,
    /// Of the cluster's own.
    pub overlay: Vec<IpNet>,
}

/// The chains. `[::1]` is the proxy's ([`super::proxy`]). `bridges`: with containers that are not to be
/// reached. `ports`: each with the container's addresses.
///
/// Ports are rewritten before Docker looks for its own (-100), and sources before it masquerades
/// (100). A connection once rewritten may pass, whatever it was rewritten for; else nothing gets into a
/// network from outside but answers, and nothing from one into another.
pub(super) fn rules<'a>(
    nets: &Nets,
    bridges: &[&str],
    ports: impl Iterator<Item = (&'a Published, &'a [IpAddr])>,
) -> String {
    let mut ways = String::new();
    for (port, addresses) in ports {
        addresses.iter().for_each(|to| publish(&mut ways, port, *to));
    }
    let (mut forward, mut postrouting) = (String::new(), String::new());
    for v4 in [true, false] {
        let of = |nets: &[IpNet]| of_family(nets, v4);
        let family = if v4 { "ip" } else { "ip6" };
        let Some(gateway) = of(&nets.gateway) else { continue };
        let networks = of(&nets.networks).unwrap_or_else(|| gateway.clone());
        let all =
            of(&nets.overlay).map_or_else(|| networks.clone(), |o| format!("{networks}, {o}"));
        let _ = writeln!(
            forward,
            "{family} daddr {{ {gateway} }} oifname \"mesh*\" ct state established,related accept
             {family} daddr {{ {networks} }} drop"
        );
        if !bridges.is_empty() {
            let bridges = quoted(bridges);
            let rule = format!("oifname {{ {bridges} }} ct state new drop");
            let _ = writeln!(forward, "{family} saddr {{ {gateway} }} {rule}");
        }
        // Who asks a port of a neighbour's by the host's address must be answered by the host.
        let asker = if v4 { format!("{gateway}, 127.0.0.0/8") } else { gateway.clone() };
        let _ = writeln!(
            postrouting,
            "ct status dnat {family} saddr {{ {asker} }} {family} daddr {{ {gateway} }} masquerade
             {family} saddr {{ {gateway} }} {family} daddr != {{ {all} }} masquerade"
        );
    }
    let loopback = of_family(&nets.gateway, false).map_or("", |_| "ip6 daddr ::1 accept");
    let mesh0 = mesh0::NAME;
    format!(
        "chain prerouting {{
            type nat hook prerouting priority -110; policy accept;
            fib daddr type local jump ports
        }}
        chain output {{
            type nat hook output priority -110; policy accept;
            {loopback}
            fib daddr type local jump ports
        }}
        chain ports {{
            {ways}
        }}
        chain forward {{
            type filter hook forward priority -10; policy accept;
            ct status dnat accept
            {forward}
        }}
        chain postrouting {{
            type nat hook postrouting priority 90; policy accept;
            oifname \"{mesh0}\" accept
            {postrouting}
        }}
        "
    )
}

/// The way from a port of the host's to a container's address, if they are of one family.
fn publish(ways: &mut String, port: &Published, to: IpAddr) {
    let family = if to.is_ipv4() { "ip" } else { "ip6" };
    let at = match port.host_ip {
        Some(ip) if ip.is_ipv4() != to.is_ipv4() => return,
        Some(ip) if !ip.is_unspecified() => format!("{family} daddr {ip} "),
        _ => String::new(),
    };
    let target = std::net::SocketAddr::new(to, port.port);
    let (proto, host_port) = (port.proto, port.host_port);
    let _ = writeln!(ways, "{at}{proto} dport {host_port} dnat {family} to {target}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Proto;

    fn published(host_ip: Option<&str>) -> Published {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        Published { proto: Proto::Tcp, host_ip, host_port: 8080, port: 80 }
    }

    fn ways(port: &Published, to: &str) -> String {
        let mut ways = String::new();
        publish(&mut ways, port, to.parse().unwrap());
        ways
    }

    #[test]
    fn a_port_leads_to_addresses_of_its_family() {
        let all = published(None);
        assert_eq!(ways(&all, "10.0.9.2"), "tcp dport 8080 dnat ip to 10.0.9.2:80\n");
        assert_eq!(ways(&all, "fd00::2"), "tcp dport 8080 dnat ip6 to [fd00::2]:80\n");
        let one = published(Some("192.0.2.11"));
        let expected = "ip daddr 192.0.2.11 tcp dport 8080 dnat ip to 10.0.9.2:80\n";
        assert_eq!(ways(&one, "10.0.9.2"), expected);
        assert_eq!(ways(&one, "fd00::2"), "");
        assert_eq!(ways(&published(Some("0.0.0.0")), "fd00::2"), "");
    }

    #[test]
    fn a_network_of_ipv4_has_no_rules_of_ipv6() {
        let net = |text: &str| vec![text.parse().unwrap()];
        let nets = Nets {
            gateway: net("10.0.9.0/24"),
            networks: net("10.0.9.0/24"),
            overlay: net("10.42.0.0/16"),
        };
        let rules = rules(&nets, &["docker0"], std::iter::empty());
        assert!(!rules.contains("ip6"), "{rules}");
        let masquerade = "ip saddr { 10.0.9.0/24 } ip daddr != { 10.0.9.0/24, 10.42.0.0/16 } masq";
        assert!(rules.contains(masquerade), "{rules}");
    }
}
