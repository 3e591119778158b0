//! The agent ends, is killed, and comes back.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Flow, Host, Options, Topology, flow, host::mesh_binary, party::pairs, ping, scenario,
    scenario::bare,
};

const TWO: Options = Options { containers: 2, ..Options::DEFAULT };

/// Between hosts, both ways and families, and between the containers of one host.
fn flows(mesh: &Topology) -> Result<Vec<Flow>> {
    let (one, neighbour, far) = (mesh.party("h1c1")?, mesh.party("h1c2")?, mesh.party("h2c1")?);
    flow::start_all(&[(&one, &far), (&far, &one), (&one, &neighbour)])
}

fn wait_for(flows: &[Flow], count: u64) -> Result<()> {
    flows.iter().try_for_each(|flow| flow.wait_for(count))
}

#[test]
fn agents_killed_and_restarted_under_traffic_lose_nothing() {
    scenario(TWO, |mesh| {
        let (flows, cluster) = (flows(mesh)?, mesh.cluster.clone());
        for _ in 0..3 {
            mesh.hosts.iter_mut().for_each(Host::kill9);
            wait_for(&flows, 50)?;
            mesh.hosts.iter_mut().try_for_each(|host| host.up(&cluster))?;
            wait_for(&flows, 50)?;
        }
        flow::expect_no_loss(flows)
    });
}

#[test]
fn agent_asked_to_end_exits_with_success_and_traffic_flows_on() {
    scenario(TWO, |mesh| {
        let flows = flows(mesh)?;
        mesh.hosts.iter_mut().try_for_each(Host::stop)?;
        wait_for(&flows, 50)?;
        flow::expect_no_loss(flows)
    });
}

#[test]
fn attached_container_survives_an_agent_restart() {
    scenario(Options { containers: 3, ..TWO }, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        host.detach(2)?;
        host.kill9();
        host.up(&cluster)?;
        let names = |host: &Host| -> Result<Vec<String>> {
            let status = host.status()?;
            let endpoints = status["endpoints"].as_array().context("endpoints")?.iter();
            let mut names: Vec<_> =
                endpoints.map(|e| e["name"].as_str().unwrap_or_default().to_owned()).collect();
            names.sort();
            Ok(names)
        };
        ensure!(names(host)? == ["h1c1", "h1c2"], "{:?}", names(host)?);
        // The new agent knows which addresses are taken.
        host.attach(2, &[])?;
        ensure!(names(host)? == ["h1c1", "h1c2", "h1c3"], "{:?}", names(host)?);
        host.detach(0)?;
        ensure!(names(host)? == ["h1c2", "h1c3"], "{:?}", names(host)?);
        let parties = mesh.parties()?;
        ensure!(parties.len() == 5);
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))
    });
}

#[test]
fn config_changed_while_the_agent_was_dead_is_applied_by_the_next() {
    bare(Options { hosts: 3, containers: 1, ..TWO }, |mesh| {
        mesh.up()?;
        let [one, two, three] = [mesh.party("h1c1")?, mesh.party("h2c1")?, mesh.party("h3c1")?];
        mesh.hosts[0].kill9();
        let smaller = mesh.cluster.clone().without_node("h3");
        mesh.hosts[0].up(&smaller)?;
        one.expect_cut_off_from(&three)?;
        one.expect_reaches(&two)
    });
}

#[test]
fn once_applies_and_exits_and_the_data_plane_works() {
    bare(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        mesh.hosts.iter_mut().try_for_each(|host| host.up_once(&cluster))?;
        let [one, two] = [mesh.hosts[0].party()?, mesh.hosts[1].party()?];
        one.expect_reaches(&two)?;
        // Twice changes nothing.
        mesh.hosts.iter_mut().try_for_each(|host| host.up_once(&cluster))?;
        two.expect_reaches(&one)?;
        // And an agent takes over what it left.
        mesh.up()?;
        let parties = mesh.parties()?;
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))
    });
}

#[test]
fn second_agent_with_the_same_run_folder_is_refused() {
    scenario(TWO, |mesh| {
        let host = &mesh.hosts[0];
        let config = host.config.to_str().context("path")?;
        let second = host.try_mesh(&["up", "--config", config, "--node", "h1"])?;
        ensure!(!second.status.success() && !second.stderr.is_empty(), "{second:?}");
        let [one, two] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        ping::expect_ping(&one.netns, two.address(false)?)
    });
}

/// As `sudo` without MESH_RUN_DIR.
#[test]
fn nobody_with_another_run_folder_touches_the_mesh_of_an_agent() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        let config = host.config.to_str().context("path")?.to_owned();
        let container = host.containers[0].netns.name().to_owned();
        let (own, other) = (host.run_dir.clone(), host.run_dir.with_extension("other"));
        let expected = [
            format!("process {} ", host.pid().context("no agent")?),
            format!("--run-dir {}", own.display()),
        ];
        let up = ["up", "--config", &config, "--node", "h1"];
        let once = [&up[..], &["--once"]].concat();
        let attach = ["attach", &container, "--name", "other"];
        host.run_dir.clone_from(&other);
        for args in [&up[..], &once, &attach, &["detach", "h1c1"], &["status"], &["down"]] {
            let output = host.try_mesh(args)?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "{args:?} was not refused");
            ensure!(expected.iter().all(|text| said.contains(text)), "{args:?}: {said}");
            ensure!(!other.exists(), "{args:?} left its run folder behind");
        }
        host.run_dir = own;
        let [one, two] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        one.expect_reaches(&two)?;
        // It is free as soon as the agent is gone, however it went.
        let host = &mut mesh.hosts[0];
        host.kill9();
        host.up(&cluster)?;
        host.down()?;
        host.run_dir = other;
        host.up(&cluster)?;
        host.down()
    });
}

#[test]
fn another_pin_folder_than_the_one_in_use_is_refused() {
    scenario(TWO, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        host.kill9();
        let own = host.pin_dir.clone();
        let config = host.config.to_str().context("path")?.to_owned();
        host.pin_dir = own.with_extension("other");
        let output = host.try_mesh(&["up", "--once", "--config", &config, "--node", "h1"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "it was not refused");
        ensure!(said.contains(&own.display().to_string()) && said.contains("--pin-dir"), "{said}");
        // Who only looks need not know.
        host.status()?;
        host.pin_dir = own;
        host.up(&cluster)
    });
}

#[test]
fn a_user_who_may_not_look_is_told_so() {
    scenario(TWO, |mesh| {
        let host = &mesh.hosts[0];
        let mut setpriv = host.netns.command("setpriv");
        setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        // By a descriptor: the folder of the binary may be one that it can not enter.
        setpriv.stdin(File::open(mesh_binary()?)?).arg("/proc/self/fd/0");
        setpriv.arg("--run-dir").arg(&host.run_dir);
        let output = setpriv.arg("status").output().context("start setpriv (of util-linux)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && !said.contains("is not up"), "{said}");
        ensure!(said.contains("Permission denied") && said.contains("(run as root)"), "{said}");
        ensure!(said.matches("Permission denied").count() == 1, "{said}");
        Ok(())
    });
}
