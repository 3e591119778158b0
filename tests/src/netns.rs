//! Network namespaces, as `ip netns` names them.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use serde_json::Value;

use crate::wait;

/// Where `ip netns` keeps its names.
pub const NETNS_DIR: &str = "/run/netns";

/// An open network namespace. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Opens a namespace that `ip netns` made.
    pub fn open(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let path = Path::new(NETNS_DIR).join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { name, file: Arc::new(file) })
    }

    /// That of a process, which `ip netns` has no name for.
    pub fn of_process(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Self { name: format!("process {pid}"), file: Arc::new(file) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs `f` inside, on a thread of its own. A socket that it returns stays in the namespace,
    /// so most callers only open one here and use it elsewhere.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter().with_context(|| format!("enter namespace {}", self.name))?;
            f()
        };
        thread::scope(|s| match s.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// [`Self::run`] with `/sys` showing this namespace's interfaces, in a mount namespace that ends
    /// with `f`. A file that it opens there stays usable.
    pub fn run_with_sysfs<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            // SAFETY: this thread gets a view of the file system of its own; no memory depends on it.
            unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }
                .context("mount namespace")?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .context("keep mounts private")?;
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("mount /sys")?;
            f()
        })
    }

    /// A command that will run inside. The mount namespace stays the caller's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.clone();
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe; the
        // descriptor is kept open by the closure.
        unsafe { command.pre_exec(move || namespace.enter()) };
        command
    }

    /// Runs a command line, split at blanks, inside. Fails unless it exits with 0.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command line")?;
        let output = self.command(program).args(words).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("start {program}"))?;
        check(&format!("{line} (in {})", self.name), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// MTU of an interface, in bytes.
    pub fn mtu(&self, ifname: &str) -> Result<u32> {
        let mtu = self.link(ifname)?["mtu"].as_u64().context("a link without MTU")?;
        Ok(u32::try_from(mtu)?)
    }

    /// Hardware address of an interface.
    pub fn mac(&self, ifname: &str) -> Result<[u8; 6]> {
        let link = self.link(ifname)?;
        let text = link["address"].as_str().context("a link without address")?;
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
        bytes.try_into().map_err(|_| anyhow!("{ifname} has the address {text}"))
    }

    /// Waits until an interface is up in every respect, which follows some time after its carrier.
    pub fn wait_operational(&self, ifname: &str) -> Result<()> {
        let what = format!("{ifname} in {} to be up", self.name);
        wait::until(&what, Duration::from_secs(5), || {
            let link = self.link(ifname).map_err(|e| format!("{e:#}"))?;
            if link["operstate"] == "UP" { Ok(()) } else { Err(link["operstate"].to_string()) }
        })
    }

    /// What `ip` says about an interface.
    fn link(&self, ifname: &str) -> Result<Value> {
        let text = self.exec(&format!("ip -j link show dev {ifname}"))?;
        let mut links: Vec<Value> = serde_json::from_str(&text)?;
        links.pop().with_context(|| format!("no interface {ifname} in {}", self.name))
    }

    /// Gives `ip` many lines at once: one process instead of one for each.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        batch(self.command("ip"), lines).with_context(|| format!("in namespace {}", self.name))
    }

    /// Fails where the kernel can not make netkit pairs.
    pub fn expect_netkit(&self) -> Result<()> {
        // An older `ip` knows nothing of it but can ask for it.
        let made = self.ip_batch("link add probe0 type netkit\nlink del probe0\n");
        made.map_err(|e| match format!("{e:#}") {
            text if text.contains("Unknown device type") || text.contains("not supported") => {
                e.context(crate::kernel::why_no_netkit(&crate::kernel::release()))
            }
            _ => e.context("whether this kernel has netkit can not be found out"),
        })
    }
}

/// [`Netns::ip_batch`] in the caller's namespace, for `netns add` and `netns del`.
pub fn ip_batch(lines: &str) -> Result<()> {
    batch(Command::new("ip"), lines)
}

fn batch(mut ip: Command, lines: &str) -> Result<()> {
    let mut child = ip
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip (of iproute2)")?;
    child.stdin.take().context("stdin of ip")?.write_all(lines.as_bytes())?;
    check(&format!("ip -batch:\n{lines}"), &child.wait_with_output()?)
}

/// Turns a failed command into an error with what it wrote.
pub fn check(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}: {}", output.status, stderr.trim());
    }
    Ok(())
}
