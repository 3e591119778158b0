//! `ip netns exec` gives each command a mount namespace of its own with a fresh /sys. A bpf file
//! system mounted in there would vanish with the command, and with it every pin: the data plane
//! would end with the agent. So the pins go where they last: into the mount namespace of whoever
//! ran the command.

use std::{
    fs::{self, File},
    path::Path,
};

use crate::bpf::pins::is_bpffs;

/// Ancestors to look at.
const GENERATIONS: usize = 16;

/// Moves this process, which must still have only one thread, to the mount namespace of its nearest
/// ancestor that has another one, if there is no bpf file system for `pin_dir` here.
pub fn enter_lasting(pin_dir: &Path) {
    let existing = pin_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        return;
    }
    let Some(namespace) = ancestors_namespace() else { return };
    let cwd = std::env::current_dir();
    let moved = rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(rustix::thread::LinkNameSpaceType::Mount),
    );
    match (moved, cwd) {
        // The move went to the root folder.
        (Ok(()), Ok(cwd)) => drop(std::env::set_current_dir(cwd)),
        (Ok(()), Err(_)) => {}
        (Err(e), _) => tracing::warn!(
            "the pins below {} will not outlive this mount namespace, and entering the parent's \
             failed: {e}; use `nsenter --net` in place of `ip netns exec`",
            pin_dir.display()
        ),
    }
}

fn ancestors_namespace() -> Option<File> {
    let own = fs::read_link("/proc/self/ns/mnt").ok()?;
    let mut pid = parent_of("self")?;
    for _ in 0..GENERATIONS {
        let path = format!("/proc/{pid}/ns/mnt");
        if fs::read_link(&path).ok()? != own {
            return File::open(path).ok();
        }
        pid = parent_of(&pid)?;
    }
    None
}

fn parent_of(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim();
    (parent != "0").then(|| parent.to_owned())
}
