//! What a network must be that is made while the mesh runs: the rules of the file's own, and apart from
//! what the file has.

use ipnet::IpNet;

use super::{Cluster, DEFAULT_NETWORK, Vni, value};

/// Where such networks may be: what no host of the world has (RFC 1918, 6598, 2544, 5737, 4193, 3849).
const PRIVATE: [&str; 10] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "198.18.0.0/15",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "fc00::/7",
    "2001:db8::/32",
];

/// Why this is no name of a node, and of no network that Docker makes.
pub fn node_name_fault(name: &str) -> Option<String> {
    value::name_fault(name)
}

/// Characters in a name of several labels (RFC 1035, 2.3.4).
const HOST_NAME_MAX: usize = 253;

/// Why nothing in the mesh can be found by this name: labels of at most 63 characters, 253 in all, and
/// no address.
pub fn host_name_fault(name: &str) -> Option<String> {
    if name.len() > HOST_NAME_MAX {
        return Some(format!(
            "it has {} characters, at most {HOST_NAME_MAX} are allowed",
            name.len()
        ));
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Some(format!("{name:?} is an address"));
    }
    // A label may begin or end with any of the signs: Docker allows it.
    name.split('.').find_map(|label| value::label_fault(name, label))
}

/// Why no network that is made while the mesh runs can have this subnet.
pub fn added_prefix_fault(net: IpNet) -> Option<String> {
    if net != net.trunc() {
        return Some(format!("{net} has host bits: write {}", net.trunc()));
    }
    value::prefix_fault(net).or_else(|| {
        let holds = |private: &&str| private.parse::<IpNet>().is_ok_and(|p| p.contains(&net));
        (!PRIVATE.iter().any(holds)).then(|| {
            format!(
                "{net} is not private: hosts of the world have such addresses; choose a subnet of \
                 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fc00::/7"
            )
        })
    })
}

impl Cluster {
    /// Why a network that is made while the mesh runs can not be one of these.
    pub fn added_fault(&self, name: &str, vni: u32, cidrs: &[IpNet]) -> Option<String> {
        if name.eq_ignore_ascii_case(DEFAULT_NETWORK) {
            return Some("\"default\" is the cluster's own network: choose another name".into());
        }
        if let Some(fault) = value::name_fault(name) {
            return Some(fault);
        }
        if vni == 0 || Vni::new(vni).is_none() {
            return Some(format!("{vni} is no VNI: 1 to {}", mesh_common::maps::VNI_MAX));
        }
        let same =
            self.networks.iter().find(|n| n.name.eq_ignore_ascii_case(name) || n.vni.get() == vni);
        if let Some(same) = same {
            return Some(format!("network {} has VNI {}", same.name, same.vni));
        }
        if let Some(node) = self.foreign_with(vni) {
            return Some(format!("node {} has VNI {vni} for the cluster's own network", node.name));
        }
        cidrs.iter().find_map(|net| added_prefix_fault(*net).or_else(|| self.overlap_fault(*net)))
    }

    fn overlap_fault(&self, net: IpNet) -> Option<String> {
        let overlaps = |other: &IpNet| other.contains(&net) || net.contains(other);
        let mut all = self.networks.iter().flat_map(|n| n.cidrs.iter().map(move |c| (n, c)));
        if let Some((network, cidr)) = all.find(|(_, cidr)| overlaps(cidr)) {
            return Some(format!(
                "{net} overlaps {cidr} of network {}: choose another subnet",
                network.name
            ));
        }
        let node = self.nodes.iter().find(|node| net.contains(&node.underlay))?;
        Some(format!(
            "{net} holds {}, the underlay address of node {}: choose another subnet",
            node.underlay, node.name
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let file = "[cluster]\nname='c'\ncidr='10.42.0.0/16'\n[[node]]\nname='a'\nunderlay='192.0.2.1'\n\
                    [[network]]\nname='net'\nvni=7\ncidr='10.43.0.0/16'\n";
        super::super::parse(file.as_bytes()).unwrap()
    }

    #[test]
    fn a_network_is_apart_from_all_that_the_file_has_and_from_the_world() {
        let cluster = cluster();
        let fault = |name, vni, net: &str| cluster.added_fault(name, vni, &[net.parse().unwrap()]);
        assert_eq!(fault("My_net.2", 501, "10.44.0.0/16"), None);
        assert_eq!(fault("n", 501, "fd00:9::/64"), None);
        let nets = [
            "0.0.0.0/0",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "169.254.0.0/16",
            "10.42.7.0/24",
            "10.0.0.0/8",
            "10.43.0.0/24",
            "192.0.2.0/24",
            "1.1.1.0/24",
            "64.0.0.0/2",
            "10.44.0.1/24",
            "10.44.0.0/31",
            "::/0",
            "fe80::/64",
            "ff02::/16",
            "2000::/3",
        ];
        for net in nets {
            assert!(fault("n", 501, net).is_some(), "{net}");
        }
        let long = "n".repeat(64);
        for name in ["", "default", "NET", "a b", "\x1b[31m", "a\nb", "-a", "*", &long] {
            assert!(fault(name, 501, "10.44.0.0/16").is_some(), "{name:?}");
        }
        for vni in [0, 7, 1 << 24] {
            assert!(fault("n", vni, "10.44.0.0/16").is_some(), "{vni}");
        }
    }

    #[test]
    fn a_container_has_no_name_that_a_resolver_could_not_be_asked_for() {
        for name in ["web", "Web_1", "db.internal", "3a396b612e62", &"n".repeat(63)] {
            assert_eq!(host_name_fault(name), None, "{name}");
        }
        let (label, long) = ("n".repeat(64), "n.".repeat(127) + "n");
        for name in ["", "*", "10.0.0.1", "::1", "a b", "a..b", ".a", "\x1b", &label, &long] {
            assert!(host_name_fault(name).is_some(), "{name:?}");
        }
    }
}
