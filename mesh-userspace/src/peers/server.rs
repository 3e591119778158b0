//! Answers other agents, on the overlay addresses of this host only and to configured peers only:
//! the data plane takes such a source from no other host and from no container, that host's rules keep
//! out what it masquerades ([`guard`](crate::host)), and the port its users.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::StatusCode,
    routing::post,
};
use tokio::{net::TcpListener, task::AbortHandle};

use super::{
    PORT, Shared,
    protocol::{MESSAGE_MAX, News, PATH, RESERVED},
};

/// Listens on whatever overlay addresses this host has.
pub(super) async fn run(shared: Shared) {
    let mut listeners = shared.listeners();
    loop {
        let mut failed = false;
        for address in listeners.missing() {
            match TcpListener::bind((address, PORT)).await {
                Ok(listener) => listeners.add(address, serve(&shared, listener)),
                Err(e) => {
                    tracing::debug!("listening for agents on {address}: {e}");
                    failed = true;
                }
            }
        }
        if !listeners.wait(failed).await {
            return;
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
    let is_reserved = RESERVED.contains(&from.port());
    let peer = shared.roster.borrow().peer(from.ip().to_canonical()).map(str::to_owned);
    let Some(peer) = peer.filter(|_| is_reserved) else {
        return Err((StatusCode::FORBIDDEN, format!("{from} is no agent of this mesh")));
    };
    let news: News =
        serde_json::from_slice(&body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
    shared.absorb(&peer, &news);
    let answer = shared.lock().news_for(&peer, news.have);
    Ok(Json(answer))
}
