//! The names of the mesh: `web`, its aliases and short id, `web.network`, and back from an address.
//! Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::{Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR},
    },
};
use ipnet::IpNet;

use crate::peers::Directory;

/// In seconds: containers come and go.
const TTL: u32 = 1;
/// More would not fit anywhere.
const ANSWERS_MAX: usize = 64;

/// What becomes of a question.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// Ours; none if the name has nothing of this type.
    Records(Vec<Record>),
    Refused(ResponseCode),
    /// For somebody else, but more likely a name of ours that nobody has (any more).
    Doubtful,
    /// For somebody else.
    NotOurs,
}

/// Who asks sees the names of `networks`; all, if it is `None`. `turn`: which of several answers is
/// the first.
pub fn find(
    directory: &Directory,
    networks: Option<&[String]>,
    query: &Query,
    turn: usize,
) -> Found {
    if query.query_class != DNSClass::IN {
        return Found::NotOurs;
    }
    let sees = |name: &str| networks.is_none_or(|seen| seen.iter().any(|n| n == name));
    if let Ok(net) = query.name.parse_arpa_name() {
        return find_address(directory, sees, query, net);
    }
    let asked = query.name.to_ascii();
    let asked = asked.trim_end_matches('.');
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut exists = false;
    for (_, named) in directory.called(asked).filter(|(network, _)| sees(network)) {
        exists = true;
        addresses.extend(&named.addresses);
    }
    if !exists {
        let is_seen = |name: &str| {
            networks.is_none_or(|seen| seen.iter().any(|n| n.eq_ignore_ascii_case(name)))
        };
        let is_ours = |name: &str| is_seen(name) && directory.has_network(name);
        return unknown(asked, query.query_type, is_ours);
    }
    let record = |ip: IpAddr| {
        let data = match ip {
            IpAddr::V4(ip) => RData::A(A(ip)),
            IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
        };
        Record::from_rdata(query.name.clone(), TTL, data)
    };
    let wanted = |ip: &IpAddr| match query.query_type {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    addresses.retain(wanted);
    // The same order on each node, before it is turned.
    addresses.sort_unstable();
    addresses.dedup();
    if !addresses.is_empty() {
        let turn = turn % addresses.len();
        addresses.rotate_left(turn);
    }
    addresses.truncate(ANSWERS_MAX);
    Found::Records(addresses.into_iter().map(record).collect())
}

/// `NAME.NETWORK` is ours to deny, unless the world may have a domain of the network's name. A name without a dot may be one of a host in the network around us,
/// and is asked for there, as Docker does; it is not worth a long wait.
fn unknown(asked: &str, kind: RecordType, is_ours: impl Fn(&str) -> bool) -> Found {
    match asked.split_once('.') {
        Some((_, rest)) if !can_be_top_level(rest) && is_ours(rest) => {
            Found::Refused(ResponseCode::NXDomain)
        }
        None if !asked.is_empty() && matches!(kind, RecordType::A | RecordType::AAAA) => {
            Found::Doubtful
        }
        _ => Found::NotOurs,
    }
}

/// Top-level domains are of letters alone, but for those that are written so in another alphabet
/// (RFC 3696, 2; RFC 5890, 2.3.2.1). Whether there is one of this name changes from day to day.
fn can_be_top_level(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphabetic()) || name.to_ascii_lowercase().starts_with("xn--")
}

/// Who has an address? Those of the visible networks are nobody else's to say.
fn find_address(
    directory: &Directory,
    sees: impl Fn(&str) -> bool,
    query: &Query,
    net: IpNet,
) -> Found {
    let whole = if net.addr().is_ipv4() { 32 } else { 128 };
    if net.prefix_len() != whole {
        return Found::NotOurs;
    }
    let address = net.addr();
    let mut holders: Vec<_> = directory.holding(address).filter(|(n, _)| sees(n)).collect();
    // The same on each node; of one network, our own come first.
    holders.sort_by_key(|(network, _)| *network);
    for (network, named) in holders {
        let Some(name) = named.names.first() else { continue };
        if query.query_type != RecordType::PTR {
            return Found::Records(Vec::new());
        }
        let Ok(name) = Name::from_ascii(format!("{name}.{network}.")) else { continue };
        let record = Record::from_rdata(query.name.clone(), TTL, RData::PTR(PTR(name)));
        return Found::Records(vec![record]);
    }
    let subnets = directory.networks().filter(|(name, _)| sees(name));
    let mut subnets = subnets.flat_map(|(_, spec)| &spec.subnets);
    let is_ours = subnets.any(|subnet| subnet.net.contains(&address));
    if is_ours { Found::Refused(ResponseCode::NXDomain) } else { Found::NotOurs }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::peers::{Named, NetworkSpec, Subnet, View};

    fn directory() -> Directory {
        let mut directory = Directory::new("h1".into(), 1, vec![]);
        let mut view = View::default();
        for (vni, network) in ["my-net", "other"].into_iter().enumerate() {
            let net = format!("10.0.{}.0/24", vni + 9).parse().unwrap();
            let spec = NetworkSpec {
                vni: vni as u32 + 1,
                subnets: vec![Subnet { net, gateway: None }],
                first: "h1".into(),
                internal: false,
                options: BTreeMap::new(),
                labels: BTreeMap::new(),
            };
            directory.set_network(network, Some(spec));
        }
        let named = |names: &[&str], addresses: &[&str]| Named {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        };
        let mine = vec![
            named(&["web", "api", "3a396b612e62"], &["10.0.9.2", "fd00:9::2"]),
            named(&["web2", "api"], &["10.0.9.3"]),
        ];
        view.networks.insert("my-net".into(), mine);
        view.networks.insert("other".into(), vec![named(&["db"], &["10.0.10.2"])]);
        directory.set_view(view);
        directory
    }

    fn ask(networks: Option<&[&str]>, name: &str, kind: RecordType, turn: usize) -> Found {
        let networks: Option<Vec<String>> =
            networks.map(|n| n.iter().map(|n| (*n).to_owned()).collect());
        let query = Query::query(Name::from_ascii(name).unwrap(), kind);
        find(&directory(), networks.as_deref(), &query, turn)
    }

    fn texts(found: Found) -> Vec<String> {
        let Found::Records(records) = found else { panic!("{found:?}") };
        records.iter().map(|r| r.data.to_string()).collect()
    }

    #[test]
    fn names_aliases_and_ids_are_found_in_each_form() {
        for name in ["web.", "WEB.", "3a396b612e62.", "web.my-net.", "Web.My-Net."] {
            assert_eq!(texts(ask(None, name, RecordType::A, 0)), ["10.0.9.2"], "{name}");
            assert_eq!(texts(ask(None, name, RecordType::AAAA, 0)), ["fd00:9::2"], "{name}");
        }
        assert_eq!(texts(ask(None, "web.", RecordType::MX, 0)), [""; 0]);
    }

    #[test]
    fn several_behind_one_alias_come_in_turn() {
        assert_eq!(texts(ask(None, "api.", RecordType::A, 0)), ["10.0.9.2", "10.0.9.3"]);
        assert_eq!(texts(ask(None, "api.", RecordType::A, 1)), ["10.0.9.3", "10.0.9.2"]);
    }

    #[test]
    fn who_asks_sees_its_own_networks_only() {
        assert_eq!(texts(ask(Some(&["my-net"]), "web.", RecordType::A, 0)), ["10.0.9.2"]);
        for name in ["db.other.", "web.other."] {
            assert_eq!(ask(Some(&["my-net"]), name, RecordType::A, 0), Found::NotOurs, "{name}");
        }
        assert_eq!(ask(Some(&["my-net"]), "db.", RecordType::A, 0), Found::Doubtful);
        assert_eq!(ask(Some(&[]), "web.", RecordType::A, 0), Found::Doubtful);
    }

    #[test]
    fn an_address_leads_back_to_its_name() {
        let ptr = |name| ask(None, name, RecordType::PTR, 0);
        assert_eq!(texts(ptr("2.9.0.10.in-addr.arpa.")), ["web.my-net."]);
        assert_eq!(ptr("9.9.0.10.in-addr.arpa."), Found::Refused(ResponseCode::NXDomain));
        assert_eq!(ptr("1.1.1.1.in-addr.arpa."), Found::NotOurs);
        assert_eq!(ptr("9.0.10.in-addr.arpa."), Found::NotOurs);
    }

    #[test]
    fn what_nobody_is_called_is_denied_where_it_is_ours_and_asked_of_others_where_not() {
        for name in ["nobody.my-net.", "db.My-Net."] {
            let denied = Found::Refused(ResponseCode::NXDomain);
            assert_eq!(ask(None, name, RecordType::A, 0), denied, "{name}");
        }
        for name in ["web.my-net.example.", "a.b.my-net.", "."] {
            assert_eq!(ask(None, name, RecordType::A, 0), Found::NotOurs, "{name}");
        }
        for name in ["nobody.", "my-net."] {
            assert_eq!(ask(None, name, RecordType::AAAA, 0), Found::Doubtful, "{name}");
            assert_eq!(ask(None, name, RecordType::NS, 0), Found::NotOurs, "{name}");
        }
        // The network may be called as a domain of the world's.
        let other = ask(Some(&["my-net", "other"]), "nobody.other.", RecordType::A, 0);
        assert_eq!(other, Found::NotOurs);
    }
}
