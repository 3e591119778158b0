//! What mesh leaves behind, and what it must leave alone.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use anyhow::{Result, ensure};
use mesh_tests::{
    Host, Netns, Options, Snapshot, Topology, kernel, party::pairs, scenario::bare, snapshot::tcx,
    socket,
};

/// Of each host, then of each container.
fn snapshots(mesh: &Topology) -> Result<Vec<Snapshot>> {
    let hosts = mesh.hosts.iter().map(Snapshot::of);
    hosts.chain(mesh.containers().map(|c| Snapshot::of_netns(&c.netns))).collect()
}

fn expect_same(before: &[Snapshot], after: &[Snapshot]) -> Result<()> {
    before.iter().zip(after).try_for_each(|(before, after)| before.expect_same(after))
}

fn exchange(mesh: &Topology) -> Result<()> {
    let parties = mesh.parties()?;
    pairs(&parties).try_for_each(|(from, to)| from.expect_reaches(to))
}

#[test]
fn down_leaves_no_trace() {
    bare(Options::default(), |mesh| {
        let before = snapshots(mesh)?;
        mesh.up()?;
        exchange(mesh)?;
        ensure!(!before[0].difference(&Snapshot::of(&mesh.hosts[0])?).is_empty());
        mesh.hosts.iter_mut().try_for_each(Host::down)?;
        expect_same(&before, &snapshots(mesh)?)
    });
}

#[test]
fn down_after_a_crash_leaves_no_trace_and_twice_is_fine() {
    bare(Options::default(), |mesh| {
        let before = snapshots(mesh)?;
        mesh.up()?;
        mesh.hosts.iter_mut().for_each(Host::kill9);
        for _ in 0..2 {
            mesh.hosts.iter_mut().try_for_each(Host::down)?;
            expect_same(&before, &snapshots(mesh)?)?;
        }
        // And it can come back.
        mesh.up()?;
        exchange(mesh)?;
        mesh.hosts.iter_mut().try_for_each(Host::down)?;
        expect_same(&before, &snapshots(mesh)?)
    });
}

#[test]
fn down_has_taken_the_programs_off_when_it_returns() {
    bare(Options { hosts: 1, containers: 0, ..Options::default() }, |mesh| {
        let netns = mesh.hosts[0].netns.clone();
        let ifindex = netns.run(|| Ok(socket::ifindex("eth0")?))?;
        // At tcx, or filters of clsact.
        let programs = || -> Result<String> {
            let filters = netns.exec("tc filter show dev eth0 ingress")?;
            Ok(tcx(&netns, ifindex, "eth0")?.join("\n") + &filters)
        };
        for _ in 0..5 {
            mesh.up()?;
            ensure!(!programs()?.is_empty(), "nothing is attached");
            mesh.hosts[0].run_mesh(&["down"])?;
            let left = programs()?;
            mesh.hosts[0].kill9();
            ensure!(left.is_empty(), "{left}");
        }
        Ok(())
    });
}

#[test]
fn down_without_up_is_fine() {
    bare(Options { hosts: 1, containers: 0, ..Options::default() }, |mesh| {
        let before = snapshots(mesh)?;
        mesh.hosts[0].down()?;
        expect_same(&before, &snapshots(mesh)?)
    });
}

#[test]
fn detach_leaves_no_trace_in_the_container() {
    bare(Options { hosts: 1, containers: 1, ..Options::default() }, |mesh| {
        let before = Snapshot::of_netns(&mesh.hosts[0].containers[0].netns)?;
        mesh.up()?;
        let attached = Snapshot::of(&mesh.hosts[0])?;
        for _ in 0..2 {
            mesh.hosts[0].detach(0)?;
            before.expect_same(&Snapshot::of_netns(&mesh.hosts[0].containers[0].netns)?)?;
            mesh.hosts[0].attach(0, &[])?;
        }
        // Interfaces get new indices, but there are as many as before.
        let links = |s: &Snapshot| s.starting_with("link ").filter(|l| l.contains(" mtu ")).count();
        ensure!(links(&attached) == links(&Snapshot::of(&mesh.hosts[0])?));
        Ok(())
    });
}

#[test]
fn foreign_things_survive_up_and_down() {
    bare(Options::default(), |mesh| {
        let bare_host = Snapshot::of(&mesh.hosts[0])?;
        let tcx = add_foreign_things(&mesh.hosts[0].netns)?;
        let before = Snapshot::of(&mesh.hosts[0])?;
        let foreign = bare_host.difference(&before).new;
        for sign in ["link docker0", "route4 ", "rule4 ", "qdisc eth0", "filter eth0", "netfilter "]
            .into_iter()
            .chain(tcx.as_ref().map(|_| "tcx eth0"))
        {
            ensure!(foreign.iter().any(|f| f.starts_with(sign)), "no foreign {sign}: {foreign:#?}");
        }
        mesh.up()?;
        exchange(mesh)?;
        before.expect_kept(&bare_host, &Snapshot::of(&mesh.hosts[0])?)?;
        mesh.hosts[0].down()?;
        before.expect_same(&Snapshot::of(&mesh.hosts[0])?)
    });
}

/// Returns what must live as long as the foreign tcx program; `None` where the kernel has no tcx.
fn add_foreign_things(netns: &Netns) -> Result<Option<OwnedFd>> {
    for command in [
        "ip link add docker0 type bridge",
        "ip link set docker0 addrgenmode none",
        "ip addr add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
        "ip route add 10.77.0.0/16 via 192.0.2.12",
        "ip rule add pref 900 from 10.77.0.0/16 lookup 900",
        "tc qdisc add dev eth0 clsact",
        "tc filter add dev eth0 ingress pref 9 protocol ip u32 match ip dst 10.77.0.1/32 flowid 1:1",
        "nft add table inet foreign",
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=2",
    ] {
        netns.exec(command)?;
    }
    if !kernel::is_since(6, 6) {
        return Ok(None);
    }
    netns.run(|| Ok(Some(attach_foreign_tcx(socket::ifindex("eth0")?)?)))
}

/// A program that passes everything on, at tcx ingress.
fn attach_foreign_tcx(ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_LINK_CREATE: i32 = 28;
    const SCHED_CLS: u32 = 3;
    const TCX_INGRESS: u32 = 46;
    // r0 = TCX_NEXT (-1); exit
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let licence = c"GPL";
    #[repr(C)]
    struct Load {
        kind: u32,
        len: u32,
        code: u64,
        licence: u64,
        log: [u64; 4],
        name: [u8; 16],
    }
    let load = Load {
        kind: SCHED_CLS,
        len: code.len() as u32,
        code: code.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log: [0; 4],
        name: *b"foreign\0\0\0\0\0\0\0\0\0",
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let program_fd = std::os::fd::AsRawFd::as_raw_fd(&program) as u32;
    bpf(BPF_LINK_CREATE, &[program_fd, ifindex, TCX_INGRESS, 0, 0, 0, 0, 0])
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes have the layout of the kernel's union for this command, their size is
    // passed along, and what they point to outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[test]
fn clsact_carries_traffic_and_leaves_no_trace() {
    bare(Options::default(), |mesh| {
        let before = snapshots(mesh)?;
        mesh.hosts.iter_mut().for_each(|host| host.attach_mode = Some("clsact"));
        mesh.up()?;
        exchange(mesh)?;
        let status = mesh.hosts[0].status()?;
        ensure!(status["attach_mode"] == "clsact", "{}", status["attach_mode"]);
        mesh.hosts.iter_mut().for_each(Host::kill9);
        exchange(mesh)?;
        mesh.hosts.iter_mut().try_for_each(Host::down)?;
        expect_same(&before, &snapshots(mesh)?)
    });
}
