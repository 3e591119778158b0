//! Versions before held an abstract socket (unix(7)), and said their run folder to whoever connected.
//! Any user of the host can have that name: nobody but root is listened to, and not for long.

use std::{
    io::{ErrorKind, Read},
    mem::size_of_val,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStringExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::holder::Holder;

const NAME: &[u8] = b"mesh-agent";

/// How long the holder may take to say its run folder.
const ANSWER: Duration = Duration::from_millis(500);
/// More than a path has, in bytes (PATH_MAX).
const ANSWER_MAX: u64 = 4096;

/// A process of root's that has the name, other than `this`.
pub(super) fn holder(this: &Holder) -> Option<Holder> {
    // Never waits: who does not take the connection is not one of ours.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(NAME).ok()?).ok()?;
    let peer = credentials(&socket)?;
    if peer.uid != 0 {
        tracing::debug!("user {} has the name that versions before held: not heeded", peer.uid);
        return None;
    }
    let pid = u32::try_from(peer.pid).ok()?;
    let run_dir =
        said(UnixStream::from(socket)).map(|dir| std::ffi::OsString::from_vec(dir).into());
    (pid != this.pid).then(|| Holder::of_pid(pid, run_dir))
}

/// What it says until it ends the connection; `None` if it does not, or says too much.
fn said(mut stream: UnixStream) -> Option<Vec<u8>> {
    let deadline = Instant::now() + ANSWER;
    stream.set_nonblocking(false).ok()?;
    let (mut said, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || said.len() as u64 > ANSWER_MAX {
            return None;
        }
        stream.set_read_timeout(Some(left)).ok()?;
        match stream.read(&mut chunk) {
            Ok(0) => return (!said.is_empty()).then_some(said),
            Ok(n) => said.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Of the process that listens. With libc: 0, the pid of one that is not to be seen from here, is none
/// for rustix.
fn credentials(socket: &OwnedFd) -> Option<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `peer`, whose fields take any bits.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (done == 0).then_some(peer)
}
