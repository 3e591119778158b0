//! What all nodes know together, and how two versions of it become one. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Roster,
    index::Index,
    protocol::{News, Version},
};

/// Networks, removed ones included; of the removed the oldest are forgotten first.
pub(super) const RECORDS_MAX: usize = 1024;

/// A network that was made while the mesh runs, or the memory that it was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub name: String,
    /// The higher wins; of equal ones, the later node's name.
    pub version: u64,
    /// Who said so.
    pub node: String,
    /// `None`: removed.
    pub spec: Option<NetworkSpec>,
}

impl NetworkRecord {
    fn rank(&self) -> (u64, &str, bool) {
        (self.version, &self.node, self.spec.is_some())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub vni: u32,
    pub subnets: Vec<Subnet>,
    /// The node with the first block of each subnet: where it was made.
    pub first: String,
    pub internal: bool,
    /// The driver's options, as given.
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    pub net: IpNet,
    pub gateway: Option<IpAddr>,
}

/// The containers of one node that have names, by network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub networks: BTreeMap<String, Vec<Named>>,
}

/// A container in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Name, aliases, short id: the first is the one that an address is called by.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// After a longer silence a life of an agent is over: whatever it sent has arrived or never will.
const SILENCE: Duration = Duration::from_secs(6);

/// What a node said last, and when.
#[derive(Clone, Debug, Default)]
struct Seen {
    version: Version,
    view: Arc<View>,
    /// Of the view, or for a moment of the one before.
    index: Arc<Index>,
    heard: Option<Instant>,
    /// The life of its agent that told it.
    life: Option<Instant>,
    /// Some of it was not taken.
    is_partial: bool,
}

#[derive(Debug)]
pub struct Directory {
    me: String,
    networks: BTreeMap<String, NetworkRecord>,
    own: Seen,
    others: BTreeMap<String, Seen>,
}

impl Directory {
    /// `epoch`: of this agent's versions, and of none before on this node.
    pub fn new(me: String, epoch: u64, records: Vec<NetworkRecord>) -> Self {
        let own = Seen { version: Version { epoch, count: 0 }, ..Seen::default() };
        let networks = records.into_iter().map(|r| (r.name.clone(), r)).collect();
        Self { me, networks, own, others: BTreeMap::new() }
    }

    pub fn me(&self) -> &str {
        &self.me
    }

    /// The networks that are.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &NetworkSpec)> {
        self.networks.values().filter_map(|r| Some((r.name.as_str(), r.spec.as_ref()?)))
    }

    /// Returns whether there is such a network, or one of the config file that a container with a name is
    /// in. Case matters not.
    pub fn has_network(&self, name: &str) -> bool {
        self.networks().any(|(own, _)| own.eq_ignore_ascii_case(name))
            || self.seen().any(|seen| seen.index.has_network(name))
    }

    /// Our own first.
    fn seen(&self) -> impl Iterator<Item = &Seen> {
        std::iter::once(&self.own).chain(self.others.values())
    }

    pub fn network(&self, name: &str) -> Option<&NetworkSpec> {
        self.networks.get(name)?.spec.as_ref()
    }

    /// Was there such a network?
    pub fn is_removed(&self, name: &str) -> bool {
        self.networks.get(name).is_some_and(|r| r.spec.is_none())
    }

    /// All that is known of networks, to be kept.
    pub fn records(&self) -> Vec<NetworkRecord> {
        self.networks.values().cloned().collect()
    }

    /// Makes a network, or removes it. Whether anything changed.
    pub fn set_network(&mut self, name: &str, spec: Option<NetworkSpec>) -> bool {
        let old = self.networks.get(name);
        if old.map(|r| &r.spec) == Some(&spec) || old.is_none() && spec.is_none() {
            return false;
        }
        let version = old.map_or(0, |r| r.version).saturating_add(1);
        let record = NetworkRecord { name: name.to_owned(), version, node: self.me.clone(), spec };
        self.networks.insert(name.to_owned(), record);
        self.forget_removed();
        true
    }

    /// Says which names this node has. Whether anything changed.
    pub fn set_view(&mut self, view: View) -> bool {
        if *self.own.view == view {
            return false;
        }
        self.own.view = Arc::new(view);
        self.own.index = Arc::new(Index::of(self.own.view.clone()));
        self.own.version.count += 1;
        true
    }

    /// The containers that are called so ([`Index::called`]) and their networks, our own first.
    pub fn called<'a>(&'a self, asked: &'a str) -> impl Iterator<Item = (&'a str, &'a Named)> {
        self.seen().flat_map(move |seen| seen.index.called(asked))
    }

    /// The containers that have an address, and their networks, our own first.
    pub fn holding(&self, address: IpAddr) -> impl Iterator<Item = (&str, &Named)> {
        self.seen().flat_map(move |seen| seen.index.holding(address))
    }

    /// What a peer told, if its names can not be found yet.
    pub(super) fn unindexed(&self, peer: &str) -> Option<Arc<View>> {
        let seen = self.others.get(peer)?;
        (!Arc::ptr_eq(seen.index.view(), &seen.view)).then(|| seen.view.clone())
    }

    /// Takes an index, unless it is of what the peer told before. Returns the one that is not used, for
    /// the caller to drop it without the lock.
    pub(super) fn set_index(&mut self, peer: &str, index: Index) -> Arc<Index> {
        let mut index = Arc::new(index);
        if let Some(seen) = self.others.get_mut(peer)
            && Arc::ptr_eq(index.view(), &seen.view)
        {
            std::mem::swap(&mut seen.index, &mut index);
        }
        index
    }

    /// A node besides us that has containers in a network.
    pub fn user(&self, network: &str) -> Option<&str> {
        let uses = |seen: &Seen| seen.view.networks.get(network).is_some_and(|c| !c.is_empty());
        self.others.iter().find(|(_, seen)| uses(seen)).map(|(node, _)| node.as_str())
    }

    /// What to tell a peer that has this version of our names.
    pub(super) fn news_for(&self, peer: &str, has: Option<Version>) -> News {
        let seen = self.others.get(peer).filter(|seen| seen.heard.is_some());
        News {
            node: self.me.clone(),
            have: seen.map(|seen| seen.version),
            view: (has != Some(self.own.version)).then(|| View::clone(&self.own.view)),
            version: self.own.version,
            networks: self.records(),
        }
    }

    /// The networks that are, each with the node that said so.
    pub(super) fn living(&self) -> impl Iterator<Item = (&str, &str, &NetworkSpec)> {
        self.networks.values().filter_map(|r| Some((&*r.name, &*r.node, r.spec.as_ref()?)))
    }

    /// Whether a record is newer than what is known.
    pub(super) fn is_news(&self, record: &NetworkRecord) -> bool {
        self.networks.get(&record.name).is_none_or(|old| old.rank() < record.rank())
    }

    /// 0 if the network is not known.
    pub(super) fn version_of(&self, network: &str) -> u64 {
        self.networks.get(network).map_or(0, |r| r.version)
    }

    /// Some of what this peer told was not taken, and may be another time.
    pub(super) fn set_partial(&mut self, peer: &str, is_partial: bool) {
        if let Some(seen) = self.others.get_mut(peer) {
            seen.is_partial = is_partial;
        }
    }

    /// Lets peers tell their names again: those of whom some were not taken, or all.
    pub(super) fn ask_again(&mut self, all: bool) {
        for seen in self.others.values_mut().filter(|seen| all || seen.is_partial) {
            // No life of an agent has this one.
            seen.version = Version::default();
        }
    }

    /// What to answer a peer that asked: what we have of it, and nothing else.
    pub(super) fn answer_for(&self, peer: &str) -> News {
        let seen = self.others.get(peer).filter(|seen| seen.heard.is_some());
        News {
            node: self.me.clone(),
            have: seen.map(|seen| seen.version),
            view: None,
            version: self.own.version,
            networks: Vec::new(),
        }
    }

    /// Whether this is not what our names are now.
    pub(super) fn is_behind(&self, has: Option<Version>) -> bool {
        has != Some(self.own.version)
    }

    /// Takes what `peer` told. Whether a network changed.
    ///
    /// Names are those of the agent's life with the highest epoch, for as long as that is heard. One
    /// that is heard no more gives way to any other: the count of starts was lost, or a clock was set
    /// back. Two that are both heard do not take turns.
    pub(super) fn absorb(&mut self, peer: &str, news: &News, now: Instant) -> bool {
        let seen = self.others.entry(peer.to_owned()).or_default();
        seen.heard = Some(now);
        let is_same_life = news.version.epoch == seen.version.epoch;
        let is_over = seen.life.is_none_or(|at| now.duration_since(at) > SILENCE);
        let is_newer = news.version >= seen.version || !is_same_life && is_over;
        if let (Some(view), true) = (&news.view, is_newer) {
            seen.version = news.version;
            seen.view = Arc::new(view.clone());
            seen.life = Some(now);
        } else if is_same_life {
            seen.life = Some(now);
        }
        let mut changed = false;
        for record in &news.networks {
            if self.is_news(record) {
                changed |= self.networks.get(&record.name).map(|r| &r.spec) != Some(&record.spec);
                self.networks.insert(record.name.clone(), record.clone());
            }
        }
        self.forget_removed();
        changed
    }

    /// Forgets the names of nodes that were not heard of for so long: their containers can not be
    /// reached either.
    pub(super) fn expire(&mut self, silence: Duration) {
        self.others.retain(|_, seen| seen.heard.is_some_and(|at| at.elapsed() < silence));
    }

    pub(super) fn keep_nodes(&mut self, roster: &Roster) {
        let known: BTreeSet<&str> = roster.peers.iter().map(|(name, _)| name.as_str()).collect();
        self.others.retain(|node, _| known.contains(node.as_str()));
    }

    fn forget_removed(&mut self) {
        while self.networks.len() > RECORDS_MAX {
            let removed = self.networks.values().filter(|r| r.spec.is_none());
            let Some(oldest) = removed.min_by_key(|r| r.version).map(|r| r.name.clone()) else {
                return;
            };
            self.networks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(vni: u32) -> NetworkSpec {
        NetworkSpec {
            vni,
            subnets: Vec::new(),
            first: "h1".into(),
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    fn view(name: &str) -> View {
        let named =
            Named { names: vec![name.into()], addresses: vec!["10.0.9.2".parse().unwrap()] };
        View { networks: BTreeMap::from([("net".to_owned(), vec![named])]) }
    }

    fn names(directory: &Directory) -> Vec<&str> {
        let views = directory.seen().filter_map(|seen| seen.view.networks.get("net"));
        views.flatten().flat_map(|n| &n.names).map(String::as_str).collect()
    }

    #[test]
    fn what_a_node_says_is_heard_and_not_sent_twice() {
        let (mut a, mut b) =
            (Directory::new("a".into(), 1, vec![]), Directory::new("b".into(), 1, vec![]));
        a.set_view(view("web"));
        a.set_network("net", Some(spec(7)));
        assert!(b.absorb("a", &a.news_for("b", None), Instant::now()));
        assert_eq!(names(&b), ["web"]);
        assert_eq!(b.network("net"), Some(&spec(7)));
        let have = b.news_for("a", None).have;
        assert_eq!(a.news_for("b", have).view, None);
        assert!(!b.absorb("a", &a.news_for("b", have), Instant::now()));
        assert_eq!(names(&b), ["web"]);
    }

    #[test]
    fn an_answer_says_no_names_and_no_networks() {
        let (mut a, mut b) =
            (Directory::new("a".into(), 1, vec![]), Directory::new("b".into(), 1, vec![]));
        a.set_view(view("web"));
        a.set_network("net", Some(spec(7)));
        b.absorb("a", &a.news_for("b", None), Instant::now());
        b.set_network("more", Some(spec(8)));
        let answer = b.answer_for("a");
        assert_eq!((&answer.view, answer.networks.len()), (&None, 0));
        assert!(!a.is_behind(answer.have) && a.is_behind(None));
    }

    #[test]
    fn an_agent_that_starts_anew_takes_back_its_names() {
        let mut b = Directory::new("b".into(), 1, vec![]);
        let mut a = Directory::new("a".into(), 1, vec![]);
        a.set_view(view("old"));
        a.set_view(view("older"));
        b.absorb("a", &a.news_for("b", None), Instant::now());
        let a = Directory::new("a".into(), 2, vec![]);
        let have = b.news_for("a", None).have;
        b.absorb("a", &a.news_for("b", have), Instant::now());
        assert_eq!(names(&b), [""; 0]);
    }

    /// A state folder that was lost, or a clock that was set back.
    #[test]
    fn an_agent_whose_epoch_is_lower_is_heard_once_the_one_before_is_silent() {
        let mut b = Directory::new("b".into(), 1, vec![]);
        let mut a = Directory::new("a".into(), 9, vec![]);
        a.set_view(view("old"));
        let (late, start) = (a.news_for("b", None), Instant::now());
        b.absorb("a", &late, start);
        let mut a = Directory::new("a".into(), 2, vec![]);
        a.set_view(view("new"));
        let tell = |b: &mut Directory, after: Duration| {
            let have = b.news_for("a", None).have;
            b.absorb("a", &a.news_for("b", have), start + after);
            names(b).concat()
        };
        let second = Duration::from_secs(1);
        assert_eq!(tell(&mut b, second), "old");
        assert_eq!(tell(&mut b, SILENCE), "old", "the one before may still have something to say");
        assert_eq!(tell(&mut b, SILENCE + second), "new");
        assert_eq!(tell(&mut b, SILENCE * 2), "new");
    }

    #[test]
    fn a_silent_node_is_forgotten() {
        let mut a = Directory::new("a".into(), 1, vec![]);
        a.set_view(view("web"));
        let mut b = Directory::new("b".into(), 1, vec![]);
        b.absorb("a", &a.news_for("b", None), Instant::now());
        assert_eq!(b.user("net"), Some("a"));
        b.expire(Duration::ZERO);
        assert_eq!(b.user("net"), None);
        assert_eq!(b.news_for("a", None).have, None, "asks for them again");
    }

    #[test]
    fn the_memory_of_removed_networks_has_an_end() {
        let mut a = Directory::new("a".into(), 1, vec![]);
        for n in 0..3000 {
            a.set_network(&format!("n{n}"), Some(spec(n)));
            a.set_network(&format!("n{n}"), None);
        }
        assert!(a.records().len() <= RECORDS_MAX);
    }

    /// What happens to an agent of node `a` until its next words.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Renames,
        /// A new life with this epoch.
        Starts(u64),
        /// The last words of the life before arrive only now.
        Late,
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
        let step =
            prop_oneof![Just(Step::Renames), (1..5u64).prop_map(Step::Starts), Just(Step::Late),];
        prop::collection::vec((step, 0..4u64), 0..30)
    }

    proptest! {
        /// However the epochs of an agent's lives follow each other, the one that lives is heard, and
        /// what it says is not undone by what one before sent.
        #[test]
        fn the_life_that_talks_is_heard(steps in steps()) {
            let mut now = Instant::now();
            let mut b = Directory::new("b".into(), 1, vec![]);
            let mut a = Directory::new("a".into(), 3, vec![]);
            // No two lives have one epoch: of the number of starts it is the higher half.
            let (mut lives, mut renames) = (0, 0);
            let mut late: Option<(News, Instant)> = None;
            for (step, seconds) in steps {
                now += Duration::from_secs(seconds);
                match step {
                    Step::Renames => {
                        renames += 1;
                        a.set_view(view(&renames.to_string()));
                    }
                    Step::Starts(epoch) => {
                        late = Some((a.news_for("b", None), now));
                        lives += 1;
                        a = Directory::new("a".into(), epoch << 32 | lives, vec![]);
                    }
                    Step::Late => {
                        // The client gives up by then.
                        let sent = late.take();
                        let sent = sent.filter(|(_, at)| now - *at < Duration::from_secs(3));
                        if let Some((news, _)) = sent {
                            b.absorb("a", &news, now);
                        }
                    }
                }
                b.absorb("a", &a.news_for("b", b.news_for("a", None).have), now);
            }
            for _ in 0..9 {
                now += Duration::from_secs(1);
                b.absorb("a", &a.news_for("b", b.news_for("a", None).have), now);
            }
            prop_assert_eq!(names(&b), names(&a));
            prop_assert_eq!(b.news_for("a", None).have, Some(a.own.version));
        }

        /// Whatever happens on three nodes, once each has told each other they know the same.
        #[test]
        fn all_come_to_know_the_same(
            steps in prop::collection::vec((0..3usize, 0..3u32, any::<bool>(), any::<bool>()), 0..40)
        ) {
            let mut nodes: Vec<_> =
                ["a", "b", "c"].iter().map(|n| Directory::new((*n).into(), 1, vec![])).collect();
            for (at, net, there, tell) in steps {
                nodes[at].set_network(&net.to_string(), there.then(|| spec(at as u32)));
                if tell {
                    let (from, news) = (nodes[at].me.clone(), nodes[at].news_for("", None));
                    nodes[(at + 1) % 3].absorb(&from, &news, Instant::now());
                }
            }
            for _ in 0..2 {
                for at in 0..3 {
                    let (from, news) = (nodes[at].me.clone(), nodes[at].news_for("", None));
                    for to in (0..3).filter(|to| *to != at) {
                        nodes[to].absorb(&from, &news, Instant::now());
                    }
                }
            }
            prop_assert_eq!(nodes[0].records(), nodes[1].records());
            prop_assert_eq!(nodes[1].records(), nodes[2].records());
        }
    }
}
