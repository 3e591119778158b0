//! `ip netns exec` gives each command a mount namespace of its own with a fresh /sys. A bpf file
//! system mounted in there would vanish with the command, and with it every pin: the data plane
//! would end with the agent. So the pins go where they last, into the mount namespace outside.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::thread::LinkNameSpaceType;

use crate::bpf::pins::is_bpffs;

/// Ancestors to look at.
const GENERATIONS: usize = 16;

/// Moves this process, which must still have only one thread, out of the mount namespace that
/// `ip netns exec` made for it, if there is no bpf file system for `pin_dir` in it. Returns the
/// folder for the pins: in there each network namespace has a /sys of its own, and so each has a
/// folder of its own below `pin_dir` out here.
pub fn enter_lasting(pin_dir: PathBuf) -> PathBuf {
    let existing = pin_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        return pin_dir;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(netns) = name_in_ip_netns(&mounts) else { return pin_dir };
    let cwd = std::env::current_dir();
    let moved = outside().is_some_and(|there| there.enter().is_ok());
    if !moved && !rustix::process::geteuid().is_root() {
        // Who may not do this may do nothing with pins either, and is told so.
        return pin_dir;
    }
    if !moved {
        tracing::warn!(
            "`ip netns exec` runs this in a mount namespace that ends with it, and the pins below \
             {} with that; use `nsenter --net=/run/netns/{netns}` instead",
            pin_dir.display()
        );
        return pin_dir;
    }
    if let Ok(cwd) = cwd {
        // The move went to the root folder.
        let _ = std::env::set_current_dir(cwd);
    }
    if !pin_dir.starts_with("/sys") {
        return pin_dir;
    }
    // A bpf file system takes no dots in names.
    pin_dir.join(format!("netns-{}", netns.replace('.', "_")))
}

/// The network namespace's name: it is the source of the sysfs that `ip netns exec` mounts.
fn name_in_ip_netns(mounts: &str) -> Option<String> {
    let source = mounts.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        let mut file_system = file_system.split(' ');
        (at == "/sys" && file_system.next() == Some("sysfs")).then(|| file_system.next())?
    })?;
    Path::new("/run/netns").join(source).exists().then(|| source.to_owned())
}

/// A mount namespace, and the root folder of a process in it, which may be a chroot.
struct Outside {
    namespace: File,
    root: File,
}

impl Outside {
    fn of(process: &str) -> Option<Self> {
        let namespace = File::open(format!("{process}/ns/mnt")).ok()?;
        Some(Self { namespace, root: File::open(format!("{process}/root")).ok()? })
    }

    fn enter(&self) -> rustix::io::Result<()> {
        let kind = Some(LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), kind)?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")
    }
}

/// The mount namespace of the nearest ancestor that has another one; else that of init, or of the
/// kernel's own threads, which is the machine's first.
fn outside() -> Option<Outside> {
    let own = fs::read_link("/proc/self/ns/mnt").ok()?;
    let mut pids = Vec::new();
    let mut pid = parent_of("self");
    while let Some(p) = pid
        && pids.len() < GENERATIONS
    {
        pid = parent_of(&p);
        pids.push(p);
    }
    pids.push("1".into());
    if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim() == "kthreadd") {
        pids.push("2".into());
    }
    pids.iter().map(|pid| format!("/proc/{pid}")).find_map(|process| {
        let namespace = fs::read_link(format!("{process}/ns/mnt"));
        if namespace.is_ok_and(|n| n != own) { Outside::of(&process) } else { None }
    })
}

fn parent_of(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim();
    (parent != "0").then(|| parent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_sys_is_no_ip_netns() {
        let mounts = "23 27 0:22 / /sys rw,relatime - sysfs sysfs rw\n\
                      31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
        assert_eq!(name_in_ip_netns(mounts), None);
        assert_eq!(name_in_ip_netns(""), None);
        assert_eq!(name_in_ip_netns("nonsense - \n / - sysfs"), None);
    }
}
