//! Who asks the resolver: a container is known by the address that its question comes from, and may
//! see the names of the networks that it is in.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Mutex, watch},
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
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// The changes that are in it.
    of: Option<u64>,
    at: Option<Instant>,
    /// By address of a container, the networks that it is in.
    networks: HashMap<IpAddr, Vec<String>>,
    own: HashSet<IpAddr>,
}

impl Askers {
    pub(super) fn new(
        api: Api,
        shared: Shared,
        changes: watch::Receiver<u64>,
        attached: watch::Receiver<Attached>,
    ) -> Self {
        Self { api, shared, changes, attached, known: Arc::default() }
    }

    /// The networks whose names this address may see; `None`: all, since it is the host, which asks
    /// for itself or, as Docker since 25.0 does, for its containers.
    pub async fn networks_of(&self, source: IpAddr) -> Option<Vec<String>> {
        if source.is_loopback() || self.shared.addresses().contains(&source) {
            return None;
        }
        if let Some(networks) = self.attached.borrow().askers.get(&source) {
            return Some(networks.clone());
        }
        let mut known = self.known.lock().await;
        let now = *self.changes.borrow();
        let is_known = known.networks.contains_key(&source) || known.own.contains(&source);
        let is_old = known.at.is_none_or(|at| at.elapsed() > PERIOD);
        if known.of != Some(now) || !is_known && is_old {
            match timeout(PATIENCE, self.look()).await {
                Ok(Ok((networks, own))) => {
                    *known = Known { of: Some(now), at: Some(Instant::now()), networks, own };
                }
                Ok(Err(e)) => tracing::debug!("who asks? {e}"),
                Err(_) => tracing::debug!("who asks? Docker does not say"),
            }
        }
        if known.own.contains(&source) {
            return None;
        }
        Some(known.networks.get(&source).cloned().unwrap_or_default())
    }

    /// The networks of each container by its addresses, and the host's own addresses.
    async fn look(&self) -> Result<(HashMap<IpAddr, Vec<String>>, HashSet<IpAddr>), ApiError> {
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
        let own = match Net::here() {
            Ok(net) => net.addresses().await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        Ok((by_address, own.iter().map(crate::net::Address::ip).collect()))
    }
}
