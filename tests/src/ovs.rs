//! Open vSwitch, by daemons of our own in a host's namespace, with a folder of their own. The
//! system's service, if there is one, has no part in it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{Netns, netns::check, wait};

/// Where the programs are, `/` or a folder where the package is unpacked: set by `cargo xtask test`.
pub const ROOT: &str = "MESH_OVS";
/// Holds the underlay's interface and address, where the datapath is in user space.
const OUTER: &str = "br-phy";
const READY: Duration = Duration::from_secs(10);

/// Is the kernel's datapath there, or a module of that name?
pub fn kernel_has_datapath() -> bool {
    load_module("openvswitch")
}

/// Is it there, or can it be loaded?
fn load_module(name: &str) -> bool {
    let load = Command::new("modprobe").arg(name).stderr(Stdio::null()).status();
    Path::new("/sys/module").join(name).exists() || load.is_ok_and(|status| status.success())
}

/// One host's switch. Ended when it is dropped.
#[derive(Debug)]
pub struct Switch {
    netns: Netns,
    root: PathBuf,
    /// Its database, sockets and logs.
    dir: PathBuf,
    daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Switch {
    /// `root`: where the programs are. `dir` is made.
    pub fn start(root: &Path, netns: &Netns, dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let (netns, root, daemons) = (netns.clone(), root.to_owned(), Vec::new());
        let mut switch = Self { netns, root, dir, daemons };
        let database = switch.dir.join("conf.db");
        let mut create = switch.command("ovsdb-tool");
        let schema = switch.root.join("usr/share/openvswitch/vswitch.ovsschema");
        create.arg("create").arg(&database).arg(schema);
        check("ovsdb-tool create", &create.output().context("start ovsdb-tool")?)?;

        let mut server = switch.command("ovsdb-server");
        server.arg(&database).arg(option("--remote=punix:", &switch.socket()));
        switch.daemon(server, "ovsdb")?;
        let what = format!("the database in {}", switch.dir.display());
        wait::until_true(&what, READY, || switch.socket().exists())?;
        switch.vsctl("--no-wait init")?;

        let mut daemon = switch.command("ovs-vswitchd");
        daemon.arg(option("unix:", &switch.socket()));
        switch.daemon(daemon, "vswitchd")?;
        Ok(switch)
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let folders = ["usr/bin", "usr/sbin", "usr/lib/openvswitch-switch"];
        folders.into_iter().map(|folder| self.root.join(folder))
    }

    fn command(&self, program: &str) -> Command {
        let found = self.folders().map(|folder| folder.join(program)).find(|path| path.is_file());
        let mut command = self.netns.command(found.unwrap_or_else(|| program.into()));
        let library = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
        command.env("LD_LIBRARY_PATH", self.root.join(library));
        for folder in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(folder, &self.dir);
        }
        command.stdin(Stdio::null());
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("db.sock")
    }

    fn daemon(&mut self, mut command: Command, name: &str) -> Result<()> {
        let log = File::create(self.dir.join(format!("{name}.log"))).context("a log")?;
        command.arg(option("--unixctl=", &self.dir.join(format!("{name}.ctl"))));
        command.stdout(log.try_clone()?).stderr(log);
        self.daemons.push(Daemon(command.spawn().with_context(|| format!("start {name}"))?));
        Ok(())
    }

    pub fn vsctl(&self, arguments: &str) -> Result<()> {
        let mut vsctl = self.command("ovs-vsctl");
        vsctl
            .arg(format!("--timeout={}", wait::patient(READY).as_secs()))
            .args(arguments.split_whitespace());
        check(&format!("ovs-vsctl {arguments}"), &vsctl.output().context("start ovs-vsctl")?)
    }

    /// Runs a line as a person would type it on this host, `ovs-vsctl` or other.
    pub fn shell(&self, line: &str) -> Result<()> {
        let mut shell = self.command("sh");
        let own = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(self.folders().chain(env::split_paths(&own)))?;
        shell.env("PATH", path).args(["-ec", line]);
        check(line, &shell.output().context("start a shell")?)
    }

    /// Gives the underlay's interface and address, which has its prefix length, to a bridge of the
    /// switch, which reads and writes the frames itself.
    pub fn own_underlay(&self, interface: &str, address: &str) -> Result<()> {
        // The bridge's own interface is one of TUN's. Where it is not built in, nobody else loads it.
        load_module("tun");
        let mac = self.netns.mac(interface)?.map(|byte| format!("{byte:02x}")).join(":");
        self.vsctl(&format!(
            "add-br {OUTER} -- set bridge {OUTER} datapath_type=netdev other-config:hwaddr={mac} \
             -- add-port {OUTER} {interface}"
        ))?;
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.netns.ip_batch(&format!(
            "addr flush dev {interface}\nlink set {OUTER} addrgenmode none\n\
             addr add {address} dev {OUTER}{nodad}\nlink set {OUTER} up\n"
        ))
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}
