//! An agent with many peers.

mod large;
mod measure;

use anyhow::{Result, ensure};
use large::{Large, moved};
use mesh_common::maps::PeerInfo;
use mesh_tests::{scenario::bare, wait};
use mesh_userspace::{
    bpf::sync,
    plan::{Changes, Contents, Plan},
};

/// Entries of one map that are not the same in both.
fn differing<K: Eq + std::hash::Hash, V: PartialEq, S: std::hash::BuildHasher>(
    a: &std::collections::HashMap<K, V, S>,
    b: &std::collections::HashMap<K, V, S>,
) -> usize {
    a.iter().filter(|(k, v)| b.get(k) != Some(v)).count()
        + b.keys().filter(|k| !a.contains_key(k)).count()
}

/// Fails if more than `most` entries of the maps differ.
fn ensure_near(before: &Contents, after: &Contents, most: usize) -> Result<()> {
    let all = [
        differing(&before.peers, &after.peers),
        differing(&before.fib, &after.fib),
        differing(&before.fib_lpm, &after.fib_lpm),
        differing(&before.peer_by_addr, &after.peer_by_addr),
        differing(&before.networks, &after.networks),
        differing(&before.ports, &after.ports),
        differing(&before.endpoints, &after.endpoints),
    ];
    ensure!(all.iter().sum::<usize>() <= most, "entries of each map that differ: {all:?}");
    Ok(())
}

#[test]
fn thousand_peers_are_in_the_maps_and_a_change_of_one_touches_no_other() {
    bare(Large::OPTIONS, |topology| {
        let mut large = Large::new(topology, 1000, 2)?;
        large.start()?;
        large.wait_for(&large.config.clone())?;
        // The router has said who it is.
        large.wait_until("the router's MAC", |tables| {
            Ok(sync::peers(tables)?.values().all(|peer| peer.flags & PeerInfo::MAC_KNOWN != 0))
        })?;
        let before = sync::observe(&large.tables()?)?;
        let sizes = (before.peers.len(), before.fib.len(), before.peer_by_addr.len());
        ensure!(sizes == (1000, 2002, 1000), "peers, prefixes, sources: {sizes:?}");
        // All have the same way, by the router.
        let path = |p: &PeerInfo| (p.ifindex, p.underlay_mtu, p.next_hop);
        let first = before.peers.values().next().map(path);
        ensure!(before.peers.values().all(|p| Some(path(p)) == first && p.ifindex != 0));

        // A prefix comes, one goes, and what the peer may send changes.
        let changed = moved(&large.config, 1);
        large.write(&changed)?;
        large.wait_for(&changed)?;
        // What comes is there before what goes is gone.
        large.wait_idle()?;
        let after = sync::observe(&large.tables()?)?;
        ensure_near(&before, &after, 3)?;

        // What somebody else does to the maps is put right when the network changes.
        let tables = large.tables()?;
        let victim: Vec<_> = after.fib.keys().copied().take(1).collect();
        let loss = Changes { remove: victim.clone(), ..Changes::default() };
        let loss = Plan { fib: loss, ..Plan::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(sync::apply(&tables, &loss))?;
        large.host().netns.exec("ip addr add 198.51.100.1/32 dev lo")?;
        wait::until_true("the entry to come back", large::READY, || {
            tables.fib.get(&victim[0]).is_ok_and(|entry| entry.is_some())
        })?;
        large.wait_idle()?;
        ensure_near(&after, &sync::observe(&tables)?, 0)
    });
}

#[test]
fn routes_that_change_are_followed_for_all_peers() {
    bare(Large::OPTIONS, |topology| {
        let mut large = Large::new(topology, 300, 1)?;
        large.start()?;
        large.wait_for(&large.config.clone())?;
        let tables = large.tables()?;
        let ways = |wanted: usize| {
            let known = || -> Result<usize> {
                let peers = sync::peers(&tables)?;
                Ok(peers.values().filter(|peer| peer.ifindex != 0).count())
            };
            wait::until("the peers' ways", large::READY, || match known() {
                Ok(n) if n == wanted => Ok(()),
                other => Err(format!("{other:?} of {wanted}")),
            })
        };
        ways(300)?;
        large.host().netns.exec("ip route del 172.16.0.0/12")?;
        ways(0)?;
        // A more special route for some of them, found though the others were asked for before.
        large.host().netns.exec("ip route add 172.16.1.0/24 via 192.0.2.12")?;
        ways(50)?;
        large.host().netns.exec("ip route add 172.16.0.0/12 via 192.0.2.12")?;
        ways(300)?;
        large.host().netns.exec("ip route add blackhole 172.16.1.0/25 metric 1")?;
        ways(250)
    });
}

#[test]
fn agent_that_comes_back_loads_no_program_again() {
    bare(Large::OPTIONS, |topology| {
        let mut large = Large::new(topology, 100, 1)?;
        large.start()?;
        large.wait_for(&large.config.clone())?;
        large.wait_idle()?;
        let before = large.programs()?;
        large.kill();
        let changed = moved(&large.config, 1);
        large.write(&changed)?;
        large.start()?;
        large.wait_for(&changed)?;
        large.wait_idle()?;
        ensure!(large.programs()? == before, "other programs than before");
        // With more peers than the maps hold, all is made anew.
        let larger = large::config(3000, 1);
        large.write(&larger)?;
        large.wait_for(&larger)?;
        large.wait_idle()?;
        ensure!(large.programs()? != before, "programs of the smaller maps");
        large.host().run_mesh(&["status"]).map(drop)
    });
}
