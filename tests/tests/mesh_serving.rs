//! Names are answered, and callers told why they wait, whatever the agent's own thread waits for.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, ensure};
use mesh_tests::{Netns, Options, Topology, cni, dns, pulse::Pulse, scenario::bare, wait};

const OPTIONS: Options = Options { hosts: 1, containers: 3, ipv6: false, ..Options::DEFAULT };
const H1: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 1, 1));
/// The name of the container that asks.
const NAME: &str = "h1c1";
const LIMIT: Duration = Duration::from_secs(40);
/// A program that hung is run again after a minute, and then with the next look at everything.
const MENDED: Duration = Duration::from_secs(150);

/// An agent whose first container has a name. `before`: what a shell does before it starts.
fn up(mesh: &mut Topology, before: &str) -> Result<()> {
    let cluster = mesh.cluster.clone();
    let host = &mut mesh.hosts[0];
    host.spawn_after(&cluster, before)?;
    host.wait_ready(&cluster)?;
    cni::add(host, 0)?;
    dns::wait_known(&host.containers[0].netns, H1, NAME).map(drop)
}

#[test]
fn names_are_answered_in_time_while_networks_come_and_go() {
    bare(OPTIONS, |mesh| {
        // As on a host with Docker: there are rules to keep then.
        up(mesh, "sysctl -qw net.ipv4.ip_forward=1")?;
        let few = mesh.cluster.clone();
        let many = (0..200).fold(few.clone(), |cluster, n| {
            cluster.with_network(&format!("n{n}"), 1000 + n, &format!("10.100.{n}.0/24"))
        });
        let host = &mut mesh.hosts[0];
        let pulse = Pulse::start(&host.netns, &host.containers[0].netns, H1, NAME)?;
        for n in 0..20 {
            let cluster = if n % 2 == 0 { &many } else { &few };
            let before = host.generation()?;
            host.write_config(&cluster.to_string())?;
            host.wait_newer(cluster, before)?;
            host.attach(1, &[])?;
            host.detach(1)?;
        }
        pulse.end()?.expect_steady("while networks come and go")
    });
}

/// Hangs for as long as a file `hang` is beside it.
fn hanging(mesh: &Topology, program: &str) -> Result<(PathBuf, PathBuf)> {
    let bin = mesh.dir.join("bin");
    fs::create_dir_all(&bin)?;
    let (script, hang) = (bin.join(program), bin.join("hang"));
    let text = format!(
        "#!/bin/sh\n[ -e {} ] && sleep 1000\nPATH=${{PATH#*:}}\nexec {program} \"$@\"\n",
        hang.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok((bin, hang))
}

#[test]
fn an_nft_that_hangs_stops_no_names_and_is_said() {
    bare(OPTIONS, |mesh| {
        let (bin, hang) = hanging(mesh, "nft")?;
        let before =
            format!("sysctl -qw net.ipv4.ip_forward=1\nexport PATH={}:$PATH", bin.display());
        up(mesh, &before)?;
        let host = &mut mesh.hosts[0];
        let pulse = Pulse::start(&host.netns, &host.containers[0].netns, H1, NAME)?;
        fs::write(&hang, "")?;
        // The kernel tells the agent, which makes its table anew.
        host.netns.exec("nft flush ruleset")?;
        wait::until("a caller to be told what it waits for", LIMIT, || {
            let asked = host.try_mesh(&["status"]).map_err(|e| format!("{e:#}"))?;
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            let is_told = said.contains("has been busy with a look at everything on this host");
            if is_told { Ok(()) } else { Err(said) }
        })?;
        let fault = |text: &str, status: &serde_json::Value| {
            status["all_faults"].to_string().contains(text)
        };
        wait::until("the fault", LIMIT, || {
            let status = host.status().map_err(|e| format!("{e:#}"))?;
            let is_said = fault("did not end within 10 s and was killed", &status)
                || fault("not run, since it did not end", &status);
            if is_said { Ok(()) } else { Err(status["all_faults"].to_string()) }
        })?;
        host.attach(1, &[])?;
        pulse.end()?.expect_steady("while nft hangs")?;
        fs::remove_file(&hang)?;
        wait::until("the table", MENDED, || {
            let there = host.netns.exec("nft list table inet mesh_guard");
            there.map(drop).map_err(|e| format!("{e:#}"))
        })?;
        wait::until("no fault", LIMIT, || {
            let status = host.status().map_err(|e| format!("{e:#}"))?;
            if fault("nft", &status) { Err(status["all_faults"].to_string()) } else { Ok(()) }
        })
    });
}

#[test]
fn long_messages_of_another_agent_hold_up_no_names() {
    let options = Options { hosts: 2, ..OPTIONS };
    bare(options, |mesh| {
        let cluster = mesh.cluster.clone();
        let [one, other] = &mut mesh.hosts[..] else { unreachable!() };
        other.up(&cluster)?;
        // Its data plane stays, and we speak in its place.
        other.kill9();
        let other = other.netns.clone();
        one.up(&cluster)?;
        cni::add(one, 0)?;
        let asker = &one.containers[0].netns;
        dns::wait_known(asker, H1, NAME)?;
        let pulse = Pulse::start(&one.netns, asker, H1, NAME)?;
        let names = r#"{"names":["web"],"addresses":["10.42.2.9"]},"#.repeat(80_000);
        let names = names.trim_end_matches(',');
        for count in 1..=10 {
            let news = format!(
                r#"{{"node":"h2","have":null,"view":{{"networks":{{"default":[{names}]}}}},
                    "version":{{"epoch":1,"count":{count}}},"networks":[]}}"#
            );
            post(&other, 700 + count, news.as_bytes())?;
        }
        pulse.end()?.expect_steady("while another agent tells a lot")
    });
}

/// Tells the agent of the first host something, as that of the second, and waits for the answer.
fn post(from: &Netns, port: u16, body: &[u8]) -> Result<()> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let own = SocketAddr::from(([10, 42, 2, 1], port));
    let socket = from.run(|| Ok(socket(AddressFamily::INET, SocketType::STREAM, None)?))?;
    bind(&socket, &own)?;
    connect(&socket, &SocketAddr::new(H1, 7473))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::patient(LIMIT)))?;
    let head =
        format!("POST /v1/exchange HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
