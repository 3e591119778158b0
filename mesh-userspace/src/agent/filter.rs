//! System calls that no agent needs, and nothing that it runs: refused, whatever capability it has. What
//! CAP_SYS_ADMIN and CAP_SYS_PTRACE are kept for is little of what they allow.

use std::collections::BTreeMap;

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS, ENOSYS, EPERM,
};
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Other processes, the kernel itself, the clock, keys, other namespaces, other roots, mounts by
/// descriptor, ways around file permissions, and interfaces with a history of holes.
const REFUSED: [i64; 46] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

const NAMESPACES: [i32; 7] = [
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
];

/// Numbers of the x32 interface, which is x86_64 to the filter, have this bit (asm/unistd.h).
const X32: i64 = 0x4000_0000;

/// Filters the calling thread and all that come of it, for good.
pub(super) fn apply() -> Result<(), seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = filter(refused()?, EPERM, arch)?;
    // Its flags are in memory, where no filter sees them. Those who call it know kernels without it.
    let unknown = filter([(libc::SYS_clone3, Vec::new())].into(), ENOSYS, arch)?;
    apply_filter(&refused)?;
    apply_filter(&unknown)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(
    mut rules: Rules,
    errno: i32,
    arch: TargetArch,
) -> Result<Vec<seccompiler::sock_filter>, BackendError> {
    if arch == TargetArch::x86_64 {
        let x32: Rules = rules.iter().map(|(nr, rule)| (nr | X32, rule.clone())).collect();
        rules.extend(x32);
    }
    let action = SeccompAction::Errno(errno as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()
}

fn refused() -> Result<Rules, BackendError> {
    let mut rules: Rules = REFUSED.into_iter().map(|nr| (nr, Vec::new())).collect();
    let mut refuse = |nr, arg, op, value| -> Result<(), BackendError> {
        let condition = SeccompCondition::new(arg, SeccompCmpArgLen::Dword, op, value)?;
        rules.entry(nr).or_default().push(SeccompRule::new(vec![condition])?);
        Ok(())
    };
    // Network namespaces alone are entered.
    refuse(libc::SYS_setns, 1, SeccompCmpOp::Ne, CLONE_NEWNET as u64)?;
    for namespace in NAMESPACES {
        let flag = u64::from(namespace as u32);
        refuse(libc::SYS_clone, 0, SeccompCmpOp::MaskedEq(flag), flag)?;
    }
    // A file system of its own, as bpf's; nothing bound, moved or mounted with other flags.
    refuse(libc::SYS_mount, 3, SeccompCmpOp::Ne, 0)?;
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io, os::fd::AsFd, process::Command};

    use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

    use super::*;

    #[test]
    fn what_no_agent_does_is_refused_and_what_it_does_is_not() {
        let filtered = std::thread::spawn(|| {
            let enter = |kind, space| {
                let file = File::open(format!("/proc/thread-self/ns/{kind}")).unwrap();
                move_into_link_name_space(file.as_fd(), Some(space))
            };
            let is_root = rustix::process::geteuid().is_root();
            apply().unwrap();
            let refused = Err(rustix::io::Errno::PERM);
            // SAFETY: it would share no less memory than before.
            let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) };
            assert_eq!(unshared, refused);
            assert_eq!(enter("uts", LinkNameSpaceType::HostNameAndNISDomainName), refused);
            if is_root {
                assert_eq!(enter("net", LinkNameSpaceType::Network), Ok(()));
            }
            // SAFETY: it takes no pointer.
            let traced = unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0) };
            assert_eq!(traced, -1);
            assert_eq!(io::Error::last_os_error().raw_os_error(), Some(EPERM));
            // Threads and programs are started still.
            std::thread::spawn(|| ()).join().unwrap();
            assert!(Command::new("true").status().unwrap().success());
        });
        filtered.join().unwrap();
    }
}
