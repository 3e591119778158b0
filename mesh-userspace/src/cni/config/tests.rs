use serde_json::json;

use super::*;

fn conf(more: Value) -> Conf {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "mesh", "type": "mesh"});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Conf::read(conf.to_string().as_bytes()).unwrap()
}

fn refused(text: &str) -> Code {
    let conf = Conf::read(text.as_bytes());
    conf.and_then(|conf| conf.check(text.as_bytes())).unwrap_err().code
}

#[test]
fn what_is_wrong_has_the_code_of_the_specification() {
    for (text, code) in [
        ("", Code::Decode),
        ("[]", Code::Decode),
        ("{\"cniVersion\": 1}", Code::Decode),
        ("{\"cniVersion\": \"1.0.0\", \"name\": \"x\", \"mtu\": \"x\"}", Code::Decode),
        ("{}", Code::Version),
        ("{\"cniVersion\": \"1.0.0\", \"name\": \"x\", \"mtu\": 0}", Code::Config),
        ("{\"cniVersion\": \"0.2.0\", \"name\": \"x\"}", Code::Version),
        ("{\"cniVersion\": \"2.0.0\", \"name\": \"x\"}", Code::Version),
        ("{\"cniVersion\": \"1.0.0\"}", Code::Config),
        ("{\"cniVersion\": \"1.0.0\", \"name\": \"x\", \"netwrok\": \"y\"}", Code::Unsupported),
        (
            "{\"cniVersion\": \"1.0.0\", \"name\": \"x\", \"ipam\": {\"type\": \"dhcp\"}}",
            Code::Unsupported,
        ),
    ] {
        assert_eq!(refused(text), code, "{text}");
    }
}

#[test]
fn what_runtimes_add_is_no_fault() {
    let text = json!({
        "cniVersion": "1.1.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "x", "type": "mesh",
        "capabilities": {"aliases": true}, "runtimeConfig": {"portMappings": []},
        "args": {"podman_labels": {"a": "b"}, "cni": {"labels": []}}, "ipam": {},
        "prevResult": {}, "cni.dev/valid-attachments": [], "cni.dev/other": 1,
    })
    .to_string();
    Conf::read(text.as_bytes()).unwrap().check(text.as_bytes()).unwrap();
}

#[test]
fn names_come_from_pod_aliases_and_id() {
    let id = "3a396b612e62aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let conf = conf(json!({
        "runtimeConfig": {"aliases": {"mesh": ["api", "3a396b612e62", "PW"], "x": ["no"]}}
    }));
    let args = Args { pod: Some("pw".into()), ..Args::default() };
    assert_eq!(conf.names(id, &args), ["pw", "api", "3a396b612e62"]);
    let args = Args { namespace: Some("shop".into()), ..args };
    assert_eq!(conf.names("default-t1", &args)[..2], ["pw", "pw.shop"]);
    assert_eq!(conf.names("default-t1", &Args::default()).last().unwrap(), "default-t1");
}

#[test]
fn addresses_are_taken_from_the_nearest_wish() {
    let args = Args { ip: Some("10.42.0.9".into()), ..Args::default() };
    let both = json!({
        "runtimeConfig": {"ips": ["10.42.0.7/16", "fd42::7"]}, "args": {"cni": {"ips": ["10.42.0.8"]}}
    });
    let texts = |conf: &Conf| -> Vec<String> {
        conf.addresses(&args).unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(texts(&conf(both)), ["10.42.0.7", "fd42::7"]);
    assert_eq!(texts(&conf(json!({"args": {"cni": {"ips": ["10.42.0.8"]}}}))), ["10.42.0.8"]);
    assert_eq!(texts(&conf(json!({}))), ["10.42.0.9"]);
    let wrong = conf(json!({"runtimeConfig": {"ips": ["x"]}})).addresses(&args);
    assert_eq!(wrong.unwrap_err().code, Code::Config);
}

#[test]
fn ranges_and_macs_are_read_or_refused() {
    let ranges = json!({"runtimeConfig": {"ipRanges": [
        [{"subnet": "10.42.1.0/24", "rangeStart": "10.42.1.9"}], [{"subnet": "fd42::/64"}]
    ]}});
    let texts: Vec<_> =
        conf(ranges).ranges().unwrap().iter().map(|(a, b)| format!("{a} {b}")).collect();
    assert_eq!(texts, ["10.42.1.9 10.42.1.255", "fd42:: fd42::ffff:ffff:ffff:ffff"]);
    let wrong = conf(json!({"runtimeConfig": {"ipRanges": [[{"subnet": "x"}]]}}));
    assert_eq!(wrong.ranges().unwrap_err().code, Code::Config);
    let mac = |text: &str| {
        conf(json!({"runtimeConfig": {"mac": text}})).mac(&Args::default()).ok().flatten()
    };
    assert_eq!(mac("02:aa:bb:cc:dd:ee"), Some([2, 0xaa, 0xbb, 0xcc, 0xdd, 0xee]));
    for wrong in ["", "02:aa", "00:00:00:00:00:00", "01:00:5e:00:00:01", "zz:aa:bb:cc:dd:ee"] {
        assert_eq!(mac(wrong), None, "{wrong}");
    }
}

#[test]
fn two_attachments_never_have_one_name() {
    let long = |end: &str| "x".repeat(200) + end;
    let names = [
        endpoint_name("default-test1", "eth0"),
        endpoint_name("default-test2", "eth0"),
        endpoint_name("default-test1", "eth1"),
        endpoint_name(&long("1"), "eth0"),
        endpoint_name(&long("2"), "eth0"),
    ];
    let different: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(different.len(), names.len());
    assert!(names.iter().all(|n| n.len() <= 128));
    assert_eq!(endpoint_name(&"3a".repeat(32), "eth0"), "cni-3a3a3a3a3a3a-eth0");
}
