//! The agent starts, whatever became of the host and of its run folder while it was away.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Host, Options, Topology, flow, netns::ip_batch, ping, scenario, scenario::bare, wait,
};

const TWO: Options = Options { containers: 2, ..Options::DEFAULT };
/// No agent says anything later than this.
const SAID: Duration = Duration::from_secs(10);

/// Ends a container, as far as the kernel is concerned: its interface goes with it.
fn end_container(mesh: &mut Topology, host: usize, index: usize) -> Result<()> {
    let container = mesh.hosts[host].containers.remove(index);
    let host_ifname = container.given()?.host_ifname.clone();
    ip_batch(&format!("netns del {}\n", container.netns.name()))?;
    drop(container);
    let netns = &mesh.hosts[host].netns;
    wait::until_true("the interface to go with its namespace", SAID, || {
        netns.exec(&format!("ip link show dev {host_ifname}")).is_err()
    })
}

fn container_ends_while_the_agent_is_away(mode: &'static str, leave: fn(&mut Host) -> Result<()>) {
    bare(TWO, |mesh| {
        mesh.hosts[0].attach_mode = Some(mode);
        mesh.up()?;
        let (cluster, away) = (mesh.cluster.clone(), &mut mesh.hosts[0]);
        leave(away)?;
        end_container(mesh, 0, 0)?;
        mesh.hosts[0].up(&cluster)?;
        ensure!(
            mesh.hosts[0].endpoint_names()? == ["h1c2"],
            "{:?}",
            mesh.hosts[0].endpoint_names()?
        );
        ensure!(mesh.hosts[0].faults()? == "[]", "{}", mesh.hosts[0].faults()?);
        let [one, two] = [mesh.party("h1c2")?, mesh.party("h2c1")?];
        one.expect_reaches(&two)
    });
}

#[test]
fn a_container_that_ended_while_the_agent_was_killed_is_forgotten() {
    let kill = |host: &mut Host| {
        host.kill9();
        Ok(())
    };
    container_ends_while_the_agent_is_away("tcx", kill);
    container_ends_while_the_agent_is_away("clsact", kill);
}

#[test]
fn a_container_that_ended_while_the_agent_was_down_is_forgotten() {
    container_ends_while_the_agent_is_away("tcx", Host::stop);
}

/// Somebody else has our place among the filters of an interface.
#[test]
fn one_endpoint_that_can_not_have_its_program_stops_no_other() {
    bare(TWO, |mesh| {
        mesh.hosts[0].attach_mode = Some("clsact");
        mesh.up()?;
        let cluster = mesh.cluster.clone();
        let host_ifname = mesh.hosts[0].containers[0].given()?.host_ifname.clone();
        let host = &mut mesh.hosts[0];
        host.kill9();
        let place = format!("dev {host_ifname} ingress prio 28005 protocol all");
        host.netns.exec(&format!("tc filter del {place}"))?;
        host.netns.exec(&format!("tc filter add {place} u32 match u32 0 0 flowid 1:1"))?;
        host.up(&cluster)?;
        let said = host.faults()?;
        ensure!(
            said.contains("\"h1c1\"")
                && said.contains("it sends nothing")
                && said.contains("attach"),
            "{said}"
        );
        mesh.party("h1c2")?.expect_reaches(&mesh.party("h2c1")?)?;
        // Mended, it is no fault any more.
        let host = &mut mesh.hosts[0];
        host.kill9();
        host.netns.exec(&format!("tc filter del {place}"))?;
        host.up(&cluster)?;
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)
    });
}

type Spoil = fn(&Path) -> io::Result<()>;

/// What may become of a file.
const SPOILED: [(&str, Spoil); 5] = [
    ("emptied", |path| fs::write(path, "")),
    ("cut", |path| {
        let bytes = fs::read(path)?;
        fs::write(path, &bytes[..bytes.len() / 2])
    }),
    ("garbage", |path| fs::write(path, [0xff; 300])),
    ("a folder", |path| {
        fs::remove_file(path)?;
        fs::create_dir(path)
    }),
    ("a FIFO", |path| {
        fs::remove_file(path)?;
        make_fifo(path)
    }),
];

/// Nobody writes into it.
fn make_fifo(path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

#[test]
fn a_fifo_in_place_of_a_file_of_the_state_folder_keeps_no_agent_from_its_start() {
    bare(Options { hosts: 1, containers: 0, ..TWO }, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        fs::create_dir_all(&host.state_dir)?;
        for name in ["host.json", "docker.json"] {
            let path = host.state_dir.join(name);
            // The agent before may have made one.
            _ = fs::remove_file(&path);
            make_fifo(&path)?;
            host.up(&cluster).with_context(|| name)?;
            let said = host.faults()?;
            ensure!(said.contains(&format!("{name}.spoiled-1")), "{name}: {said}");
            remove(&host.state_dir.join(format!("{name}.spoiled-1")))?;
            // Looked at by who asks, and not half a minute later.
            ensure!(host.faults()? == "[]", "{}", host.faults()?);
            host.kill9();
        }
        Ok(())
    });
}

#[test]
fn a_spoiled_file_of_the_run_folder_is_set_aside_and_nothing_is_lost() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let flows = flow::start_all(&[(&one, &far), (&far, &one)])?;
        let host = &mut mesh.hosts[0];
        let before = host.endpoint_names()?;
        for name in ["state.json", "cluster.toml", "docker.json"] {
            for (how, spoil) in SPOILED {
                host.kill9();
                let path = host.run_dir.join(name);
                if name == "docker.json" && !path.exists() {
                    fs::write(&path, "{}")?;
                }
                spoil(&path).with_context(|| format!("{name} {how}"))?;
                host.up(&cluster).with_context(|| format!("{name} {how}"))?;
                ensure!(
                    host.endpoint_names()? == before,
                    "{name} {how}: {:?}",
                    host.endpoint_names()?
                );
                let kept = host.run_dir.join(format!("{name}.spoiled-1"));
                let said = host.faults()?;
                let is_said = said.contains(&kept.display().to_string());
                // The folder is not looked at before something is to be written there.
                ensure!(kept.exists() && is_said, "{name} {how}: {said}");
                remove(&kept)?;
                wait::until("the fault to go", SAID, || {
                    let said = host.faults().map_err(|e| format!("{e:#}"))?;
                    if said.contains(".spoiled") { Err(said) } else { Ok(()) }
                })?;
            }
        }
        flows.iter().try_for_each(|flow| flow.wait_for(50))?;
        flow::expect_no_loss(flows)
    });
}

#[test]
fn down_says_that_it_removes_a_spoiled_file_that_was_kept() {
    bare(Options { hosts: 1, containers: 0, ..TWO }, |mesh| {
        mesh.up()?;
        let host = &mut mesh.hosts[0];
        host.kill9();
        let kept = host.run_dir.join("state.json.spoiled-1");
        fs::write(&kept, "{")?;
        let output = host.try_mesh(&["down"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && !kept.exists(), "{output:?}");
        ensure!(said.contains(&kept.display().to_string()), "{said}");
        Ok(())
    });
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[test]
fn commands_say_what_a_spoiled_state_means_and_cut_nothing() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let (one, two) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let host = &mut mesh.hosts[0];
        host.kill9();
        fs::write(host.run_dir.join("state.json"), "{\"node\": ")?;
        // Who only looks leaves it where it is.
        for args in [&["status"][..], &["status", "--check"], &["status", "--json"]] {
            host.try_mesh(args)?;
            ensure!(fs::read(host.run_dir.join("state.json"))? == b"{\"node\": ", "{args:?}");
        }
        for args in [&["status"][..], &["detach", "h1c1"], &["status"]] {
            let output = host.try_mesh(args)?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "{args:?} was not refused");
            ensure!(said.contains("`mesh up --config FILE`"), "{args:?}: {said}");
            ensure!(!said.contains("mesh down"), "{args:?}: {said}");
        }
        ping::expect_ping(&one.netns, two.address(false)?)?;
        host.up(&cluster)?;
        ensure!(host.endpoint_names()? == ["h1c1", "h1c2"], "{:?}", host.endpoint_names()?);
        host.down()?;
        ensure!(!host.run_dir.exists(), "`mesh down` left {}", host.run_dir.display());
        Ok(())
    });
}

#[test]
fn a_missing_config_file_is_said_with_the_way_to_one() {
    bare(Options { containers: 0, ..TWO }, |mesh| {
        let host = &mesh.hosts[0];
        let output = host.try_mesh(&["up", "--config", "/no/such/mesh.toml"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "it was not refused");
        ensure!(said.contains("`mesh init`") && said.contains("--config"), "{said}");
        Ok(())
    });
}
