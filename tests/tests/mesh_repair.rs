//! What others do to the host is put right, or is a fault until it is.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Options, flow, scenario, scenario::bare, wait};

/// Longer than the agent takes to look, and to try again.
const PATIENCE: Duration = Duration::from_secs(30);

const ONE: Options = Options { hosts: 1, ipv6: false, ..Options::DEFAULT };

fn list(host: &Host, field: &str) -> Result<Vec<String>> {
    let status = host.status()?;
    let list = status[field].as_array().context("a list")?.iter();
    let text = |value: &serde_json::Value| {
        value.as_str().or(value["fault"].as_str()).unwrap_or_default().to_owned()
    };
    Ok(list.map(text).collect())
}

fn wait_for_fault(host: &Host, words: &str) -> Result<()> {
    let faults = || list(host, "faults").map_err(|e| format!("{e:#}"));
    let fault = wait::until(&format!("the fault {words:?}"), PATIENCE, || {
        let faults = faults()?;
        match faults.iter().any(|fault| fault.contains(words)) {
            true => Ok(()),
            false => Err(format!("{faults:?}")),
        }
    });
    host.with_log(fault)
}

fn wait_for_no_fault(host: &Host) -> Result<()> {
    let none = wait::until("no fault", PATIENCE, || {
        let faults = list(host, "faults").map_err(|e| format!("{e:#}"))?;
        if faults.is_empty() { Ok(()) } else { Err(format!("{faults:?}")) }
    });
    host.with_log(none)
}

#[test]
fn underlay_address_that_goes_is_a_fault_and_the_rest_is_put_right_meanwhile() {
    scenario(Options { ipv6: false, ..Options::DEFAULT }, |mesh| {
        let host = &mesh.hosts[0];
        host.netns.exec("ip address del 192.0.2.11/24 dev eth0")?;
        let fault = "no interface of this host has 192.0.2.11, the underlay address of node h1; \
                     add it (`ip address add`)";
        wait_for_fault(host, fault)?;
        let text = host.run_mesh(&["status"])?;
        ensure!(text.contains("FAULTS") && text.contains(fault), "{text}");
        // Of another part, which does not need the address.
        host.netns.exec("ip route del 10.42.0.0/16 dev mesh0")?;
        let routes = || host.netns.exec("ip route show dev mesh0").unwrap_or_default();
        wait::until_true("the route over mesh0", PATIENCE, || routes().contains("10.42.0.0/16"))?;
        host.netns.exec("ip address add 192.0.2.11/24 dev eth0")?;
        wait_for_no_fault(host)?;
        let past = list(host, "past_faults")?;
        ensure!(past.iter().any(|past| past.contains(fault)), "{past:?}");
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)
    });
}

#[test]
fn config_file_in_a_folder_that_is_replaced_is_applied() {
    bare(ONE, |mesh| {
        let cluster = mesh.cluster.clone();
        let (etc, next) = (mesh.dir.join("etc"), mesh.dir.join("next"));
        fs::create_dir(&etc)?;
        fs::create_dir(&next)?;
        let host = &mut mesh.hosts[0];
        host.config = etc.join("mesh.toml");
        host.up(&cluster)?;
        let before = host.generation()?;
        let more = cluster.with_network("blue", 7, "10.43.0.0/16");
        fs::write(next.join("mesh.toml"), more.to_string())?;
        fs::rename(&etc, mesh.dir.join("old"))?;
        fs::rename(&next, &etc)?;
        host.wait_newer(&more, before)
    });
}

#[test]
fn config_file_behind_a_link_that_is_switched_is_applied_and_nothing_is_lost() {
    bare(Options { ipv6: false, ..Options::DEFAULT }, |mesh| {
        let cluster = mesh.cluster.clone();
        for version in ["v1", "v2"] {
            fs::create_dir_all(mesh.dir.join(version).join("mesh"))?;
        }
        let current = mesh.dir.join("current");
        std::os::unix::fs::symlink("v1", &current)?;
        mesh.hosts[0].config = current.join("mesh/mesh.toml");
        mesh.up()?;
        let (one, two) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let flows = flow::start_all(&[(&one, &two), (&two, &one)])?;
        let before = mesh.hosts[0].generation()?;
        let more = cluster.with_network("blue", 7, "10.43.0.0/16");
        fs::write(mesh.dir.join("v2/mesh/mesh.toml"), more.to_string())?;
        std::os::unix::fs::symlink("v2", mesh.dir.join("next"))?;
        fs::rename(mesh.dir.join("next"), &current)?;
        mesh.hosts[0].wait_newer(&more, before)?;
        flow::expect_no_loss(flows)
    });
}
