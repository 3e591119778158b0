//! Nodes that do not run mesh.

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Options, scenario::bare, wait};
use serde_json::Value;

const TWO: Options = Options { containers: 0, ..Options::DEFAULT };

/// h1 runs mesh, h2 does not.
const FILE: &str = "[cluster]\nname = 'c'\ncidr = '10.42.0.0/16'\n\
    [[node]]\nname = 'h1'\nunderlay = '192.0.2.11'\n\
    [[node]]\nname = 'h2'\nunderlay = '192.0.2.12'\nmanaged = false\nencap = 'vxlan'\nvni = 42\n";

fn up(host: &Host, args: &[&str]) -> Result<std::process::Output> {
    host.write_config(FILE)?;
    let config = host.config.to_str().context("path")?;
    host.try_mesh(&[&["up", "--once", "--config", config], args].concat())
}

#[test]
fn mesh_does_not_come_up_on_a_node_that_is_foreign() {
    bare(TWO, |mesh| {
        for args in [&[][..], &["--node", "h2"]] {
            let output = up(&mesh.hosts[1], args)?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "{args:?}: it came up");
            ensure!(error.contains("node h2 (192.0.2.12)"), "{args:?}: {error}");
            ensure!(error.contains("does not run mesh"), "{args:?}: {error}");
            ensure!(error.contains("--peer-commands h2"), "{args:?}: {error}");
        }
        Ok(())
    });
}

#[test]
fn status_shows_what_a_foreign_node_is() {
    bare(TWO, |mesh| {
        let host = &mesh.hosts[0];
        let output = up(host, &[])?;
        ensure!(output.status.success(), "{output:?}");
        let status = host.status()?;
        ensure!(status["encap"] == "gre", "{status}");
        let peer = &status["peers"][0];
        ensure!(peer["name"] == "h2" && peer["managed"] == false, "{peer}");
        ensure!(peer["encap"] == "vxlan" && peer["port"] == 4789, "{peer}");
        let text = host.run_mesh(&["status"])?;
        ensure!(text.contains("vxlan port 4789, foreign"), "{text}");
        Ok(())
    });
}

#[test]
fn an_agent_whose_node_becomes_foreign_goes_on_as_before() {
    bare(TWO, |mesh| {
        mesh.up()?;
        let host = &mesh.hosts[0];
        let text = mesh.cluster.to_string();
        host.write_config(&text.replacen("[[node]]", "[[node]]\nmanaged = false", 1))?;
        wait::until("the file to be refused", std::time::Duration::from_secs(10), || {
            let status = host.status().map_err(|e| format!("{e:#}"))?;
            let error = status["config_error"].as_str().unwrap_or_default().to_owned();
            if error.contains("does not run mesh") { Ok(()) } else { Err(format!("{status}")) }
        })
    });
}

/// With the kernel's own devices, for the two kinds of addresses. This kernel may have no other
/// tunnels than VXLAN.
#[test]
fn peer_commands_for_vxlan_do_on_a_kernel_what_they_say() {
    bare(TWO, |mesh| {
        let host = &mesh.hosts[1];
        for (one, two) in [("192.0.2.11", "192.0.2.12"), ("2001:db8::11", "2001:db8::12")] {
            let file = FILE.replace("192.0.2.11", one).replace("192.0.2.12", two);
            // IPv6 too, for the addresses on the bridge.
            host.write_config(&file.replace("'10.42.0.0/16'", "['10.42.0.0/16', 'fd42::/48']"))?;
            let config = host.config.to_str().context("path")?;
            let json =
                host.run_mesh(&["check", "--config", config, "--peer-commands", "h2", "--json"])?;
            let report: Value = serde_json::from_str(&json)?;
            let commands = report["commands"].as_array().context("commands")?;
            for command in commands.iter().filter(|command| command["kind"] == "ip") {
                host.netns.exec(command["command"].as_str().context("command")?)?;
            }
            expect_vxlan(host, [one, two])?;
            host.netns.exec("ip link del vxlan4789")?;
            host.netns.exec("ip link del br-mesh")?;
        }
        Ok(())
    });
}

fn expect_vxlan(host: &Host, [one, two]: [&str; 2]) -> Result<()> {
    let link = |name: &str| -> Result<Value> {
        let text = host.netns.exec(&format!("ip -j -d link show dev {name}"))?;
        let links: Value = serde_json::from_str(&text)?;
        Ok(links[0].clone())
    };
    let is_ipv6 = one.contains(':');
    let vxlan = link("vxlan4789")?;
    let data = &vxlan["linkinfo"]["info_data"];
    ensure!(data["id"] == 42 && data["port"] == 4789, "{vxlan}");
    ensure!(data[if is_ipv6 { "local6" } else { "local" }] == two, "{vxlan}");
    ensure!(data["ttl"] == 64 && data["tos"] == "0x1", "tos is not inherited: {vxlan}");
    ensure!(data["udp_zero_csum6_rx"] == is_ipv6, "{vxlan}");
    ensure!(vxlan["master"] == "br-mesh" && vxlan["operstate"] != "DOWN", "{vxlan}");
    let mtu = if is_ipv6 { 1430 } else { 1450 };
    ensure!(vxlan["mtu"] == mtu, "{vxlan}");
    let fdb: Value = serde_json::from_str(&host.netns.exec("bridge -j fdb show dev vxlan4789")?)?;
    let to_all = |e: &&Value| e["mac"] == "00:00:00:00:00:00" && e["dst"] == one;
    ensure!(fdb.as_array().into_iter().flatten().filter(to_all).count() == 1, "{fdb}");
    let bridge = link("br-mesh")?;
    ensure!(bridge["mtu"] == mtu, "{bridge}");
    let text = host.netns.exec("ip -j addr show dev br-mesh scope global")?;
    let addresses: Value = serde_json::from_str(&text)?;
    let has = |ip: &str, len: u64| {
        let all = addresses[0]["addr_info"].as_array().into_iter().flatten();
        all.clone().any(|a| a["local"] == ip && a["prefixlen"] == len)
    };
    ensure!(has("10.42.128.1", 16) && has("fd42:0:0:8000::1", 48), "{addresses}");
    Ok(())
}
