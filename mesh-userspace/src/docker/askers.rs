//! Who asks the resolver: a container is known by the address that its question comes from, and may
//! see the names of the networks that it is in.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    Attached,
    api::{Api, ApiError},
    networks::DRIVER,
};
use crate::{net::Net, peers::Shared};

/// The network by which Docker lets containers of other networks out into the world.
pub const GATEWAY: &str = "docker_gwbridge";
/// A resolver that waits longer for Docker than this is of no use.
const PATIENCE: Duration = Duration::from_secs(1);
/// For a source that is nobody's, Docker is not asked more often.
const PERIOD: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub struct Askers {
    api: Api,
    shared: Shared,
    /// Counts what happened to containers.
    changes: watch::Receiver<u64>,
    attached: watch::Receiver<Attached>,
    /// Replaced as a whole.
    known: Arc<Mutex<Arc<Known>>>,
    /// Held by who asks Docker: once is enough for all that wait.
    looking: Arc<tokio::sync::Mutex<()>>,
}

/// Who an address is, as far as it is known at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The networks whose names it may see; `None`: all, since it is the host, which asks for itself or,
    /// as Docker since 25.0 does, for its containers.
    Seen(Option<Vec<String>>),
    /// A container's of which something may have changed.
    Stale,
    /// Nobody's yet.
    Unknown,
}

#[derive(Clone, Default)]
struct Known {
    /// The changes that are in it.
    of: Option<u64>,
    /// The changes that Docker did not answer for.
    failed: Option<u64>,
    /// When it was asked last.
    at: Option<Instant>,
    /// By address of a container, the networks that it is in.
    networks: HashMap<IpAddr, Vec<String>>,
    /// The host's own, of those that asked.
    own: HashSet<IpAddr>,
}

impl Known {
    fn find(&self, source: IpAddr) -> Option<Option<Vec<String>>> {
        if self.own.contains(&source) {
            return Some(None);
        }
        self.networks.get(&source).cloned().map(Some)
    }

    fn is_recent(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() <= PERIOD)
    }
}

impl Askers {
    pub(super) fn new(
        api: Api,
        shared: Shared,
        changes: watch::Receiver<u64>,
        attached: watch::Receiver<Attached>,
    ) -> Self {
        let (known, looking) = (Arc::default(), Arc::default());
        Self { api, shared, changes, attached, known, looking }
    }

    /// Who this is, without asking anybody.
    pub fn of(&self, source: IpAddr) -> Source {
        if source.is_loopback() || self.shared.addresses().contains(&source) {
            return Source::Seen(None);
        }
        if let Some(networks) = self.attached.borrow().askers.get(&source) {
            return Source::Seen(Some(networks.clone()));
        }
        let known = self.known();
        match known.find(source) {
            Some(networks) if known.of == Some(*self.changes.borrow()) => Source::Seen(networks),
            Some(_) => Source::Stale,
            None => Source::Unknown,
        }
    }

    /// Who this is, after a look at what Docker says. Not [`Source::Stale`]: if Docker does not
    /// answer, what it said before counts.
    pub async fn look(&self, source: IpAddr) -> Source {
        let _one = self.looking.lock().await;
        match self.of(source) {
            Source::Seen(networks) => return Source::Seen(networks),
            Source::Stale | Source::Unknown if is_own(source).await => {
                let mut known = Known::clone(&self.known());
                known.own.insert(source);
                self.set(known);
                return Source::Seen(None);
            }
            Source::Stale | Source::Unknown => self.ask_docker().await,
        }
        match self.of(source) {
            Source::Stale => self.known().find(source).map_or(Source::Unknown, Source::Seen),
            seen => seen,
        }
    }

    fn known(&self) -> Arc<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Unless it was asked just now, by whoever had the turn before, and nothing happened since.
    async fn ask_docker(&self) {
        let (known, now) = (self.known(), *self.changes.borrow());
        let is_known = known.of == Some(now);
        if known.is_recent() && (is_known || known.failed == Some(now)) {
            return;
        }
        let mut new = match timeout(PATIENCE, self.ask()).await {
            Ok(Ok(networks)) => Known { of: Some(now), networks, ..Known::default() },
            failed => {
                tracing::debug!("who asks? {:?}", failed.map(Result::err));
                Known { failed: Some(now), ..Known::clone(&known) }
            }
        };
        new.at = Some(Instant::now());
        self.set(new);
    }

    fn set(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
    }

    /// The networks of each container by its addresses.
    async fn ask(&self) -> Result<HashMap<IpAddr, Vec<String>>, ApiError> {
        let mut addresses: HashMap<String, Vec<IpAddr>> = HashMap::new();
        let mut networks: HashMap<String, Vec<String>> = HashMap::new();
        for listed in self.api.networks(DRIVER).await?.list {
            let network = self.api.network(&listed.id).await?;
            for (container, member) in network.containers {
                addresses.entry(container.clone()).or_default().extend(member.addresses());
                networks.entry(container).or_default().push(network.name.clone());
            }
        }
        match self.api.network(GATEWAY).await {
            Ok(gateway) => {
                for (container, member) in gateway.containers {
                    addresses.entry(container).or_default().extend(member.addresses());
                }
            }
            // Docker makes it for the first container that needs it.
            Err(ApiError::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
        let mut by_address = HashMap::new();
        for (container, addresses) in addresses {
            let seen = networks.get(&container).cloned().unwrap_or_default();
            by_address.extend(addresses.into_iter().map(|address| (address, seen.clone())));
        }
        Ok(by_address)
    }
}

/// Returns whether this host has the address. A dump of all addresses would wait for the kernel's rtnl
/// lock, which who removes a namespace holds for long; a look at the routes does not.
async fn is_own(address: IpAddr) -> bool {
    let Ok(net) = Net::here() else { return false };
    let way = net.route_to(address, None).await;
    way.is_ok_and(|way| way.is_some_and(|way| way.local))
}
