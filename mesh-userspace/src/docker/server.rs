//! The plugin's socket: HTTP as dockerd speaks it. Each call is answered in its own time, on a
//! connection of its own.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    driver::DriverError,
    health::Health,
    protocol::{Call, ProtocolError},
};
use crate::{
    busy::Busy,
    callers::{Callers, Served, is_trusted},
    lock,
    supervise::{Supervisor, Task},
};

/// Of one call, in bytes. Docker's have some hundred, and the options that people give.
const BODY_MAX: usize = 512 << 10;
/// Connections at once: 32 MiB of bodies.
const CALLERS: usize = 64;
/// How long a caller may take for the head of its call, and again for the body.
const READ: Duration = Duration::from_secs(5);
/// From the connection to the end of the answer: nobody waits longer.
const WHOLE: Duration = Duration::from_secs(60);
/// For the answer. Docker waits without end, and is better told what for.
const ANSWER: Duration = Duration::from_secs(45);
/// Between two attempts to take a connection that fail, as without descriptors.
const RETRY: Duration = Duration::from_secs(1);
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
    _task: Task,
}

impl Server {
    /// Listens from now on.
    pub fn start(path: &Path, plugin: Plugin, supervisor: &Supervisor) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
            // Docker would speak to whoever puts another socket in the place of ours.
            lock::check_owner(dir)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let _made_there = supervisor.runtime().enter();
        let listener = Arc::new(UnixListener::bind(path)?);
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let what = "calls of Docker's plugin";
        let task = supervisor.spawn(what, move || take_calls(listener.clone(), plugin.clone()));
        Ok(Self { path: path.to_owned(), _task: task })
    }

    /// Returns whether Docker finds the socket.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What every call is answered by.
#[derive(Clone)]
pub struct Plugin {
    pub calls: mpsc::Sender<Asked>,
    pub health: Health,
    pub busy: Busy,
}

async fn take_calls(listener: Arc<UnixListener>, plugin: Plugin) {
    let mut callers = Callers::new(CALLERS);
    loop {
        match listener.accept().await {
            // Gone before anything is read.
            Ok((stream, _)) if !is_trusted(&stream) => drop(stream),
            Ok((stream, _)) => {
                let plugin = plugin.clone();
                callers.admit(|served| serve(stream, plugin, served)).await;
            }
            Err(e) => {
                tracing::warn!("the plugin's socket takes no call: {e}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// One call.
async fn serve(stream: UnixStream, plugin: Plugin, served: Served) {
    let service = service_fn(move |request| {
        let (plugin, served) = (plugin.clone(), served.clone());
        async move { Ok::<_, Infallible>(plugin.answer(request, &served).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ)
        // A connection that waits for another call would be one that says nothing.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(WHOLE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!("the plugin's caller: {e}"),
        Err(e) => tracing::debug!("the plugin's caller: {e}"),
    }
}

impl Plugin {
    async fn answer(&self, request: Request<Incoming>, served: &Served) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let method = path.trim_start_matches('/');
        let body = Limited::new(request.into_body(), BODY_MAX).collect();
        let (status, answer) = match tokio::time::timeout(READ, body).await {
            Ok(Ok(body)) => {
                served.set(true);
                let done = self.call(method, &body.to_bytes()).await;
                served.set(false);
                done
            }
            Ok(Err(e)) if e.is::<LengthLimitError>() => (StatusCode::PAYLOAD_TOO_LARGE, error(&*e)),
            Ok(Err(e)) => (StatusCode::BAD_REQUEST, error(&*e)),
            Err(e) => (StatusCode::REQUEST_TIMEOUT, error(&e)),
        };
        let mut response = Response::new(Full::new(answer.to_string().into()));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
        response
    }

    async fn ask(&self, call: Call) -> Result<Value, DriverError> {
        let began = Instant::now();
        loop {
            let call = match &call {
                Call::Known(answer) => return Ok(answer.clone()),
                call => call.clone(),
            };
            let answer = async {
                let (answer, answered) = oneshot::channel();
                self.calls.send((call, answer)).await.ok()?;
                answered.await.ok()
            };
            match tokio::time::timeout_at(began + ANSWER, answer).await {
                Ok(Some(Err(DriverError::NotYet { .. }))) if began.elapsed() < PATIENCE => {
                    tokio::time::sleep(POLL).await;
                }
                Ok(done) => return done.unwrap_or(Err(DriverError::Ending)),
                Err(_) => return Err(DriverError::Busy(self.busy.why(began.into()))),
            }
        }
    }

    async fn call(&self, method: &str, body: &[u8]) -> (StatusCode, Value) {
        match Call::parse(method, body) {
            Ok(call) => match self.ask(call).await {
                Ok(answer) => (StatusCode::OK, answer),
                Err(e) => {
                    tracing::warn!("{method}: {e}");
                    self.health.refused(method, &e.to_string());
                    (StatusCode::OK, error(&e))
                }
            },
            Err(e @ ProtocolError::Unknown(_)) => (StatusCode::NOT_FOUND, error(&e)),
            Err(e) => {
                tracing::warn!("{e}");
                (StatusCode::OK, error(&e))
            }
        }
    }
}

/// Network drivers call it one way and IPAM drivers another.
fn error(e: &dyn std::error::Error) -> Value {
    json!({"Err": e.to_string(), "Error": e.to_string()})
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream as Caller,
    };

    use tokio::runtime::Handle;

    use super::*;
    use crate::faults::Faults;

    /// Longer than anybody is waited for.
    const DEADLINE: Duration = Duration::from_secs(20);
    const ACTIVATE: &[u8] =
        b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

    /// A plugin in a folder of its own. Calls that are for the agent are not answered.
    fn plugin(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-plugin-{name}-{}", std::process::id()));
        let path = dir.join("mesh.sock");
        let at = path.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let (calls, _asked) = mpsc::channel(1);
                let _server = start(&at, calls).unwrap();
                ready.send(()).unwrap();
                std::future::pending::<()>().await;
            });
        });
        is_ready.recv().unwrap();
        path
    }

    fn start(path: &Path, calls: mpsc::Sender<Asked>) -> io::Result<Server> {
        let supervisor = Supervisor::new(Handle::current(), Faults::default());
        Server::start(
            path,
            Plugin { calls, health: Health::default(), busy: Busy::default() },
            &supervisor,
        )
    }

    fn caller(path: &Path) -> Caller {
        let caller = Caller::connect(path).unwrap();
        caller.set_read_timeout(Some(DEADLINE)).unwrap();
        caller
    }

    /// All until the connection ends.
    fn rest(mut caller: Caller) -> String {
        let mut text = String::new();
        match caller.read_to_string(&mut text) {
            // What was sent may not have been read.
            Err(e) if e.kind() != io::ErrorKind::ConnectionReset => panic!("{e} after {text:?}"),
            _ => text,
        }
    }

    fn remove(path: &Path) {
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn callers_that_say_nothing_make_place_for_others() {
        let path = plugin("idle");
        let mut idle: Vec<Caller> = (0..400).map(|_| caller(&path)).collect();
        let mut one = caller(&path);
        one.write_all(ACTIVATE).unwrap();
        assert!(rest(one).contains("NetworkDriver"));
        assert_eq!(rest(idle.remove(0)), "");
        remove(&path);
    }

    #[test]
    fn a_call_that_does_not_end_is_given_up() {
        let path = plugin("slow");
        let mut head = caller(&path);
        head.write_all(b"POST /Plugin.Activate HTTP/1.1\r\n").unwrap();
        let mut body = caller(&path);
        body.write_all(
            b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        )
        .unwrap();
        let mut large = caller(&path);
        let length = BODY_MAX + 1;
        let text = format!(
            "POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        );
        large.write_all(text.as_bytes()).unwrap();
        let _ = large.write_all(&vec![b' '; length]);
        assert!(rest(large).starts_with("HTTP/1.1 413"));
        assert!(rest(body).starts_with("HTTP/1.1 408"));
        // Nothing, or that the request was not understood.
        assert!(!rest(head).contains(" 200 "));
        remove(&path);
    }

    #[test]
    fn users_are_not_heard_and_their_folders_not_used() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let path = plugin("user");
        let dir = path.parent().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let at = path.clone();
        let said = std::thread::spawn(move || {
            // SAFETY: the raw system call changes the ids of this thread alone, which ends with this.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
            let mut one = caller(&at);
            let _ = one.write_all(ACTIVATE);
            rest(one)
        });
        assert_eq!(said.join().unwrap(), "");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        let refused = start(&path, mpsc::channel(1).0);
        assert!(refused.unwrap_err().to_string().contains("others may write"));
        remove(&path);
    }
}
