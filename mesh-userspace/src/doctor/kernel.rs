//! The kernel: its version, and what its BPF can do.

use std::{io, path::Path};

use super::{
    AS_ROOT, Finding,
    Status::{Fail, Info, Ok, Warn},
    sysctl,
};
use crate::bpf::probe::{Feature, KernelFeatures};

/// The first with `redirect_peer` and `redirect_neigh`.
const FLOOR: (u32, u32) = (5, 10);
/// The first with tcx.
const TCX: (u32, u32) = (6, 6);
/// The first that counts BPF memory by cgroup instead of by RLIMIT_MEMLOCK.
const CGROUP_MEMORY: (u32, u32) = (5, 11);

const OTHER_KERNEL: &str =
    "apt-get install linux-image-amd64 && reboot  # or your distribution's package";

pub(super) fn findings(release: &str, features: KernelFeatures, root: bool) -> Vec<Finding> {
    let mut findings = vec![
        version(release),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
        jit(sysctl("net/core/bpf_jit_enable")),
        load(features.load, root),
        attach(features.tcx, release),
    ];
    let needed = [
        ("redirect_peer", features.redirect_peer, "deliver packets into containers"),
        ("redirect_neigh", features.redirect_neigh, "send while a next hop's MAC is unknown"),
        ("adjust_room", features.adjust_room, "put the outer headers on and take them off"),
    ];
    findings.extend(needed.map(|(name, feature, what)| helper(name, feature, what)));
    findings.push(decap_l3(features.decap_l3));
    findings.push(tail_calls(features.tail_calls));
    findings.push(memlock(release, rustix::process::getrlimit(rustix::process::Resource::Memlock)));
    findings
}

/// Major and minor number.
pub fn release_numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn version(release: &str) -> Finding {
    let finding = |status, meaning: &str| Finding::new("kernel", status, release, meaning);
    match release_numbers(release) {
        None => finding(Warn, "Not a version that mesh understands; it needs Linux 5.10 or later."),
        Some(v) if v < FLOOR => {
            finding(Fail, "mesh needs Linux 5.10 or later.").mended_by(OTHER_KERNEL)
        }
        Some(v) if v < TCX => {
            finding(Ok, "Enough for everything; from Linux 6.6 programs attach by tcx.")
        }
        Some(_) => finding(Ok, "New enough for everything that mesh uses."),
    }
}

fn btf(there: bool) -> Finding {
    if there {
        return Finding::new("btf", Ok, "there", "The kernel describes its own types.");
    }
    let meaning = "The kernel does not describe its own types, as it is built without \
                   CONFIG_DEBUG_INFO_BTF. mesh works without, but bpftool shows its maps and \
                   programs without field and function names.";
    Finding::new("btf", Warn, "none", meaning).mended_by(OTHER_KERNEL)
}

fn jit(enabled: io::Result<String>) -> Finding {
    let finding = |status, value, meaning| Finding::new("bpf_jit", status, value, meaning);
    match enabled.as_deref() {
        Result::Ok("0") => {
            finding(Warn, "0", "Programs are interpreted: every packet costs several times more.")
                .mended_by("sysctl -w net.core.bpf_jit_enable=1")
        }
        Result::Ok("2") => {
            finding(Warn, "2", "Programs are compiled, and each is dumped to the log.")
                .mended_by("sysctl -w net.core.bpf_jit_enable=1")
        }
        Result::Ok(value) => finding(Ok, value, "Programs are compiled to machine code."),
        Err(_) => finding(
            Info,
            "unseen",
            "Whether programs are compiled to machine code is shown only to root, and only in \
             the host's own network namespace.",
        )
        .mended_by("sysctl net.core.bpf_jit_enable"),
    }
}

fn load(feature: Feature, root: bool) -> Finding {
    let finding = |status, value: &str, meaning| Finding::new("bpf", status, value, meaning);
    let errno = match feature {
        Feature::Present => return finding(Ok, "programs load", "The kernel takes programs."),
        Feature::Absent => {
            return finding(Fail, "none", "This kernel has no bpf(2) (CONFIG_BPF_SYSCALL).")
                .mended_by(OTHER_KERNEL);
        }
        Feature::Unseen(errno) => errno,
    };
    let cause = io::Error::from_raw_os_error(errno).to_string();
    if root {
        let meaning = "The kernel takes no programs from this process: it is in a container or \
                       user namespace without CAP_BPF and CAP_NET_ADMIN, or the kernel is locked \
                       down (/sys/kernel/security/lockdown).";
        return finding(Fail, &cause, meaning).mended_by(
            "docker run --cap-add NET_ADMIN --cap-add SYS_ADMIN ...  # or run mesh on the host",
        );
    }
    finding(Warn, &cause, "What the kernel's BPF can do is shown only to root.").mended_by(AS_ROOT)
}

fn attach(tcx: Feature, release: &str) -> Finding {
    let finding = |status, value, meaning| Finding::new("attach", status, value, meaning);
    let fallback = "Programs attach as clsact filters. They work as well, but are replaced one by \
                    one, and another program's filter may come before them. Links (tcx) come with \
                    Linux 6.6.";
    match tcx {
        Feature::Present => {
            finding(Ok, "tcx", "Programs attach by links, and are replaced in one step.")
        }
        Feature::Absent => match Module::find("sch_ingress", release) {
            Module::Active | Module::Loadable => finding(Info, "clsact", fallback),
            Module::Unknown => finding(Warn, "clsact, if sch_ingress is there", fallback)
                .mended_by("modprobe -a sch_ingress cls_bpf"),
        },
        Feature::Unseen(_) => {
            finding(Info, "unseen", "tcx or clsact: shown only to root.").mended_by(AS_ROOT)
        }
    }
}

fn helper(name: &'static str, feature: Feature, what: &str) -> Finding {
    match feature {
        Feature::Present => Finding::new(name, Ok, "there", format!("Used to {what}.")),
        Feature::Absent => {
            Finding::new(name, Fail, "none", format!("Needed to {what}.")).mended_by(OTHER_KERNEL)
        }
        Feature::Unseen(_) => {
            Finding::new(name, Info, "unseen", format!("Used to {what}; shown only to root."))
                .mended_by(AS_ROOT)
        }
    }
}

fn decap_l3(feature: Feature) -> Finding {
    let finding = |status, value, meaning| Finding::new("decap_ipv6", status, value, meaning);
    match feature {
        Feature::Present => {
            finding(Ok, "direct", "IPv6 packets go straight into containers, as IPv4 ones do.")
        }
        Feature::Absent => finding(
            Info,
            "queued",
            "IPv6 packets from other hosts pass through the queue of the container's veth, which \
             takes more time; IPv4 does not. Linux 6.3 and later need no queue.",
        ),
        Feature::Unseen(_) => {
            finding(Info, "unseen", "How IPv6 packets reach containers: shown only to root.")
                .mended_by(AS_ROOT)
        }
    }
}

fn tail_calls(feature: Feature) -> Finding {
    let finding = |status, value, meaning| Finding::new("tail_calls", status, value, meaning);
    match feature {
        Feature::Present => {
            finding(Ok, "there", "Networks can carry broadcast and multicast, if they are to.")
        }
        Feature::Absent => finding(
            Info,
            "none",
            "Networks with flood = \"all\" carry no broadcast and multicast on this host: that \
             needs Linux 5.10 on x86 or 6.0 on arm64, and net.core.bpf_jit_enable not 0.",
        ),
        Feature::Unseen(_) => {
            finding(Info, "unseen", "Whether broadcast can be carried: shown only to root.")
                .mended_by(AS_ROOT)
        }
    }
}

/// Maps of a mesh of some thousand nodes.
const MEMLOCK_BYTES: u64 = 64 << 20;

fn memlock(release: &str, limit: rustix::process::Rlimit) -> Finding {
    let finding = |status, value: String, meaning| Finding::new("memlock", status, value, meaning);
    if release_numbers(release).is_some_and(|v| v >= CGROUP_MEMORY) {
        let meaning = "Memory of maps is not counted against RLIMIT_MEMLOCK (since Linux 5.11).";
        return finding(Ok, "not counted".to_owned(), meaning);
    }
    match limit.current {
        None => finding(Ok, "unlimited".to_owned(), "Maps may be as large as they need to be."),
        Some(bytes) if bytes >= MEMLOCK_BYTES => {
            finding(Ok, format!("{bytes} bytes"), "Enough for the maps.")
        }
        Some(bytes) => {
            let meaning = "Before Linux 5.11 this limits the memory of all maps together; it is \
                           too little for a large mesh.";
            finding(Warn, format!("{bytes} bytes"), meaning)
                .mended_by("ulimit -l unlimited  # in a systemd unit: LimitMEMLOCK=infinity")
        }
    }
}

/// Where a part of the kernel is, as far as can be told without loading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    /// Loaded or built in.
    Active,
    /// On disk: the kernel loads it by itself when it is asked for.
    Loadable,
    Unknown,
}

impl Module {
    pub(super) fn find(name: &str, release: &str) -> Self {
        if Path::new("/sys/module").join(name).exists() {
            return Self::Active;
        }
        let folder = Path::new("/lib/modules").join(release);
        let lists = |list: &str| {
            std::fs::read_to_string(folder.join(list)).is_ok_and(|text| lists_module(&text, name))
        };
        if lists("modules.builtin") {
            Self::Active
        } else if lists("modules.dep") {
            Self::Loadable
        } else {
            Self::Unknown
        }
    }
}

/// modules.builtin has a path in each line; modules.dep too, then a colon and what it needs. The
/// file may be compressed.
fn lists_module(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split_once(".ko").is_some_and(|(module, _)| module.replace('-', "_") == name)
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::Rlimit;

    use super::*;
    use crate::doctor::Status;

    #[test]
    fn the_floor_is_5_10() {
        for (release, status) in [
            ("5.9.16", Fail),
            ("4.19.0-27-amd64", Fail),
            ("5.10.0", Ok),
            ("6.1.0-13-amd64", Ok),
            ("6.18.44-fc-v669", Ok),
            ("10.0", Ok),
            ("oddity", Warn),
        ] {
            assert_eq!(version(release).status, status, "{release}");
        }
    }

    #[test]
    fn an_interpreter_is_worth_a_warning_with_its_remedy() {
        let finding = jit(Result::Ok("0".to_owned()));
        assert_eq!(finding.status, Warn);
        assert_eq!(finding.remedy.as_deref(), Some("sysctl -w net.core.bpf_jit_enable=1"));
        assert_eq!(jit(Result::Ok("1".to_owned())).status, Ok);
        assert_eq!(jit(Err(io::Error::other("hidden"))).status, Info);
    }

    #[test]
    fn a_missing_helper_fails_an_unseen_one_does_not() {
        let status = |feature| -> Status { helper("redirect_peer", feature, "deliver").status };
        assert_eq!(status(Feature::Present), Ok);
        assert_eq!(status(Feature::Absent), Fail);
        assert_eq!(status(Feature::Unseen(libc::EPERM)), Info);
    }

    #[test]
    fn a_refused_program_is_a_failure_only_for_root() {
        assert_eq!(load(Feature::Unseen(libc::EPERM), true).status, Fail);
        assert_eq!(load(Feature::Unseen(libc::EPERM), false).status, Warn);
        assert_eq!(load(Feature::Present, true).status, Ok);
    }

    #[test]
    fn memlock_counts_before_5_11_only() {
        let limit = |current| Rlimit { current, maximum: None };
        assert_eq!(memlock("5.10.0", limit(Some(65536))).status, Warn);
        assert_eq!(memlock("5.10.0", limit(None)).status, Ok);
        assert_eq!(memlock("5.11.0", limit(Some(65536))).status, Ok);
    }

    #[test]
    fn modules_are_found_in_the_lists() {
        let list = "kernel/net/sched/sch_ingress.ko.xz: kernel/net/x.ko\nkernel/net/cls-bpf.ko:\n";
        assert!(lists_module(list, "sch_ingress"));
        assert!(lists_module(list, "cls_bpf"));
        assert!(!lists_module(list, "x"));
    }
}
