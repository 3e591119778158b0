//! Answers other agents, on the overlay addresses of this host only and to configured peers only:
//! the data plane takes such a source from no other host, and from no container.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::StatusCode,
    routing::post,
};
use tokio::{net::TcpListener, task::AbortHandle};

use super::{
    PORT, Shared,
    protocol::{MESSAGE_MAX, News, PATH},
};

/// An address may be taken up a little before the interface has it.
const RETRY: Duration = Duration::from_secs(1);

/// Listens on whatever overlay addresses this host has.
pub(super) async fn run(shared: Shared) {
    let mut roster = shared.roster.subscribe();
    let mut listeners: HashMap<IpAddr, AbortHandle> = HashMap::new();
    loop {
        let wanted = roster.borrow_and_update().addresses.clone();
        listeners.retain(|address, listener| {
            let stays = wanted.contains(address) && !listener.is_finished();
            if !stays {
                listener.abort();
            }
            stays
        });
        let mut failed = false;
        for address in wanted {
            if listeners.contains_key(&address) {
                continue;
            }
            match TcpListener::bind((address, PORT)).await {
                Ok(listener) => drop(listeners.insert(address, serve(&shared, listener))),
                Err(e) => {
                    tracing::debug!("listening for agents on {address}: {e}");
                    failed = true;
                }
            }
        }
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

fn serve(shared: &Shared, listener: TcpListener) -> AbortHandle {
    let router = Router::new()
        .route(PATH, post(exchange))
        .layer(DefaultBodyLimit::max(MESSAGE_MAX))
        .with_state(shared.clone())
        .into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            tracing::warn!("no longer listening for agents: {e}");
        }
    })
    .abort_handle()
}

async fn exchange(
    State(shared): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    body: axum::body::Bytes,
) -> Result<Json<News>, (StatusCode, String)> {
    let peer = shared.roster.borrow().peer(from.ip().to_canonical()).map(str::to_owned);
    let Some(peer) = peer else {
        return Err((StatusCode::FORBIDDEN, format!("{} is no agent of this mesh", from.ip())));
    };
    let news: News =
        serde_json::from_slice(&body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
    shared.absorb(&peer, &news);
    let answer = shared.lock().news_for(&peer, news.have);
    Ok(Json(answer))
}
