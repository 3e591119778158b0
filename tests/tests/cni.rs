//! `mesh cni`, called by podman, by containerd, and by hand.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    cni::{Runtimes, scenario},
    netns::check,
    wait,
};
use serde_json::Value;

const NAMES: Duration = Duration::from_secs(40);

fn endpoints(runtimes: &Runtimes, at: usize) -> Result<Vec<Value>> {
    let status = runtimes.topology.hosts[at].status()?;
    status["endpoints"].as_array().cloned().context("a status without endpoints")
}

#[test]
fn podmans_containers_find_each_other_across_hosts_by_name_and_alias() {
    scenario(2, |runtimes| {
        runtimes.import(0)?;
        runtimes.import(1)?;
        let web = "-d --network mesh:alias=api --name web";
        runtimes.run_bb(0, web, "httpd -f -p 80 -h /var/www")?;
        let attached = endpoints(runtimes, 0)?;
        ensure!(attached.len() == 1 && attached[0]["ifname"] == "eth0", "{attached:?}");
        runtimes.run_bb(1, "-d --network mesh --name asker", "sleep 1000")?;
        let resolvers = runtimes.run(1, "exec asker cat /etc/resolv.conf")?;
        ensure!(resolvers.starts_with("nameserver 10.42.2.1"), "{resolvers}");
        for name in ["web", "api", "web.default", "10.42.1.2"] {
            let line = format!("exec asker timeout 5 wget -qO- http://{name}");
            runtimes.wait_for(1, &line, |page| page == "hello")?;
        }
        let back = "exec asker nslookup 10.42.1.2";
        runtimes.wait_for(1, back, |text| text.contains("name = web.default"))?;
        let link = runtimes.run(0, "exec web ip addr show dev eth0")?;
        ensure!(link.contains("mtu 1462") && link.contains("10.42.1.2/32"), "{link}");
        let asked = "--rm --network mesh --ip 10.42.1.50 --mac-address 02:aa:bb:cc:dd:ee";
        let link = runtimes.run_bb(0, asked, "ip addr show dev eth0")?;
        ensure!(link.contains("10.42.1.50/32") && link.contains("02:aa:bb:cc:dd:ee"), "{link}");
        // Gone is gone, on both hosts.
        runtimes.run(0, "rm -f -t 0 web")?;
        ensure!(endpoints(runtimes, 0)?.is_empty(), "{:?}", endpoints(runtimes, 0)?);
        wait::until("a name to be gone", NAMES, || {
            match runtimes.run(1, "exec asker nslookup web") {
                Ok(text) => Err(text),
                Err(_) => Ok(()),
            }
        })
    });
}

#[test]
fn podman_removes_a_container_while_no_agent_runs() {
    scenario(1, |runtimes| {
        runtimes.import(0)?;
        for name in ["goes", "stays"] {
            runtimes.run_bb(0, &format!("-d --network mesh --name {name}"), "sleep 1000")?;
        }
        let cluster = runtimes.topology.cluster.clone();
        runtimes.host(0).kill9();
        runtimes.run(0, "rm -f -t 0 goes")?;
        runtimes.run(0, "exec stays ping -c 1 -w 5 10.42.1.1")?;
        runtimes.host(0).up(&cluster)?;
        let left = endpoints(runtimes, 0)?;
        ensure!(left.len() == 1 && left[0]["names"][0] == "stays", "{left:?}");
        runtimes.run(0, "exec stays nslookup stays").map(drop)
    });
}

#[test]
fn containerd_calls_the_plugin_and_takes_its_containers_off_again() {
    scenario(2, |runtimes| {
        runtimes.start_containerd(0)?;
        runtimes.start_containerd(1)?;
        let runtimes = &*runtimes;
        let shown = runtimes.ctr_run(0, "t1", &["ip", "addr", "show", "dev", "eth0"])?;
        ensure!(shown.contains("10.42.1.2/32") && shown.contains("mtu 1462"), "{shown}");
        // Its DEL comes with an empty CNI_NETNS.
        ensure!(endpoints(runtimes, 0)?.is_empty(), "{:?}", endpoints(runtimes, 0)?);
        std::thread::scope(|scope| {
            let serve = ["httpd", "-f", "-p", "80", "-h", "/var/www"];
            let there = scope.spawn(move || runtimes.ctr_run(0, "web", &serve));
            let get = ["timeout", "5", "wget", "-qO-", "http://10.42.1.2"];
            let got = wait::until("a page from another host", NAMES, || {
                runtimes.ctr_run(1, "t2", &get).map_err(|e| format!("{e:#}"))
            });
            let asked = got.and_then(|page| {
                ensure!(page == "hello\n", "{page}");
                let line = ["nslookup", "default-web", "10.42.2.1"];
                runtimes.ctr_run(1, "t3", &line)
            });
            // Ends the server, also if something went wrong.
            let kill = ["task", "kill", "-s", "KILL", "web"];
            let _ = runtimes.ctr(0, &kill).output();
            let _ = there.join();
            let answer = asked?;
            ensure!(answer.contains("Address: 10.42.1.2"), "{answer}");
            Ok(())
        })?;
        for at in [0, 1] {
            ensure!(endpoints(runtimes, at)?.is_empty(), "{:?}", endpoints(runtimes, at)?);
        }
        Ok(())
    });
}

#[test]
fn behind_another_plugin_mesh_adds_an_interface() {
    scenario(1, |runtimes| {
        runtimes.import(0)?;
        let write = format!("cat >/etc/cni/net.d/20-both.conflist <<'EOF'\n{BOTH}\nEOF");
        let write = runtimes.topology.hosts[0].command("sh").args(["-c", &write]).output()?;
        check("write a config", &write)?;
        runtimes.run_bb(0, "-d --name both --network both", "sleep 1000")?;
        for (line, says) in [
            ("ip -4 addr show dev eth0", "10.89.7.2/24"),
            ("ip -4 addr show dev eth1", "10.42.1.2/32"),
            ("ip route", "default via 10.89.7.1 dev eth0"),
            ("ip route", "10.42.0.0/16 via 10.42.1.1 dev eth1"),
            ("head -1 /etc/resolv.conf", "nameserver 10.42.1.1"),
        ] {
            let shown = runtimes.run(0, &format!("exec both {line}"))?;
            ensure!(shown.contains(says), "{line}: {says} is not in {shown}");
        }
        runtimes.run(0, "rm -f -t 0 both")?;
        ensure!(endpoints(runtimes, 0)?.is_empty(), "{:?}", endpoints(runtimes, 0)?);
        Ok(())
    });
}

/// The world by another plugin, and the mesh.
const BOTH: &str = r#"{"cniVersion": "1.0.0", "name": "both", "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
     "ranges": [[{"subnet": "10.89.7.0/24"}]]}},
    {"type": "mesh", "capabilities": {"aliases": true}}]}"#;

#[test]
fn what_install_makes_is_found_right_and_taken_away_again() {
    scenario(1, |runtimes| {
        let host = runtimes.host(0);
        let list = |host: &mesh_tests::Host| -> Result<String> {
            let output = host.command("ls").args(["/opt/cni/bin", "/etc/cni/net.d"]).output()?;
            Ok(String::from_utf8(output.stdout)?)
        };
        let made = list(host)?;
        ensure!(made.contains("10-mesh.conflist") && made.contains("\nmesh\n"), "{made}");
        let again = host.run_mesh(&["cni", "install"])?;
        ensure!(again.matches("is right already").count() == 2, "{again}");
        let unknown = host.try_mesh(&["cni", "install", "--network", "green"])?;
        let says = String::from_utf8_lossy(&unknown.stderr).into_owned();
        ensure!(!unknown.status.success() && says.contains("no network \"green\""), "{says}");
        let edit = "sed -i s/true/false/ /etc/cni/net.d/10-mesh.conflist";
        check("edit", &host.command("sh").args(["-c", edit]).output()?)?;
        let kept = host.run_mesh(&["cni", "install"])?;
        ensure!(kept.contains("changed by hand"), "{kept}");
        let kept = host.run_mesh(&["cni", "uninstall"])?;
        ensure!(kept.contains("changed by hand"), "{kept}");
        let remove = "rm /etc/cni/net.d/10-mesh.conflist";
        check("rm", &host.command("sh").args(["-c", remove]).output()?)?;
        let shown = host.run_mesh(&["cni", "install", "--dry-run"])?;
        ensure!(shown.contains("+   \"name\": \"mesh\""), "{shown}");
        ensure!(!list(host)?.contains("mesh"), "{}", list(host)?);
        host.run_mesh(&["cni", "install"])?;
        host.run_mesh(&["cni", "uninstall"])?;
        ensure!(!list(host)?.contains("mesh"), "{}", list(host)?);
        Ok(())
    });
}
