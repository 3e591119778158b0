//! Tells every peer what is new here, at once, and again from time to time. A peer that does not
//! answer holds up nobody but itself.
//!
//! Of the answer only that is used which the peer has of our names: any user of its host may have taken
//! the port while its agent was away. What it has to tell comes by a request of its own.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    PORT, Shared,
    protocol::{Answer, MESSAGE_MAX, News, PATH, RESERVED},
};
use crate::{
    docker::http,
    supervise::{Supervisor, Task},
};

/// A peer that takes longer is not there.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions to one peer; longer in a large mesh, so that each agent has at most 20 to
/// answer in a second.
const PERIOD: Duration = Duration::from_secs(5);
const PERIOD_PER_PEER: Duration = Duration::from_millis(50);
/// Between two requests to one peer at least, whatever happens.
const LEAST: Duration = Duration::from_millis(100);
/// After an error, at first.
const RETRY: Duration = Duration::from_secs(1);
/// Peers that are spoken to at once: each takes a descriptor.
const AT_ONCE: usize = 64;
/// Periods of silence after which a node's names are forgotten.
const SILENT_PERIODS: u32 = 3;

/// One task for each peer of the roster.
pub(super) async fn run(shared: Shared, supervisor: Supervisor) {
    let mut roster = shared.roster.subscribe();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks: HashMap<(String, IpAddr), Task> = HashMap::new();
    loop {
        let now = roster.borrow_and_update().clone();
        let period =
            PERIOD.max(PERIOD_PER_PEER * u32::try_from(now.peers.len()).unwrap_or(u32::MAX));
        let mut wanted: Vec<(String, IpAddr)> = Vec::new();
        for (name, addresses) in now.peers {
            wanted.extend(addresses.first().map(|a| (name, *a)));
        }
        tasks.retain(|peer, _| wanted.contains(peer));
        for peer in wanted {
            tasks.entry(peer.clone()).or_insert_with(|| {
                let (shared, turns) = (shared.clone(), turns.clone());
                let what = format!("questions to the agent of {}", peer.0);
                supervisor.spawn(what, move || {
                    follow(shared.clone(), turns.clone(), peer.0.clone(), peer.1, period)
                })
            });
        }
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(period) => shared.expire(period * SILENT_PERIODS),
        }
    }
}

async fn follow(
    shared: Shared,
    turns: Arc<Semaphore>,
    peer: String,
    address: IpAddr,
    period: Duration,
) {
    let mut own = shared.own.subscribe();
    let lack = shared.lacks.of(&peer);
    // What the peer said it has of our names.
    let mut has = None;
    let mut retry = RETRY;
    loop {
        let Ok(turn) = turns.acquire().await else { return };
        own.borrow_and_update();
        let began = Instant::now();
        let news = shared.lock().news_for(&peer, has);
        let version = news.version;
        let answered = timeout(PATIENCE, exchange(address, &news)).await;
        drop((turn, news));
        let wait = match answered {
            Ok(Ok(answer)) => {
                has = Some(version);
                // It forgot us, or started anew: tell it all.
                if answer.have != has {
                    has = None;
                }
                retry = RETRY;
                if has.is_none() { RETRY } else { period }
            }
            failed => {
                tracing::debug!("exchange with {peer}: {failed:?}");
                has = None;
                // A node without Docker never answers.
                retry = (retry * 2).min(period);
                retry
            }
        };
        tokio::select! {
            changed = own.changed() => if changed.is_err() { return },
            () = lack.notified() => has = None,
            () = tokio::time::sleep(wait) => {}
        }
        // However often a peer says that it lacks something, it is not told more often.
        let next = began + LEAST;
        tokio::time::sleep_until(next).await;
    }
}

async fn exchange(address: IpAddr, news: &News) -> io::Result<Answer> {
    let stream = connect(SocketAddr::new(address, PORT)).await?;
    stream.set_nodelay(true)?;
    let body = serde_json::to_vec(news)?;
    let answer = http::call(stream, "POST", PATH, body, MESSAGE_MAX).await?;
    if !answer.is_ok() {
        return Err(io::Error::other(format!("{}: {}", answer.status, answer.text())));
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

/// From a port that only root, and an agent, may send from ([`RESERVED`]).
async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // From another one each time: what was closed just now keeps its port for this peer for a minute.
    let count = RESERVED.end - RESERVED.start;
    let first = NEXT.fetch_add(1, Ordering::Relaxed) % count;
    for i in 0..count {
        let socket = if any.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        let port = RESERVED.start + (first + i) % count;
        let connected = match socket.bind(SocketAddr::new(any, port)) {
            Ok(()) => socket.connect(to).await,
            Err(e) => Err(e),
        };
        match connected {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) => {}
            done => return done,
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("none of the ports {RESERVED:?} is free")))
}

static NEXT: AtomicU16 = AtomicU16::new(0);
