//! The plugin's socket: HTTP as dockerd speaks it. Each call is answered in its own time.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::Instant,
};

use super::{
    driver::DriverError,
    health::Health,
    protocol::{Call, ProtocolError},
};

/// Of one call, in bytes.
const BODY_MAX: usize = 1 << 20;
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");
/// How long a call may wait for what it needs, such as the name of a network just made. Docker
/// itself waits for 15 s.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// A call, and where its answer goes.
pub type Asked = (Call, oneshot::Sender<Result<Value, DriverError>>);

/// The socket; gone when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    task: AbortHandle,
}

impl Server {
    /// Listens from now on.
    pub fn start(path: &Path, calls: mpsc::Sender<Asked>, health: Health) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state((calls, health));
        let task = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                tracing::warn!("the plugin's socket takes no more calls: {e}");
            }
        });
        Ok(Self { path: path.to_owned(), task: task.abort_handle() })
    }

    /// Does it still listen, on a socket that Docker finds?
    pub fn is_there(&self) -> bool {
        !self.task.is_finished() && self.path.exists()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

async fn answer(
    State((calls, health)): State<(mpsc::Sender<Asked>, Health)>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let method = uri.path().trim_start_matches('/');
    let (status, answer) = match Call::parse(method, &body) {
        Ok(call) => match ask(&calls, call.clone()).await {
            Ok(answer) => (StatusCode::OK, answer),
            Err(e) => {
                tracing::warn!("{method}: {e}");
                health.refused(method, &e.to_string());
                (StatusCode::OK, error(&e))
            }
        },
        Err(e @ ProtocolError::Unknown(_)) => (StatusCode::NOT_FOUND, error(&e)),
        Err(e) => {
            tracing::warn!("{e}");
            (StatusCode::OK, error(&e))
        }
    };
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], answer.to_string()).into_response()
}

/// Network drivers call it one way and IPAM drivers another.
fn error(e: &dyn std::error::Error) -> Value {
    json!({"Err": e.to_string(), "Error": e.to_string()})
}

async fn ask(calls: &mpsc::Sender<Asked>, call: Call) -> Result<Value, DriverError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let call = match &call {
            Call::Known(answer) => return Ok(answer.clone()),
            call => call.clone(),
        };
        let (answer, answered) = oneshot::channel();
        if calls.send((call, answer)).await.is_err() {
            return Err(DriverError::Ending);
        }
        match answered.await.unwrap_or(Err(DriverError::Ending)) {
            Err(DriverError::NotYet { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(POLL).await;
            }
            done => return done,
        }
    }
}
