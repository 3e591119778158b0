//! `[attach] bridges = ["docker0"]`: Docker's default bridge on several hosts, without any option
//! for a container.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    ClusterFile, Snapshot,
    docker::{Docker, scenario},
    wait,
};
use rustix::process::Signal;
use serde_json::Value;

/// Milliseconds, where nothing else has the processors.
const SEEN: Duration = Duration::from_secs(40);
/// A web server that logs who asks.
const WHO: &str = "bb httpd -f -vv -p 9000 -h /var/www";

/// The walk-through of the README: the config file, `mesh docker configure`, a restart of Docker.
fn join(docker: &mut Docker) -> Result<ClusterFile> {
    let mut cluster = docker.topology.cluster.clone();
    cluster.bridges = vec!["docker0".into()];
    docker.topology.apply(&cluster)?;
    for at in 0..docker.topology.hosts.len() {
        let file = docker.topology.dir.join(format!("h{}-daemon.json", at + 1));
        let path = file.to_str().context("path")?.to_owned();
        fs::write(&file, "{\n  \"log-level\": \"warn\"\n}\n")?;
        let configure = ["docker", "configure", "--file", &path];
        let said = docker.host(at).run_mesh(&configure)?;
        let bip = format!("10.42.{}.1/16", at + 1);
        for part in [&*format!("+   \"bip\": \"{bip}\""), "is kept in", "restart Docker"] {
            ensure!(said.contains(part), "{part:?} is not in {said}");
        }
        let said = docker.host(at).run_mesh(&configure)?;
        ensure!(said.contains("Docker runs without it yet"), "{said}");
        docker.end_daemon(at, Signal::TERM)?;
        docker.start_plain_daemon(at, &["--config-file", &path])?;
        docker.wait_daemon(at)?;
        let said = docker.host(at).run_mesh(&configure)?;
        ensure!(said.contains("nothing to do"), "{said}");
        let docker0 = docker.host(at).netns.exec("ip addr show dev docker0")?;
        ensure!(docker0.contains(&bip), "{docker0}");
    }
    Ok(cluster)
}

fn endpoints(docker: &Docker, at: usize) -> Result<Vec<Value>> {
    let status = docker.topology.hosts[at].status()?;
    Ok(status["endpoints"].as_array().cloned().unwrap_or_default())
}

/// Starts a container and waits until Docker confirmed its address to the agent, which is returned.
fn start(docker: &Docker, at: usize, name: &str, args: &str) -> Result<IpAddr> {
    docker.run(at, &format!("run -d --name {name} {args}"))?;
    confirmed(docker, at, name)
}

fn confirmed(docker: &Docker, at: usize, name: &str) -> Result<IpAddr> {
    let format = "{{.NetworkSettings.IPAddress}}";
    let given: IpAddr = docker.run(at, &format!("inspect -f {format} {name}"))?.parse()?;
    wait::until(&format!("{name} to be confirmed"), SEEN, || {
        let endpoints = endpoints(docker, at).map_err(|e| format!("{e:#}"))?;
        let is_it = |e: &&Value| e["container"] == name && e["addresses"][0] == given.to_string();
        endpoints.iter().find(is_it).map(|_| ()).ok_or_else(|| format!("{endpoints:#?}"))
    })?;
    Ok(given)
}

/// All of three packets answered, the first one too.
fn ping(docker: &Docker, at: usize, from: &str, to: IpAddr) -> Result<()> {
    let said = docker.run(at, &format!("exec {from} ping -c 3 -i 0.2 -W 2 {to}"))?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

/// From which address [`WHO`], in the container `whom` of the first host, is asked.
fn asked_by(docker: &Docker, whom: &str, from: &str, host: &str) -> Result<String> {
    let lines = |docker: &Docker| -> Result<Vec<String>> {
        let output = docker.try_run(0, &format!("logs {whom}"))?;
        Ok(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect())
    };
    let before = lines(docker)?.len();
    get(docker, 1, from, &format!("http://{host}:9000"))?;
    // `[::ffff:10.42.2.2]:51234: url:/`
    let of = |line: &String| Some(line.split_once("]:")?.0.rsplit_once(':')?.1.to_owned());
    wait::until("the server's log", SEEN, || {
        let lines = lines(docker).map_err(|e| format!("{e:#}"))?;
        lines[before..].iter().find_map(of).ok_or_else(|| format!("{lines:?}"))
    })
}

/// A server whose container has just started may not listen yet.
fn get(docker: &Docker, at: usize, from: &str, url: &str) -> Result<()> {
    let line = format!("exec {from} timeout 5 wget -qO- {url}");
    docker.wait_for(at, &line, |page| page == "hello").map(drop)
}

#[test]
fn containers_on_the_default_bridges_of_all_hosts_reach_each_other_and_the_world() {
    scenario(3, |docker| {
        join(docker)?;
        let web = start(docker, 0, "web", "bb httpd -f -p 80 -h /var/www")?;
        let who = start(docker, 0, "who", WHO)?;
        let c2 = start(docker, 1, "c2", "bb sleep 1000")?;
        let c3 = start(docker, 2, "c3", "bb sleep 1000")?;
        // On link, since the whole of the cluster's network is.
        let routes = docker.run(1, "exec c2 ip route")?;
        ensure!(routes.contains("10.42.0.0/16 dev eth0"), "{routes}");
        let link = docker.run(1, "exec c2 ip link show dev eth0")?;
        ensure!(link.contains("mtu 1462"), "{link}");

        // Container to container, between hosts and on one.
        for (at, from, to) in [(1, "c2", web), (2, "c3", web), (1, "c2", c3), (0, "web", c2)] {
            ping(docker, at, from, to)?;
        }
        ping(docker, 0, "web", who)?;
        get(docker, 1, "c2", &format!("http://{web}"))?;
        get(docker, 0, "who", &format!("http://{web}"))?;
        docker.run(0, "exec web dd if=/dev/urandom of=/var/www/big bs=1M count=16")?;
        let sum = |text: &str| text.split_whitespace().next().map(str::to_owned);
        let sent = sum(&docker.run(0, "exec web sha256sum /var/www/big")?);
        docker.run(1, &format!("exec c2 timeout 20 wget -qO /big http://{web}/big"))?;
        ensure!(sum(&docker.run(1, "exec c2 sha256sum /big")?) == sent, "it arrived otherwise");
        // Nobody masquerades that.
        let source = asked_by(docker, "who", "c2", &who.to_string())?;
        ensure!(source == c2.to_string(), "{source}");

        // Host to container, and container to host: to the host's address in the overlay.
        docker.run(1, "run -d --network host --name h2 bb sleep 1000")?;
        ping(docker, 1, "h2", web)?;
        get(docker, 1, "h2", &format!("http://{web}"))?;
        ping(docker, 1, "h2", c2)?;
        ping(docker, 1, "c2", "10.42.1.1".parse()?)?;
        ping(docker, 0, "web", "10.42.1.1".parse()?)?;

        // A container that is attached beside the bridge, with an address that Docker gives out last.
        let ipv6 = "--sysctl net.ipv6.conf.all.disable_ipv6=0";
        docker.run(0, &format!("run -d --network none {ipv6} --name beside bb sleep 1000"))?;
        let pid = docker.run(0, "inspect -f {{.State.Pid}} beside")?;
        docker.host(0).run_mesh(&["attach", &pid, "--name", "beside"])?;
        let beside: IpAddr = "10.42.1.254".parse()?;
        docker.run(0, "run -d --network host --name h1 bb sleep 1000")?;
        for (at, from, to) in [
            (0, "web", beside),
            (1, "c2", beside),
            (0, "h1", beside),
            (0, "beside", web),
            (0, "beside", c2),
            (0, "h1", web),
        ] {
            ping(docker, at, from, to)?;
        }

        // The world as before: masqueraded, and published ports.
        docker.run(0, &format!("run -d --network host --name asked {WHO}"))?;
        let source = asked_by(docker, "asked", "c2", "192.0.2.11")?;
        ensure!(source == "192.0.2.12", "{source}");
        docker.run(0, "run -d -p 8080:80 --name pub bb httpd -f -p 80 -h /var/www")?;
        for (from, host) in [
            ("c2", "192.0.2.11"),
            // By the overlay too, where the container's answers must take the way back by its host.
            ("c2", "10.42.1.1"),
            ("h2", "10.42.1.1"),
        ] {
            get(docker, 1, from, &format!("http://{host}:8080"))?;
        }
        for host in &docker.topology.hosts {
            let policy = host.netns.exec("iptables -S FORWARD")?;
            ensure!(policy.contains("-P FORWARD DROP"), "{policy}");
        }
        // All that in spite of what Docker does since 28.0 to those who do not come by its bridge.
        if docker.major()? >= 28 {
            let raw = docker.host(0).netns.exec("iptables -t raw -S PREROUTING")?;
            let rule = format!("-d {web}/32 ! -i docker0 -j DROP");
            ensure!(raw.contains(&rule), "{rule} is not in {raw}");
        }
        Ok(())
    });
}

#[test]
fn containers_of_default_bridges_find_each_other_by_name() {
    scenario(2, |docker| {
        join(docker)?;
        let web = start(docker, 0, "web", "bb httpd -f -p 80 -h /var/www")?;
        start(docker, 1, "c2", "bb sleep 1000")?;
        let short = docker.run(0, "inspect -f {{.Id}} web")?[..12].to_owned();
        for name in ["web", "web.default", &short] {
            let line = format!("exec c2 nslookup -type=a {name}");
            docker.wait_for(1, &line, |text| text.contains(&format!("Address: {web}")))?;
        }
        get(docker, 1, "c2", "http://web")?;
        let back = format!("exec c2 nslookup {web}");
        docker.wait_for(1, &back, |text| text.contains("name = web.default"))?;
        // On one host too, where Docker's own default bridge knows no names.
        docker.run(0, "run -d --name near bb sleep 1000")?;
        docker.wait_for(0, "exec near timeout 5 wget -qO- http://web", |page| page == "hello")?;
        // Those of a network are not theirs to see, and theirs are not the network's.
        docker.run(0, "network create -d mesh --subnet 10.0.9.0/24 my-net")?;
        docker.wait_network("my-net")?;
        docker.run(0, "run -d --network my-net --name apart bb sleep 1000")?;
        docker.run(1, "run -d --network my-net --name asker bb sleep 1000")?;
        docker.wait_for(1, "exec asker nslookup -type=a apart", |text| text.contains("10.0.9."))?;
        docker.refused(1, "exec c2 nslookup -type=a apart")?;
        docker.refused(1, "exec asker nslookup -type=a web")?;
        docker.run(0, "rename web www")?;
        docker.wait_for(1, "exec c2 timeout 5 wget -qO- http://www", |page| page == "hello")?;
        docker.run(0, "rm -f www")?;
        wait::until("the name to go", SEEN, || {
            docker
                .refused(1, "exec c2 nslookup -type=a www")
                .map(drop)
                .map_err(|e| format!("{e:#}"))
        })
    });
}

#[test]
fn containers_of_default_bridges_have_ipv6_where_the_node_has() {
    scenario(2, |docker| {
        join(docker)?;
        for (at, name) in [(0, "web"), (1, "c2")] {
            let file = docker.topology.dir.join(format!("h{}-daemon.json", at + 1));
            let text = fs::read_to_string(file)?;
            let subnet = format!("\"fixed-cidr-v6\": \"fd42:0:0:{}::/64\"", at + 1);
            ensure!(text.contains(&subnet) && text.contains("\"ipv6\": true"), "{text}");
            start(docker, at, name, "bb httpd -f -p 80 -h /var/www")?;
        }
        let v6 = |at: usize, name: &str| -> Result<IpAddr> {
            let format = "{{.NetworkSettings.GlobalIPv6Address}}";
            Ok(docker.run(at, &format!("inspect -f {format} {name}"))?.parse()?)
        };
        let (web, c2) = (v6(0, "web")?, v6(1, "c2")?);
        let part: ipnet::IpNet = "fd42:0:0:1::/64".parse()?;
        ensure!(part.contains(&web), "{web}");
        ping(docker, 1, "c2", web)?;
        ping(docker, 0, "web", c2)?;
        get(docker, 1, "c2", &format!("http://[{web}]"))?;
        let line = "exec c2 nslookup -type=aaaa web";
        docker.wait_for(1, line, |text| text.contains(&format!("Address: {web}")))?;
        // The hosts, by their overlay addresses.
        docker.run(1, "run -d --network host --name h2 bb sleep 1000")?;
        ping(docker, 1, "h2", web)?;
        ping(docker, 1, "h2", c2)?;
        ping(docker, 0, "web", "fd42:0:0:1::1".parse()?)?;
        ping(docker, 0, "web", "fd42:0:0:2::1".parse()?)?;
        // Nobody else's.
        docker.run(0, "run -d --cap-add NET_ADMIN --name evil bb sleep 1000")?;
        confirmed(docker, 0, "evil")?;
        // It must know its router's MAC, for which it would ask as somebody else.
        ping(docker, 0, "evil", c2)?;
        docker.run(0, &format!("exec evil ip addr add {web}/128 dev lo"))?;
        docker.refused(0, &format!("exec evil ping -I {web} -c 2 -i 0.2 -W 1 {c2}"))?;
        ensure!(docker.topology.hosts[0].drops("spoofed_source")? >= 2);
        Ok(())
    });
}

#[test]
fn two_bridges_of_a_host_are_joined_with_those_of_others() {
    scenario(2, |docker| {
        let mut cluster = docker.topology.cluster.clone();
        cluster.cidr.push("10.43.0.0/16".into());
        for (at, node) in cluster.nodes.iter_mut().enumerate() {
            node.subnet.push(format!("10.43.{}.0/24", at + 1));
        }
        docker.topology.cluster = cluster;
        let cluster = join(docker)?;
        for at in [0, 1] {
            let bridge = "-o com.docker.network.bridge.name=br-two \
                          -o com.docker.network.driver.mtu=1462";
            let subnet = format!("--subnet 10.43.{}.0/24", at + 1);
            docker.run(at, &format!("network create {bridge} {subnet} two"))?;
        }
        let both = ClusterFile { bridges: vec!["docker0".into(), "br-two".into()], ..cluster };
        docker.topology.apply(&both)?;
        let one = start(docker, 0, "one", "bb httpd -f -p 80 -h /var/www")?;
        start(docker, 1, "far", "bb sleep 1000")?;
        let two = |at: usize, name: &str| -> Result<IpAddr> {
            docker.run(
                at,
                &format!("run -d --network two --name {name} bb httpd -f -p 80 -h /var/www"),
            )?;
            let format = "{{.NetworkSettings.Networks.two.IPAddress}}";
            let given: IpAddr = docker.run(at, &format!("inspect -f {format} {name}"))?.parse()?;
            wait::until(&format!("{name} to be confirmed"), SEEN, || {
                let endpoints = endpoints(docker, at).map_err(|e| format!("{e:#}"))?;
                let is_it = |e: &Value| e["container"] == *name && e["bridge"] == "br-two";
                if endpoints.iter().any(is_it) { Ok(()) } else { Err(format!("{endpoints:#?}")) }
            })?;
            Ok(given)
        };
        let (near, away) = (two(0, "near")?, two(1, "away")?);
        for (at, from, to) in [
            (1, "far", one),
            (1, "far", near),
            (0, "near", away),
            (1, "away", one),
            (1, "away", near),
        ] {
            ping(docker, at, from, to)?;
        }
        get(docker, 1, "away", &format!("http://{near}"))?;
        let bridges = docker.topology.hosts[0].status()?["bridges"].clone();
        for at in [0, 1] {
            ensure!(
                bridges[at]["ports"] == 1 && bridges[at]["faults"] == Value::Array(vec![]),
                "{bridges}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_container_has_the_address_that_docker_gave_it_and_no_other() {
    scenario(2, |docker| {
        join(docker)?;
        let victim = start(docker, 0, "victim", "bb sleep 1000")?;
        let far = start(docker, 1, "far", "bb sleep 1000")?;
        let own = start(docker, 0, "evil", "--cap-add NET_ADMIN bb sleep 1000")?;
        ping(docker, 0, "evil", far)?;
        // The victim's, one of another node, and those that are free: one is the next container's.
        let others = (0..6)
            .filter(|n| *n != 1)
            .map(|n| IpAddr::from([10, 42, 1, n]))
            .filter(|ip| *ip != own);
        let others: Vec<_> = others.chain(["10.42.2.77".parse()?]).collect();
        for address in &others {
            docker.run(0, &format!("exec evil ip addr add {address}/32 dev eth0"))?;
            let before = docker.topology.hosts[0].drops("spoofed_source")?;
            docker.refused(0, &format!("exec evil ping -I {address} -c 2 -i 0.2 -W 1 {far}"))?;
            let dropped = docker.topology.hosts[0].drops("spoofed_source")? - before;
            ensure!(dropped >= 2, "{dropped} packets from {address} were dropped");
        }
        ping(docker, 1, "far", victim)?;
        let late = start(docker, 0, "late", "bb sleep 1000")?;
        ensure!(others.contains(&late), "{late} is not among {others:?}");
        ping(docker, 1, "far", late)?;
        ping(docker, 0, "late", far)?;
        Ok(())
    });
}

#[test]
fn without_dockers_word_addresses_are_learned_from_traffic() {
    scenario(2, |docker| {
        join(docker)?;
        let quiet = start(docker, 0, "quiet", "bb sleep 1000")?;
        let far = start(docker, 1, "far", "bb sleep 1000")?;
        docker.host(0).down()?;
        let mut cluster = docker.topology.cluster.clone();
        cluster.docker = "plugin = false\nsocket = \"/run/none.sock\"".into();
        docker.host(0).up(&cluster)?;
        ensure!(endpoints(docker, 0)?.iter().all(|e| e["container"].is_null()));
        // It never spoke: the first packet is for its host to ask about, and none is lost.
        ping(docker, 1, "far", quiet)?;
        wait::until("the address to be known", SEEN, || {
            let endpoints = endpoints(docker, 0).map_err(|e| format!("{e:#}"))?;
            let is_it =
                |e: &Value| e["addresses"][0] == quiet.to_string() && e["bridge"] == "docker0";
            if endpoints.iter().any(is_it) { Ok(()) } else { Err(format!("{endpoints:#?}")) }
        })?;
        ping(docker, 0, "quiet", far)?;
        ping(docker, 1, "far", quiet)?;
        // The first owner keeps it.
        docker.run(0, "run -d --cap-add NET_ADMIN --name evil bb sleep 1000")?;
        docker.run(0, &format!("exec evil ip addr add {quiet}/32 dev eth0"))?;
        docker.refused(0, &format!("exec evil ping -I {quiet} -c 2 -i 0.2 -W 1 {far}"))?;
        let status = docker.topology.hosts[0].status()?;
        ensure!(docker.topology.hosts[0].drops("spoofed_source")? >= 2, "{status:#}");
        ping(docker, 1, "far", quiet)?;

        // Since 28.0 Docker tells a container's neighbours its address, and a port has only one.
        if docker.major()? >= 28 {
            docker.run(0, "run -d --cap-add NET_ADMIN --name taker bb sleep 1000")?;
            let own = docker.run(0, "inspect -f {{.NetworkSettings.IPAddress}} taker")?;
            wait::until("what Docker told to be heard", SEEN, || {
                let endpoints = endpoints(docker, 0).map_err(|e| format!("{e:#}"))?;
                let is_it = |e: &Value| e["addresses"][0] == own;
                if endpoints.iter().any(is_it) { Ok(()) } else { Err(format!("{endpoints:#?}")) }
            })?;
            docker.run(0, "exec taker ip addr add 10.42.1.77/32 dev eth0")?;
            docker.refused(0, &format!("exec taker ping -I 10.42.1.77 -c 2 -i 0.2 -W 1 {far}"))?;
            // It asked for the far one's MAC as somebody else, and goes on so for three seconds.
            docker.wait_for(0, &format!("exec taker ping -c 1 -W 1 {far}"), |_| true)?;
            return ping(docker, 0, "taker", far);
        }

        // One that is free it may take. Until Docker, which gives it to another, is heard again.
        let given = |name: &str| -> Result<IpAddr> {
            docker.run(0, &format!("run -d --name {name} bb sleep 1000"))?;
            let format = "{{.NetworkSettings.IPAddress}}";
            Ok(docker.run(0, &format!("inspect -f {format} {name}"))?.parse()?)
        };
        let free = given("probe")?;
        docker.run(0, "run -d --cap-add NET_ADMIN --name taker bb sleep 1000")?;
        docker.run(0, "rm -f probe")?;
        docker.run(0, &format!("exec taker ip addr add {free}/32 dev eth0"))?;
        docker.run(0, &format!("exec taker ping -I {free} -c 2 -i 0.2 -W 2 {far}"))?;
        let late = given("late")?;
        ensure!(late == free, "Docker gave {late} and not {free}");
        docker.refused(0, &format!("exec late ping -c 2 -i 0.2 -W 1 {far}"))?;
        docker.host(0).down()?;
        cluster.docker.clear();
        docker.host(0).up(&cluster)?;
        ensure!(confirmed(docker, 0, "late")? == late);
        // It asked for the far one's MAC while it was refused, and asks again after a second.
        docker.wait_for(0, &format!("exec late ping -c 1 -W 1 {far}"), |_| true)?;
        ping(docker, 0, "late", far)?;
        ping(docker, 1, "far", late)?;
        docker.refused(0, &format!("exec taker ping -I {free} -c 2 -i 0.2 -W 1 {far}"))?;
        Ok(())
    });
}

#[test]
fn an_agent_that_ends_takes_nothing_with_it_and_down_takes_all() {
    for mode in ["tcx", "clsact"] {
        scenario(2, |docker| {
            for at in [0, 1] {
                docker.host(at).attach_mode = Some(mode);
            }
            let cluster = join(docker)?;
            let web = start(docker, 0, "web", "bb httpd -f -p 80 -h /var/www")?;
            let far = start(docker, 1, "far", "bb sleep 1000")?;
            ping(docker, 1, "far", web)?;

            docker.host(0).kill9();
            ping(docker, 1, "far", web)?;
            docker.run(0, "run -d --name late bb sleep 1000")?;
            docker.host(0).up(&cluster)?;
            let late = confirmed(docker, 0, "late")?;
            ping(docker, 1, "far", web)?;
            ping(docker, 0, "late", far)?;
            ping(docker, 1, "far", late)?;

            docker.host(0).down()?;
            let before = Snapshot::of(docker.host(0))?;
            docker.host(0).up(&cluster)?;
            confirmed(docker, 0, "web")?;
            ping(docker, 1, "far", web)?;
            let during = Snapshot::of(docker.host(0))?;
            let ours = during.starting_with("netfilter ").any(|rule| rule.contains("mesh_bridges"));
            ensure!(ours, "no rules of mesh's");
            docker.host(0).down()?;
            before.expect_same(&Snapshot::of(docker.host(0))?)?;
            // And the bridge is what it was.
            ping(docker, 0, "late", web)
        });
    }
}
