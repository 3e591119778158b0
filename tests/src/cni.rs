//! Hosts with the runtimes that call CNI plugins: podman and containerd. Nothing but mesh's own
//! commands puts the plugin where they find it.

use std::{
    env, fs,
    io::Write,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    Host, Options, Topology,
    host::mesh_binary,
    machine::{Machines, image, remove_cgroup, unpacked},
    netns::check,
    wait,
};

const STARTING: Duration = Duration::from_secs(60);
const ENDING: Duration = Duration::from_secs(15);

/// An /etc, an /opt and, for what runtimes keep, a /var of the host's own, with what podman must find.
/// Where they are unpacked: `$1`: podman, `$2`: others' plugins, `$3`: a Docker engine.
const PREPARE: &str = r#"
set -e
for folder in etc opt var; do
    mkdir -p /run/own/$folder/upper /run/own/$folder/work
    mount -n -t overlay overlay \
        -o lowerdir=/$folder,upperdir=/run/own/$folder/upper,workdir=/run/own/$folder/work /$folder
done
cp --remove-destination /run/resolv.conf /etc/resolv.conf
mkdir -p /etc/containers /etc/cni/net.d /opt/cni/bin
rm -rf /etc/cni/net.d/* /opt/cni/bin/*
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
cat >/etc/containers/containers.conf <<EOF
[containers]
# More than a container in a container may have.
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
default_sysctls = []
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin", "$2/usr/lib/cni"]
network_config_dir = "/etc/cni/net.d"
[engine]
conmon_path = ["$1/usr/bin/conmon"]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
runc = ["$3/usr/sbin/runc"]
EOF
"#;

/// A topology, with what is needed to run containers on each host.
#[derive(Debug)]
pub struct Runtimes {
    pub topology: Topology,
    engine: PathBuf,
    podman: PathBuf,
    /// CNI plugins of others.
    pub plugins: PathBuf,
    machines: Machines,
    containerds: Vec<Child>,
}

/// Makes hosts with agents, the plugin installed on each, and runs `body`. Host `h1` has index 0.
///
/// # Panics
///
/// If `body` fails, with its error and the end of every agent's log.
pub fn scenario(hosts: usize, body: impl FnOnce(&mut Runtimes) -> Result<()>) {
    let vars = ["MESH_DOCKER", "MESH_PODMAN", "MESH_CNI_PLUGINS"];
    let Some([engine, podman, plugins]) = unpacked(vars) else { return };
    let options = Options { hosts, containers: 0, ..Options::default() };
    let topology = Topology::new(options).expect("make namespaces");
    let (machines, containerds) = (Machines::default(), Vec::new());
    let mut runtimes = Runtimes { topology, engine, podman, plugins, machines, containerds };
    let done = runtimes.up().and_then(|()| body(&mut runtimes));
    done.unwrap_or_else(|error| panic!("{error:#}"));
}

impl Runtimes {
    fn up(&mut self) -> Result<()> {
        self.machines.make(&mut self.topology)?;
        image(&self.engine, &self.topology.dir)?;
        for host in &self.topology.hosts {
            let mut prepare = host.command("sh");
            let folders = [&self.podman, &self.plugins, &self.engine];
            prepare.args(["-c", PREPARE, "sh"]).args(folders);
            check("prepare a host", &prepare.output()?)?;
        }
        self.topology.up()?;
        for host in &self.topology.hosts {
            host.run_mesh(&["cni", "install"])?;
        }
        Ok(())
    }

    pub fn host(&mut self, at: usize) -> &mut Host {
        &mut self.topology.hosts[at]
    }

    /// `podman ARGS` on a host.
    pub fn podman(&self, at: usize, args: &[&str]) -> Command {
        let data = self.topology.dir.join(format!("h{}-podman", at + 1));
        let mut command = self.topology.hosts[at].command("env");
        command.args([self.path(), self.libraries(), format!("HOME={}", data.display())]);
        command.arg("podman").arg("--root").arg(data.join("store"));
        command.args(["--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp"]);
        command.args(["--storage-driver", "vfs"]).args(args).stdin(Stdio::null());
        command
    }

    /// `podman LINE`, split at blanks, which must succeed; what it printed.
    pub fn run(&self, at: usize, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = self.podman(at, &words).output().context("start podman")?;
        check(&format!("h{}: podman {line}", at + 1), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Waits until `podman LINE` succeeds and prints something that `fits`.
    pub fn wait_for(&self, at: usize, line: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(&format!("h{}: podman {line}", at + 1), STARTING, || {
            let text = self.run(at, line).map_err(|e| format!("{e:#}"))?;
            if fits(&text) { Ok(text) } else { Err(text) }
        })
    }

    /// Gives podman's store of a host the image `bb`, busybox.
    pub fn import(&self, at: usize) -> Result<()> {
        let image = self.topology.dir.join("image.tar");
        self.run(at, &format!("import -q {} bb", image.display())).map(drop)
    }

    /// `podman run OPTIONS bb ARGS`, in a control group that is removed in the end.
    pub fn run_bb(&self, at: usize, options: &str, args: &str) -> Result<String> {
        let group = self.cgroup(at);
        self.run(at, &format!("run --cgroup-parent {group} {options} bb {args}"))
    }

    /// Starts containerd on a host.
    pub fn start_containerd(&mut self, at: usize) -> Result<()> {
        let dir = &self.topology.dir;
        let host = &self.topology.hosts[at];
        let log = fs::File::create(dir.join(format!("{}.containerd", host.name)))?;
        let mut containerd = host.command("env");
        containerd.arg(self.path()).args(["containerd", "--state", "/run/containerd"]);
        containerd.arg("--root").arg(dir.join(format!("{}-containerd", host.name)));
        containerd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.containerds.push(containerd.spawn().context("start containerd")?);
        wait::until("containerd", STARTING, || {
            let version = self.ctr(at, &["version"]).output().map_err(|e| e.to_string())?;
            check("ctr version", &version).map_err(|e| format!("{e:#}"))
        })
    }

    /// `ctr ARGS` on a host.
    pub fn ctr(&self, at: usize, args: &[&str]) -> Command {
        let mut command = self.topology.hosts[at].command("env");
        command.arg(self.path()).arg("ctr").args(args).stdin(Stdio::null());
        command
    }

    /// `ctr run --cni` of busybox, to its end.
    pub fn ctr_run(&self, at: usize, name: &str, args: &[&str]) -> Result<String> {
        let rootfs = self.topology.dir.join("image").display().to_string();
        let group = format!("{}/{name}", self.cgroup(at));
        let mut all = vec!["run", "--rm", "--cni", "--cgroup", &group, "--env", "PATH=/bin"];
        all.extend(["--rootfs", &rootfs, name]);
        all.extend(args);
        let output = self.ctr(at, &all).output().context("start ctr")?;
        check(&format!("h{}: ctr run --cni {}", at + 1, args.join(" ")), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn cgroup(&self, at: usize) -> String {
        format!("/{}-h{}", self.topology.name, at + 1)
    }

    /// `PATH=...` with podman and the engine in front.
    fn path(&self) -> String {
        let (podman, engine) = (self.podman.display(), self.engine.display());
        let path = env::var("PATH").unwrap_or_default();
        format!("PATH={podman}/usr/bin:{engine}/usr/bin:{engine}/usr/sbin:{path}")
    }

    /// `LD_LIBRARY_PATH=...` with what podman brought along.
    fn libraries(&self) -> String {
        let folders = fs::read_dir(self.podman.join("usr/lib")).into_iter().flatten().flatten();
        let folders = folders.map(|entry| entry.path().display().to_string());
        let own: Vec<String> = folders.filter(|path| path.ends_with("-linux-gnu")).collect();
        format!("LD_LIBRARY_PATH={}", own.join(":"))
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        for at in 0..self.topology.hosts.len() {
            remove_cgroup(&self.cgroup(at));
        }
        for containerd in &mut self.containerds {
            // Ends by itself, so that its children do; what does not is ended with its namespace.
            let _ = kill_process(Pid::from_child(containerd), Signal::TERM);
            let _ = wait::until_true("containerd to end", ENDING, || {
                !matches!(containerd.try_wait(), Ok(None))
            });
        }
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    /// Null, if it printed nothing.
    pub json: Value,
    pub stderr: String,
    pub success: bool,
}

impl Answer {
    /// The code of an error; 0 if it is none.
    pub fn code(&self) -> u64 {
        if self.success { 0 } else { self.json["code"].as_u64().unwrap_or(u64::MAX) }
    }

    /// The result, which must be one.
    pub fn ok(self) -> Result<Value> {
        ensure!(self.success, "{} {}", self.json, self.stderr);
        Ok(self.json)
    }
}

/// Attaches the container of that index as a runtime does, by which it has its own name in the mesh.
pub fn add(host: &Host, container: usize) -> Result<Value> {
    let container = host.containers.get(container).context("no such container")?;
    let netns = container.netns.path().display().to_string();
    let vars = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", &container.name),
        ("CNI_NETNS", &netns),
        ("CNI_IFNAME", "eth0"),
    ];
    call(host, &vars, r#"{"cniVersion": "1.0.0", "type": "mesh", "name": "mesh"}"#)?.ok()
}

/// Calls the plugin by hand, as runtimes do: without arguments.
pub fn call(host: &Host, vars: &[(&str, &str)], stdin: &str) -> Result<Answer> {
    let mut command = host.command("env");
    command.arg(format!("MESH_RUN_DIR={}", host.run_dir.display()));
    command.args(vars.iter().map(|(name, value)| format!("{name}={value}"))).arg(mesh_binary()?);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start the plugin")?;
    // One that sees in its environment what is wrong does not read.
    let _ = child.stdin.take().context("stdin")?.write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    let stdout = String::from_utf8_lossy(&stdout);
    let json = match stdout.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).with_context(|| format!("it printed {text}"))?,
    };
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ok(Answer { json, stderr, success: status.success() })
}
