//! Open vSwitch with a GRE port, by daemons of our own in the hosts' namespaces, with folders of
//! their own. The system's service, if there is one, has no part in it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use mesh_tests::{Encap, Host, Netns, Topology, cluster::underlay, netns::check, wait};

use super::{
    Daemon, UNDERLAY, UNDERLAY_MTU,
    wire::{Net, PORT, each, plug},
};
use crate::{exec::succeeds, setup, toolchain::on_path};

/// Holds the underlay's interface and address, where the datapath is in user space.
const OUTER: &str = "br-phy";
const INNER: &str = "br0";
const READY: Duration = Duration::from_secs(10);

/// Returns its daemons, and whether the underlay may join packets on receipt.
pub fn join(topology: &Topology) -> Result<(Vec<Daemon>, bool)> {
    let programs = Programs::find()?;
    let in_kernel = kernel_datapath();
    let mtu = UNDERLAY_MTU - Encap::Gretap.overhead(0);
    let mut daemons = Vec::new();
    for (host, h) in topology.hosts.iter().zip(1..) {
        plug(host, h, mtu, Net::Bridged)?;
        let switch =
            Switch { programs: &programs, host, dir: topology.dir.join(format!("ovs{h}")) };
        daemons.extend(switch.start()?);
    }
    each(topology, |host, h, o| {
        let switch =
            Switch { programs: &programs, host, dir: topology.dir.join(format!("ovs{h}")) };
        let datapath = if in_kernel { "system" } else { "netdev" };
        if !in_kernel {
            switch.own_underlay(&underlay(h))?;
            // User space computes no checksums for others, and cuts nothing.
            host.containers[0].netns.exec("ethtool -K eth0 tx off tso off gso off")?;
        }
        switch.vsctl(&format!(
            "add-br {INNER} -- set bridge {INNER} datapath_type={datapath} -- add-port {INNER} {PORT} \
             -- add-port {INNER} gre0 -- set interface gre0 type=gre \
             options:local_ip={} options:remote_ip={}",
            underlay(h),
            underlay(o),
        ))
    })?;
    Ok((daemons, in_kernel))
}

fn kernel_datapath() -> bool {
    // Where it is built in, or there are no modules, this fails and says nothing.
    succeeds(Command::new("modprobe").arg("openvswitch"));
    succeeds(Command::new("genl").args(["ctrl", "get", "name", "ovs_datapath"]))
}

/// Where Open vSwitch is.
struct Programs {
    /// `/`, or where the package is unpacked.
    root: PathBuf,
}

impl Programs {
    fn find() -> Result<Self> {
        if on_path("ovs-vswitchd").is_some() {
            return Ok(Self { root: "/".into() });
        }
        let why = "has the programs of Open vSwitch, to compare with";
        Ok(Self { root: setup::unpacked("openvswitch-switch", why)? })
    }

    fn command(&self, netns: &Netns, program: &str) -> Command {
        let folders = ["usr/bin", "usr/sbin", "usr/lib/openvswitch-switch"];
        let path = folders.map(|folder| self.root.join(folder).join(program));
        let found = path.into_iter().find(|path| path.is_file());
        let mut command = netns.command(found.unwrap_or_else(|| program.into()));
        let library = format!("usr/lib/{}-linux-gnu", env::consts::ARCH);
        command.env("LD_LIBRARY_PATH", self.root.join(library));
        command
    }

    fn schema(&self) -> PathBuf {
        self.root.join("usr/share/openvswitch/vswitch.ovsschema")
    }
}

/// One host's switch.
struct Switch<'a> {
    programs: &'a Programs,
    host: &'a Host,
    /// Its database, sockets and logs.
    dir: PathBuf,
}

impl Switch<'_> {
    fn command(&self, program: &str) -> Command {
        let mut command = self.programs.command(&self.host.netns, program);
        for folder in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
            command.env(folder, &self.dir);
        }
        command.stdin(Stdio::null());
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("db.sock")
    }

    fn start(&self) -> Result<[Daemon; 2]> {
        fs::create_dir(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let database = self.dir.join("conf.db");
        let mut create = self.command("ovsdb-tool");
        create.arg("create").arg(&database).arg(self.programs.schema());
        check("ovsdb-tool create", &create.output().context("start ovsdb-tool")?)?;

        let mut server = self.command("ovsdb-server");
        server.arg(&database).arg(option("--remote=punix:", &self.socket()));
        let server = self.daemon(server, "ovsdb")?;
        let what = format!("the database of {}", self.host.name);
        wait::until_true(&what, READY, || self.socket().exists())?;
        self.vsctl("--no-wait init")?;

        let mut switch = self.command("ovs-vswitchd");
        switch.arg(option("unix:", &self.socket()));
        Ok([server, self.daemon(switch, "vswitchd")?])
    }

    fn daemon(&self, mut command: Command, name: &str) -> Result<Daemon> {
        let log = File::create(self.dir.join(format!("{name}.log"))).context("a log")?;
        command.arg(option("--unixctl=", &self.dir.join(format!("{name}.ctl"))));
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Daemon(command.spawn().with_context(|| format!("start {name}"))?))
    }

    fn vsctl(&self, arguments: &str) -> Result<()> {
        let mut vsctl = self.command("ovs-vsctl");
        vsctl
            .arg(option("--db=unix:", &self.socket()))
            .arg(format!("--timeout={}", READY.as_secs()));
        vsctl.args(arguments.split_whitespace());
        check(&format!("ovs-vsctl {arguments}"), &vsctl.output().context("start ovs-vsctl")?)
    }

    /// Gives the underlay's interface and address to a bridge of the switch, which reads and writes
    /// the frames itself.
    fn own_underlay(&self, address: &str) -> Result<()> {
        let mac = self.host.netns.mac(UNDERLAY)?.map(|byte| format!("{byte:02x}")).join(":");
        self.vsctl(&format!(
            "add-br {OUTER} -- set bridge {OUTER} datapath_type=netdev other-config:hwaddr={mac} \
             -- add-port {OUTER} {UNDERLAY}"
        ))?;
        self.host.netns.ip_batch(&format!(
            "addr flush dev {UNDERLAY}\nlink set {OUTER} addrgenmode none\n\
             addr add {address}/24 dev {OUTER}\nlink set {OUTER} up\n"
        ))
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}
