//! What was not taken of other nodes' messages, as faults: one of each kind for a node, and not of all
//! nodes, however often they are told.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Roster,
    rules::{Refused, text},
};
use crate::faults::Faults;

/// Nodes and kinds that are told of at once.
const MAX: usize = 32;
const PART: &str = "news of other agents";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Networks,
    Names,
}

#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<(String, Kind), Refusal>);

#[derive(Debug)]
struct Refusal {
    why: String,
    /// The last time.
    at: Instant,
    /// Stands until the node tells its names again.
    stands: bool,
}

impl Refusals {
    /// `has_view`: the message said names.
    pub fn add(
        &mut self,
        peer: &str,
        has_view: bool,
        refused: Refused,
        now: Instant,
        faults: &Faults,
    ) {
        let before = self.0.len();
        if let Some((why, n)) = refused.records {
            self.put(peer, Kind::Networks, text(&why, n), now);
        }
        match refused.names {
            Some((why, n)) => self.put(peer, Kind::Names, text(&why, n), now),
            None if has_view => {
                let names = self.0.get_mut(&(peer.to_owned(), Kind::Names));
                names.into_iter().for_each(|refusal| refusal.stands = false);
            }
            None => {}
        }
        if self.0.len() != before {
            self.tell(faults);
        }
    }

    /// The first reason stays: a node that gives another each time does not fill the log.
    fn put(&mut self, peer: &str, kind: Kind, why: String, now: Instant) {
        let key = (peer.to_owned(), kind);
        if self.0.len() >= MAX && !self.0.contains_key(&key) {
            return;
        }
        let refusal = self.0.entry(key).or_insert(Refusal { why, at: now, stands: false });
        (refusal.at, refusal.stands) = (now, kind == Kind::Names);
    }

    /// Forgets what was not told again for so long.
    pub fn expire(&mut self, silence: Duration, roster: &Roster, now: Instant, faults: &Faults) {
        let is_peer = |name: &str| roster.peers.iter().any(|(peer, _)| peer == name);
        self.0.retain(|(peer, _), refusal| {
            is_peer(peer) && (refusal.stands || now.duration_since(refusal.at) < silence)
        });
        self.tell(faults);
    }

    fn tell(&self, faults: &Faults) {
        let fault = |((peer, kind), refusal): (&(String, Kind), &Refusal)| {
            let what = match kind {
                Kind::Networks => "networks",
                Kind::Names => "names",
            };
            let why = &refusal.why;
            let text = format!(
                "node {peer} tells of {what} that are not taken here: {why}. Remove them there; if \
                 nobody made them, that host is not to be trusted"
            );
            (format!("{peer} {what}"), text)
        };
        faults.set_all(PART, self.0.iter().map(fault).collect());
    }
}
