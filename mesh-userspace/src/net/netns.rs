//! Network namespaces: finding, checking and entering them.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    thread::LinkNameSpaceType,
};
use thiserror::Error;

use crate::near;

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

#[derive(Debug, Error)]
pub enum NetnsError {
    #[error("there is no process {pid}: it has ended, or the number is wrong; see `ps -e`")]
    NoProcess { pid: String },
    #[error("there is no network namespace named {name:?} in /run/netns; {}", suggestion(.near))]
    NoName { name: String, near: String },
    #[error("there is no file {}; give a network namespace by path, by its name in `ip netns`, \
             or by the pid of a process in it", .path.display())]
    NoFile { path: PathBuf },
    #[error("{} is not a network namespace but {what}; the network namespace of a process is \
             /proc/PID/ns/net", .path.display())]
    NotNetwork { path: PathBuf, what: &'static str },
    #[error("may not open {}: {source}; run as root, or with the capability CAP_SYS_PTRACE", .path.display())]
    Denied { path: PathBuf, source: io::Error },
    #[error("cannot open {}: {source}", .path.display())]
    Open { path: PathBuf, source: io::Error },
}

fn suggestion(near: &str) -> String {
    match near {
        "" => "make one with `ip netns add`, or give a path or a pid".to_owned(),
        near => format!("there are {near} (`ip netns`)"),
    }
}

/// Opens the network namespace that `spec` names: a pid (all digits), a path (with a `/`), or else
/// a name of `ip netns`.
pub fn open_netns(spec: &str) -> Result<OwnedFd, NetnsError> {
    if !spec.is_empty() && spec.bytes().all(|b| b.is_ascii_digit()) {
        let path = PathBuf::from(format!("/proc/{spec}/ns/net"));
        return open(&path).map_err(|e| match e {
            // A process that has ended but is not yet waited for has no namespaces either.
            NetnsError::NoFile { .. } => NetnsError::NoProcess { pid: spec.to_owned() },
            e => e,
        });
    }
    if spec.contains('/') {
        return open(Path::new(spec));
    }
    let no_name = || NetnsError::NoName { name: spec.to_owned(), near: near_names(spec) };
    if spec.is_empty() {
        return Err(no_name());
    }
    open(&Path::new(NAMES).join(spec)).map_err(|e| match e {
        NetnsError::NoFile { .. } => no_name(),
        e => e,
    })
}

/// Where network namespaces of this machine may be found: by the names of `ip netns`, of CNI's runtimes
/// and of Docker, and by processes. One may be there several times.
pub fn netns_paths() -> impl Iterator<Item = PathBuf> {
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let named = [NAMES, "/run/docker/netns"].into_iter().flat_map(entries);
    let is_pid = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    };
    let processes = entries("/proc").filter(is_pid);
    named.map(|entry| entry.path()).chain(processes.map(|entry| entry.path().join("ns/net")))
}

/// The network namespace of this thread.
pub fn own_netns() -> Result<OwnedFd, NetnsError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Whether two descriptors are of the same namespace (or the same file, if they are not).
pub fn same_netns(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// Runs `f` on a thread that enters `ns` and ends with `f`. The thread is in the caller's tokio
/// runtime, if there is one, so that sockets it makes are driven by it.
pub(super) fn inside<T: Send>(
    ns: BorrowedFd<'_>,
    f: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let runtime = tokio::runtime::Handle::try_current().ok();
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                let _context = runtime.as_ref().map(|r| r.enter());
                rustix::thread::move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))?;
                f()
            })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("thread panicked")))
    })
}

fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    // NONBLOCK: the path is the user's, and might be a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
        let path = path.to_owned();
        match e {
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH | rustix::io::Errno::NOTDIR => {
                NetnsError::NoFile { path }
            }
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
                NetnsError::Denied { path, source: e.into() }
            }
            e => NetnsError::Open { path, source: e.into() },
        }
    })?;
    match not_network(fd.as_fd()) {
        None => Ok(fd),
        Some(what) => Err(NetnsError::NotNetwork { path: path.to_owned(), what }),
    }
}

/// linux/magic.h
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// linux/nsfs.h: `_IO(0xb7, 3)`
const NS_GET_NSTYPE: u64 = 0xb703;

/// What a file is that is not a network namespace.
fn not_network(fd: BorrowedFd<'_>) -> Option<&'static str> {
    let magic = rustix::fs::fstatfs(fd).map(|s| s.f_type as u64);
    if magic != Ok(NSFS_MAGIC) {
        let is_dir = rustix::fs::fstat(fd)
            .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_dir());
        return Some(if is_dir {
            "a folder"
        } else {
            "another file (a left-over in /run/netns goes away with `ip netns delete`)"
        });
    }
    use std::os::fd::AsRawFd;
    // SAFETY: NS_GET_NSTYPE takes no argument and touches no memory of ours; fd is open.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as libc::Ioctl) };
    match kind {
        libc::CLONE_NEWNET => None,
        libc::CLONE_NEWNS => Some("a mount namespace"),
        libc::CLONE_NEWPID => Some("a pid namespace"),
        libc::CLONE_NEWUSER => Some("a user namespace"),
        libc::CLONE_NEWUTS => Some("a UTS namespace"),
        libc::CLONE_NEWIPC => Some("an IPC namespace"),
        libc::CLONE_NEWCGROUP => Some("a cgroup namespace"),
        _ => Some("another namespace"),
    }
}

/// The names of `ip netns` that are most like this one, as a message has them.
fn near_names(wanted: &str) -> String {
    let entries = fs::read_dir(NAMES).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: Vec<String> = names.collect();
    near::closest(wanted, names.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_namespace_is_that_of_the_pid() {
        let own = own_netns().unwrap();
        let by_pid = open_netns(&std::process::id().to_string()).unwrap();
        assert!(same_netns(own.as_fd(), by_pid.as_fd()));
    }

    #[test]
    fn a_namespace_of_another_kind_is_named() {
        let error = open_netns("/proc/self/ns/mnt").unwrap_err().to_string();
        assert!(error.contains("a mount namespace"), "{error}");
    }

    #[test]
    fn what_is_no_namespace_is_refused() {
        for (spec, expected) in [
            ("/proc/self/status", "another file"),
            ("/tmp", "a folder"),
            ("./no/such", "there is no file ./no/such"),
            ("4294967290", "there is no process 4294967290"),
            ("no-such-name", "no network namespace named \"no-such-name\""),
            ("", "no network namespace named \"\""),
            ("..", "a folder"),
        ] {
            let error = open_netns(spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{spec}: {error}");
        }
    }
}
