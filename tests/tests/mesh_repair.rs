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
fn interfaces_that_are_renamed_or_set_down_come_back() {
    scenario(Options { ipv6: false, ..Options::DEFAULT }, |mesh| {
        let host = &mesh.hosts[0];
        let endpoint = host.status()?["endpoints"][0]["host_ifname"].clone();
        let endpoint = endpoint.as_str().context("no endpoint")?;
        host.netns.ip_batch(&format!(
            "link set mesh0 down\nlink set mesh0 name other\nlink set {endpoint} down\n"
        ))?;
        let up = |name: &str| {
            host.netns
                .exec(&format!("ip -o link show {name} up"))
                .unwrap_or_default()
                .contains(name)
        };
        wait::until_true("both interfaces", PATIENCE, || up("mesh0") && up(endpoint))?;
        wait_for_no_fault(host)?;
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)?;
        host.party()?.expect_reaches(&mesh.party("h2c1")?)
    });
}

#[test]
fn underlay_without_a_way_to_other_nodes_is_a_fault_until_there_is_one() {
    scenario(Options { ipv6: false, ..Options::DEFAULT }, |mesh| {
        let host = &mesh.hosts[0];
        host.netns.exec("ip link set eth0 down")?;
        wait_for_fault(host, "eth0, the interface of the underlay, is down or has no carrier")?;
        host.netns.exec("ip link set eth0 up")?;
        wait_for_no_fault(host)?;
        host.netns.exec("ip route add unreachable 192.0.2.12/32")?;
        wait_for_fault(host, "no route that can be used to h2 (192.0.2.12)")?;
        host.netns.exec("ip route del unreachable 192.0.2.12/32")?;
        wait_for_no_fault(host)?;
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
        let more = cluster.clone().with_network("blue", 7, "10.43.0.0/16");
        fs::write(next.join("mesh.toml"), more.to_string())?;
        fs::rename(&etc, mesh.dir.join("old"))?;
        fs::rename(&next, &etc)?;
        host.wait_newer(&more, before)?;
        // And the new folder is the one that is followed.
        let before = host.generation()?;
        host.write_config(&cluster.to_string())?;
        host.wait_newer(&cluster, before)
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

/// Processor time that a process, with those that it waited for, has taken so far.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    // utime, stime, cutime and cstime are fields 14 to 17, of which the first here is 3.
    let times = fields.split_whitespace().skip(11).take(4).map(str::parse::<u64>);
    let ticks: u64 = times.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

#[test]
fn bridges_that_others_make_are_not_looked_at() {
    scenario(ONE, |mesh| {
        let host = &mesh.hosts[0];
        let pid = host.pid().context("no agent")?;
        let before = processor_time(pid)?;
        let mut lines = String::new();
        for n in 0..300 {
            lines += &format!("link add br{n} type bridge\nlink set br{n} up\nlink del br{n}\n");
        }
        host.netns.ip_batch(&lines)?;
        // The agent has read all that the kernel told before it answers.
        host.status()?;
        let taken = processor_time(pid)? - before;
        eprintln!("{taken:?} for 300 bridges");
        // Some looks at most, of which each takes some 10 ms here; there were up to 100 a second.
        ensure!(taken < Duration::from_secs(1), "{taken:?} of a processor for 300 bridges");
        Ok(())
    });
}

#[test]
fn interfaces_that_others_delete_are_made_again() {
    scenario(Options { ipv6: false, ..Options::DEFAULT }, |mesh| {
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let host = &mesh.hosts[0];
        let flows = flow::start_all(&[(&one, &far), (&far, &one)])?;
        for ifname in ["mesh0", "mesh-room"] {
            host.netns.exec(&format!("ip link del dev {ifname}"))?;
            let path = format!("ip link show dev {ifname}");
            let there = wait::until(&format!("{ifname} again"), PATIENCE, || {
                host.netns.exec(&path).map(drop).map_err(|e| format!("{e:#}"))
            });
            host.with_log(there)?;
        }
        let overlay = wait::until("the overlay address", PATIENCE, || {
            let party = host.party().map_err(|e| format!("{e:#}"))?;
            if party.addresses.is_empty() { Err("none".to_owned()) } else { Ok(party) }
        })?;
        let back = wait::until("the host to be reached", PATIENCE, || {
            far.expect_reaches(&overlay).map_err(|e| format!("{e:#}"))
        });
        host.with_log(back)?;
        flow::expect_no_loss(flows)?;
        wait_for_no_fault(host)
    });
}

/// What the kernel told within some looks.
fn told_within_looks(host: &Host) -> Result<String> {
    let monitors = [
        "timeout 5 ip monitor link address route rule nsid",
        "timeout 5 tc monitor",
        "timeout 5 nft monitor",
    ];
    let told = std::thread::scope(|scope| {
        let run = |line: &'static str| {
            let mut words = line.split(' ');
            let mut command = host.netns.command(words.next().unwrap_or_default());
            scope.spawn(move || command.args(words).output())
        };
        let threads: Vec<_> = monitors.into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut text = String::new();
    for output in told {
        let output = output.map_err(|_| anyhow::anyhow!("a monitor panicked"))??;
        text += &String::from_utf8_lossy(&output.stdout);
    }
    Ok(text)
}

#[test]
fn looks_at_what_is_right_change_nothing() {
    for mode in ["tcx", "clsact"] {
        bare(Options { containers: 2, ..Options::DEFAULT }, |mesh| {
            mesh.hosts[0].attach_mode = Some(mode);
            mesh.hosts[0].up_args = vec!["--look-interval".into(), "1".into()];
            mesh.up()?;
            let host = &mesh.hosts[0];
            // Of a host that forwards the firewall is looked at too.
            host.netns.exec("sysctl -qw net.ipv4.ip_forward=1")?;
            let state = host.run_dir.join("state.json");
            let written = || fs::metadata(&state).and_then(|m| m.modified()).ok();
            let quiet = wait::until("nothing to be told", PATIENCE, || {
                let before = written();
                let told = told_within_looks(host).map_err(|e| format!("{e:#}"))?;
                match told.is_empty() && written() == before {
                    true => Ok(()),
                    false => Err(format!("{mode}: {told}")),
                }
            });
            host.with_log(quiet)
        });
    }
}
