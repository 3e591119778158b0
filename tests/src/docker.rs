//! Hosts with a real Docker daemon each.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Host, Netns, Options, Topology,
    etcd::Etcd,
    host::mesh_binary,
    machine::{Machines, image, kill_cgroup, remove_cgroup, unpacked},
    netns::check,
    wait,
};

mod reboot;

/// Where the engine is unpacked: set by `cargo xtask test`.
const ENGINE: &str = "MESH_DOCKER";
const STARTING: Duration = Duration::from_secs(60);
/// A container that does not heed a signal is given ten seconds.
const ENDING: Duration = Duration::from_secs(45);

/// A topology, with a Docker daemon on each host.
#[derive(Debug)]
pub struct Docker {
    pub topology: Topology,
    engine: PathBuf,
    machines: Machines,
    daemons: Vec<Option<Child>>,
    /// Where the daemons keep networks of their own, and what they are told of it.
    store: Option<(Etcd, Vec<String>)>,
}

/// Makes hosts with Docker and agents, and runs `body`. Host `h1` has index 0.
///
/// # Panics
///
/// If `body` fails, with its error and the end of every agent's log.
pub fn scenario(hosts: usize, body: impl FnOnce(&mut Docker) -> Result<()>) {
    let Some([engine]) = unpacked([ENGINE]) else { return };
    let mut docker = Docker::new(hosts, engine).expect("make namespaces");
    let done = docker.up(None).and_then(|()| body(&mut docker));
    done.unwrap_or_else(|error| panic!("{error:#}"));
}

/// The same for hosts on which nobody has done anything for mesh yet: no config file, no agent, and
/// Docker as it comes, with an image `busybox`.
pub fn newcomers(hosts: usize, body: impl FnOnce(&mut Docker) -> Result<()>) {
    let Some([engine]) = unpacked([ENGINE]) else { return };
    let mut docker = Docker::new(hosts, engine).expect("make namespaces");
    let done = docker.up_plain().and_then(|()| body(&mut docker));
    done.unwrap_or_else(|error| panic!("{error:#}"));
}

impl Docker {
    fn new(hosts: usize, engine: PathBuf) -> Result<Self> {
        let options = Options { hosts, containers: 0, ..Options::default() };
        let topology = Topology::new(options)?;
        let machines = Machines::default();
        Ok(Self { topology, engine, machines, daemons: Vec::new(), store: None })
    }

    /// Hosts with agents and Docker 20.10, whose own overlay networks are kept in an etcd on the first
    /// host. `engine`, `etcd`: where they are unpacked.
    pub fn with_store(hosts: usize, engine: PathBuf, etcd: &Path) -> Result<Self> {
        let mut docker = Self::new(hosts, engine)?;
        docker.up(Some(etcd))?;
        Ok(docker)
    }

    /// Starts daemons and agents, and gives each daemon the image `bb`, busybox.
    fn up(&mut self, etcd: Option<&Path>) -> Result<()> {
        self.machines.make(&mut self.topology)?;
        if let Some(root) = etcd {
            self.start_store(root)?;
        }
        for at in 0..self.topology.hosts.len() {
            self.daemons.push(None);
            self.start_daemon(at, &[])?;
        }
        self.import("bb")?;
        self.topology.up()
    }

    fn up_plain(&mut self) -> Result<()> {
        self.machines.make(&mut self.topology)?;
        let tools = self.topology.dir.join("bin");
        fs::create_dir(&tools)?;
        std::os::unix::fs::symlink(mesh_binary()?, tools.join("mesh"))?;
        fs::write(tools.join("systemctl"), SYSTEMCTL)?;
        fs::set_permissions(tools.join("systemctl"), fs::Permissions::from_mode(0o755))?;
        for at in 0..self.topology.hosts.len() {
            let owned = self.topology.hosts[at].command("sh").args(["-c", OWN_ETC]).output()?;
            check("an /etc of the host's own", &owned)?;
            self.daemons.push(None);
            self.start_plain_daemon(at, &[])?;
        }
        self.import("busybox")
    }

    /// Runs a line as somebody types it on a host. One that ends with `&` goes on.
    pub fn type_in(&mut self, at: usize, line: &str) -> Result<Output> {
        let host = &self.topology.hosts[at];
        let tools = self.topology.dir.join("bin");
        let mut shell = host.command("env");
        shell.arg(self.path().replacen('=', &format!("={}:", tools.display()), 1));
        shell.args(["sh", "-c", line]).stdin(Stdio::null()).process_group(0);
        if line.trim_end().ends_with('&') {
            let log = fs::File::options().create(true).append(true).open(&host.log)?;
            shell.stdout(log.try_clone()?).stderr(log);
        } else {
            shell.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let inside = host.inside.context("a host with namespaces of its own")?;
        let asked = PathBuf::from(format!("/proc/{inside}/root{RESTART}"));
        let mut typed = shell.spawn().with_context(|| line.to_owned())?;
        wait::until(line, ENDING, || match typed.try_wait() {
            Ok(Some(_)) => Ok(()),
            _ if asked.exists() => {
                let done = self.end_daemon(at, Signal::TERM);
                let done = done.and_then(|()| self.start_plain_daemon(at, &[]));
                done.and_then(|()| self.wait_daemon(at)).map_err(|e| format!("{e:#}"))?;
                fs::remove_file(&asked).map_err(|e| e.to_string())?;
                Err("Docker was restarted".into())
            }
            _ => Err("it still runs".into()),
        })?;
        Ok(typed.wait_with_output()?)
    }

    /// The image, busybox, for each daemon, as soon as it is there.
    fn import(&self, name: &str) -> Result<()> {
        let image = image(&self.engine, &self.topology.dir)?;
        for at in 0..self.topology.hosts.len() {
            self.wait_daemon(at)?;
            self.run(at, &format!("import {} {name}", image.display()))?;
            // As a daemon does that is the first to turn forwarding on.
            self.topology.hosts[at].netns.exec("iptables -P FORWARD DROP")?;
        }
        Ok(())
    }

    fn start_store(&mut self, root: &Path) -> Result<()> {
        let nodes = &self.topology.cluster.nodes;
        let first = &self.topology.hosts[0];
        let etcd = Etcd::start(root, first, &self.topology.dir, &nodes[0].underlay)?;
        let store = format!("--cluster-store=etcd://{}", etcd.address);
        let me = |node: &crate::cluster::Node| {
            format!("{store} --cluster-advertise={}:2376", node.underlay)
        };
        self.store = Some((etcd, nodes.iter().map(me).collect()));
        Ok(())
    }

    /// The network namespace of a container.
    pub fn netns(&self, at: usize, container: &str) -> Result<Netns> {
        let pid = self.run(at, &format!("inspect -f {{{{.State.Pid}}}} {container}"))?;
        Netns::of_process(pid.parse().with_context(|| format!("{container} has pid {pid:?}"))?)
    }

    pub fn host(&mut self, at: usize) -> &mut Host {
        &mut self.topology.hosts[at]
    }

    /// Starts the daemon of a host, whose containers ask the agent for names; [`Docker::wait_daemon`]
    /// waits for it.
    pub fn start_daemon(&mut self, at: usize, args: &[&str]) -> Result<()> {
        let subnet = &self.topology.cluster.nodes[at].subnet[0];
        let overlay = subnet.replace(".0/24", ".1");
        self.start_plain_daemon(at, &[&["--dns", &overlay], args].concat())
    }

    /// The same for one that is told all by these arguments.
    pub fn start_plain_daemon(&mut self, at: usize, args: &[&str]) -> Result<()> {
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
        command.args(["--shutdown-timeout", "1"]).args(args);
        let store = self.store.as_ref().map_or("", |(_, of_hosts)| &of_hosts[at]);
        command.args(store.split_whitespace());
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

    /// The major version of the daemons.
    pub fn major(&self) -> Result<u32> {
        let version = self.run(0, "version --format {{.Server.Version}}")?;
        let major = version.split('.').next().and_then(|major| major.parse().ok());
        major.with_context(|| format!("Docker's version is {version:?}"))
    }

    /// What the daemon of a host logged.
    pub fn log(&self, at: usize) -> Result<String> {
        let path = self.topology.dir.join(format!("{}.dockerd", self.topology.hosts[at].name));
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
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

/// An /etc of the host's own, where nobody has written anything for Docker or mesh.
const OWN_ETC: &str = "set -e; mkdir -p /run/etc/upper /run/etc/work; \
    mount -n -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc; \
    cp --remove-destination /run/resolv.conf /etc/resolv.conf; rm -rf /etc/docker /etc/mesh";

/// There is no systemd in a namespace: what it is asked for, [`Docker::type_in`] does.
const SYSTEMCTL: &str = "#!/bin/sh
[ \"$*\" = \"restart docker\" ] || exit 1
touch /run/restart-docker
while [ -e /run/restart-docker ]; do sleep 0.05; done
";
const RESTART: &str = "/run/restart-docker";

/// Ends containerd, and forgets the pids that a killed daemon left.
const CLEAR: &str = "kill -9 $(cat /run/docker/containerd/containerd.pid) 2>/dev/null; \
                     rm -f /run/docker/containerd/containerd.pid /run/docker.pid";

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (at, host) in self.topology.hosts.iter().enumerate() {
                let text = self.log(at).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(20)..];
                eprintln!("--- dockerd of {}:\n{}\n---", host.name, tail.join("\n"));
            }
        }
        // Asked to end, most containers would wait to be killed: their first process gets no signal
        // that it does not catch.
        (0..self.daemons.len()).for_each(|at| kill_cgroup(&self.cgroup(at)));
        // All at once.
        for daemon in self.daemons.iter().flatten() {
            let _ = kill_process(Pid::from_child(daemon), Signal::TERM);
        }
        for at in 0..self.daemons.len() {
            let _ = self.end_daemon(at, Signal::TERM);
            remove_cgroup(&self.cgroup(at));
        }
    }
}
