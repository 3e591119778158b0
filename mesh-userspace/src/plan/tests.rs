use std::net::{IpAddr, Ipv4Addr};

use mesh_common::maps::{
    Addr, EndpointKey, FibInfo, FibKey, FloodKey, LpmKey, PeerInfo, PeerKey, PortInfo,
};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    compile::compile,
    config::{Cluster, Docker, Dscp, Encap, Flood, Network, Node, Vni},
};
use layout::{BLOCKS, Edit, Layout, NODES, edges, layout, observed, peer_indices};
use model::{Fate, Outer, apply};

pub(crate) mod layout;
pub(crate) mod model;

fn maps_of(layout: &Layout) -> Observed {
    observed(layout.desired(&Observed::default()))
}

/// Entries of no cluster at all.
fn rubbish() -> impl Strategy<Value = Observed> {
    let addr = || any::<[u32; 4]>().prop_map(Addr);
    let info = || any::<(u32, u32)>().prop_map(|(kind, peer)| FibInfo { kind, peer, ..ZERO });
    let maps = (
        vec((0..64u32, addr()), 0..8),
        vec((any::<u32>(), addr(), info()), 0..8),
        vec((any::<u32>(), addr(), info()), 0..8),
        vec((any::<u32>(), addr()), 0..8),
        vec(any::<u32>(), 0..8),
    );
    maps.prop_map(|(peers, fib, lpm, keys, numbers)| Observed {
        node: [(0, NodeInfo { underlay: Addr([1; 4]), flags: 7, netns: 9, ..Default::default() })]
            .into_iter()
            .collect(),
        ports: numbers.iter().map(|n| (*n, PortInfo { ifindex: *n, ..PORT })).collect(),
        endpoints: keys
            .iter()
            .map(|(vni, addr)| (EndpointKey { vni: *vni, addr: *addr }, Default::default()))
            .collect(),
        fib: fib
            .into_iter()
            .map(|(len_vni, addr, info)| (FibKey { len_vni, addr }, info))
            .collect(),
        fib_lpm: lpm
            .into_iter()
            .map(|(n, addr, i)| {
                (LpmPrefix { bits: 32 + n % 129, key: LpmKey { vni_be: n, addr } }, i)
            })
            .collect(),
        peers: peers
            .into_iter()
            .map(|(i, remote)| (i, PeerInfo { remote, ifindex: 1, ..Default::default() }))
            .collect(),
        peer_by_addr: keys
            .iter()
            .map(|(vni, a)| (PeerKey { outer_source: *a, vni: *vni }, Default::default()))
            .collect(),
        networks: numbers.iter().map(|n| (*n, Default::default())).collect(),
        flood: numbers
            .iter()
            .map(|n| (FloodKey { list_vni: *n, index: *n }, Default::default()))
            .collect(),
    })
}

const ZERO: FibInfo = FibInfo { kind: 0, peer: 0, backup: 0, vni: 0 };
const PORT: PortInfo = PortInfo {
    ifindex: 0,
    vni: 3,
    id: 0,
    mtu: 0,
    addr4: 0,
    addr6: [0; 4],
    gateway_mac: [0; 3],
    mac: [0; 3],
    lens: mesh_common::maps::PrefixLens { v4: [0; 4], v6: [0; 4] },
    gateway4: 0,
    gateway6: [0; 4],
    identity: 0,
    flags: 0,
};

/// Plans and applies, then does so again from what was made: nothing is left to do.
fn assert_converges(layout: &Layout, mut maps: Observed) {
    let desired = layout.desired(&maps);
    let changes = plan(&desired, &maps);
    apply(&mut maps, &changes, |_| ());
    assert_eq!(maps, observed(desired));
    let again = plan(&layout.desired(&maps), &maps);
    assert!(again.is_empty(), "{again:?}");
}

/// What is true of packets between this node and one address, before and after.
struct Pair {
    vni: u32,
    ip: IpAddr,
    /// This node's endpoint: (interface, address), the same before and after.
    here: Option<(u32, IpAddr)>,
    /// The underlay addresses of the other node that had it before, and of the one that has it after.
    holders: [Option<IpAddr>; 2],
    /// There is a way to whoever had it, before and after, and to whoever has it after.
    is_reachable: bool,
    /// And it is the same one.
    is_untouched: bool,
}

/// All addresses at the edges of all prefixes of both.
fn pairs(old: &Layout, new: &Layout) -> Vec<Pair> {
    let mut all = Vec::new();
    for (vni, net, _) in old.subnets().into_iter().chain(new.subnets()) {
        for ip in edges(net) {
            let vni = vni.get();
            let endpoint = |l: &Layout| {
                let at = l.attachments().into_iter().find(|a| a.vni.get() == vni)?;
                let own = at.addresses.iter().find(|a| a.is_ipv4() == ip.is_ipv4())?;
                Some((at.ifindex, *own))
            };
            let owner = |l: &Layout| l.owner(vni, ip).filter(|n| *n != 0);
            let holder = |l: &Layout| owner(l).map(|n| l.underlay(n));
            let routed = |l: &Layout| owner(l).is_some_and(|n| l.reachable(n));
            let holders = [holder(old), holder(new)];
            let same = owner(old) == owner(new) && holders[0] == holders[1];
            all.push(Pair {
                vni,
                ip,
                here: endpoint(old).filter(|e| endpoint(new) == Some(*e)),
                holders,
                is_reachable: routed(old)
                    && routed(new)
                    && owner(old).is_some_and(|n| !new.unreachable.contains(&old.underlays[n])),
                is_untouched: same && routed(old) && routed(new),
            });
        }
    }
    all
}

/// Looks at all pairs while the maps go from `old` to `new`, entry by entry: what did not change
/// never fails, and nothing goes to, or comes from, a node that has the address neither before nor
/// after. Returns how many pairs are untouched.
fn assert_safe(old: &Layout, new: &Layout) -> usize {
    let mut maps = maps_of(old);
    let plan = plan(&new.desired(&maps), &maps);
    let pairs = pairs(old, new);
    let mut steps = 0;
    let mut look = |maps: &Observed| {
        for pair in &pairs {
            assert_sent_right(maps, pair, steps);
            for from in (0..NODES).flat_map(|n| [old.underlay(n), new.underlay(n)]) {
                assert_taken_right(maps, pair, from, old.underlay(0), steps);
            }
        }
        steps += 1;
    };
    look(&maps);
    apply(&mut maps, &plan, look);
    pairs.iter().filter(|p| p.is_untouched && p.here.is_some()).count()
}

fn assert_sent_right(maps: &Observed, pair: &Pair, step: usize) {
    let Some((ifindex, own)) = pair.here else { return };
    let (vni, ip) = (pair.vni, pair.ip);
    let fate = model::send(maps, ifindex, own, ip);
    if let Fate::Encapsulated(to) = fate {
        assert!(pair.holders.contains(&Some(to)), "step {step}: {vni}/{ip} was sent to {to}");
    }
    if pair.is_reachable {
        assert!(matches!(fate, Fate::Encapsulated(_)), "step {step}: {vni}/{ip}: {fate:?}");
    }
    if pair.is_untouched {
        let expected = pair.holders[0].map(Fate::Encapsulated);
        assert_eq!(Some(fate), expected, "step {step}: {vni}/{ip} was sent elsewhere");
    }
}

fn assert_taken_right(maps: &Observed, pair: &Pair, from: IpAddr, me: IpAddr, step: usize) {
    let Some((ifindex, own)) = pair.here else { return };
    let (vni, ip, from) = (pair.vni, pair.ip, from);
    let fate = model::receive(maps, Outer { from, to: me, vni }, ip, own);
    if matches!(fate, Fate::Delivered(_)) {
        assert!(pair.holders.contains(&Some(from)), "step {step}: {vni}/{ip} taken from {from}");
    }
    if pair.is_untouched && pair.holders[0] == Some(from) {
        assert_eq!(fate, Fate::Delivered(ifindex), "step {step}: {vni}/{ip} refused");
    }
}

/// Three nodes, blocks in turn, in all networks.
fn three() -> Layout {
    let blocks = std::array::from_fn(|b| Some((b % 3, 0)));
    Layout {
        underlays: std::array::from_fn(|i| 10 + i as u8),
        present: std::array::from_fn(|i| i < 3),
        blocks: [[blocks; 2]; 3],
        networks: [true; 3],
        encap: Encap::Gre,
        reversed: false,
        unreachable: Vec::new(),
    }
}

/// There and back, and from each to each of its neighbours in between.
fn assert_safe_both_ways(old: &Layout, edits: &[Edit]) {
    let new = old.edited(edits);
    assert_ne!(old.cluster(), new.cluster(), "the edits change nothing");
    assert!(assert_safe(old, &new) > 0, "nothing is untouched");
    assert!(assert_safe(&new, old) > 0, "nothing is untouched");
}

/// Node 1's and node 2's blocks with prefixes of so many lengths.
fn lengths(n: u8) -> Vec<Edit> {
    let give = |(v, f, b)| Edit::Give(v, f, b, Some((b % 3, b as u8 % n)));
    (0..3)
        .flat_map(|v| (0..2).flat_map(move |f| (0..BLOCKS).map(move |b| (v, f, b))))
        .map(give)
        .collect()
}

#[test]
fn a_node_added_or_removed_disturbs_no_other() {
    let four =
        three().edited(&[Edit::Give(0, 0, 6, Some((3, 0))), Edit::Give(1, 1, 7, Some((3, 2)))]);
    assert_safe_both_ways(&four, &[Edit::Toggle(3)]);
    assert_safe_both_ways(&three(), &[Edit::Toggle(2)]);
}

#[test]
fn a_node_that_moves_disturbs_no_other() {
    assert_safe_both_ways(&three(), &[Edit::Move(1, 25)]);
}

#[test]
fn nodes_that_swap_addresses_disturb_no_other() {
    let four = three().edited(&[Edit::Toggle(3), Edit::Give(0, 0, 7, Some((3, 0)))]);
    assert_safe_both_ways(&four, &[Edit::Swap(1, 3)]);
}

#[test]
fn other_prefix_lengths_disturb_nothing() {
    let exact = three().edited(&lengths(4));
    let trie = three().edited(&lengths(5));
    assert!(maps_of(&exact).fib_lpm.is_empty() && !maps_of(&exact).fib.is_empty());
    assert!(!maps_of(&trie).fib_lpm.is_empty() && maps_of(&trie).fib.is_empty());
    assert_safe_both_ways(&exact, &lengths(5));
    assert_safe_both_ways(&three(), &lengths(5));
    assert_safe_both_ways(&three(), &lengths(3));
}

#[test]
fn another_encapsulation_disturbs_nothing() {
    assert_safe_both_ways(&three(), &[Edit::Encap]);
}

#[test]
fn another_order_in_the_file_changes_no_entry() {
    let (old, new) = (three(), three().edited(&[Edit::Reverse]));
    let maps = maps_of(&old);
    assert!(plan(&new.desired(&maps), &maps).is_empty());
}

#[test]
fn a_network_added_or_removed_disturbs_no_other() {
    assert_safe_both_ways(&three(), &[Edit::Network(1)]);
    assert_safe_both_ways(&three(), &[Edit::Network(1), Edit::Network(2)]);
}

#[test]
fn a_block_that_changes_hands_disturbs_no_other() {
    assert_safe_both_ways(&three(), &[Edit::Give(0, 0, 1, Some((2, 0)))]);
    assert_safe_both_ways(&three(), &[Edit::Give(0, 0, 1, Some((0, 3)))]);
}

#[test]
fn the_freed_index_of_a_node_is_not_given_away_at_once() {
    let maps = maps_of(&three());
    let freed = peer_indices(&maps)[&three().underlay(1)];
    let new = three().edited(&[Edit::Toggle(1), Edit::Toggle(3)]).desired(&maps);
    assert!(!new.peer_indices.values().any(|i| *i == freed));
    // The next step may have it.
    let later = three().edited(&[Edit::Toggle(3)]).desired(&observed(new));
    assert_eq!(later.peer_indices[&three().underlay(1)], freed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_change_is_safe_at_each_step(old in layout(), edits in vec(layout::edit(), 1..6)) {
        assert_safe(&old, &old.edited(&edits));
    }

    #[test]
    fn an_interrupted_change_is_safe_to_go_on_from(
        old in layout(),
        first in vec(layout::edit(), 1..4),
        second in vec(layout::edit(), 1..4),
        stop in 0..100usize,
    ) {
        // Killed after `stop` entries, started again with another file.
        let (new, last) = (old.edited(&first), old.edited(&first).edited(&second));
        let mut maps = maps_of(&old);
        let (mut left, mut killed) = (stop, maps.clone());
        let changes = plan(&new.desired(&maps), &maps);
        apply(&mut maps, &changes, |maps| {
            if left > 0 {
                killed.clone_from(maps);
                left -= 1;
            }
        });
        let holders = |l: &Layout, vni, ip| {
            l.owner(vni, ip).filter(|n| *n != 0).map(|n| l.underlay(n))
        };
        let changes = plan(&last.desired(&killed), &killed);
        apply(&mut killed, &changes, |maps| {
            for (vni, net, _) in last.subnets() {
                let at = last.attachments().into_iter().find(|a| a.vni == vni).unwrap();
                for ip in edges(net) {
                    let v4 = |a: &&IpAddr| a.is_ipv4() == ip.is_ipv4();
                    let Some(own) = at.addresses.iter().find(v4) else { continue };
                    if let Fate::Encapsulated(to) = model::send(maps, at.ifindex, *own, ip) {
                        let ever = [&old, &new, &last].map(|l| holders(l, vni.get(), ip));
                        assert!(ever.contains(&Some(to)), "{vni}/{ip} was sent to {to}");
                    }
                }
            }
        });
        assert_eq!(killed, observed(last.desired(&killed)));
    }
}

proptest! {
    #[test]
    fn any_cluster_follows_from_any_other(
        old in layout(),
        edits in vec(layout::edit(), 0..8),
        next in layout(),
    ) {
        assert_converges(&old.edited(&edits), maps_of(&old));
        assert_converges(&next, maps_of(&old));
    }

    /// What is left to do after only the nodes that differ were looked at is nothing.
    #[test]
    fn a_difference_is_all_that_changes(old in layout(), edits in vec(layout::edit(), 0..4)) {
        let new = old.edited(&edits);
        let (before, after) = (old.cluster(), new.cluster());
        // The network is the same before and after.
        let facts = new.facts(&Observed::default());
        let maps = compile(&before, before.node("n0").unwrap(), &facts).maps;
        if let Some(difference) = Difference::of(&before, &after, "n0") {
            let (me, facts) = (after.node("n0").unwrap(), new.facts(&maps));
            let desired = compile(&after, me, &facts);
            let plan = plan_difference(&difference, me, &facts, &maps);
            prop_assert_eq!(plan.len(), super::plan(&desired, &maps).len());
            let mut followed = maps.clone();
            followed.follow(&plan);
            prop_assert_eq!(&followed, &desired.maps);
            let mut applied = maps;
            apply(&mut applied, &plan, |_| ());
            prop_assert_eq!(applied, followed);
        }
    }

    #[test]
    fn any_cluster_follows_from_rubbish(next in layout(), maps in rubbish()) {
        assert_converges(&next, maps);
    }

    #[test]
    fn a_plan_touches_only_what_differs(old in layout(), edits in vec(layout::edit(), 0..8)) {
        let maps = maps_of(&old);
        let desired = old.edited(&edits).desired(&maps);
        let plan = plan(&desired, &maps);
        for (k, v) in &plan.fib.set {
            prop_assert_ne!(maps.fib.get(k), Some(v));
        }
        for k in &plan.fib.remove {
            prop_assert!(maps.fib.contains_key(k) && !desired.maps.fib.contains_key(k));
        }
        for (k, v) in &plan.peers.set {
            prop_assert_ne!(maps.peers.get(k), Some(v));
        }
    }

    #[test]
    fn an_index_stays_with_its_underlay_address(
        old in layout(),
        changes in vec(vec(layout::edit(), 0..6), 1..6),
    ) {
        let (mut layout, mut maps) = (old.clone(), maps_of(&old));
        for edits in changes {
            layout = layout.edited(&edits);
            let had = peer_indices(&maps);
            let desired = layout.desired(&maps);
            let mut seen = std::collections::HashSet::new();
            for (underlay, index) in &desired.peer_indices {
                prop_assert!(seen.insert(*index), "{} is shared", index);
                match had.get(underlay) {
                    Some(was) => prop_assert_eq!(was, index),
                    None => prop_assert!(had.values().all(|i| i != index), "{} is in use", index),
                }
            }
            let nodes = (1..NODES).filter(|n| layout.present[*n]).count();
            prop_assert_eq!(desired.peer_indices.len(), nodes);
            maps = observed(desired);
        }
    }
}

/// n0 is this node.
fn many(nodes: u32) -> Cluster {
    let subnet = |n: u32| format!("10.{}.{}.0/24", n >> 8, n & 0xff).parse().unwrap();
    let node = |n| Node {
        name: format!("n{n}"),
        underlay: Ipv4Addr::from_bits(0xac10_0001 + n).into(),
        subnets: vec![(Vni::DEFAULT, subnet(n))],
        foreign: None,
    };
    Cluster {
        docker: Docker::default(),
        bridges: Vec::new(),
        interfaces: Default::default(),
        name: "many".into(),
        encap: Encap::Gre,
        mtu: None,
        port: None,
        ttl: 64,
        dscp: Dscp::Copy,
        links: Vec::new(),
        networks: vec![Network {
            name: "default".into(),
            vni: Vni::DEFAULT,
            cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            flood: Flood::None,
        }],
        nodes: (0..nodes).map(node).collect(),
    }
}

#[test]
fn a_change_of_one_node_among_a_thousand_changes_three_entries() {
    let before = many(1000);
    let mut after = before.clone();
    after.nodes[500].subnets[0].1 = "10.255.0.0/24".parse().unwrap();
    let facts = Facts { underlay_mtu: 1500, ..Default::default() };
    let maps = compile(&before, &before.nodes[0], &facts).maps;
    let facts = Facts { peer_indices: peer_indices(&maps), ..facts };

    let difference = Difference::of(&before, &after, "n0").unwrap();
    let underlay = after.nodes[500].underlay;
    assert_eq!(difference.addresses().collect::<Vec<_>>(), [underlay; 2], "only it is looked at");
    let plan = plan_difference(&difference, &after.nodes[0], &facts, &maps);
    assert_eq!((plan.fib.set.len(), plan.fib.remove.len()), (1, 1));
    assert_eq!((plan.peer_by_addr.set.len(), plan.len()), (1, 3));
    assert!(Difference::of(&before, &after, "n500").is_none(), "this node itself changed");
}
