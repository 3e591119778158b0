//! The agent's side of the socket. Only root may speak, a line has a limit, a caller has seconds.

use std::{
    io::{self, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use super::{
    client,
    protocol::{Failure, Kind, MAX_REQUEST, Request, Response},
};
use crate::{
    busy::Busy,
    callers::{Callers, Served, is_trusted},
    supervise::{Supervisor, Task},
};

/// A request, the descriptor that came with it, and where the answer goes.
pub type Call = (Request, Option<OwnedFd>, oneshot::Sender<Response>);

/// How long a caller may take to say what it wants, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the task is called that takes callers.
const TASK: &str = "callers of the agent's socket";
/// By how much a caller waits longer than it is made to.
const AHEAD: Duration = Duration::from_secs(1);
/// Callers at once: with all that they may send, [`MAX_REQUEST`] each.
const CALLERS: usize = 64;
/// Of these, how many may wait for the agent.
const WAITING: usize = 32;

/// The agent's own thread, which answers requests one after the other.
#[derive(Clone)]
struct Agent {
    calls: mpsc::Sender<Call>,
    busy: Busy,
}

impl Agent {
    /// Waits a little less than the caller does, who is then told what it waited for.
    async fn ask(&self, request: Request, fd: Option<OwnedFd>) -> Response {
        let (began, limit) = (Instant::now(), client::patience(&request) - AHEAD);
        let answer = async {
            let (answer, answered) = oneshot::channel();
            self.calls.send((request, fd, answer)).await.ok()?;
            answered.await.ok()
        };
        let refused = |why: String| Response::Error(Failure::new(Kind::NotNow, why));
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.unwrap_or_else(|| refused("the agent is about to end".into())),
            Err(_) => refused(self.busy.why(began)),
        }
    }
}

/// Listens on `path` until the task is dropped; every request comes out of the receiver.
pub fn listen(
    path: &Path,
    supervisor: &Supervisor,
    busy: Busy,
) -> io::Result<(mpsc::Receiver<Call>, Task)> {
    // Whoever holds the lock may clear away what an agent left that was killed.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let _made_there = supervisor.runtime().enter();
    let listener = Arc::new(UnixListener::bind(path)?);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let (calls, receiver) = mpsc::channel(WAITING);
    let agent = Agent { calls, busy };
    let task = supervisor.spawn(TASK, move || take_callers(listener.clone(), agent.clone()));
    Ok((receiver, task))
}

async fn take_callers(listener: Arc<UnixListener>, agent: Agent) {
    let mut callers = Callers::new(CALLERS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) if !is_trusted(&stream) => refuse(stream),
            Ok((stream, _)) => {
                let agent = agent.clone();
                let serve = |served| async move {
                    if let Err(e) = serve(stream, agent, served).await {
                        tracing::debug!("a caller: {e}");
                    }
                };
                callers.admit(serve).await;
            }
            Err(e) => {
                tracing::warn!("the socket takes no caller: {e}");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

/// Reads nothing, keeps nothing, waits for nothing.
fn refuse(stream: UnixStream) {
    let refused = Failure::new(Kind::Refused, "only root may speak to the agent");
    if let (Ok(mut stream), Ok(line)) = (stream.into_std(), line(&Response::Error(refused))) {
        let _ = stream.write(&line);
    }
}

fn line(response: &Response) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    Ok(line)
}

async fn serve(mut stream: UnixStream, agent: Agent, served: Served) -> io::Result<()> {
    let response = match tokio::time::timeout(PATIENCE, read(&stream)).await? {
        // It was not answered in time: this process was stopped, perhaps.
        Ok((request, _)) if !request.outlives_its_caller() && is_gone(&stream) => return Ok(()),
        Ok((request, fd)) => {
            served.set(true);
            agent.ask(request, fd).await
        }
        Err(e) => Response::Error(Failure::new(Kind::Refused, format!("not understood: {e}"))),
    };
    served.set(false);
    tokio::time::timeout(PATIENCE, stream.write_all(&line(&response)?)).await?
}

/// A caller says one line, and leaves when it has its answer or waits no longer.
fn is_gone(stream: &UnixStream) -> bool {
    matches!(stream.try_read(&mut [0]), Ok(0))
}

/// Reads one line, and a descriptor if one comes with it.
async fn read(stream: &UnixStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let mut fd = None;
    loop {
        let mut chunk = [0; 4096];
        let n =
            stream.async_io(Interest::READABLE, || receive(stream, &mut chunk, &mut fd)).await?;
        line.extend_from_slice(&chunk[..n]);
        if n == 0 || line.ends_with(b"\n") {
            return Ok((serde_json::from_slice(&line)?, fd));
        }
        if line.len() > MAX_REQUEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request that long"));
        }
    }
}

/// Closes what comes beside the one descriptor that a request may have.
fn receive(stream: &UnixStream, into: &mut [u8], fd: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(into)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    // Of those for which there is no room the kernel closes the rest.
    let mut is_too_many = got.flags.contains(ReturnFlags::CTRUNC);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            for one in fds {
                is_too_many |= fd.replace(one).is_some();
            }
        }
    }
    if is_too_many {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more than one descriptor"));
    }
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, IoSlice, Read},
        os::unix::net::UnixStream as Caller,
        path::PathBuf,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::faults::Faults;

    const DEADLINE: Duration = Duration::from_secs(3);

    /// An agent that has done whatever it is asked for, and how many descriptors it has.
    fn agent(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mesh-{name}-{}", std::process::id()));
        let at = path.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let supervisor =
                    Supervisor::new(tokio::runtime::Handle::current(), Faults::default());
                let (mut calls, _task) = listen(&at, &supervisor, Busy::default()).unwrap();
                ready.send(()).unwrap();
                while let Some((_, _, answer)) = calls.recv().await {
                    let _ = answer.send(Response::Done);
                }
            });
        });
        is_ready.recv().unwrap();
        path
    }

    fn caller(path: &Path) -> Caller {
        let caller = Caller::connect(path).unwrap();
        caller.set_read_timeout(Some(DEADLINE)).unwrap();
        caller
    }

    fn answer(caller: Caller) -> String {
        let mut line = String::new();
        BufReader::new(caller).read_line(&mut line).unwrap();
        line
    }

    #[tokio::test]
    async fn after_a_panic_callers_are_answered_by_the_same_socket() {
        let path = std::env::temp_dir().join(format!("mesh-panic-{}", std::process::id()));
        let faults = Faults::default();
        let supervisor = Supervisor::new(tokio::runtime::Handle::current(), faults.clone());
        let (mut calls, _task) = listen(&path, &supervisor, Busy::default()).unwrap();
        let answers = tokio::spawn(async move {
            while let Some((_, _, answer)) = calls.recv().await {
                let _ = answer.send(Response::Done);
            }
        });
        for _ in 0..2 {
            let mut one = UnixStream::connect(&path).await.unwrap();
            one.write_all(b"\"status\"\n").await.unwrap();
            let mut line = [0; 7];
            let read = tokio::io::AsyncReadExt::read_exact(&mut one, &mut line);
            tokio::time::timeout(10 * DEADLINE, read).await.unwrap().unwrap();
            assert_eq!(&line, b"\"done\"\n");
            supervisor.panic_in(TASK);
            while faults.now().is_empty() {
                tokio::task::yield_now().await;
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!answers.is_finished());
    }

    #[test]
    fn callers_that_say_nothing_or_take_no_answer_keep_nobody_out() {
        let path = agent("idle");
        let idle: Vec<Caller> = (0..400).map(|_| caller(&path)).collect();
        let mut one = caller(&path);
        one.write_all(b"\"status\"\n").unwrap();
        assert_eq!(answer(one), "\"done\"\n");
        // The oldest made place.
        assert_eq!((&idle[0]).read(&mut [0]).unwrap(), 0);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_request_with_more_than_one_descriptor_is_refused_and_none_is_kept() {
        let path = agent("fds");
        // A pipe tells whether its other end is open anywhere.
        let (mut reader, writer) = io::pipe().unwrap();
        for at_once in [2, 20] {
            let mut one = caller(&path);
            let fds = vec![writer.as_fd(); at_once];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let text = IoSlice::new(b"\"sta");
            sendmsg(&one, &[text], &mut control, SendFlags::empty()).unwrap();
            let _ = one.write_all(b"tus\"\n");
            assert!(answer(one).contains("more than one descriptor"));
        }
        drop(writer);
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(reader.read(&mut [0]).unwrap()));
        assert_eq!(is_done.recv_timeout(DEADLINE), Ok(0), "somebody has the other end");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_user_is_refused_before_anything_is_read() {
        let path = agent("user");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let at = path.clone();
        let said = std::thread::spawn(move || {
            // SAFETY: the raw system call changes the ids of this thread alone, which ends with this.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
            answer(caller(&at))
        });
        assert!(said.join().unwrap().contains("only root may speak"));
        std::fs::remove_file(&path).unwrap();
    }
}
