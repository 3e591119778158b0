//! Who has a name or an address, of what one node told: found without a look at all of it. Pure.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::IpAddr,
    sync::Arc,
};

use super::{Named, View};

/// Of containers that have the same name or address. More fit in no answer.
const SAME_MAX: usize = 1024;

/// Where a name or an address stands in a [`View`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    network: u32,
    container: u32,
    /// Which of its names or addresses it is.
    part: u32,
}

/// Of one [`View`]. Of about its size, whatever names are in it.
#[derive(Debug, Default)]
pub struct Index {
    view: Arc<View>,
    networks: Vec<String>,
    /// Hashes of their names in lower case, in order.
    network_names: Vec<u64>,
    /// In order of the hashes of `NAME` and `NAME.NETWORK`, in lower case.
    names: Vec<(u64, Position)>,
    /// In order.
    addresses: Vec<(IpAddr, Position)>,
    /// Who makes up names does not know which have the same hash.
    hashes: RandomState,
}

impl Index {
    pub fn of(view: Arc<View>) -> Self {
        let networks = view.networks.keys().cloned().collect();
        let mut index = Self { networks, view: view.clone(), ..Self::default() };
        for (network, (name, containers)) in (0..).zip(&view.networks) {
            for (container, named) in (0..).zip(containers) {
                index.add(named, name, Position { network, container, part: 0 });
            }
        }
        index.network_names = index.networks.iter().map(|name| index.hash(&[name])).collect();
        index.network_names.sort_unstable();
        index.names.sort_unstable();
        index.addresses.sort_unstable();
        index
    }

    /// Of what it is.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Returns whether there is a network of this name, whatever the case of its letters.
    pub fn has_network(&self, name: &str) -> bool {
        self.network_names.binary_search(&self.hash(&[name])).is_ok()
    }

    fn add(&mut self, named: &Named, network: &str, position: Position) {
        for (part, name) in (0..).zip(&named.names) {
            let position = Position { part, ..position };
            self.names.push((self.hash(&[name]), position));
            self.names.push((self.hash(&[name, ".", network]), position));
        }
        for (part, address) in (0..).zip(&named.addresses) {
            self.addresses.push((*address, Position { part, ..position }));
        }
    }

    /// Of all parts together.
    fn hash(&self, parts: &[&str]) -> u64 {
        let mut hasher = self.hashes.build_hasher();
        for byte in parts.iter().flat_map(|part| part.bytes()) {
            hasher.write_u8(byte.to_ascii_lowercase());
        }
        hasher.finish()
    }

    /// The containers with this name, alone or with `.NETWORK` behind it, and their networks. Case
    /// matters not (RFC 4343).
    pub fn called<'a>(&'a self, asked: &'a str) -> impl Iterator<Item = (&'a str, &'a Named)> {
        run(&self.names, self.hash(&[asked])).filter_map(move |at| {
            let (network, named) = self.get(at)?;
            let name = named.names.get(at.part as usize)?;
            is_called(name, network, asked).then_some((network, named))
        })
    }

    /// The containers with this address, and their networks.
    pub fn holding(&self, address: IpAddr) -> impl Iterator<Item = (&str, &Named)> {
        run(&self.addresses, address).filter_map(|at| self.get(at))
    }

    fn get(&self, at: Position) -> Option<(&str, &Named)> {
        let network = self.networks.get(at.network as usize)?;
        Some((network, self.view.networks.get(network)?.get(at.container as usize)?))
    }
}

/// What has this key.
fn run<K: Copy + Ord>(
    entries: &[(K, Position)],
    key: K,
) -> impl Iterator<Item = Position> + use<'_, K> {
    let from = entries.partition_point(|(k, _)| *k < key);
    entries[from..].iter().take_while(move |(k, _)| *k == key).take(SAME_MAX).map(|(_, at)| *at)
}

fn is_called(name: &str, network: &str, asked: &str) -> bool {
    let bare = asked.len().checked_sub(network.len() + 1).and_then(|at| {
        let (bare, rest) = (asked.get(..at)?, asked.get(at..)?);
        let matches = rest.strip_prefix('.')?.eq_ignore_ascii_case(network);
        matches.then_some(bare)
    });
    name.eq_ignore_ascii_case(asked) || bare.is_some_and(|bare| name.eq_ignore_ascii_case(bare))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn named(name: &str, address: [u8; 4]) -> Named {
        Named { names: vec![name.to_owned()], addresses: vec![address.into()] }
    }

    /// Whoever looks holds up all who ask: the time must not grow with what a node told.
    #[test]
    fn a_name_among_very_many_is_found_at_once() {
        let containers =
            (0..130_000_u32).map(|n| named(&format!("n{n}"), n.to_be_bytes())).collect();
        let view = View { networks: [("net".to_owned(), containers)].into() };
        let index = Index::of(Arc::new(view));
        let began = Instant::now();
        for n in 0..10_000_u32 {
            let name = format!("N{}.net", n * 13);
            assert_eq!(index.called(&name).count(), 1);
            assert_eq!(index.called("nobody.net").count(), 0);
            assert!(index.has_network("Net") && !index.has_network("nets"));
            assert_eq!(index.holding((n * 13).to_be_bytes().into()).count(), 1);
        }
        // Some 20 ms; one by one it would be minutes.
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }

    #[test]
    fn of_very_many_with_one_name_some_are_found() {
        let containers = (0..5000_u32).map(|n| named("web", n.to_be_bytes())).collect();
        let view = View { networks: [("net".to_owned(), containers)].into() };
        assert_eq!(Index::of(Arc::new(view)).called("web").count(), SAME_MAX);
    }

    proptest! {
        /// As a look at all of it, one by one.
        #[test]
        fn what_is_found_is_what_is_there(
            there in prop::collection::vec(("[ab.]{1,3}", "[aB.]{1,3}", 0..4_u8), 0..20),
            asked in "[aAbB.]{1,5}", address in 0..4_u8,
        ) {
            let mut view = View::default();
            for (network, name, last) in &there {
                let containers = view.networks.entry(network.clone()).or_default();
                containers.push(named(name, [10, 0, 9, *last]));
            }
            let all = || view.networks.iter().flat_map(|(network, containers)| {
                containers.iter().map(move |named| (network.as_str(), named))
            });
            let index = Index::of(Arc::new(view.clone()));
            let key = |(network, named): &(&str, &Named)| {
                ((*network).to_owned(), named.names.clone(), named.addresses.clone())
            };
            let sorted = |mut found: Vec<(&str, &Named)>| {
                found.sort_by_key(key);
                found.iter().map(key).collect::<Vec<_>>()
            };
            let expected = all().filter(|(network, named)| is_called(&named.names[0], network, &asked));
            prop_assert_eq!(
                sorted(index.called(&asked).collect()), sorted(expected.collect())
            );
            let address = IpAddr::from([10, 0, 9, address]);
            let expected = all().filter(|(_, named)| named.addresses.contains(&address));
            prop_assert_eq!(
                sorted(index.holding(address).collect()), sorted(expected.collect())
            );
        }
    }
}
