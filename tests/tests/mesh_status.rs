//! What is wrong: told in one place, to people and to what watches a host, also where the agent does not
//! tell it.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Encap, Host, Options, Topology, host::mesh_binary, netns::check, scenario, scenario::bare, wait,
};
use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;

const ONE: Options = Options { hosts: 1, ipv6: false, ..Options::DEFAULT };
const SOON: Duration = Duration::from_secs(40);

/// `mesh status --check`: its exit code and what it printed.
fn checked(host: &Host) -> Result<(i32, String)> {
    let output = host.try_mesh(&["status", "--check"])?;
    let code = output.status.code().context("ended by a signal")?;
    Ok((code, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Waits until it is so.
fn wait_checked(host: &Host, code: i32, text: &str) -> Result<()> {
    wait::until(&format!("exit code {code} and {text:?}"), SOON, || {
        let (found, said) = checked(host).map_err(|e| format!("{e:#}"))?;
        let fits = found == code && said.contains(text);
        if fits { Ok(()) } else { Err(format!("{found}: {said}")) }
    })
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

#[test]
fn what_is_wrong_now_stands_in_one_place_and_what_was_apart_from_it() {
    bare(ONE, |mesh| {
        mesh.up()?;
        let cluster = mesh.cluster.clone();
        let host = &mesh.hosts[0];
        ensure!(checked(host)? == (0, String::new()), "{:?}", checked(host)?);
        let text = host.run_mesh(&["status"])?;
        ensure!(!text.contains("FAULTS"), "{text}");
        // A file that makes no sense.
        host.write_config("[cluster]\nname = 7\n")?;
        wait_checked(host, 3, "the config file is not applied")?;
        let faults = json(&host.try_mesh(&["status", "--check", "--json"])?)?["faults"].clone();
        ensure!(
            faults[0]["of"] == "host" && faults.as_array().map(Vec::len) == Some(1),
            "{faults}"
        );
        let status = host.status()?;
        ensure!(status["all_faults"] == faults && status["config_error"].is_string(), "{status}");
        ensure!(status["faults"][0] == faults[0]["fault"], "{status}");
        let text = host.run_mesh(&["status"])?;
        ensure!(text.contains("\nFAULTS\n") && !text.contains("PAST FAULTS"), "{text}");
        // Mended. A bridge that is not there, beside it.
        let mut bridged = cluster.clone();
        bridged.bridges = vec!["br-none".into()];
        host.write_config(&bridged.to_string())?;
        wait_checked(host, 3, "bridge br-none")?;
        let status = host.status()?;
        let (all, bridge) = (&status["all_faults"], &status["bridges"][0]);
        ensure!(all[0]["of"] == "bridge" && all[0]["name"] == "br-none", "{all}");
        ensure!(all[0]["fault"] == bridge["faults"][0], "{all} {bridge}");
        ensure!(all.as_array().map(Vec::len) == Some(1), "{all}");
        host.write_config(&cluster.to_string())?;
        wait_checked(host, 0, "")?;
        let text = host.run_mesh(&["status"])?;
        let (_, past) = text.split_once("\nPAST FAULTS\n").context(text.clone())?;
        ensure!(past.contains("the config file is not applied"), "{text}");
        ensure!(past.contains("bridge br-none") && !text.contains("\nFAULTS\n"), "{text}");
        ensure!(host.status()?["past_faults"].as_array().map(Vec::len) == Some(2));
        // Each change is logged once.
        let log = fs::read_to_string(&host.log)?;
        let count = |what: &str| log.matches(what).count();
        ensure!(count("is not applied") == 2 && count("bridge br-none") == 2, "{log}");
        Ok(())
    });
}

#[test]
fn a_host_without_an_agent_is_told_apart() {
    bare(ONE, |mesh| {
        let (code, said) = checked(&mesh.hosts[0])?;
        ensure!(code == 4 && said.contains("not up") && said.contains("mesh up"), "{code}: {said}");
        mesh.up()?;
        let host = &mut mesh.hosts[0];
        ensure!(checked(host)?.0 == 0);
        host.kill9();
        let (code, said) = checked(host)?;
        ensure!(code == 4 && said.contains("no agent runs"), "{code}: {said}");
        let output = host.try_mesh(&["status", "--check", "--json"])?;
        ensure!(json(&output)?["faults"][0]["of"] == "agent", "{output:?}");
        // Shown all the same.
        let text = host.run_mesh(&["status"])?;
        ensure!(text.contains("h1c1") && text.contains("no agent runs"), "{text}");
        Ok(())
    });
}

/// `mesh ARGS`, which must fail with this code and say that the agent is stopped.
fn finds_it_stopped(host: &Host, pid: u32, args: &[&str], code: i32) -> Result<()> {
    let output = host.try_mesh(args)?;
    let said = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
    let said = said.concat();
    ensure!(output.status.code() == Some(code), "{args:?}: {}: {said}", output.status);
    ensure!(
        said.contains(&format!("process {pid}")) && said.contains("stopped"),
        "{args:?}: {said}"
    );
    ensure!(said.contains(&format!("kill -CONT {pid}")), "{args:?}: {said}");
    Ok(())
}

/// Goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn agent(host: &Host) -> Result<(Self, u32)> {
        let id = host.pid().context("no agent")?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("pid")?;
        kill_process(pid, Signal::STOP)?;
        Ok((Self(pid), id))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_stopped_agent_is_said_to_be_stopped_by_all_who_call_it() {
    bare(Options { containers: 2, ..ONE }, |mesh| {
        mesh.up()?;
        mesh.hosts[0].detach(1)?;
        let host = &mesh.hosts[0];
        let other = host.containers[1].netns.path();
        let other = other.to_str().context("path")?;
        let (stopped, pid) = Stopped::agent(host)?;
        let calls: [(&[&str], i32); 8] = [
            (&["status"], 1),
            (&["status", "--json"], 1),
            (&["status", "--check"], 4),
            (&["attach", other, "--name", "late"], 1),
            (&["detach", "h1c1"], 1),
            (&["down"], 1),
            (&["docker", "configure", "--dry-run"], 1),
            (&["cni", "install", "--dry-run"], 1),
        ];
        thread::scope(|scope| {
            let call = |(args, code)| scope.spawn(move || finds_it_stopped(host, pid, args, code));
            let calls: Vec<_> = calls.map(call).into_iter().collect();
            calls.into_iter().try_for_each(|call| match call.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        drop(stopped);
        // What was to go is gone. What else was asked for is not done for those who were told no.
        wait::until("the endpoint to go", SOON, || {
            let status = host.status().map_err(|e| format!("{e:#}"))?;
            let names = status["endpoints"].as_array().map(Vec::len);
            if names == Some(0) { Ok(()) } else { Err(status["endpoints"].to_string()) }
        })?;
        ensure!(checked(host)?.0 == 0);
        Ok(())
    });
}

#[test]
fn an_agent_that_hears_nobody_any_more_keeps_nobody() {
    scenario(ONE, |mesh| {
        let host = &mesh.hosts[0];
        let (_stopped, pid) = Stopped::agent(host)?;
        // Whoever connects and leaves stays in the queue until it is heard.
        let socket = SocketAddrUnix::new(host.run_dir.join("mesh.sock"))?;
        let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
        let is_full = (0..100_000).any(|_| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = rustix::net::socket_with(unix, stream, flags, None);
            fd.is_ok_and(|fd| rustix::net::connect(fd, &socket) == Err(rustix::io::Errno::AGAIN))
        });
        ensure!(is_full, "the queue has no end");
        finds_it_stopped(host, pid, &["status", "--check"], 4)?;
        finds_it_stopped(host, pid, &["down"], 1)
    });
}

/// A process in a container's namespace, ended when this is dropped.
struct Resident(Child);

impl Resident {
    fn of(mesh: &Topology) -> Result<Self> {
        let netns = &mesh.hosts[0].containers[0].netns;
        Ok(Self(netns.command("sleep").arg("600").spawn().context("sleep")?))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn a_live_change_of_mtu_reaches_containers_or_is_a_fault_until_it_does() {
    bare(ONE, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        let (first, second) = (Resident::of(mesh)?, Resident::of(mesh)?);
        let pid = first.0.id().to_string();
        mesh.hosts[0].run_mesh(&["attach", &pid, "--name", "x"])?;
        // The path that it was attached by goes with the process, and the namespace does not.
        drop(first);
        let netns = mesh.hosts[0].containers[0].netns.clone();
        let mtu = |n| {
            let mut cluster = cluster.clone();
            cluster.mtu = Some(n);
            cluster
        };
        mesh.apply(&mtu(1300))?;
        ensure!(netns.mtu("eth0")? == 1300, "MTU {}", netns.mtu("eth0")?);
        ensure!(checked(&mesh.hosts[0])?.0 == 0, "{:?}", checked(&mesh.hosts[0])?);
        // Nobody is in it any more.
        drop(second);
        mesh.apply(&mtu(1250))?;
        wait_checked(&mesh.hosts[0], 3, "it keeps its MTU of 1300, though the mesh now has 1250")?;
        let (_, said) = checked(&mesh.hosts[0])?;
        ensure!(said.contains("endpoint x") && said.contains("attach it again"), "{said}");
        ensure!(netns.mtu("eth0")? == 1300);
        // Tried again at each look, which any change of the network causes.
        let _third = Resident::of(mesh)?;
        wait::until("the MTU to be followed", SOON, || {
            let change =
                "route add blackhole 198.51.100.0/24\nroute del blackhole 198.51.100.0/24\n";
            mesh.hosts[0].netns.ip_batch(change).map_err(|e| format!("{e:#}"))?;
            let now = netns.mtu("eth0").map_err(|e| format!("{e:#}"))?;
            if now == 1250 { Ok(()) } else { Err(now.to_string()) }
        })?;
        wait_checked(&mesh.hosts[0], 0, "")
    });
}

/// `mesh ARGS` on a host whose Docker is told of this server, and whose config file is `cluster`.
fn with_dns(host: &Host, dns: &str, cluster: &str, args: &[&str]) -> Result<Output> {
    const SCRIPT: &str = "set -e; mount -t tmpfs none /etc; mkdir /etc/docker /etc/mesh; \
        printf '{\"dns\": [\"%s\"]}' \"$1\" > /etc/docker/daemon.json; \
        printf %s \"$2\" > /etc/mesh/cluster.toml; shift 2; exec \"$@\"";
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh", dns, cluster]).arg(mesh_binary()?);
    command.arg("--run-dir").arg(&host.run_dir).arg("--pin-dir").arg(&host.pin_dir);
    command.arg("--state-dir").arg(&host.state_dir);
    let output = command.args(args).stdin(Stdio::null()).output().context("unshare")?;
    ensure!(output.status.signal().is_none(), "{output:?}");
    Ok(output)
}

#[test]
fn a_docker_that_asks_an_agent_that_is_not_there_is_said() {
    scenario(ONE, |mesh| {
        let cluster = mesh.cluster.to_string();
        let host = &mut mesh.hosts[0];
        let fault = "`dns` in /etc/docker/daemon.json names the agent of this host (10.42.1.1)";
        let says = |host: &Host, dns: &str, args: &[&str]| -> Result<(Option<i32>, bool)> {
            let output = with_dns(host, dns, &cluster, args)?;
            let said = String::from_utf8_lossy(&output.stdout).replace("\\n", " ");
            Ok((output.status.code(), said.contains(fault)))
        };
        ensure!(says(host, "10.42.1.1", &["status", "--check"])? == (Some(0), false));
        host.kill9();
        ensure!(says(host, "10.42.1.1", &["status", "--check"])? == (Some(4), true));
        ensure!(says(host, "10.42.1.1", &["status"])? == (Some(0), true));
        ensure!(says(host, "10.42.1.1", &["doctor", "--json"])?.1);
        ensure!(says(host, "192.0.2.53", &["status", "--check"])? == (Some(4), false));
        // By the config file, where nothing else is left.
        host.down()?;
        ensure!(says(host, "10.42.1.1", &["status", "--check"])? == (Some(4), true));
        ensure!(says(host, "10.42.1.1", &["doctor", "--json"])?.1);
        Ok(())
    });
}

/// Status and value of a finding of the doctor's.
fn finding(report: &Value, name: &str) -> Result<(String, String)> {
    let findings = report["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|f| f["name"] == name);
    let found = found.with_context(|| format!("no {name} in {report}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok((text(&found["status"]), text(&found["value"])))
}

#[test]
fn the_doctor_looks_at_the_running_agent_and_its_config() {
    scenario(Options { encap: Encap::Vxlan, ..ONE }, |mesh| {
        let host = &mesh.hosts[0];
        let doctor = |args: &[&str]| json(&host.try_mesh(&[&["doctor", "--json"], args].concat())?);
        let report = doctor(&[])?;
        let last = host.run_dir.join("cluster.toml").display().to_string();
        let (status, value) = finding(&report, "config")?;
        ensure!(status == "ok" && value.contains(&last), "{status} {value}");
        ensure!(finding(&report, "agent")?.0 == "ok", "{report}");
        // One that is named and not there is an error, and how to make it is said.
        let missing =
            Command::new(mesh_binary()?).args(["doctor", "--config", "/no/such"]).output()?;
        let said = String::from_utf8_lossy(&missing.stderr).into_owned();
        ensure!(missing.status.code() == Some(1) && said.contains("mesh init"), "{missing:?}");
        // One that makes no sense is said, and so is what the agent knows.
        let bad = host.config.with_extension("bad");
        fs::write(&bad, "[cluster]\nname = 7\n")?;
        let report = doctor(&["--config", bad.to_str().context("path")?])?;
        ensure!(finding(&report, "config")?.0 == "warn", "{report}");
        host.write_config("[cluster]\nname = 7\n")?;
        wait_checked(host, 3, "not applied")?;
        let report = doctor(&[])?;
        let (status, value) = finding(&report, "agent")?;
        ensure!(status == "warn" && value.ends_with(": 1"), "{status} {value}");
        let (_stopped, _) = Stopped::agent(host)?;
        let (status, value) = finding(&doctor(&[])?, "agent")?;
        ensure!(status == "warn" && value.contains("stopped"), "{status} {value}");
        Ok(())
    });
}

#[test]
fn check_says_what_it_could_not_look_at() {
    scenario(ONE, |mesh| {
        let host = &mesh.hosts[0];
        let mut setpriv = host.netns.command("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        setpriv.stdin(fs::File::open(mesh_binary()?)?).arg("/proc/self/fd/0");
        setpriv.arg("--run-dir").arg(&host.run_dir);
        let output = setpriv.args(["status", "--check"]).output().context("setpriv")?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        check("mesh status", &host.try_mesh(&["status"])?)
    });
}
