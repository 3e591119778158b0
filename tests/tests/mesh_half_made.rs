//! An endpoint is there or it is not, whatever ends an agent, fills its disk or renames an interface
//! meanwhile.

use std::{
    fs,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Options, SmallDisk, Topology, scenario, wait};

const ONE: Options = Options::DEFAULT;
const TWO: Options = Options { containers: 2, ..ONE };
/// No agent says or does anything later than this.
const LATEST: Duration = Duration::from_secs(10);

/// Of the container of that index: has it an interface of the mesh, with an address?
fn has_address(host: &Host, index: usize) -> Result<bool> {
    let addresses = host.containers[index].netns.exec("ip -o -4 addr show scope global")?;
    Ok(!addresses.trim().is_empty())
}

fn links_of(host: &Host) -> Result<Vec<String>> {
    let text = host.netns.exec("ip -j link show")?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let name = |l: &serde_json::Value| l["ifname"].as_str().unwrap_or_default().to_owned();
    Ok(links.iter().map(name).collect())
}

/// Starts `mesh attach` for the only container, and returns once the run folder knows of it, or the
/// command is done.
fn attach_until_noted(host: &Host) -> Result<std::process::Child> {
    let container = &host.containers[0];
    let path = container.netns.path();
    let mut mesh = host.mesh()?;
    mesh.args(["attach", path.to_str().context("path")?, "--name", &container.name]);
    mesh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = mesh.spawn().context("start mesh attach")?;
    let (state, deadline) = (host.run_dir.join("state.json"), Instant::now() + LATEST);
    let is_noted = || fs::read_to_string(&state).is_ok_and(|text| text.contains("\"h1c1\""));
    while !is_noted() && child.try_wait()?.is_none() && Instant::now() < deadline {}
    Ok(child)
}

/// After `cut` ended an attach.
fn expect_whole_or_nothing(
    mesh: &mut Topology,
    cut: fn(&mut Host, Duration) -> Result<()>,
) -> Result<()> {
    let cluster = mesh.cluster.clone();
    for round in 0..12 {
        let host = &mut mesh.hosts[0];
        cut(host, Duration::from_micros(700) * round)?;
        if host.endpoint_names()?.contains(&"h1c1".into()) && !has_address(host, 0)? {
            let said = host.faults()?;
            let is_told = said.contains("\"h1c1\"") && said.contains("it is half made");
            ensure!(is_told, "round {round}: not said: {said}");
        }
        if host.is_running() {
            host.kill9();
        }
        host.up(&cluster)?;
        ensure!(host.faults()? == "[]", "round {round}: {}", host.faults()?);
        if host.endpoint_names()? == ["h1c1"] {
            ensure!(has_address(host, 0)?, "round {round}: it has no address");
            host.detach(0)?;
        }
        ensure!(host.endpoint_names()?.is_empty(), "round {round}: {:?}", host.endpoint_names()?);
        host.attach(0, &[]).with_context(|| format!("round {round}"))?;
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)?;
        mesh.hosts[0].detach(0)?;
    }
    Ok(())
}

#[test]
fn an_attach_that_the_agent_did_not_survive_is_taken_back_or_whole() {
    scenario(ONE, |mesh| {
        mesh.hosts[0].detach(0)?;
        expect_whole_or_nothing(mesh, |host, after| {
            let mut attach = attach_until_noted(host)?;
            sleep(after);
            host.kill9();
            attach.wait()?;
            Ok(())
        })
    });
}

#[test]
fn an_attach_without_an_agent_that_was_killed_is_taken_back_or_whole() {
    scenario(ONE, |mesh| {
        mesh.hosts[0].detach(0)?;
        expect_whole_or_nothing(mesh, |host, after| {
            host.kill9();
            let mut attach = attach_until_noted(host)?;
            sleep(after);
            // It may have ended by itself, which is as good.
            _ = attach.kill();
            attach.wait()?;
            Ok(())
        })
    });
}

#[test]
fn an_agent_starts_after_a_detach_on_a_full_disk() {
    scenario::bare(TWO, |mesh| {
        let (cluster, run_dir) = (mesh.cluster.clone(), mesh.hosts[0].run_dir.clone());
        let disk = SmallDisk::new(&run_dir)?;
        mesh.up()?;
        let host = &mut mesh.hosts[0];
        disk.fill()?;
        let output = host.try_mesh(&["detach", "h1c1"])?;
        ensure!(!output.status.success(), "the detach was not noted, and nobody said so");
        ensure!(host.endpoint_names()? == ["h1c2"] && !has_address(host, 0)?, "it is not detached");
        host.kill9();
        host.up(&cluster)?;
        ensure!(host.endpoint_names()? == ["h1c2"], "{:?}", host.endpoint_names()?);
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("make room"), "{said}");
        ensure!(host.faults()?.contains("make room"), "{}", host.faults()?);
        mesh.party("h1c2")?.expect_reaches(&mesh.party("h2c1")?)?;
        disk.make_room()?;
        let host = &mut mesh.hosts[0];
        host.attach(0, &[])?;
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h1c2")?)?;
        mesh.hosts.iter_mut().for_each(Host::kill9);
        Ok(())
    });
}

#[test]
fn an_agent_starts_on_a_full_disk_and_says_so_until_there_is_room() {
    scenario::bare(TWO, |mesh| {
        let (cluster, run_dir) = (mesh.cluster.clone(), mesh.hosts[0].run_dir.clone());
        let disk = SmallDisk::new(&run_dir)?;
        disk.fill()?;
        let host = &mut mesh.hosts[0];
        host.up(&cluster)?;
        let said = host.faults()?;
        ensure!(said.contains("state.json") && said.contains("/lock"), "{said}");
        ensure!(said.contains("cluster.toml") && said.contains("make room"), "{said}");
        let netns = host.containers[0].netns.path();
        let netns = netns.to_str().context("path")?;
        let output = host.try_mesh(&["attach", netns, "--name", "h1c1"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("make room"), "{said}");
        ensure!(host.endpoint_names()?.is_empty() && !has_address(host, 0)?, "it is attached");
        disk.make_room()?;
        // The state is written at the next look.
        wait::until("no fault", LATEST * 6, || match host.faults() {
            Ok(faults) if faults == "[]" => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        host.attach(0, &[])?;
        host.kill9();
        host.up(&cluster)?;
        ensure!(host.endpoint_names()? == ["h1c1"], "{:?}", host.endpoint_names()?);
        mesh.hosts.iter_mut().for_each(Host::kill9);
        Ok(())
    });
}

/// As after a reboot, of which the run folder on a disk knows nothing.
#[test]
fn an_agent_starts_with_a_run_folder_of_before_the_reboot() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        host.kill9();
        let ours = links_of(host)?.into_iter().filter(|name| name.starts_with("mesh"));
        for name in ours {
            // The other end of a pair went with the first.
            _ = host.netns.exec(&format!("ip link del {name}"));
        }
        for pins in fs::read_dir(&host.pin_dir)?.flatten().map(|entry| entry.path()) {
            // Not the kernel's own files.
            if pins.is_dir() {
                fs::remove_dir_all(pins)?;
            }
        }
        host.up(&cluster)?;
        ensure!(host.endpoint_names()?.is_empty(), "{:?}", host.endpoint_names()?);
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        host.attach(0, &[])?;
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)
    });
}

#[test]
fn a_renamed_host_end_is_followed_and_goes_with_its_endpoint() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        for is_away in [false, true] {
            let host = &mut mesh.hosts[0];
            let old = host.containers[0].given()?.host_ifname.clone();
            if is_away {
                host.kill9();
            }
            host.netns.exec(&format!("ip link set {old} down"))?;
            host.netns.exec(&format!("ip link set {old} name renamed0 up"))?;
            if is_away {
                host.up(&cluster)?;
            }
            wait::until("the agent to know the new name", LATEST, || {
                let status = host.status().map_err(|e| format!("{e:#}"))?;
                let name = status["endpoints"][0]["host_ifname"].clone();
                if name == "renamed0" { Ok(()) } else { Err(name.to_string()) }
            })?;
            mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)?;
            let host = &mut mesh.hosts[0];
            host.detach(0)?;
            ensure!(!links_of(host)?.contains(&"renamed0".into()), "the interface is still there");
            host.attach(0, &[])?;
            mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)?;
        }
        Ok(())
    });
}

#[test]
fn endpoints_are_found_again_with_all_that_can_be_known() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        let known = |host: &Host| -> Result<Vec<String>> {
            let status = host.status()?;
            let of = |e: &serde_json::Value| {
                ["name", "addresses", "ifname", "host_ifname", "mac", "mtu", "netns"]
                    .map(|key| e[key].to_string())
                    .join(" ")
            };
            Ok(status["endpoints"].as_array().context("endpoints")?.iter().map(of).collect())
        };
        // As of an endpoint with more of a record.
        let ifname = host.containers[1].given()?.host_ifname.clone();
        host.netns.exec(&format!("ip link set {ifname} alias mesh:h1c2"))?;
        let before = known(host)?;
        host.kill9();
        fs::remove_file(host.run_dir.join("state.json"))?;
        host.up(&cluster)?;
        ensure!(known(host)? == before, "{:?} was {before:?}", known(host)?);
        let said = host.faults()?;
        // Only the second had more than is in the kernel.
        ensure!(said.contains("it was found again") && !said.contains("h1c1"), "{said}");
        // Attached anew, it has a record again.
        host.detach(1)?;
        host.attach(1, &[])?;
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)
    });
}
