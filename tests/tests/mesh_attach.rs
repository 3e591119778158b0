//! `mesh attach` and `mesh detach`.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::{Host, Options, ping, scenario, scenario::bare, wait};

const ONE: Options = Options { hosts: 1, containers: 3, ..Options::DEFAULT };

/// The command must fail and say something that contains `word`.
fn expect_refused(host: &Host, args: &[&str], word: &str) -> Result<()> {
    let output = host.try_mesh(args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "mesh {} was not refused", args.join(" "));
    ensure!(said.contains(word), "mesh {} said {said:?}, not {word:?}", args.join(" "));
    Ok(())
}

#[test]
fn attach_gives_what_it_says() {
    scenario(ONE, |mesh| {
        for container in mesh.containers() {
            let (given, netns) = (container.given()?, &container.netns);
            ensure!(given.ifname == "eth0" && given.network == "default" && given.vni == 0);
            ensure!(netns.mtu("eth0")? == given.mtu);
            let mac: Vec<_> = netns.mac("eth0")?.iter().map(|b| format!("{b:02x}")).collect();
            ensure!(mac.join(":") == given.mac.to_lowercase(), "{mac:?} is not {}", given.mac);
            let shown = netns.exec("ip -o addr show dev eth0 scope global")?;
            for address in &given.addresses {
                ensure!(shown.contains(&format!(" {address} ")), "{address} is not in {shown}");
            }
            ensure!(!shown.contains("tentative"), "an address can not be used yet: {shown}");
            ensure!(!given.gateways.is_empty() && !given.routes.is_empty());
        }
        let status = mesh.hosts[0].status()?;
        ensure!(status["endpoints"].as_array().map(Vec::len) == Some(3), "{status}");
        Ok(())
    });
}

/// The kernel makes an address usable some time after it acknowledged it, and the later the more
/// others change of its interfaces.
#[test]
fn what_attach_gave_can_be_reached_when_it_returns() {
    scenario(Options { containers: 1, ..ONE }, |mesh| {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // Goes with its namespace.
                    let pair = "--net ip link add type veth".split(' ');
                    ensure!(Command::new("unshare").args(pair).status()?.success(), "no namespace");
                }
                Ok(())
            });
            let reached = (0..20).try_for_each(|_| {
                mesh.hosts[0].detach(0)?;
                let container = mesh.hosts[0].attach(0, &[])?;
                for address in container.addresses()? {
                    let route = container.netns.exec(&format!("ip route get {address}"))?;
                    ensure!(route.starts_with("local "), "{address} is not there: {route}");
                }
                Ok(())
            });
            ended.store(true, Ordering::Relaxed);
            others.join().map_err(|_| anyhow!("a thread panicked"))??;
            reached
        })
    });
}

/// All that wants room for outer headers is a port of the bridge, which is down.
fn expect_headroom(host: &Host) -> Result<()> {
    let shown = host.netns.exec("ip -o link show")?;
    let line = |name: &str| {
        let is_it = |l: &&str| l.split_whitespace().nth(1).is_some_and(|w| w.starts_with(name));
        shown.lines().find(is_it).with_context(|| format!("no {name} in {shown}"))
    };
    for container in &host.containers {
        let given = container.given()?;
        ensure!(line(&given.host_ifname)?.contains("master mesh-room "), "{shown}");
    }
    ensure!(line("mesh0-end")?.contains("master mesh-room "), "{shown}");
    ensure!(line("mesh-room:")?.contains("state DOWN"), "{shown}");
    Ok(())
}

#[test]
fn what_containers_and_the_host_send_gets_headroom() {
    scenario(ONE, |mesh| {
        expect_headroom(&mesh.hosts[0])?;
        mesh.hosts[0].netns.exec("ip link del mesh-room")?;
        wait::until("the bridge is back", Duration::from_secs(10), || {
            expect_headroom(&mesh.hosts[0]).map_err(|e| e.to_string())
        })
    });
}

#[test]
fn namespace_is_found_by_name_by_path_and_by_pid() {
    bare(ONE, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        let host = &mesh.hosts[0];
        let netns = |i: usize| host.containers[i].netns.clone();
        let path = netns(1).path();
        let mut sleeper = netns(2).command("sleep").arg("60").stdin(Stdio::null()).spawn()?;
        let pid = sleeper.id().to_string();
        let attached = [netns(0).name(), path.to_str().context("path")?, &pid]
            .map(|given| host.run_mesh(&["attach", given]));
        sleeper.kill()?;
        sleeper.wait()?;
        attached.into_iter().collect::<Result<Vec<_>>>()?;
        (0..3).try_for_each(|i| netns(i).mac("eth0").map(drop))
    });
}

#[test]
fn wanted_address_is_given_and_then_taken() {
    bare(ONE, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        let given = mesh.hosts[0].attach(0, &["--ip", "10.42.1.77"])?.v4()?;
        ensure!(given.to_string() == "10.42.1.77", "{given}");
        let other = mesh.hosts[0].containers[1].netns.name().to_owned();
        let host = &mut mesh.hosts[0];
        for (ip, why) in [
            ("10.42.1.77", "10.42.1.77"),
            ("10.42.2.77", "subnet"),
            ("192.0.2.77", "subnet"),
            ("10.42.1.0", "10.42.1.0"),
            ("10.42.1.255", "10.42.1.255"),
        ] {
            expect_refused(host, &["attach", &other, "--ip", ip], why)?;
        }
        host.detach(0)?;
        host.attach(1, &["--ip", "10.42.1.77"])?;
        Ok(())
    });
}

#[test]
fn what_can_not_be_attached_is_refused_with_the_cause() {
    scenario(ONE, |mesh| {
        let host = &mesh.hosts[0];
        let taken = host.containers[0].netns.name();
        expect_refused(host, &["attach", "no-such-namespace"], "no-such-namespace")?;
        expect_refused(host, &["attach", taken, "--name", "other"], "h1c1")?;
        expect_refused(host, &["attach", mesh.switch.name(), "--name", "h1c2"], "h1c2")?;
        expect_refused(host, &["attach", taken, "--name", "x", "--network", "green"], "green")?;
        expect_refused(host, &["detach", "nobody"], "nobody")?;
        ensure!(host.status()?["endpoints"].as_array().map(Vec::len) == Some(3));
        Ok(())
    });
}

/// Networks may have the same addresses, but one container reaches them in one network alone.
#[test]
fn a_second_network_with_the_same_addresses_is_refused_and_leaves_the_first_as_it_is() {
    bare(ONE, |mesh| {
        let cluster = mesh.cluster.clone().with_network("blue", 7, "10.42.0.0/16");
        let cluster = cluster.with_network("green", 8, "10.43.0.0/16");
        mesh.hosts[0].up(&cluster)?;
        mesh.hosts[0].attach(0, &[])?;
        let host = &mut mesh.hosts[0];
        let netns = host.containers[0].netns.clone();
        let look = || netns.exec("ip -o addr").and_then(|a| Ok(a + &netns.exec("ip route")?));
        let before = look()?;
        let second = |network| ["attach", netns.name(), "--network", network, "--name", "second"];
        let error = "eth0 (endpoint \"h1c1\" of network default)";
        expect_refused(host, &second("blue"), error)?;
        ensure!(look()? == before, "it was {before}, and is {}", look()?);
        ensure!(host.status()?["endpoints"].as_array().map(Vec::len) == Some(1));
        // Others do not come into its way, nor does it into that of others.
        host.run_mesh(&second("green"))?;
        host.run_mesh(&["detach", "second"])?;
        host.attach(1, &["--network", "blue"])?;
        // What is free again can be had.
        host.detach(0)?;
        host.attach(0, &["--network", "blue"])?;
        expect_refused(host, &second("default"), "of network blue)")
    });
}

#[test]
fn container_with_an_eth0_of_its_own_keeps_it() {
    bare(ONE, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        mesh.hosts[0].containers[0].netns.exec("ip link add eth0 type bridge")?;
        let mac = mesh.hosts[0].containers[0].netns.mac("eth0")?;
        mesh.hosts[0].attach(0, &[])?;
        mesh.hosts[0].attach(1, &[])?;
        let [one, two] = [mesh.party("h1c1")?, mesh.party("h1c2")?];
        ensure!(mesh.container("h1c1")?.ifname()? != "eth0");
        ensure!(one.netns.mac("eth0")? == mac);
        one.expect_reaches(&two)?;
        two.expect_reaches(&one)
    });
}

#[test]
fn container_that_vanished_frees_its_name_and_address() {
    scenario(ONE, |mesh| {
        let gone = mesh.hosts[0].containers.remove(0);
        let (name, ip) = (gone.netns.name().to_owned(), gone.v4()?.to_string());
        // The namespace, and its end of the pair, goes with the last descriptor.
        drop(gone);
        mesh_tests::netns::ip_batch(&format!("netns del {name}\n"))?;
        // The agent may have seen it go, or not yet.
        mesh.hosts[0].try_mesh(&["detach", "h1c1"])?;
        mesh.hosts[0].detach(0)?;
        let successor = mesh.hosts[0].containers[0].netns.name().to_owned();
        mesh.hosts[0].run_mesh(&["attach", &successor, "--name", "h1c1", "--ip", &ip])?;
        ping::expect_ping(&mesh.party("h1c3")?.netns, ip.parse()?)
    });
}
