//! The agent's side of the socket. Only root may speak, a line has a limit, a caller has seconds.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use super::protocol::{Failure, Kind, MAX_REQUEST, Request, Response};

/// A request, the descriptor that came with it, and where the answer goes.
pub type Call = (Request, Option<OwnedFd>, oneshot::Sender<Response>);

/// How long a caller may take to say what it wants, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Callers at once.
const CALLERS: usize = 32;

/// Listens on `path` from now on; every request comes out of the receiver.
pub fn listen(path: &Path) -> io::Result<mpsc::Receiver<Call>> {
    // Whoever holds the lock may clear away what an agent left that was killed.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let (calls, receiver) = mpsc::channel(CALLERS);
    tokio::spawn(async move {
        let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CALLERS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let calls = calls.clone();
                    tokio::spawn(async move {
                        if let Err(e) = serve(stream, calls).await {
                            tracing::debug!("a caller: {e}");
                        }
                        drop(slot);
                    });
                }
                Err(e) => {
                    tracing::warn!("the socket takes no caller: {e}");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    });
    Ok(receiver)
}

async fn serve(mut stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let caller = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    let response = if caller != 0 && caller != own {
        Response::Error(Failure::new(Kind::Refused, "only root may speak to the agent"))
    } else {
        match tokio::time::timeout(PATIENCE, read(&stream)).await? {
            Ok((request, fd)) => {
                let (answer, answered) = oneshot::channel();
                if calls.send((request, fd, answer)).await.is_err() {
                    return Ok(());
                }
                let gone = || Failure::new(Kind::NotNow, "the agent is about to end");
                answered.await.unwrap_or_else(|_| Response::Error(gone()))
            }
            Err(e) => Response::Error(Failure::new(Kind::Refused, format!("not understood: {e}"))),
        }
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, stream.write_all(&line)).await?
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

fn receive(stream: &UnixStream, into: &mut [u8], fd: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(into)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            *fd = fds.next();
        }
    }
    Ok(got.bytes)
}
