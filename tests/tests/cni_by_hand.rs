//! `mesh cni` as any runtime may call it, right and wrong.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Host, Options, Topology,
    cni::{Answer, call},
    ping,
    scenario::bare,
    wait,
};
use serde_json::{Value, json};

const OPTIONS: Options = Options {
    hosts: 1,
    containers: 3,
    mtu: 1500,
    encap: mesh_tests::Encap::Gre,
    ipv6: true,
    underlay: mesh_tests::Underlay::V4,
};
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// A host with an agent, and containers that are not attached.
fn scenario(body: impl FnOnce(&mut Topology) -> Result<()>) {
    bare(OPTIONS, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        body(mesh)
    });
}

/// Calls for the container of that index, as its runtime would.
fn ask(host: &Host, command: &str, container: usize, conf: &Value) -> Result<Answer> {
    let container = &host.containers[container];
    let netns = container.netns.path().display().to_string();
    let vars = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", &container.name),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
    ];
    call(host, &vars, &conf.to_string())
}

fn conf(version: &str, more: Value) -> Value {
    let mut conf = more;
    conf["cniVersion"] = json!(version);
    conf["type"] = json!("mesh");
    if conf["name"].is_null() {
        conf["name"] = json!("mesh");
    }
    conf
}

fn expect(answer: &Answer, code: u64, what: &str) -> Result<()> {
    ensure!(answer.code() == code, "{what}: not {code} but {} {}", answer.json, answer.stderr);
    // Where there is an error, it says what; where there is none, nothing is printed.
    let says = answer.json["msg"].as_str().is_some_and(|msg| !msg.is_empty());
    ensure!(says == (code != 0) && answer.json.is_null() == (code == 0), "{what}: {answer:?}");
    Ok(())
}

fn endpoints(host: &Host) -> Result<Vec<String>> {
    let status = host.status()?;
    let names = status["endpoints"].as_array().context("a status without endpoints")?;
    Ok(names.iter().filter_map(|e| e["name"].as_str().map(str::to_owned)).collect())
}

#[test]
fn each_version_of_the_specification_is_spoken() {
    scenario(|mesh| {
        let host = &mesh.hosts[0];
        let versions = call(host, &[("CNI_COMMAND", "VERSION")], "{\"cniVersion\":\"1.0.0\"}")?;
        ensure!(versions.json["supportedVersions"] == json!(VERSIONS), "{versions:?}");
        for version in VERSIONS {
            let plain = conf(version, json!({}));
            let result = ask(host, "ADD", 0, &plain)?.ok()?;
            ensure!(result["cniVersion"] == version, "{result}");
            let netns = &host.containers[0].netns;
            let shown = netns.exec("ip -o addr show dev eth0 scope global")?;
            for ip in result["ips"].as_array().context("ips")? {
                let address = ip["address"].as_str().context("an address")?;
                ensure!(shown.contains(&format!(" {address} ")), "{address} is not in {shown}");
                ensure!(ip["version"].is_string() == (version == "0.4.0"), "{ip}");
                let of = &result["interfaces"][ip["interface"].as_u64().context("which")? as usize];
                ensure!(of["name"] == "eth0", "{of}");
            }
            ping::expect_ping(netns, "10.42.1.1".parse()?)?;
            let again = ask(host, "ADD", 0, &plain)?;
            expect(&again, 7, "a second ADD")?;
            let check = conf(version, json!({"prevResult": result}));
            expect(&ask(host, "CHECK", 0, &check)?, 0, "CHECK")?;
            expect(&ask(host, "DEL", 0, &check)?, 0, "DEL")?;
            ensure!(netns.mac("eth0").is_err(), "eth0 is there still");
            let empty = [
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", "h1c1"),
                ("CNI_NETNS", ""),
                ("CNI_IFNAME", "eth0"),
            ];
            expect(&call(host, &empty, &check.to_string())?, 0, "a second DEL")?;
            expect(&ask(host, "CHECK", 0, &check)?, 3, "CHECK of nothing")?;
        }
        Ok(())
    });
}

#[test]
fn what_is_wrong_in_the_environment_or_on_stdin_has_its_code() {
    scenario(|mesh| {
        let host = &mesh.hosts[0];
        let netns = host.containers[0].netns.path().display().to_string();
        let good = conf("1.0.0", json!({})).to_string();
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
        ];
        for (name, value, code) in [
            ("CNI_COMMAND", "FROB", 4),
            ("CNI_COMMAND", "GC", 1),
            ("CNI_CONTAINERID", "", 4),
            ("CNI_CONTAINERID", "../c1", 4),
            ("CNI_NETNS", "", 4),
            ("CNI_NETNS", "/no/such/namespace", 3),
            ("CNI_NETNS", "/proc/self/ns/mnt", 4),
            ("CNI_NETNS", "/proc/self/ns/net", 4),
            ("CNI_IFNAME", "", 4),
            ("CNI_IFNAME", "a/b", 4),
            ("CNI_ARGS", "COLOR=red", 4),
            ("CNI_ARGS", "IP=10.43.0.1", 7),
        ] {
            let mut vars: Vec<_> = vars.iter().copied().filter(|(n, _)| *n != name).collect();
            vars.push((name, value));
            expect(&call(host, &vars, &good)?, code, &format!("{name}={value}"))?;
        }
        let of = |more| conf("1.0.0", more).to_string();
        for (stdin, code) in [
            (String::new(), 6),
            ("{".into(), 6),
            ("[]".into(), 6),
            (of(json!({"mtu": "x"})), 6),
            ("{}".into(), 1),
            (conf("0.2.0", json!({})).to_string(), 1),
            (of(json!({"netwrok": "x"})), 2),
            (of(json!({"ipam": {"type": "host-local"}})), 2),
            (of(json!({"name": ""})), 7),
            (of(json!({"network": "green"})), 7),
            (of(json!({"runtimeConfig": {"ips": ["10.42.2.9"]}})), 7),
            (of(json!({"runtimeConfig": {"ips": ["x"]}})), 7),
            (of(json!({"runtimeConfig": {"mac": "x"}})), 7),
            (of(json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.42.2.0/24"}]]}})), 7),
            (of(json!({"runDir": "/no/such/folder"})), 11),
        ] {
            expect(&call(host, &vars, &stdin)?, code, &stdin)?;
        }
        let no_result = ask(host, "CHECK", 0, &conf("1.0.0", json!({})))?;
        expect(&no_result, 7, "CHECK without prevResult")?;
        let gc = call(host, &[("CNI_COMMAND", "GC")], &conf("1.1.0", json!({})).to_string())?;
        expect(&gc, 7, "GC without attachments")?;
        let status = conf("1.1.0", json!({"network": "green"})).to_string();
        let status = call(host, &[("CNI_COMMAND", "STATUS")], &status)?;
        expect(&status, 50, "STATUS of a network that is not there")?;
        ensure!(endpoints(host)?.is_empty(), "something was attached");
        Ok(())
    });
}

#[test]
fn what_is_asked_for_is_given() {
    scenario(|mesh| {
        let host = &mesh.hosts[0];
        let asked = json!({"mtu": 1300, "runtimeConfig": {
            "ips": ["10.42.1.77/16"], "mac": "02:aa:bb:cc:dd:01", "aliases": {"mesh": ["api"]}
        }});
        let result = ask(host, "ADD", 0, &conf("1.1.0", asked))?.ok()?;
        ensure!(result["ips"][0]["address"] == "10.42.1.77/32", "{result}");
        let inside = &result["interfaces"][1];
        ensure!(inside["mac"] == "02:aa:bb:cc:dd:01" && inside["mtu"] == 1300, "{inside}");
        let netns = &host.containers[0].netns;
        ensure!(netns.mac("eth0")? == [2, 0xaa, 0xbb, 0xcc, 0xdd, 1] && netns.mtu("eth0")? == 1300);
        ping::expect_ping(netns, "10.42.1.1".parse()?)?;
        let status = host.status()?;
        ensure!(status["endpoints"][0]["names"] == json!(["api", "h1c1"]), "{status}");
        let range = json!({"runtimeConfig": {"ipRanges": [
            [{"subnet": "10.42.1.0/24", "rangeStart": "10.42.1.77", "rangeEnd": "10.42.1.78"}]
        ]}});
        let range = conf("1.0.0", range);
        let result = ask(host, "ADD", 1, &range)?.ok()?;
        ensure!(result["ips"][0]["address"] == "10.42.1.78/32", "{result}");
        expect(&ask(host, "ADD", 2, &range)?, 7, "a range that is used up")
    });
}

#[test]
fn check_sees_what_was_changed_in_the_container() {
    scenario(|mesh| {
        let host = &mesh.hosts[0];
        for (change, says) in [
            ("ip route del 10.42.0.0/16", "route to 10.42.0.0/16"),
            ("ip addr flush dev eth0", "address 10.42.1.2"),
            ("ip link set eth0 down", "down"),
            ("ip link set eth0 address 02:00:00:00:00:01", "MAC"),
            ("ip link set eth0 name other", "no interface eth0"),
        ] {
            let result = ask(host, "ADD", 0, &conf("1.0.0", json!({})))?.ok()?;
            let conf = conf("1.0.0", json!({"prevResult": result}));
            expect(&ask(host, "CHECK", 0, &conf)?, 0, "CHECK")?;
            if change.ends_with("other") {
                host.containers[0].netns.exec("ip link set eth0 down")?;
            }
            host.containers[0].netns.exec(change)?;
            let changed = ask(host, "CHECK", 0, &conf)?;
            expect(&changed, 101, change)?;
            let details = changed.json["details"].to_string();
            ensure!(details.contains(says), "{change}: {details}");
            expect(&ask(host, "DEL", 0, &conf)?, 0, "DEL")?;
        }
        let result = ask(host, "ADD", 0, &conf("1.0.0", json!({})))?.ok()?;
        let mut other = result.clone();
        other["ips"][0]["address"] = json!("10.42.1.99/32");
        let other = conf("1.0.0", json!({"prevResult": other}));
        expect(&ask(host, "CHECK", 0, &other)?, 101, "another result")
    });
}

#[test]
fn gc_removes_what_no_container_uses_and_nothing_else() {
    scenario(|mesh| {
        let host = &mut mesh.hosts[0];
        let valid = |ids: &[&str]| -> Vec<Value> {
            ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect()
        };
        ask(host, "ADD", 0, &conf("1.1.0", json!({})))?.ok()?;
        ask(host, "ADD", 1, &conf("1.1.0", json!({"name": "other"})))?.ok()?;
        host.attach(2, &[])?;
        let gc = |host: &Host, ids: &[&str]| {
            let conf = conf("1.1.0", json!({"cni.dev/valid-attachments": valid(ids)}));
            expect(&call(host, &[("CNI_COMMAND", "GC")], &conf.to_string())?, 0, "GC")
        };
        gc(host, &["h1c1"])?;
        ensure!(endpoints(host)? == ["cni-h1c1-eth0", "cni-h1c2-eth0", "h1c3"]);
        gc(host, &["h1c2"])?;
        ensure!(endpoints(host)? == ["cni-h1c2-eth0", "h1c3"], "{:?}", endpoints(host)?);
        ensure!(host.containers[0].netns.mac("eth0").is_err(), "eth0 is there still");
        Ok(())
    });
}

#[test]
fn without_an_agent_nothing_is_added_and_all_can_be_deleted() {
    scenario(|mesh| {
        let host = &mut mesh.hosts[0];
        let plain = conf("1.1.0", json!({}));
        expect(&call(host, &[("CNI_COMMAND", "STATUS")], &plain.to_string())?, 0, "STATUS")?;
        let result = ask(host, "ADD", 0, &plain)?.ok()?;
        let check = conf("1.1.0", json!({"prevResult": result}));
        host.kill9();
        expect(&call(host, &[("CNI_COMMAND", "STATUS")], &plain.to_string())?, 50, "STATUS")?;
        expect(&ask(host, "ADD", 1, &plain)?, 11, "ADD")?;
        expect(&ask(host, "CHECK", 0, &check)?, 11, "CHECK")?;
        // What is attached works on, and is taken off without an agent too.
        ping::expect_ping(&host.containers[0].netns, "10.42.1.1".parse()?)?;
        expect(&ask(host, "DEL", 0, &check)?, 0, "DEL")?;
        ensure!(host.containers[0].netns.mac("eth0").is_err(), "eth0 is there still");
        expect(&ask(host, "DEL", 0, &check)?, 0, "a second DEL")?;
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        host.up(&cluster)?;
        ensure!(endpoints(host)?.is_empty(), "{:?}", endpoints(host)?);
        // With no mesh at all there is nothing to wait for.
        host.down()?;
        expect(&ask(host, "DEL", 0, &check)?, 0, "DEL where no mesh is up")?;
        expect(&ask(host, "ADD", 0, &plain)?, 11, "ADD where no mesh is up")
    });
}

#[test]
fn a_container_that_went_without_del_is_replaced_by_its_successor() {
    scenario(|mesh| {
        let host = &mesh.hosts[0];
        let plain = conf("1.0.0", json!({}));
        ask(host, "ADD", 0, &plain)?.ok()?;
        // The same id with another namespace: the runtime started it anew.
        let netns = host.containers[1].netns.path().display().to_string();
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "h1c1"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
        ];
        let result = call(host, &vars, &plain.to_string())?.ok()?;
        ensure!(result["ips"][0]["address"] == "10.42.1.2/32", "{result}");
        ensure!(endpoints(host)? == ["cni-h1c1-eth0"], "{:?}", endpoints(host)?);
        ping::expect_ping(&host.containers[1].netns, "10.42.1.1".parse()?)
    });
}

#[test]
fn many_at_once_neither_collide_nor_leak() {
    const MANY: usize = 40;
    bare(Options { containers: MANY, ..OPTIONS }, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        let host = &mesh.hosts[0];
        let all = |command: &'static str| -> Result<BTreeSet<String>> {
            thread::scope(|scope| {
                let one =
                    |at| scope.spawn(move || ask(host, command, at, &conf("1.0.0", json!({}))));
                let calls: Vec<_> = (0..MANY).map(one).collect();
                let address = |result: Value| result["ips"][0]["address"].to_string();
                calls.into_iter().map(|call| call.join().unwrap()?.ok().map(address)).collect()
            })
        };
        let given = all("ADD")?;
        ensure!(given.len() == MANY, "{} addresses for {MANY} containers", given.len());
        all("DEL")?;
        ensure!(endpoints(host)?.is_empty(), "{:?}", endpoints(host)?);
        Ok(())
    });
}

#[test]
fn names_are_there_again_after_the_agent_was() {
    scenario(|mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        let aliases = json!({"runtimeConfig": {"aliases": {"mesh": ["api"]}}});
        ask(host, "ADD", 0, &conf("1.0.0", aliases))?.ok()?;
        ask(host, "ADD", 1, &conf("1.0.0", json!({})))?.ok()?;
        host.stop()?;
        host.up(&cluster)?;
        // A container asks from its own address, and sees its own network.
        let asker = &host.containers[1].netns;
        let names = wait::until("names", Duration::from_secs(40), || {
            let got = resolve(asker, "api").map_err(|e| format!("{e:#}"))?;
            if got.is_empty() { Err("no answer".into()) } else { Ok(got) }
        })?;
        ensure!(names == [[10, 42, 1, 2]], "{names:?}");
        Ok(())
    });
}

/// Asks the host for the IPv4 addresses of a name.
fn resolve(netns: &mesh_tests::Netns, name: &str) -> Result<Vec<[u8; 4]>> {
    let socket = netns.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect("10.42.1.1:53")?;
    let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(name.len())?];
    question.extend(name.as_bytes());
    question.extend([0, 0, 1, 0, 1]);
    socket.send(&question)?;
    let mut answer = [0; 512];
    let len = socket.recv(&mut answer)?;
    let count = usize::from(u16::from_be_bytes([answer[6], answer[7]]));
    // A pointer to the name, type, class, TTL and length: 12 bytes before the address.
    let records = answer[question.len()..len].chunks_exact(16).take(count);
    Ok(records.filter_map(|r| r[12..].try_into().ok()).collect())
}
