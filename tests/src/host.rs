//! A host of the mesh: a namespace with an underlay interface, where the real `mesh` runs.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs::{self, File},
    net::IpAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{ClusterFile, Container, Netns, container::Given, netns::check, wait};

/// An agent starts in half a second, and in ten where other tests have the processors.
const READY: Duration = Duration::from_secs(40);
/// No command but `up` takes longer.
const LONGEST: Duration = Duration::from_secs(40);
/// Lines of an agent's log that an error shows.
const TAIL: usize = 30;

#[derive(Debug)]
pub struct Host {
    /// `h1`, as in the config file.
    pub name: String,
    pub netns: Netns,
    pub containers: Vec<Container>,
    pub config: PathBuf,
    pub log: PathBuf,
    pub run_dir: PathBuf,
    pub pin_dir: PathBuf,
    pub state_dir: PathBuf,
    /// Of the locks on network namespaces.
    pub lock_dir: PathBuf,
    /// Runs the agent by `ip netns exec`, which gives it a mount namespace of its own.
    pub private_mounts: bool,
    /// Another `mesh` than [`mesh_binary`].
    pub binary: Option<PathBuf>,
    /// Runs everything in the namespaces of this process, which must be in this host's.
    pub inside: Option<u32>,
    /// `--attach-mode`, where it is not left to mesh.
    pub attach_mode: Option<&'static str>,
    /// More of `mesh up`.
    pub up_args: Vec<String>,
    agent: Option<Child>,
}

/// Path of the `mesh` binary: `$MESH_BIN`, else beside this program in the target folder.
pub fn mesh_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("MESH_BIN") {
        return Ok(path.into());
    }
    let exe = env::current_exe().context("path of this program")?;
    let folders = exe.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("mesh")).find(|path| path.is_file());
    found.context("no mesh binary; `cargo build -p mesh-userspace`, or set MESH_BIN")
}

impl Host {
    pub(crate) fn new(name: String, netns: Netns, containers: Vec<Container>, dir: &Path) -> Self {
        Self {
            config: dir.join(format!("{name}.toml")),
            log: dir.join(format!("{name}.log")),
            run_dir: dir.join(&name),
            pin_dir: dir.join("bpf").join(&name),
            state_dir: dir.join(format!("{name}-state")),
            lock_dir: dir.join(format!("{name}-locks")),
            private_mounts: false,
            binary: None,
            inside: None,
            attach_mode: None,
            up_args: Vec::new(),
            agent: None,
            name,
            netns,
            containers,
        }
    }

    /// `mesh --run-dir .. --pin-dir ..` inside this host.
    pub fn mesh(&self) -> Result<Command> {
        let binary = self.binary.clone().map_or_else(mesh_binary, Ok)?;
        let mut command = if self.inside.is_some() {
            self.command(&binary)
        } else if self.private_mounts {
            let mut ip = Command::new("ip");
            ip.args(["netns", "exec", self.netns.name()]).arg(binary);
            ip
        } else {
            self.netns.command(binary)
        };
        command.arg("--run-dir").arg(&self.run_dir).arg("--pin-dir").arg(&self.pin_dir);
        command.arg("--state-dir").arg(&self.state_dir);
        command.env("MESH_LOCK_DIR", &self.lock_dir);
        Ok(command)
    }

    /// A command that will run in this host's namespaces, the mount namespace too if it has one.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(pid) = self.inside else { return self.netns.command(program) };
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--uts", "--target", &pid.to_string(), "--"]);
        command.arg(program);
        command
    }

    /// Runs `mesh ARGS` to its end, whatever that is. One that does not end is killed.
    pub fn try_mesh(&self, args: &[&str]) -> Result<Output> {
        let mut mesh = self.mesh()?;
        mesh.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = mesh.spawn().context("start mesh")?;
        let pid = Pid::from_child(&child);
        let (done, output) = mpsc::channel();
        thread::spawn(move || done.send(child.wait_with_output()));
        match output.recv_timeout(wait::patient(LONGEST)) {
            Ok(output) => output.context("wait for mesh"),
            Err(_) => {
                kill_process(pid, Signal::KILL)?;
                bail!("{}: mesh {} did not end in {LONGEST:?}", self.name, args.join(" "))
            }
        }
    }

    /// Runs `mesh ARGS`, which must succeed, and returns what it printed.
    pub fn run_mesh(&self, args: &[&str]) -> Result<String> {
        let output = self.try_mesh(args)?;
        self.with_log(check(&format!("{}: mesh {}", self.name, args.join(" ")), &output))?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Replaces the config file in one step, as careful tools do.
    pub fn write_config(&self, text: &str) -> Result<()> {
        let new = self.config.with_extension("new");
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, &self.config).context("replace the config file")
    }

    /// Starts the agent and waits until it has this cluster in force.
    pub fn up(&mut self, cluster: &ClusterFile) -> Result<()> {
        self.spawn(cluster)?;
        self.wait_ready(cluster)
    }

    /// As [`Host::spawn`], by a shell that first does `before`, in a mount namespace of its own.
    pub fn spawn_after(&mut self, cluster: &ClusterFile, before: &str) -> Result<()> {
        let script = self.config.with_extension("sh");
        let mesh = mesh_binary()?;
        let text = format!(
            "#!/bin/sh\nexec unshare --mount --propagation slave sh -e -c '\n{before}\n\
             exec {} \"$@\"' mesh \"$@\"\n",
            mesh.display()
        );
        fs::write(&script, text).with_context(|| format!("write {}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let usual = self.binary.replace(script);
        let spawned = self.spawn(cluster);
        self.binary = usual;
        spawned
    }

    /// Starts the agent, and does not wait.
    pub fn spawn(&mut self, cluster: &ClusterFile) -> Result<()> {
        ensure!(self.agent.is_none(), "{}: the agent runs already", self.name);
        self.write_config(&cluster.to_string())?;
        self.spawn_agent(&[])
    }

    /// `mesh up --once`, to its end.
    pub fn up_once(&mut self, cluster: &ClusterFile) -> Result<()> {
        self.write_config(&cluster.to_string())?;
        self.spawn_agent(&["--once"])?;
        let status = self.agent.take().context("no agent")?.wait()?;
        ensure!(status.success(), "{}: mesh up --once: {status}\n{}", self.name, self.log_tail());
        Ok(())
    }

    fn spawn_agent(&mut self, args: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open {}", self.log.display()))?;
        let mut mesh = self.mesh()?;
        mesh.arg("up").arg("--config").arg(&self.config).args(["--node", &self.name]).args(args);
        mesh.args(&self.up_args);
        if let Some(mode) = self.attach_mode {
            mesh.args(["--attach-mode", mode]);
        }
        mesh.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Not in our process group: Ctrl-C is for us, and what is kept must outlive us.
        mesh.process_group(0);
        self.agent = Some(mesh.spawn().context("start the agent")?);
        Ok(())
    }

    pub fn wait_ready(&mut self, cluster: &ClusterFile) -> Result<()> {
        self.wait_cluster(cluster, None)
    }

    /// Waits until the agent has this cluster in force, in another generation than `before`.
    pub fn wait_newer(&mut self, cluster: &ClusterFile, before: u64) -> Result<()> {
        self.wait_cluster(cluster, Some(before))
    }

    fn wait_cluster(&mut self, cluster: &ClusterFile, before: Option<u64>) -> Result<()> {
        let others = cluster.nodes.iter().filter(|node| node.name != self.name);
        let wanted: BTreeSet<_> = others.map(|n| (n.name.clone(), n.underlay.clone())).collect();
        let what = format!("{} to have {} peers in force", self.name, wanted.len());
        let ready = wait::until(&what, READY, || {
            if let Some(Ok(Some(ended))) = self.agent.as_mut().map(Child::try_wait) {
                return Ok(Err(anyhow!("{}: the agent ended: {ended}", self.name)));
            }
            let status = self.status().map_err(|e| format!("{e:#}"))?;
            // Until it has taken charge, `mesh status` tells what an agent before it left.
            let answered = status["agent"].as_u64();
            if let Some(pid) = self.pid().filter(|pid| answered != Some((*pid).into())) {
                return Err(format!("the answer is {answered:?}'s and not the agent's, {pid}"));
            }
            if before.is_some() && status["generation"].as_u64() == before {
                return Err(format!("generation is still {before:?}"));
            }
            let peers = peers(&status);
            if peers == wanted { Ok(Ok(())) } else { Err(format!("peers are {peers:?}")) }
        });
        self.with_log(ready.and_then(|inner| inner))
    }

    /// kill -9 to the agent, if it runs.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.agent.take() {
            // It may have ended by itself, which is as good.
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Asks the agent to end, as Ctrl-C and service managers do. It must exit with 0.
    pub fn stop(&mut self) -> Result<()> {
        let child = self.agent.as_ref().context("no agent runs")?;
        kill_process(Pid::from_child(child), Signal::TERM)?;
        let ended = self.wait_ended("SIGTERM")?;
        ensure!(ended.success(), "{}: the agent ended: {ended}\n{}", self.name, self.log_tail());
        Ok(())
    }

    /// `mesh down`. The agent, if it runs, must end by itself.
    pub fn down(&mut self) -> Result<()> {
        self.run_mesh(&["down"])?;
        if self.agent.is_some() {
            self.wait_ended("mesh down")?;
        }
        self.containers.iter_mut().for_each(|c| c.given = None);
        Ok(())
    }

    fn wait_ended(&mut self, cause: &str) -> Result<ExitStatus> {
        let ended = wait::until(&format!("the agent to end after {cause}"), READY, || {
            let child = self.agent.as_mut().ok_or("there is none")?;
            child
                .try_wait()
                .ok()
                .flatten()
                .ok_or_else(|| format!("it still runs: {}", at(child.id())))
        });
        self.kill9();
        self.with_log(ended)
    }

    pub fn is_running(&self) -> bool {
        self.agent.is_some()
    }

    /// Of the agent, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Forgets the agent, so that dropping this does not end it.
    pub(crate) fn leave_running(&mut self) {
        self.agent = None;
    }

    /// `mesh attach` for the container of that index, with further arguments.
    pub fn attach(&mut self, index: usize, args: &[&str]) -> Result<&Container> {
        let Container { name, netns, .. } = &self.containers[index];
        let (path, name) = (netns.path(), name.clone());
        let mut all = vec!["attach", path.to_str().context("path")?, "--name", &name, "--json"];
        all.extend(args);
        let text = self.run_mesh(&all)?;
        let given: Given = serde_json::from_str(&text)
            .with_context(|| format!("mesh attach --json printed: {text}"))?;
        let container = &mut self.containers[index];
        container.given = Some(given);
        Ok(container)
    }

    /// `mesh detach` for the container of that index.
    pub fn detach(&mut self, index: usize) -> Result<()> {
        self.run_mesh(&["detach", &self.containers[index].name])?;
        self.containers[index].given = None;
        Ok(())
    }

    /// `mesh status --json`
    pub fn status(&self) -> Result<Value> {
        let output = self.try_mesh(&["status", "--json"])?;
        check(&format!("{}: mesh status --json", self.name), &output)?;
        serde_json::from_slice(&output.stdout).context("mesh status --json prints JSON")
    }

    /// All that is wrong now, as JSON; `[]` if nothing is.
    pub fn faults(&self) -> Result<String> {
        Ok(self.status()?["all_faults"].to_string())
    }

    /// Those of `mesh status`.
    pub fn endpoint_names(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let endpoints = status["endpoints"].as_array().context("endpoints")?.iter();
        Ok(endpoints.map(|e| e["name"].as_str().unwrap_or_default().to_owned()).collect())
    }

    pub fn generation(&self) -> Result<u64> {
        self.status()?["generation"].as_u64().context("status has no generation")
    }

    /// Packets dropped for that reason, at all hooks.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        Ok(self.status()?["drops"][reason].as_u64().unwrap_or(0))
    }

    /// This host's own overlay addresses, as the kernel has them on `mesh0`.
    pub fn overlay_addresses(&self) -> Result<Vec<IpAddr>> {
        let text = self.netns.exec("ip -j addr show dev mesh0 scope global")?;
        let links: Value = serde_json::from_str(&text)?;
        let entries = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
        let local = |entry: &Value| entry["local"].as_str()?.parse().ok();
        Ok(entries.iter().filter_map(local).collect())
    }

    /// An error with the end of the agent's log below it: the cause is what is read first.
    pub fn with_log<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| anyhow!("{e:#}\n{}", self.log_tail()))
    }

    /// The end of the agent's log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- log of {}:\n{}\n---", self.name, tail.join("\n"))
    }

    /// What `mesh status` says, or why not, for error messages.
    pub fn counters(&self) -> String {
        let said = self.try_mesh(&["status"]).map(|output| match output.status.success() {
            true => String::from_utf8_lossy(&output.stdout).into_owned(),
            false => String::from_utf8_lossy(&output.stderr).into_owned(),
        });
        let said = said.unwrap_or_else(|e| format!("{e:#}"));
        format!("--- status of {}:\n{}\n---", self.name, said.trim_end())
    }
}

/// Names and underlay addresses of the peers in a status.
fn peers(status: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let peers = status["peers"].as_array().into_iter().flatten();
    peers.map(|peer| (text(&peer["name"]), text(&peer["underlay"]))).collect()
}

/// Where in the kernel each thread of a process is.
fn at(pid: u32) -> String {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return "no threads".into() };
    let thread = |task: std::io::Result<fs::DirEntry>| {
        let path = task.ok()?.path();
        let read = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
        Some(format!("{} in {}\n{}", read("comm").trim(), read("wchan"), read("stack")))
    };
    tasks.filter_map(thread).collect::<Vec<_>>().join("; ")
}
