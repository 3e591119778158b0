//! One mesh in each network namespace, whatever its run folder is called: who changes it holds a name.
//!
//! The name is that of an abstract socket (unix(7)). It is the network namespace's, needs no file, and
//! goes with the process that has it. An agent says its run folder to whoever connects.

use std::{
    io::{self, Read},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncWriteExt;

use crate::state::StateError;

const NAME: &[u8] = b"mesh-agent";

/// How long the holder may take to say its run folder.
const ANSWER: Duration = Duration::from_millis(500);

/// Held, nobody else changes this network namespace's mesh.
#[derive(Debug)]
pub struct Claim {
    /// `None` if somebody without rights has the name: that must not keep root out.
    name: Option<UnixListener>,
}

/// The process that has it.
#[derive(Debug)]
pub struct Holder {
    pub pid: i32,
    uid: u32,
    /// `None` for a command, which does not last, and for an agent that is busy.
    pub run_dir: Option<PathBuf>,
}

impl Claim {
    /// Fails with [`StateError::Elsewhere`] if another process has it.
    pub fn take() -> Result<Self, StateError> {
        let fail = |source| StateError::Claim { source };
        match UnixListener::bind_addr(&address().map_err(fail)?) {
            Ok(name) => Ok(Self { name: Some(name) }),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => match holder().map_err(fail)? {
                Some(holder) if is_trusted(holder.uid) => Err(holder.into()),
                Some(Holder { pid, uid, .. }) => {
                    tracing::warn!(
                        "process {pid} of user {uid} has the name that keeps two agents apart: \
                         going on without"
                    );
                    Ok(Self { name: None })
                }
                // It went just now.
                None => Err(Holder { pid: 0, uid: 0, run_dir: None }.into()),
            },
            Err(e) => Err(fail(e)),
        }
    }

    /// Says `run_dir` to all who ask, from a task of the current runtime.
    pub fn answer(&self, run_dir: &Path) -> io::Result<()> {
        let Some(name) = &self.name else { return Ok(()) };
        let name = name.try_clone()?;
        name.set_nonblocking(true)?;
        let name = tokio::net::UnixListener::from_std(name)?;
        let run_dir = std::path::absolute(run_dir)?.into_os_string().into_vec();
        tokio::spawn(async move {
            loop {
                match name.accept().await {
                    // A path fits into the socket's buffer; who does not read it does not matter.
                    Ok((mut stream, _)) => drop(stream.write_all(&run_dir).await),
                    Err(_) => tokio::time::sleep(ANSWER).await,
                }
            }
        });
        Ok(())
    }
}

/// Who has it, if somebody has.
pub fn holder() -> io::Result<Option<Holder>> {
    let mut stream = match UnixStream::connect_addr(&address()?) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        stream => stream?,
    };
    let peer = credentials(&stream)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut run_dir = Vec::new();
    let told = stream.read_to_end(&mut run_dir).is_ok() && !run_dir.is_empty();
    let run_dir = told.then(|| std::ffi::OsStr::from_bytes(&run_dir).into());
    Ok(Some(Holder { pid: peer.pid, uid: peer.uid, run_dir }))
}

/// Of root, or of whoever runs this.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

impl From<Holder> for StateError {
    fn from(Holder { pid, run_dir, .. }: Holder) -> Self {
        Self::Elsewhere { pid, run_dir }
    }
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Of the process that listens. With libc: 0, the pid of one that is not to be seen from here, is none
/// for rustix.
fn credentials(stream: &UnixStream) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `peer`, whose fields take any bits.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}
