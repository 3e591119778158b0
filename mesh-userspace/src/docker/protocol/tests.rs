//! Bodies as dockerd 20.10 and 28.5 sent them.

use super::*;

fn call(method: &str, body: &str) -> Call {
    Call::parse(method, body.as_bytes()).unwrap()
}

#[test]
fn the_handshake_has_no_bodies() {
    for method in [
        "Plugin.Activate",
        "NetworkDriver.GetCapabilities",
        "IpamDriver.GetCapabilities",
        "IpamDriver.GetDefaultAddressSpaces",
    ] {
        assert!(matches!(call(method, ""), Call::Known(_)), "{method}");
    }
}

#[test]
fn a_pool_is_asked_for() {
    let body = r#"{"AddressSpace":"mesh-local","Pool":"10.0.9.0/24","SubPool":"",
        "Options":{"a":"b"},"V6":false}"#;
    let Call::RequestPool(asked) = call("IpamDriver.RequestPool", body) else { panic!() };
    assert_eq!((asked.pool.as_str(), asked.v6), ("10.0.9.0/24", false));
    assert_eq!(asked.options["a"], "b");
}

#[test]
fn addresses_are_asked_for_and_given_back() {
    let gateway = r#"{"PoolID":"mesh-local/10.0.9.0/24","Address":"",
        "Options":{"RequestAddressType":"com.docker.network.gateway"}}"#;
    let Call::RequestAddress(asked) = call("IpamDriver.RequestAddress", gateway) else { panic!() };
    assert!(asked.is_gateway());
    assert_eq!(asked.pool.to_string(), "mesh-local/10.0.9.0/24");
    let any = r#"{"PoolID":"mesh-local/10.0.9.0/24","Address":"","Options":null}"#;
    let Call::RequestAddress(asked) = call("IpamDriver.RequestAddress", any) else { panic!() };
    assert!(!asked.is_gateway());
    let back = r#"{"PoolID":"mesh-local/10.0.9.0/24","Address":"10.0.9.2"}"#;
    let Call::ReleaseAddress(back) = call("IpamDriver.ReleaseAddress", back) else { panic!() };
    assert_eq!(back.address, "10.0.9.2");
}

#[test]
fn a_network_is_made_by_either_version() {
    for (enabled, v6) in [("", "[]"), (r#""com.docker.network.enable_ipv4":true,"#, "null")] {
        let body = format!(
            r#"{{"NetworkID":"ae62","Options":{{{enabled}"com.docker.network.enable_ipv6":false,
            "com.docker.network.generic":{{"x":"y"}}}},"IPv4Data":[{{"AddressSpace":"mesh-local",
            "Gateway":"10.0.9.1/24","Pool":"10.0.9.0/24"}}],"IPv6Data":{v6}}}"#
        );
        let Call::CreateNetwork(made) = call("NetworkDriver.CreateNetwork", &body) else {
            panic!()
        };
        assert_eq!(made.network, "ae62");
        assert_eq!(made.generic(), BTreeMap::from([("x".to_owned(), "y".to_owned())]));
        assert_eq!(made.v4[0].gateway, "10.0.9.1/24");
        assert!(made.v6.is_empty());
    }
}

#[test]
fn a_container_joins_and_leaves() {
    let body = r#"{"NetworkID":"ae62","EndpointID":"26c7","Interface":{"Address":"10.0.9.2/24",
        "AddressIPv6":"","MacAddress":""},"Options":{"com.docker.network.endpoint.exposedports":
        [{"Proto":6,"Port":80}],"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,
        "HostIP":"","HostPort":8080,"HostPortEnd":8080}]}}"#;
    let Call::CreateEndpoint(made) = call("NetworkDriver.CreateEndpoint", body) else { panic!() };
    assert_eq!(made.interface.addresses(), ["10.0.9.2".parse::<IpAddr>().unwrap()]);
    let body = r#"{"NetworkID":"ae62","EndpointID":"26c7",
        "SandboxKey":"/run/docker/netns/6178059fdac0","Options":{}}"#;
    let Call::Join(join) = call("NetworkDriver.Join", body) else { panic!() };
    assert_eq!(join.sandbox_key, "/run/docker/netns/6178059fdac0");
    let body = r#"{"NetworkID":"ae62","EndpointID":"26c7"}"#;
    for method in ["NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"] {
        let (Call::Leave(of) | Call::DeleteEndpoint(of)) = call(method, body) else { panic!() };
        assert_eq!((of.network.as_str(), of.endpoint.as_str()), ("ae62", "26c7"));
    }
}

#[test]
fn a_join_is_answered_in_dockers_words() {
    let name = InterfaceName { src_name: "mc26c77ea".into(), dst_prefix: "eth" };
    let answer =
        serde_json::to_string(&Joined { interface_name: name, gateway: None, gateway_v6: None })
            .unwrap();
    assert_eq!(answer, r#"{"InterfaceName":{"SrcName":"mc26c77ea","DstPrefix":"eth"}}"#);
}

#[test]
fn what_makes_no_sense_is_an_error() {
    for (method, body) in [
        ("NetworkDriver.Join", ""),
        ("NetworkDriver.Join", "{"),
        ("NetworkDriver.Join", "{}"),
        ("NetworkDriver.Join", r#"{"NetworkID":7}"#),
        ("NetworkDriver.CreateNetwork", "[]"),
        ("IpamDriver.RequestAddress", r#"{"PoolID":"x"}"#),
        ("IpamDriver.RequestAddress", r#"{"PoolID":"mesh-local/10.0.9.0/99"}"#),
    ] {
        let error = Call::parse(method, body.as_bytes()).unwrap_err();
        assert!(matches!(error, ProtocolError::Parse { .. }), "{method} {body}: {error}");
    }
    let unknown = Call::parse("NetworkDriver.Fly", b"{}").unwrap_err();
    assert!(matches!(unknown, ProtocolError::Unknown(_)));
}
