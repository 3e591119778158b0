//! The config file changes while traffic flows.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    ClusterFile, Flow, Host, Options, Topology, flow, party::pairs, ping, scenario::bare, wait,
};

const THREE: Options = Options { hosts: 3, ..Options::DEFAULT };

/// Both families, both ways.
fn flows_between(mesh: &Topology, a: &str, b: &str) -> Result<Vec<Flow>> {
    let (a, b) = (mesh.party(a)?, mesh.party(b)?);
    flow::start_all(&[(&a, &b), (&b, &a)])
}

fn expect_no_loss(flows: Vec<Flow>) -> Result<()> {
    for flow in &flows {
        flow.wait_for(50)?;
    }
    flow::expect_no_loss(flows)
}

#[test]
fn added_node_is_reached_and_the_others_lose_nothing() {
    bare(THREE, |mesh| {
        let full = mesh.cluster.clone();
        mesh.cluster = full.clone().without_node("h3");
        mesh.up()?;
        let flows = flows_between(mesh, "h1c1", "h2c1")?;
        mesh.apply(&full)?;
        mesh.hosts[2].up(&full)?;
        mesh.hosts[2].attach(0, &[])?;
        let parties = mesh.parties()?;
        pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))?;
        expect_no_loss(flows)
    });
}

#[test]
fn removed_node_is_cut_off_and_the_others_lose_nothing() {
    bare(THREE, |mesh| {
        mesh.up()?;
        let [one, gone] = [mesh.party("h1c1")?, mesh.party("h3c1")?];
        gone.expect_reaches(&one)?;
        let flows = flows_between(mesh, "h1c1", "h2c1")?;
        let smaller = mesh.cluster.clone().without_node("h3");
        mesh.apply(&smaller)?;
        one.expect_cut_off_from(&gone)?;
        // h3 knows nothing of it and goes on sending.
        let before = mesh.hosts[0].drops("unknown_peer")?;
        gone.expect_cut_off_from(&one)?;
        ensure!(mesh.hosts[0].drops("unknown_peer")? > before, "what h3 sends is not counted");
        expect_no_loss(flows)
    });
}

#[test]
fn moved_node_is_reached_and_the_others_lose_nothing() {
    bare(THREE, |mesh| {
        mesh.up()?;
        let [one, mover] = [mesh.party("h1c1")?, mesh.party("h3c1")?];
        let flows = flows_between(mesh, "h1c1", "h2c1")?;
        mesh.hosts[2].netns.ip_batch("addr add 192.0.2.33/24 dev eth0\n")?;
        let moved = mesh.cluster.clone().with_underlay("h3", "192.0.2.33");
        mesh.apply(&moved)?;
        mesh.hosts[2].netns.ip_batch("addr del 192.0.2.13/24 dev eth0\n")?;
        // Without its first address the second is the primary one, or gone with it.
        mesh.hosts[2].netns.exec("ip addr replace 192.0.2.33/24 dev eth0")?;
        one.expect_reaches(&mover)?;
        mover.expect_reaches(&one)?;
        expect_no_loss(flows)
    });
}

#[test]
fn network_added_to_a_running_mesh_can_be_used() {
    bare(Options { containers: 2, ..Options::default() }, |mesh| {
        mesh.up()?;
        let flows = flows_between(mesh, "h1c1", "h2c1")?;
        let more = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        // Peers do not change by it, so wait for the generation alone.
        mesh.apply(&more)?;
        for host in &mut mesh.hosts {
            host.detach(1)?;
            host.attach(1, &["--network", "blue"])?;
        }
        mesh.party("h1c2")?.expect_reaches(&mesh.party("h2c2")?)?;
        expect_no_loss(flows)
    });
}

/// Faults of all kinds, each of a whole file.
fn bad_files(good: &ClusterFile) -> Vec<(&'static str, Vec<u8>)> {
    let good_text = good.to_string();
    let overlap = good_text.replace("10.42.2.0/24", "10.42.1.0/24");
    vec![
        ("empty", Vec::new()),
        ("not TOML", b"[cluster\n".to_vec()),
        ("unknown key", format!("nonsense = 1\n{good_text}").into_bytes()),
        ("overlapping subnets", overlap.into_bytes()),
        ("not UTF-8", [good_text.as_bytes(), b"# \xff\xfe\n"].concat()),
        ("this node removed", good.clone().without_node("h1").to_string().into_bytes()),
    ]
}

/// Waits until the agent has said something more in its log.
fn wait_for_complaint(host: &Host, logged: u64, what: &str) -> Result<()> {
    let size = || fs::metadata(&host.log).map_or(0, |m| m.len());
    wait::until_true(
        &format!("a word about a file that is: {what}"),
        Duration::from_secs(5),
        || size() > logged,
    )
}

#[test]
fn bad_file_keeps_the_last_good_state_and_is_complained_about() {
    bare(Options::default(), |mesh| {
        mesh.up()?;
        let flows = flows_between(mesh, "h1c1", "h2c1")?;
        let host = &mesh.hosts[0];
        let state = |host: &Host| -> Result<_> {
            let status = host.status()?;
            let names = status["peers"].as_array().context("peers")?.iter();
            let names: Vec<_> = names.map(|peer| peer["name"].clone()).collect();
            Ok((status["generation"].clone(), names, status["endpoints"].as_array().map(Vec::len)))
        };
        let before = state(host)?;
        for (what, text) in bad_files(&mesh.cluster) {
            let logged = fs::metadata(&host.log)?.len();
            fs::write(&host.config, text)?;
            wait_for_complaint(host, logged, what)?;
            ensure!(state(host)? == before, "{what}: the state has changed");
        }
        let good = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        mesh.apply(&good)?;
        expect_no_loss(flows)
    });
}

#[test]
fn file_that_is_removed_and_comes_back_changes_nothing() {
    bare(Options::default(), |mesh| {
        mesh.up()?;
        let flows = flows_between(mesh, "h1c1", "h2c1")?;
        fs::remove_file(&mesh.hosts[0].config)?;
        flows[0].wait_for(50)?;
        ensure!(mesh.hosts[0].status()?["peers"].as_array().map(Vec::len) == Some(1));
        let more = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        mesh.apply(&more)?;
        let [from, to] = [mesh.party("h1c1")?, mesh.party("h2c1")?];
        ping::expect_ping(&from.netns, to.address(false)?)?;
        expect_no_loss(flows)
    });
}

/// Faults of the only endpoint, as `mesh status --json` has them.
fn faults(host: &Host) -> Result<Vec<String>> {
    let faults = host.status()?["endpoints"][0]["faults"].clone();
    serde_json::from_value(faults).context("faults")
}

#[test]
fn container_without_a_place_in_the_changed_file_is_a_fault_with_the_way_out() {
    bare(Options { hosts: 1, ipv6: false, ..Options::default() }, |mesh| {
        mesh.cluster = mesh.cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        mesh.up()?;
        let first = mesh.cluster.clone();
        ensure!(faults(&mesh.hosts[0])?.is_empty());
        let mut other = first.clone();
        other.nodes[0].subnet = vec!["10.42.9.0/24".into()];
        mesh.apply(&other)?;
        let fault = "10.42.1.2 is in no subnet of h1 in network default any more: \
                     detach and attach it again";
        ensure!(faults(&mesh.hosts[0])? == [fault], "{:?}", faults(&mesh.hosts[0])?);
        let text = mesh.hosts[0].run_mesh(&["status"])?;
        ensure!(text.contains(fault) && text.contains("FAULTS"), "{text}");
        let warned = |host: &Host, fault: &str| -> Result<usize> {
            let log = fs::read_to_string(&host.log)?;
            Ok(log.lines().filter(|l| l.contains("WARN") && l.contains(fault)).count())
        };
        ensure!(warned(&mesh.hosts[0], fault)? == 1, "{}", mesh.hosts[0].log_tail());
        // The way out, and the same for a network.
        mesh.hosts[0].detach(0)?;
        mesh.hosts[0].attach(0, &["--network", "blue"])?;
        ensure!(faults(&mesh.hosts[0])?.is_empty());
        other.networks.clear();
        mesh.apply(&other)?;
        let fault = "its network, VNI 7, is not there any more: bring that back, or detach it";
        ensure!(faults(&mesh.hosts[0])? == [fault], "{:?}", faults(&mesh.hosts[0])?);
        ensure!(warned(&mesh.hosts[0], fault)? == 1, "{}", mesh.hosts[0].log_tail());
        mesh.apply(&first)?;
        ensure!(faults(&mesh.hosts[0])?.is_empty());
        Ok(())
    });
}
