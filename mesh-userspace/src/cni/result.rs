//! What a container was given, in the words of each version of the specification. Pure.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::config::Conf;
use crate::host::Attached;

/// The result of `ADD`. In a chain, that of the plugins before with ours behind it.
pub fn added(conf: &Conf, attached: &Attached) -> Value {
    let mut result = match &conf.prev_result {
        Some(Value::Object(before)) => before.clone(),
        _ => Map::new(),
    };
    result.insert("cniVersion".into(), json!(conf.cni_version));
    let before = result.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);
    let mut inside = json!({
        "name": attached.ifname, "mac": attached.mac, "sandbox": attached.netns
    });
    if conf.cni_version == "1.1.0" {
        inside["mtu"] = json!(attached.mtu);
    }
    extend(&mut result, "interfaces", [json!({"name": attached.host_ifname}), inside]);
    let gateway = |v4: bool| attached.gateways.iter().find(|ip| ip.is_ipv4() == v4);
    let ips: Vec<Value> = attached
        .addresses
        .iter()
        .map(|address| {
            let v4 = !address.contains(':');
            let mut ip = json!({"address": address, "interface": before + 1});
            if let Some(gateway) = gateway(v4) {
                ip["gateway"] = json!(gateway);
            }
            if conf.cni_version.starts_with("0.") {
                ip["version"] = json!(if v4 { "4" } else { "6" });
            }
            ip
        })
        .collect();
    extend(&mut result, "ips", ips);
    let routes: Vec<Value> = attached
        .routes
        .iter()
        .filter_map(|net| {
            let gateway = gateway(net.addr().is_ipv4())?;
            Some(json!({"dst": net, "gw": gateway}))
        })
        .collect();
    extend(&mut result, "routes", routes);
    let dns = conf.dns.clone().unwrap_or_else(|| dns(result.get("dns"), attached));
    if dns.as_object().is_some_and(|dns| !dns.is_empty()) {
        result.insert("dns".into(), dns);
    }
    Value::Object(result)
}

/// Is there an interface of that name in the container already, by a plugin before us?
pub fn has_interface(prev: Option<&Value>, name: &str) -> bool {
    let interfaces = prev.and_then(|prev| prev["interfaces"].as_array());
    interfaces.into_iter().flatten().any(|i| {
        i["name"] == name && i["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
    })
}

/// The addresses of a result that are not there.
pub fn lacking(prev: &Value, attached: &Attached) -> Vec<String> {
    let ips = prev["ips"].as_array();
    let has = |address: &String| {
        let mut ips = ips.into_iter().flatten();
        ips.any(|ip| ip["address"] == address.as_str())
    };
    attached.addresses.iter().filter(|address| !has(address)).cloned().collect()
}

/// The agent answers in the cluster's own network, and what is no name of the mesh it asks others:
/// it comes before the resolvers of plugins before us.
fn dns(before: Option<&Value>, attached: &Attached) -> Value {
    let mut dns = before.and_then(Value::as_object).cloned().unwrap_or_default();
    let resolvers: &[IpAddr] = if attached.vni == 0 { &attached.gateways } else { &[] };
    let mut servers: Vec<Value> = resolvers.iter().map(|ip| json!(ip)).collect();
    servers.extend(dns.get("nameservers").and_then(Value::as_array).into_iter().flatten().cloned());
    if !servers.is_empty() {
        dns.insert("nameservers".into(), json!(servers));
    }
    Value::Object(dns)
}

fn extend(result: &mut Map<String, Value>, key: &str, more: impl IntoIterator<Item = Value>) {
    let list = result.entry(key).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        list.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached() -> Attached {
        Attached {
            name: "cni-c1-eth0".into(),
            network: "default".into(),
            vni: 0,
            ifname: "eth0".into(),
            host_ifname: "mesh01234567".into(),
            addresses: vec!["10.42.1.2/32".into(), "fd42::2/128".into()],
            gateways: vec!["10.42.1.1".parse().unwrap(), "fd42::1".parse().unwrap()],
            routes: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/48".parse().unwrap()],
            mac: "02:6e:00:00:00:01".into(),
            mtu: 1462,
            netns: "/run/netns/x".into(),
        }
    }

    fn result(version: &str, more: Value) -> Value {
        let mut conf = json!({"cniVersion": version, "name": "mesh"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        added(&Conf::read(conf.to_string().as_bytes()).unwrap(), &attached())
    }

    #[test]
    fn each_version_has_its_form() {
        let old = result("0.4.0", json!({}));
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["interfaces"][1].get("mtu"), None);
        let middle = result("1.0.0", json!({}));
        assert_eq!(
            middle["ips"][0],
            json!({
                "address": "10.42.1.2/32", "interface": 1, "gateway": "10.42.1.1"
            })
        );
        assert_eq!(middle["routes"][0], json!({"dst": "10.42.0.0/16", "gw": "10.42.1.1"}));
        assert_eq!(middle["dns"], json!({"nameservers": ["10.42.1.1", "fd42::1"]}));
        assert_eq!(result("1.1.0", json!({}))["interfaces"][1]["mtu"], 1462);
    }

    #[test]
    fn what_plugins_before_us_did_is_passed_on() {
        let prev = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "10.88.0.2/16", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["192.0.2.1"], "search": ["example"]},
            "more": "kept",
        });
        let got = result("1.0.0", json!({"prevResult": prev}));
        assert_eq!(got["interfaces"].as_array().unwrap().len(), 5);
        assert_eq!(got["ips"][0], prev["ips"][0]);
        assert_eq!(got["ips"][1]["interface"], 4);
        assert_eq!(got["routes"][0], prev["routes"][0]);
        assert_eq!(got["dns"]["nameservers"], json!(["10.42.1.1", "fd42::1", "192.0.2.1"]));
        assert_eq!((&got["dns"]["search"], &got["more"]), (&json!(["example"]), &json!("kept")));
        assert!(has_interface(Some(&prev), "eth0") && !has_interface(Some(&prev), "cni0"));
        assert_eq!(lacking(&prev, &attached()), ["10.42.1.2/32", "fd42::2/128"]);
        assert!(lacking(&got, &attached()).is_empty());
    }

    #[test]
    fn a_resolver_of_the_config_is_the_only_one() {
        let got = result("1.0.0", json!({"dns": {"nameservers": ["192.0.2.9"]}}));
        assert_eq!(got["dns"], json!({"nameservers": ["192.0.2.9"]}));
    }
}
