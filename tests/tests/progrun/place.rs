//! Namespaces with worlds in them, which tests enter one after the other.

use std::{
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use rustix::{
    mount::{MountFlags, MountPropagationFlags as Propagation, mount, mount_change},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::spec::{PORTS, STRAY, Spec, TELLS, TOLD, UNDERLAY, UNDERLAY_MAC};
use super::world::World;

/// Where nobody is. Programs take the verifier a second, and twenty in an emulated machine: a test takes
/// those of the one before it, with maps that are filled anew. What a failed test leaves is not used.
static FREE: Mutex<Vec<Place>> = Mutex::new(Vec::new());

/// A network and a mount namespace with interfaces and a bpf file system.
pub struct Place {
    network: File,
    mounts: File,
    worlds: Vec<World>,
    made: usize,
}

impl Place {
    /// Takes this thread, which must end with the test, to where no other is.
    pub fn enter() -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(place) = free else {
            isolate();
            let open = |name| File::open(format!("/proc/thread-self/ns/{name}")).unwrap();
            return Self { network: open("net"), mounts: open("mnt"), worlds: Vec::new(), made: 0 };
        };
        // SAFETY: only this thread gets its own idea of where it is, which it must have to go there.
        let done = unsafe { libc::unshare(libc::CLONE_FS) };
        assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
        for (namespace, kind) in [
            (&place.network, LinkNameSpaceType::Network),
            (&place.mounts, LinkNameSpaceType::Mount),
        ] {
            move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
        }
        place
    }

    pub fn world(&mut self, spec: Spec) -> World {
        if let Some(at) = self.worlds.iter().position(|world| world.does_for(spec)) {
            return self.worlds.swap_remove(at).made(spec);
        }
        self.made += 1;
        World::new(spec, self.made)
    }

    /// Leaves the place and what was made here to others.
    pub fn leave(mut self, worlds: impl IntoIterator<Item = World>) {
        self.worlds.extend(worlds.into_iter().filter(|world| world.does_for(world.spec)));
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }
}

/// Gives this thread a network and a mount namespace, and in that a bpf file system.
fn isolate() {
    // SAFETY: only this thread gets other namespaces, and it may be entered again.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
    mount_change("/", Propagation::REC | Propagation::PRIVATE).unwrap();
    mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None).unwrap();
    let mut batch = format!("link add u index {UNDERLAY} type veth peer u1\n");
    batch += &format!("link add s index {STRAY} type veth peer s1\n");
    for port in PORTS.into_iter().chain([TELLS, TOLD]) {
        let i = port.ifindex;
        // Up, so that copies get through.
        batch += &format!("link add p{i} index {i} type veth peer q{i}\n");
        batch += &format!("link set p{i} addrgenmode none up\nlink set q{i} addrgenmode none up\n");
    }
    let mac = UNDERLAY_MAC.map(|b| format!("{b:02x}")).join(":");
    batch += &format!("link set dev u address {mac}\n");
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}
