//! Pins and attachments that somebody takes away come back, and what is whole loses nothing.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_common::names;
use mesh_tests::{Flow, Host, Options, Party, Topology, flow, ping, scenario::bare, wait};

/// Longer than the agent takes to look, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

const OPTIONS: Options = Options { containers: 3, ipv6: false, ..Options::DEFAULT };

/// Two hosts in this mode: h1c1 is what others meddle with, h1c2 is what must lose nothing.
fn with_mode(mode: &'static str, body: impl Fn(&mut Topology) -> Result<()>) {
    bare(OPTIONS, |mesh| {
        mesh.hosts.iter_mut().for_each(|host| host.attach_mode = Some(mode));
        mesh.up()?;
        body(mesh)
    });
}

fn wait_until_reached(host: &Host, from: &Party, to: &Party) -> Result<()> {
    let what = format!("{} to reach {} again", from.name, to.name);
    let reached = wait::until(&what, PATIENCE, || {
        let target = to.address(false).map_err(|e| format!("{e:#}"))?;
        ping::expect_ping(&from.netns, target).map_err(|e| format!("{e:#}"))
    });
    host.with_log(reached)?;
    from.expect_reaches(to)?;
    to.expect_reaches(from)
}

fn whole(mesh: &Topology) -> Result<Vec<Flow>> {
    let (whole, far) = (mesh.party("h1c2")?, mesh.party("h2c2")?);
    flow::start_all(&[(&whole, &far), (&far, &whole)])
}

/// `<pin-dir>/v<abi>`
fn root(host: &Host) -> Result<PathBuf> {
    let version = format!("v{}", mesh_common::ABI_VERSION);
    let below = fs::read_dir(&host.pin_dir)?.flatten().map(|entry| entry.path());
    let mut roots = [host.pin_dir.clone()].into_iter().chain(below);
    let root = roots.find_map(|dir| Some(dir.join(&version)).filter(|dir| dir.exists()));
    root.context("no pins")
}

fn pins(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn host_index(host: &Host, container: usize) -> Result<u32> {
    let ifname = &host.containers[container].given()?.host_ifname;
    let path = format!("/sys/class/net/{ifname}/ifindex");
    host.netns.run_with_sysfs(|| Ok(fs::read_to_string(&path)?.trim().parse()?))
}

fn bpf<A>(command: i32, attr: &mut A) -> Result<i64> {
    // SAFETY: each command here reads no more than `attr`, whose size is passed along, and a path
    // that outlives the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    ensure!(done >= 0, "bpf({command}): {}", io::Error::last_os_error());
    Ok(done)
}

/// As `bpftool link detach`: the pin stays.
fn detach_link(pin: &Path) -> Result<()> {
    const BPF_OBJ_GET: i32 = 7;
    const BPF_LINK_DETACH: i32 = 34;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
    // SAFETY: the kernel just gave us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd(), 0]).map(drop)
}

#[test]
fn links_that_are_detached_are_attached_again() {
    with_mode("tcx", |mesh| {
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let host = &mesh.hosts[0];
        let flows = whole(mesh)?;
        let link = format!("from_container-{}", host_index(host, 0)?);
        detach_link(&root(host)?.join("links").join(link))?;
        wait_until_reached(host, &one, &far)?;
        flow::expect_no_loss(flows)?;
        for link in pins(&root(host)?.join("links"))? {
            detach_link(&link)?;
        }
        wait_until_reached(host, &one, &far)
    });
}

#[test]
fn pins_of_links_that_are_removed_come_back() {
    with_mode("tcx", |mesh| {
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let host = &mesh.hosts[0];
        let flows = whole(mesh)?;
        let link = format!("from_container-{}", host_index(host, 0)?);
        let pin = root(host)?.join("links").join(link);
        fs::remove_file(&pin)?;
        // The kernel takes the program off a moment later.
        wait::until_true("the pin of the link", PATIENCE, || pin.exists())?;
        wait_until_reached(host, &one, &far)?;
        flow::expect_no_loss(flows)
    });
}

#[test]
fn pins_of_interfaces_that_are_gone_are_removed() {
    with_mode("tcx", |mesh| {
        let host = &mesh.hosts[0];
        let links = root(host)?.join("links");
        let of_host = || -> Result<Vec<PathBuf>> {
            let is_of_host = |pin: &PathBuf| pin.to_string_lossy().contains("from_host-");
            Ok(pins(&links)?.into_iter().filter(is_of_host).collect())
        };
        let before = of_host()?;
        ensure!(before.len() == 1, "{before:?}");
        host.netns.exec("ip link del dev mesh0")?;
        wait::until("the pin of the new mesh0 alone", PATIENCE, || {
            let now = of_host().map_err(|e| format!("{e:#}"))?;
            if now.len() == 1 && now != before { Ok(()) } else { Err(format!("{now:?}")) }
        })?;
        wait_until_reached(host, &mesh.party("h1c1")?, &mesh.party("h2c1")?)
    });
}

#[test]
fn folder_of_links_that_is_removed_comes_back() {
    with_mode("tcx", |mesh| {
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let host = &mesh.hosts[0];
        let links = root(host)?.join("links");
        pins(&links)?.iter().try_for_each(fs::remove_file)?;
        fs::remove_dir(&links)?;
        wait::until_true("the pins of the links", PATIENCE, || links.exists())?;
        wait_until_reached(host, &one, &far)
    });
}

#[test]
fn clsact_that_is_deleted_is_made_again() {
    with_mode("clsact", |mesh| {
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let host = &mesh.hosts[0];
        let flows = whole(mesh)?;
        let ifname = host.containers[0].given()?.host_ifname.clone();
        host.netns.exec(&format!("tc qdisc del dev {ifname} clsact"))?;
        wait_until_reached(host, &one, &far)?;
        // The filter alone.
        host.netns.exec(&format!("tc filter del dev {ifname} ingress"))?;
        wait_until_reached(host, &one, &far)?;
        flow::expect_no_loss(flows)?;
        for ifname in ["eth0", "mesh0"] {
            host.netns.exec(&format!("tc qdisc del dev {ifname} clsact"))?;
        }
        wait_until_reached(host, &one, &far)?;
        wait_until_reached(host, &host.party()?, &far)
    });
}

/// Maps and programs are in use by what is attached: nothing is cut, but nothing more could be attached.
fn expect_pins_to_come_back(mode: &'static str) {
    with_mode(mode, |mesh| {
        let flows = whole(mesh)?;
        let root = root(&mesh.hosts[0])?;
        for kind in ["programs", "maps"] {
            let all = pins(&root.join(kind))?;
            for pin in &all {
                fs::remove_file(pin)?;
            }
            // At once, and not only when somebody has looked.
            let host = &mut mesh.hosts[0];
            host.detach(2)?;
            let attached = host.attach(2, &[]).map(drop);
            host.with_log(attached)?;
            wait::until_true(&format!("the pins of {kind}"), PATIENCE, || {
                all.iter().all(|pin| pin.exists())
            })?;
            let (new, far) = (mesh.party("h1c3")?, mesh.party("h2c1")?);
            new.expect_reaches(&far)?;
        }
        // Each by itself, and nobody asks for anything.
        for (kind, name) in [
            ("programs", names::FROM_ENDPOINT),
            ("programs", names::FROM_UNDERLAY),
            ("maps", names::FIB),
            ("maps", names::NEIGHBOURS),
        ] {
            let pin = root.join(kind).join(name);
            fs::remove_file(&pin)?;
            wait::until_true(&format!("the pin of {name}"), PATIENCE, || pin.exists())?;
        }
        flow::expect_no_loss(flows)?;
        // Another agent finds them as they were.
        let cluster = mesh.cluster.clone();
        mesh.hosts[0].kill9();
        mesh.hosts[0].up(&cluster)?;
        mesh.party("h1c1")?.expect_reaches(&mesh.party("h2c1")?)
    });
}

#[test]
fn pins_of_maps_and_programs_that_are_removed_come_back_with_tcx() {
    expect_pins_to_come_back("tcx");
}

#[test]
fn pins_of_maps_and_programs_that_are_removed_come_back_with_clsact() {
    expect_pins_to_come_back("clsact");
}

#[test]
fn folder_of_pins_that_is_removed_comes_back() {
    for mode in ["tcx", "clsact"] {
        with_mode(mode, |mesh| {
            let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
            let flows = if mode == "clsact" { whole(mesh)? } else { Vec::new() };
            let host = &mesh.hosts[0];
            let root = root(host)?;
            for kind in ["links", "programs", "maps"] {
                pins(&root.join(kind))?.iter().try_for_each(fs::remove_file)?;
                fs::remove_dir(root.join(kind))?;
            }
            fs::remove_dir(&root)?;
            wait::until_true("the pins", PATIENCE, || root.join("maps").join(names::FIB).exists())?;
            wait_until_reached(host, &one, &far)?;
            flow::expect_no_loss(flows)?;
            let host = &mut mesh.hosts[0];
            host.detach(2)?;
            host.attach(2, &[])?;
            mesh.party("h1c3")?.expect_reaches(&far)
        });
    }
}

/// nobody's.
const OTHER: u32 = 65534;

#[test]
fn a_folder_that_another_user_put_in_the_place_of_the_pins_is_not_used() {
    with_mode("tcx", |mesh| {
        let cluster = mesh.cluster.clone();
        let (one, far) = (mesh.party("h1c1")?, mesh.party("h2c1")?);
        let flows = whole(mesh)?;
        let host = &mut mesh.hosts[0];
        let root = root(host)?;
        let away = root.with_file_name("gone");
        let swap = || -> Result<()> {
            fs::rename(&root, &away)?;
            fs::create_dir(&root)?;
            Ok(std::os::unix::fs::chown(&root, Some(OTHER), None)?)
        };
        let swap_back = || -> Result<()> {
            remove_all(&root)?;
            Ok(fs::rename(&away, &root)?)
        };
        // Under the agent.
        swap()?;
        let said = || {
            let output = host.try_mesh(&["status", "--check"]);
            let said = output.map(|output| (output.status.code(), output.stdout));
            said.map(|(code, said)| (code, String::from_utf8_lossy(&said).into_owned()))
        };
        wait::until("a fault", PATIENCE, || match said() {
            Ok((Some(3), said)) if said.contains("user 65534") => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        swap_back()?;
        wait::until("no fault", PATIENCE, || match said() {
            Ok((Some(0), said)) if said.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        // Before it starts.
        host.kill9();
        swap()?;
        let refused = host.up_once(&cluster).map_err(|e| format!("{e:#}"));
        ensure!(refused.as_ref().is_err_and(|e| e.contains("user 65534")), "{refused:?}");
        ping::expect_ping(&one.netns, far.address(false)?)?;
        swap_back()?;
        host.up(&cluster)?;
        ensure!(host.faults()? == "[]", "{}", host.faults()?);
        flow::expect_no_loss(flows)
    });
}

fn remove_all(dir: &Path) -> Result<()> {
    for path in pins(dir)? {
        if path.is_dir() { remove_all(&path)? } else { fs::remove_file(path)? }
    }
    Ok(fs::remove_dir(dir)?)
}
