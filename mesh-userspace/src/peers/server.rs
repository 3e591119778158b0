//! Answers other agents, on `mesh0` and to configured peers only: the data plane takes such a source
//! from no other host and from no container, that host's rules keep out what it masquerades
//! ([`guard`](crate::host)), and the port its users.
//!
//! Who connects is looked at before a byte of it is read. What a peer may have is bounded too: one of
//! them may have been taken over.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    Listeners, PORT, Shared,
    listeners::{Answers, Place, Service, bind_tcp, refuse},
    protocol::{MESSAGE_MAX, News, PATH, RESERVED},
};
use crate::{
    host::MESH0,
    quota::Quota,
    supervise::{Supervisor, Task},
};

const SERVICE: Service =
    Service { part: "agents", port: PORT, outcome: "other agents are not answered" };
/// Connections at once of one peer, which needs one, and of all. Each agent asks 20 times a second
/// at most.
const PER_PEER: usize = 2;
const CONNECTIONS: usize = 64;
/// From accepting a connection to the end of the answer. Who asks waits less.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of all requests that are not whole yet.
const BODIES_MAX: usize = 32 << 20;
/// Bytes of a body that is read in a moment. A longer one has a thread of its own: names would wait.
const SHORT: usize = 64 << 10;
/// Longest header of a request, and what is read ahead of its body, in bytes.
const BUFFER: usize = 16 << 10;
/// After a connection that could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Server {
    shared: Shared,
    connections: Quota<String>,
    bodies: Arc<Semaphore>,
}

/// A whole body, and its share of [`BODIES_MAX`].
type Body = (Vec<u8>, Option<OwnedSemaphorePermit>);

/// Why a request is not answered.
type Refusal = (StatusCode, String);

/// Listens on whatever overlay addresses this host has.
pub(super) async fn run(shared: Shared, supervisor: Supervisor) {
    let listeners = Listeners::new(SERVICE, &shared);
    let connections = Quota::new(CONNECTIONS, 0);
    let server = Server { shared, connections, bodies: Arc::new(Semaphore::new(BODIES_MAX)) };
    listeners.run(|_| vec![MESH0.to_owned()], |place| server.listen(&supervisor, place)).await;
}

impl Server {
    fn listen(&self, supervisor: &Supervisor, place: &Place) -> io::Result<Task> {
        let listener = Arc::new(bind_tcp(place, PORT, Answers::SameInterface)?);
        let (server, what) = (self.clone(), SERVICE.task(place));
        Ok(supervisor.spawn(what, move || server.clone().serve(listener.clone())))
    }

    async fn serve(self, listener: Arc<TcpListener>) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.accept(stream, from),
                Err(e) => {
                    tracing::debug!("an agent's connection: {e}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn accept(&self, stream: TcpStream, from: SocketAddr) {
        let Some(peer) = self.peer(from) else { return refuse(stream) };
        let Some(share) = self.connections.take(&peer, PER_PEER) else { return refuse(stream) };
        let server = self.clone();
        tokio::spawn(async move {
            let answer = |request| {
                let (server, peer) = (server.clone(), peer.clone());
                async move { Ok::<_, hyper::Error>(server.answer(&peer, request).await) }
            };
            let mut http = http1::Builder::new();
            let connection = http
                .keep_alive(false)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            match timeout(DEADLINE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::debug!("the agent of {peer}: {e}"),
                Err(_) => tracing::debug!("the agent of {peer} takes longer than {DEADLINE:?}"),
            }
            drop(share);
        });
    }

    /// The node whose agent this is; `None` for all others.
    fn peer(&self, from: SocketAddr) -> Option<String> {
        if !RESERVED.contains(&from.port()) {
            return None;
        }
        self.shared.roster.borrow().peer(from.ip().to_canonical()).map(str::to_owned)
    }

    async fn answer(&self, peer: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, body) = match self.exchange(peer, request).await {
            Ok(body) => (StatusCode::OK, "application/json", body),
            Err((status, why)) => (status, "text/plain", why.into_bytes()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }

    async fn exchange(&self, peer: &str, request: Request<Incoming>) -> Result<Vec<u8>, Refusal> {
        if request.uri().path() != PATH {
            return Err((StatusCode::NOT_FOUND, format!("there is only {PATH}")));
        }
        if request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "POST is what is understood".into()));
        }
        let body = self.read(request.into_body()).await?;
        if body.0.len() <= SHORT {
            return self.take(peer, body);
        }
        let (server, peer) = (self.clone(), peer.to_owned());
        let taken = tokio::task::spawn_blocking(move || server.take(&peer, body)).await;
        taken.unwrap_or_else(|e| Err((StatusCode::INTERNAL_SERVER_ERROR, e.to_string())))
    }

    /// Takes what a peer tells, and returns what it is told.
    fn take(&self, peer: &str, (body, held): Body) -> Result<Vec<u8>, Refusal> {
        let news: News =
            serde_json::from_slice(&body).map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
        drop((body, held));
        let have = news.have;
        self.shared.absorb(peer, news);
        let answer = self.shared.answer(peer, have);
        serde_json::to_vec(&answer).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
    }

    /// A whole body. Each byte of it is counted as it comes, among all others' that are read.
    async fn read(&self, mut body: Incoming) -> Result<Body, Refusal> {
        let (mut whole, mut held) = (Vec::new(), None::<OwnedSemaphorePermit>);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| (StatusCode::BAD_REQUEST, e.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > MESSAGE_MAX {
                let why = format!("longer than {MESSAGE_MAX} bytes");
                return Err((StatusCode::PAYLOAD_TOO_LARGE, why));
            }
            let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let Ok(more) = self.bodies.clone().try_acquire_many_owned(count) else {
                return Err((StatusCode::SERVICE_UNAVAILABLE, "too much at once".into()));
            };
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            whole.extend_from_slice(&data);
        }
        Ok((whole, held))
    }
}
