//! Hosts with a real Docker daemon each: a network, mount and UTS namespace, with a /run, a /sys and
//! a bpf file system of its own, as a machine has.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Host, Options, Topology,
    netns::check,
    scenario::{able, skip},
    wait,
};

/// Where the engine is unpacked: set by `cargo xtask test`.
const ENGINE: &str = "MESH_DOCKER";
const STARTING: Duration = Duration::from_secs(30);
const ENDING: Duration = Duration::from_secs(15);

/// Makes what the host must have of its own, and keeps it until killed. `$1`: folder, `$2`: name.
const HOLD: &str = r#"
set -e
hostname "$2"
mkdir -p "$1/run-$2" && mount -n -t tmpfs -o mode=755 tmpfs "$1/run-$2"
mkdir -p "$1/run-$2/${1#/run/}" && mount -n --bind "$1" "$1/run-$2/${1#/run/}"
mount -n --move "$1/run-$2" /run
mkdir -p /run/lock /run/cgroups
cp -f "$1/$2.resolv" /run/resolv.conf && mount -n --bind /run/resolv.conf /etc/resolv.conf
mount -n --rbind /sys/fs/cgroup /run/cgroups
umount -n -l /sys && mount -n -t sysfs sysfs /sys
mount -n --rbind /run/cgroups /sys/fs/cgroup && umount -n -l /run/cgroups
mount -n -t bpf bpf /sys/fs/bpf
touch "$1/$2.ready"
exec sleep infinity
"#;

/// A topology, with a Docker daemon on each host.
#[derive(Debug)]
pub struct Docker {
    pub topology: Topology,
    engine: PathBuf,
    holders: Vec<Child>,
    daemons: Vec<Option<Child>>,
}

/// Makes hosts with Docker and agents, and runs `body`. Host `h1` has index 0.
///
/// # Panics
///
/// If `body` fails, with its error and the end of every agent's log.
pub fn scenario(hosts: usize, body: impl FnOnce(&mut Docker) -> Result<()>) {
    let engine = env::var_os(ENGINE).map(PathBuf::from);
    let able = able().and_then(|()| {
        engine.ok_or_else(|| format!("{ENGINE} does not say where a Docker engine is"))
    });
    let engine = match able {
        Ok(engine) => engine,
        Err(cause) => return skip(&cause),
    };
    let options = Options { hosts, containers: 0, ..Options::default() };
    let topology = Topology::new(options).expect("make namespaces");
    let mut docker = Docker { topology, engine, holders: Vec::new(), daemons: Vec::new() };
    let done = docker.up().and_then(|()| body(&mut docker));
    done.unwrap_or_else(|error| panic!("{error:#}"));
}

impl Docker {
    /// Starts daemons and agents, and gives each daemon the image `bb`, busybox.
    fn up(&mut self) -> Result<()> {
        for at in 0..self.topology.hosts.len() {
            self.hold(at)?;
            self.daemons.push(None);
            self.start_daemon(at, &[])?;
        }
        let image = image(&self.engine, &self.topology.dir)?;
        for at in 0..self.topology.hosts.len() {
            self.wait_daemon(at)?;
            self.run(at, &format!("import {} bb", image.display()))?;
        }
        self.topology.up()
    }

    fn hold(&mut self, at: usize) -> Result<()> {
        let host = &self.topology.hosts[at];
        let dir = &self.topology.dir;
        // Nobody answers there: names that are not of the mesh are nobody's.
        fs::write(dir.join(format!("{}.resolv", host.name)), "nameserver 192.0.2.254\n")?;
        host.netns.exec("sysctl -qw net.ipv4.ip_forward=1")?;
        let mut unshare = host.netns.command("unshare");
        unshare.args(["--mount", "--uts", "--propagation", "private", "sh", "-c", HOLD, "sh"]);
        unshare.arg(dir).arg(&host.name).stdin(Stdio::null()).process_group(0);
        let holder = unshare.spawn().context("start unshare")?;
        let ready = dir.join(format!("{}.ready", host.name));
        let pid = holder.id();
        self.holders.push(holder);
        wait::until_true("a host's namespaces", STARTING, || ready.exists())?;
        let host = &mut self.topology.hosts[at];
        host.inside = Some(pid);
        host.run_dir = "/run/mesh".into();
        host.pin_dir = "/sys/fs/bpf/mesh".into();
        Ok(())
    }

    pub fn host(&mut self, at: usize) -> &mut Host {
        &mut self.topology.hosts[at]
    }

    /// Starts the daemon of a host; [`Docker::wait_daemon`] waits for it.
    pub fn start_daemon(&mut self, at: usize, args: &[&str]) -> Result<()> {
        let host = &self.topology.hosts[at];
        let dir = &self.topology.dir;
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join(format!("{}.dockerd", host.name)))?;
        let mut command = host.command("env");
        command.arg(self.path()).arg("dockerd");
        command.arg("--data-root").arg(dir.join(format!("{}-data", host.name)));
        command.args([
            "--exec-root",
            "/run/docker",
            "-p",
            "/run/docker.pid",
            "--storage-driver",
            "overlay2",
        ]);
        command.args(["-H", "unix:///run/docker.sock", "--cgroup-parent", &self.cgroup(at)]);
        command.args(["--shutdown-timeout", "1"]);
        let subnet = &self.topology.cluster.nodes[at].subnet[0];
        let overlay = subnet.replace(".0/24", ".1");
        command.args(["--dns", &overlay]).args(args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.daemons[at] = Some(command.spawn().context("start dockerd")?);
        Ok(())
    }

    pub fn wait_daemon(&self, at: usize) -> Result<()> {
        wait::until("a Docker daemon", STARTING, || {
            let output = self.docker(at, &["version"]).output().map_err(|e| e.to_string())?;
            if output.status.success() {
                return Ok(());
            }
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        })
    }

    /// Ends a daemon by this signal, and waits.
    pub fn end_daemon(&mut self, at: usize, signal: Signal) -> Result<()> {
        let Some(mut daemon) = self.daemons[at].take() else { return Ok(()) };
        kill_process(Pid::from_child(&daemon), signal)?;
        let ended =
            wait::until_true("dockerd to end", ENDING, || !matches!(daemon.try_wait(), Ok(None)));
        if signal == Signal::KILL {
            // Its containerd is there still, and belongs to no daemon.
            let host = &self.topology.hosts[at];
            let _ = host.command("sh").args(["-c", CLEAR]).status();
        }
        ended
    }

    /// `docker ARGS` on a host.
    pub fn docker(&self, at: usize, args: &[&str]) -> Command {
        let mut command = self.topology.hosts[at].command("env");
        command.arg(self.path()).args(["docker", "-H", "unix:///run/docker.sock"]).args(args);
        command.stdin(Stdio::null());
        command
    }

    pub fn try_run(&self, at: usize, line: &str) -> Result<Output> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.docker(at, &words).output().context("start docker")
    }

    /// `docker LINE`, split at blanks, which must succeed; what it printed.
    pub fn run(&self, at: usize, line: &str) -> Result<String> {
        let output = self.try_run(at, line)?;
        check(&format!("h{}: docker {line}", at + 1), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// `docker LINE`, which must fail; what it complained.
    pub fn refused(&self, at: usize, line: &str) -> Result<String> {
        let output = self.try_run(at, line)?;
        ensure!(!output.status.success(), "h{}: docker {line} succeeded", at + 1);
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Waits until `docker LINE` succeeds and prints something that `fits`.
    pub fn wait_for(&self, at: usize, line: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(&format!("h{}: docker {line}", at + 1), STARTING, || {
            let text = self.run(at, line).map_err(|e| format!("{e:#}"))?;
            if fits(&text) { Ok(text) } else { Err(text) }
        })
    }

    /// Waits until all hosts have that network.
    pub fn wait_network(&self, name: &str) -> Result<()> {
        for at in 0..self.topology.hosts.len() {
            self.wait_for(at, &format!("network ls -q -f name=^{name}$"), |ids| !ids.is_empty())?;
        }
        Ok(())
    }

    fn cgroup(&self, at: usize) -> String {
        format!("/{}-h{}", self.topology.name, at + 1)
    }

    /// `PATH=...` with the engine in front.
    fn path(&self) -> String {
        let engine = self.engine.display();
        let path = env::var("PATH").unwrap_or_default();
        format!("PATH={engine}/usr/bin:{engine}/usr/sbin:{path}")
    }
}

/// Ends containerd, and forgets the pids that a killed daemon left.
const CLEAR: &str = "kill -9 $(cat /run/docker/containerd/containerd.pid) 2>/dev/null; \
                     rm -f /run/docker/containerd/containerd.pid /run/docker.pid";

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.topology.hosts {
                let log = self.topology.dir.join(format!("{}.dockerd", host.name));
                let text = fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(20)..];
                eprintln!("--- dockerd of {}:\n{}\n---", host.name, tail.join("\n"));
            }
        }
        for at in 0..self.daemons.len() {
            let _ = self.end_daemon(at, Signal::TERM);
            remove_cgroup(&self.cgroup(at));
        }
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// Kills what is left in a control group of every hierarchy, and removes it.
fn remove_cgroup(name: &str) {
    let mut roots: Vec<PathBuf> = vec!["/sys/fs/cgroup".into()];
    roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path()));
    for group in roots.iter().map(|root| root.join(name.trim_start_matches('/'))) {
        let mut folders = vec![group];
        let mut all = Vec::new();
        while let Some(folder) = folders.pop() {
            let inner = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(inner.map(|e| e.path()).filter(|p| p.is_dir()));
            all.push(folder);
        }
        let pids =
            |folder: &Path| fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in all.iter().flat_map(|f| pids(f).lines().map(str::to_owned).collect::<Vec<_>>()) {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for folder in all.iter().rev().filter(|f| f.is_dir()) {
            let _ = wait::until_true("a control group to be empty", ENDING, || {
                pids(folder).is_empty() && fs::remove_dir(folder).is_ok()
            });
        }
    }
}

/// busybox, all its applets, and a page for its web server.
fn image(engine: &Path, dir: &Path) -> Result<PathBuf> {
    let (root, tar) = (dir.join("image"), dir.join("image.tar"));
    for folder in ["bin", "etc", "var/www", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(engine.join("bin/busybox"), &busybox).context("the engine's busybox")?;
    fs::write(root.join("var/www/index.html"), "hello\n")?;
    let applets = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    let output = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").output()?;
    check("tar", &output)?;
    Ok(tar)
}
