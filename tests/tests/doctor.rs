//! What the doctor finds in namespaces that are made for it. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that can not go on says so by panicking")]

use std::{path::Path, process::Command, time::Duration};

use mesh_tests::wait;
use mesh_userspace::{
    config::{Encap, Tunnel},
    doctor::{Finding, Mesh, Report, Status, examine},
};

/// Has the doctor look at a new network namespace after the shell commands in `prepare`. `None`
/// where there can be no namespaces.
fn examined_after(prepare: &str) -> Option<Report> {
    examined_with(prepare, &[])
}

/// The same for a cluster with those tunnels.
fn examined_with(prepare: &str, tunnels: &'static [Tunnel]) -> Option<Report> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("MESH_TESTS_NO_SKIP").is_none(), "namespaces need root");
        eprintln!("SKIP: namespaces need root");
        return None;
    }
    let prepare = prepare.to_owned();
    let inside = move || {
        // SAFETY: only this thread, which ends here, gets a network namespace of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        sh(&prepare);
        wait::until("the interfaces to be up", Duration::from_secs(10), settled).unwrap();
        let before = state();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mesh = Mesh { tunnels: tunnels.to_vec(), ..Mesh::default() };
        let pin_dir = Path::new("/sys/fs/bpf/mesh");
        let report = runtime.block_on(examine(pin_dir, &mesh));
        assert_eq!(state(), before, "the doctor changed something");
        report
    };
    Some(std::thread::spawn(inside).join().unwrap())
}

/// The kernel says a while after the carrier came that an interface is up in every respect.
fn settled() -> Result<(), String> {
    let text = sh("ip -o link");
    let is_open = |l: &&str| l.contains("LOWER_UP") && !l.contains("state U");
    text.lines().find(is_open).map_or(Ok(()), |line| Err(line.to_owned()))
}

/// All that the doctor must leave as it is.
fn state() -> String {
    sh(
        "ip -d addr; ip route show table all; tc qdisc; nft list ruleset; sysctl net.ipv4.ip_forward",
    )
}

fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn find<'a>(report: &'a Report, name: &str) -> &'a Finding {
    report.findings.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Without link-local addresses, which would change by themselves.
const UNDERLAY: &str = "ip link add u0 mtu 9000 type veth peer u1; \
                        ip link set dev u0 addrgenmode none; ip link set dev u0 up; \
                        ip link set dev u1 addrgenmode none; ip link set dev u1 up; \
                        ip addr add 192.0.2.11/24 dev u0";

#[test]
fn a_host_without_an_underlay_fails() {
    let Some(report) = examined_after("ip link set dev lo up") else { return };
    assert!(!report.ok);
    let underlay = find(&report, "underlay");
    assert_eq!((underlay.status, underlay.value.as_str()), (Status::Fail, "none"));
    assert!(find(&report, "rp_filter").value.starts_with("all "));
}

#[test]
fn the_underlay_is_described_and_nothing_is_changed() {
    let Some(report) = examined_after(UNDERLAY) else { return };
    assert!(report.ok, "{report:#?}");
    assert_eq!(find(&report, "underlay_mtu").value, "u0 9000, containers 8962");
    assert_eq!(find(&report, "xdp").value, "u0 native (veth)");
    assert!(find(&report, "rp_filter").value.contains("u0 "));
    for name in ["bpf", "redirect_peer", "redirect_neigh", "adjust_room", "capabilities"] {
        assert_eq!(find(&report, name).status, Status::Ok, "{name}");
    }
}

#[test]
fn a_firewall_that_drops_is_named_and_is_no_fault() {
    let drop = "nft add table ip fw; \
                nft 'add chain ip fw FORWARD { type filter hook forward priority 0; policy drop; }'";
    let Some(report) = examined_after(&format!("{UNDERLAY}; {drop}")) else { return };
    assert!(report.ok, "{report:#?}");
    assert_eq!(find(&report, "forward_policy").value, "drop (ip fw FORWARD)");
}

const VXLAN: &[Tunnel] = &[Tunnel { encap: Encap::Vxlan, port: 4789 }];

#[test]
fn a_port_of_the_mesh_is_free_or_shared_or_its_own() {
    let listener = "ip link add mesh-gro-vxlan type vxlan external dstport 4789; \
                    ip link set mesh-gro-vxlan alias mesh:gro; \
                    ip link set mesh-gro-vxlan addrgenmode none up";
    let other = "ip link add vx0 type vxlan id 4097 dstport 4789; ip link set vx0 up; \
                 ip link set vx0 addrgenmode none";
    for (prepare, value, status) in [
        ("true", "4789 free", Status::Ok),
        (listener, "4789 mesh's", Status::Info),
        (other, "4789 shared", Status::Warn),
    ] {
        let prepare = format!("{UNDERLAY}; {prepare}");
        let Some(report) = examined_with(&prepare, VXLAN) else { return };
        assert!(report.ok, "{report:#?}");
        let port = find(&report, "udp_port");
        assert_eq!((port.value.as_str(), port.status), (value, status), "{port:?}");
    }
}

#[test]
fn every_finding_says_what_it_means_and_what_is_not_right_how_to_mend_it() {
    let Some(report) = examined_after(UNDERLAY) else { return };
    for finding in &report.findings {
        assert!(!finding.value.is_empty() && finding.meaning.ends_with('.'), "{finding:?}");
        if matches!(finding.status, Status::Warn | Status::Fail) {
            assert!(finding.remedy.is_some(), "{finding:?}");
        }
    }
}
