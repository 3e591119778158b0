//! Containers behind netkit pairs, where the kernel has them; and what becomes of the wish for them
//! where it has not.

use anyhow::{Result, ensure};
use mesh_tests::{Encap, Host, Netns, Options, Topology, party::pairs, scenario::bare, traffic};

fn mesh(
    options: Options,
    interfaces: &'static str,
    body: impl FnOnce(&mut Topology) -> Result<()>,
) {
    bare(options, |mesh| {
        mesh.cluster.interfaces = Some(interfaces);
        body(mesh)
    });
}

fn has_netkit(netns: &Netns) -> bool {
    let made = netns.expect_netkit();
    if let Err(e) = &made {
        // Not one to be counted as skipped: emulated kernels have it.
        eprintln!("not here: {e:#}; `cargo xtask test --kernel 6.12 netkit` runs it");
    }
    made.is_ok()
}

/// On what side of their interfaces the programs of the containers are.
fn sides(host: &Host) -> Result<Vec<String>> {
    let status = host.status()?;
    let programs = status["programs"].as_array().into_iter().flatten();
    let of_containers = programs.filter(|p| p["hook"] == "from_container");
    Ok(of_containers.filter_map(|p| p["side"].as_str().map(str::to_owned)).collect())
}

fn expect_sides(mesh: &Topology, side: &str) -> Result<()> {
    for host in &mesh.hosts {
        let sides = sides(host)?;
        ensure!(sides == [side, side], "{}: {sides:?} instead of {side}", host.name);
    }
    Ok(())
}

fn all_reach(mesh: &Topology) -> Result<()> {
    let mut parties = mesh.parties()?;
    for host in &mesh.hosts {
        parties.push(host.party()?);
    }
    pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))
}

const OPTIONS: Options = Options { containers: 2, ..Options::DEFAULT };

#[test]
fn containers_behind_netkit_all_reach_each_other() {
    for encap in [Encap::Gre, Encap::Vxlan] {
        mesh(Options { encap, ..OPTIONS }, "netkit", |mesh| {
            if !has_netkit(&mesh.hosts[0].netns) {
                return Ok(());
            }
            mesh.up()?;
            expect_sides(mesh, "peer")?;
            all_reach(mesh)?;
            let (from, to) = (mesh.party("h1c1")?, mesh.party("h2c2")?);
            for target in &to.addresses {
                traffic::tcp_transfer(&from.netns, &to.netns, *target, 8 << 20)?;
            }
            // The programs stay while the agent is away, and are found by the next.
            mesh.hosts[0].kill9();
            from.expect_reaches(&to)?;
            let cluster = mesh.cluster.clone();
            mesh.hosts[0].up(&cluster)?;
            expect_sides(mesh, "peer")?;
            all_reach(mesh)?;
            mesh.hosts[0].down()?;
            let links = mesh.hosts[0].netns.exec("ip -o -d link show")?;
            ensure!(!links.contains("netkit"), "left behind: {links}");
            Ok(())
        });
    }
}

#[test]
fn auto_takes_what_the_kernel_has() {
    mesh(OPTIONS, "auto", |mesh| {
        mesh.up()?;
        let side = if has_netkit(&mesh.hosts[0].netns) { "peer" } else { "ingress" };
        expect_sides(mesh, side)?;
        all_reach(mesh)
    });
}

#[test]
fn netkit_that_the_kernel_has_not_is_refused_with_the_way_out() {
    mesh(Options { containers: 1, hosts: 1, ..Options::DEFAULT }, "netkit", |mesh| {
        if has_netkit(&mesh.hosts[0].netns) {
            return Ok(());
        }
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].up(&cluster)?;
        let error = mesh.hosts[0].attach(0, &[]).err().map(|e| format!("{e:#}"));
        let error = error.unwrap_or_default();
        ensure!(error.contains("no netkit") && error.contains("attach.interfaces"), "{error}");
        Ok(())
    });
}

/// What it copies it puts in again at the host's end, where a netkit pair has no program.
#[test]
fn where_a_network_carries_broadcast_containers_have_veth() {
    mesh(OPTIONS, "netkit", |mesh| {
        mesh.cluster = mesh.cluster.clone().with_setting("flood = \"all\"");
        mesh.up()?;
        expect_sides(mesh, "ingress")?;
        all_reach(mesh)
    });
}
