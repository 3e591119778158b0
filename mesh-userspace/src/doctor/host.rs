//! The host: what this process may do, and settings that people suspect.

use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};

use super::{
    AS_ROOT, Finding,
    Status::{Fail, Info, Ok, Warn},
    sysctl,
};

pub(super) fn findings(pin_dir: &Path, root: bool) -> Vec<Finding> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    vec![
        capabilities(&held, root),
        bpffs(pin_dir),
        ip_forward(sysctl("net/ipv4/ip_forward").ok()),
        reserved_ports(sysctl("net/ipv4/ip_unprivileged_port_start").ok()),
    ]
}

/// CAP_SYS_ADMIN is asked for by setns and mount; where it is held, the kernel lets it stand for
/// CAP_BPF and CAP_PERFMON.
fn capabilities(held: &CapsHashSet, root: bool) -> Finding {
    let mut needed = vec![Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN];
    if !held.contains(&Capability::CAP_SYS_ADMIN) {
        needed.extend([Capability::CAP_BPF, Capability::CAP_PERFMON]);
    }
    let missing: Vec<String> =
        needed.iter().filter(|cap| !held.contains(cap)).map(Capability::to_string).collect();
    if missing.is_empty() {
        return Finding::new("capabilities", Ok, "all", "The agent may do what it has to do.");
    }
    let value = format!("without {}", missing.join(", "));
    let meaning = "`mesh up` needs CAP_NET_ADMIN for interfaces and routes, CAP_BPF and \
                   CAP_PERFMON for programs, CAP_SYS_ADMIN to enter containers' namespaces.";
    if root {
        let add: Vec<String> = missing
            .iter()
            .map(|cap| format!("--cap-add {}", cap.trim_start_matches("CAP_")))
            .collect();
        return Finding::new("capabilities", Fail, value, meaning)
            .mended_by(format!("docker run {} ...  # or run mesh on the host", add.join(" ")));
    }
    Finding::new("capabilities", Warn, value, meaning).mended_by(AS_ROOT)
}

/// linux/magic.h
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

fn bpffs(pin_dir: &Path) -> Finding {
    // What is below a folder that may not be looked into is on that folder's file system, for all
    // that can be seen.
    let there: Option<(PathBuf, bool)> = pin_dir.ancestors().find_map(|dir| {
        let stat = rustix::fs::statfs(dir).ok()?;
        Some((dir.to_owned(), stat.f_type as u64 == BPF_FS_MAGIC))
    });
    match there {
        Some((dir, true)) => Finding::new(
            "bpffs",
            Ok,
            format!("{} (pins in {})", dir.display(), pin_dir.display()),
            "Programs and maps outlive the agent here.",
        ),
        _ => Finding::new(
            "bpffs",
            Info,
            format!("not mounted for {}", pin_dir.display()),
            "Programs and maps outlive the agent in a bpf file system. `mesh up` mounts one.",
        )
        .mended_by("mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn ip_forward(value: Option<String>) -> Finding {
    let finding = |status, value: &str, meaning| Finding::new("ip_forward", status, value, meaning);
    match value.as_deref() {
        Some("0") => finding(
            Info,
            "0",
            "Inside the mesh the programs forward, not the kernel. Only containers that are to \
             reach the world through this host need it.",
        )
        .mended_by("sysctl -w net.ipv4.ip_forward=1"),
        Some(value) => finding(Ok, value, "Not needed inside the mesh; the programs forward."),
        None => finding(Info, "unseen", "Not needed inside the mesh; the programs forward."),
    }
}

/// Agents take questions from each other only from ports below 1024.
fn reserved_ports(value: Option<String>) -> Finding {
    let finding =
        |status, value: &str, meaning| Finding::new("reserved ports", status, value, meaning);
    match value.as_deref().map(str::parse::<u16>) {
        Some(Result::Ok(first @ ..1024)) => finding(
            Warn,
            &format!("below {first}"),
            "An agent knows another by its port below 1024. Here any user's program may have one, and \
             speak for this host's agent.",
        )
        .mended_by("sysctl -w net.ipv4.ip_unprivileged_port_start=1024"),
        Some(_) => finding(Ok, "below 1024", "Only root speaks for this host's agent."),
        None => finding(Info, "unseen", "Only root speaks for this host's agent, where it is 1024."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(caps: &[Capability]) -> CapsHashSet {
        caps.iter().copied().collect()
    }

    #[test]
    fn ports_that_any_user_may_have_are_a_warning() {
        let status = |value: Option<&str>| reserved_ports(value.map(Into::into)).status;
        assert_eq!(status(Some("0")), Warn);
        assert_eq!(status(Some("1023")), Warn);
        assert_eq!(status(Some("1024")), Ok);
        assert_eq!(status(Some("2000")), Ok);
        assert_eq!(status(None), Info);
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon() {
        let enough = held(&[Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN]);
        assert_eq!(capabilities(&enough, true).status, Ok);
    }

    #[test]
    fn a_missing_capability_is_named_with_the_way_to_get_it() {
        let finding = capabilities(&held(&[Capability::CAP_SYS_ADMIN]), true);
        assert_eq!((finding.status, finding.value.as_str()), (Fail, "without CAP_NET_ADMIN"));
        assert!(finding.remedy.unwrap().contains("--cap-add NET_ADMIN"));
        let finding = capabilities(&held(&[]), false);
        assert_eq!(finding.status, Warn);
        assert!(finding.value.contains("CAP_BPF"), "{}", finding.value);
    }

    #[test]
    fn a_folder_elsewhere_is_no_bpf_file_system() {
        let finding = bpffs(Path::new("/proc/self/no/such/folder"));
        assert_eq!(finding.status, Info);
        assert!(finding.remedy.is_some());
    }
}
