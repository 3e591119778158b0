//! Containers that run, given what the file or the underlay has changed since they were attached.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    time::{Duration, Instant},
};

use super::{Host, HostError, faults::remedy};
use crate::{
    compile,
    config::{Cluster, Vni},
    net::{Net, open_netns},
    state::Endpoint,
};

/// Between two attempts to give a container the same: to look for its namespace takes time.
const RETRY: Duration = Duration::from_secs(10);

/// A container that does not have what it should, such as an MTU.
#[derive(Debug)]
pub(super) struct Unfollowed<T> {
    pub wanted: T,
    /// Why, and the remedy.
    pub fault: String,
    tried: Instant,
}

impl<T> Unfollowed<T> {
    pub fn new(wanted: T, fault: String) -> Self {
        Self { wanted, fault, tried: Instant::now() }
    }

    /// To be tried again.
    pub fn is_due(&self) -> bool {
        self.tried.elapsed() >= RETRY
    }
}

impl Host {
    /// Gives the containers' interfaces the MTU that the file or the underlay has now. What can not be
    /// done is tried again at the next look.
    pub(super) async fn follow_mtu(&mut self, cluster: &Cluster, underlay_mtu: u32) {
        let mtu = |vni| compile::container_mtu(cluster, vni, underlay_mtu).unwrap_or_else(|m| m);
        let mut mtus = HashMap::new();
        let mut before = std::mem::take(&mut self.unfollowed);
        let made_here = self.state.endpoints.iter_mut().filter(|(_, e)| e.bridged.is_none());
        for (name, endpoint) in made_here {
            let Some(vni) = Vni::new(endpoint.vni) else { continue };
            let mtu = *mtus.entry(vni).or_insert_with(|| mtu(vni));
            let mtu = endpoint.mtu_max.map_or(mtu, |most| most.min(mtu));
            if mtu == endpoint.mtu {
                continue;
            }
            let last = before.remove(name).filter(|last| last.wanted == mtu);
            if let Some(last) = last.filter(|last| !last.is_due()) {
                self.unfollowed.insert(name.clone(), last);
                continue;
            }
            match set_inner_mtu(&self.net, endpoint, mtu).await {
                Ok(()) => endpoint.mtu = mtu,
                Err(e) => {
                    let fault = kept_mtu(endpoint, mtu, &e);
                    self.unfollowed.insert(name.clone(), Unfollowed::new(mtu, fault));
                }
            }
        }
    }
}

fn kept_mtu(endpoint: &Endpoint, mtu: u32, why: &HostError) -> String {
    format!(
        "it keeps its MTU of {}, though the mesh now has {mtu}: {why}; what is too large is answered \
         with ICMP; {}",
        endpoint.mtu,
        remedy(endpoint)
    )
}

async fn set_inner_mtu(here: &Net, endpoint: &Endpoint, mtu: u32) -> Result<(), HostError> {
    let (inside, ifindex) = inside_of(here, endpoint).await?;
    Ok(inside.set_mtu(ifindex, mtu).await?)
}

/// The namespace that an endpoint's interface is in by now, and its index there. Known by the kernel's
/// number for it, and opened by the path that it was attached with, or else by a process in it: the
/// path may have gone, or be one of Docker's that is mounted elsewhere.
pub(super) async fn inside_of(here: &Net, endpoint: &Endpoint) -> Result<(Net, u32), HostError> {
    let Some(link) = here.link(endpoint.host.index).await? else {
        return Err(HostError::User(format!("its interface {} is gone", endpoint.host.name)));
    };
    let ifindex = link.peer.unwrap_or(endpoint.ifindex);
    // Nobody has moved it yet.
    let Some(number) = link.peer_netns else { return Ok((Net::here()?, ifindex)) };
    let named = open_netns(&endpoint.netns);
    if let Ok(netns) = &named
        && here.netns_number(netns.as_fd()).await? == Some(number)
    {
        return Ok((Net::in_netns(netns.as_fd())?, ifindex));
    }
    for netns in of_processes() {
        if here.netns_number(netns.as_fd()).await? == Some(number) {
            return Ok((Net::in_netns(netns.as_fd())?, ifindex));
        }
    }
    let why = named.err().map_or_else(
        || format!("{} is another namespace by now", endpoint.netns),
        |e| e.to_string(),
    );
    Err(HostError::User(format!("{why}; and no process is seen in its namespace")))
}

/// The network namespaces that processes are in, each once.
fn of_processes() -> impl Iterator<Item = OwnedFd> {
    let mut seen = BTreeSet::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())).filter_map(move |pid| {
        // One that ends meanwhile is none.
        let stat = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
        if !seen.insert((stat.dev(), stat.ino())) {
            return None;
        }
        open_netns(&pid).ok()
    })
}
