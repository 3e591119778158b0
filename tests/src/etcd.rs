//! A real etcd, for what keeps its networks in one.

use std::{
    fs::File,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Host, wait};

const STARTING: Duration = Duration::from_secs(20);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    /// `192.0.2.11:2379`
    pub address: String,
}

impl Etcd {
    /// Starts one on a host. `root`: where Debian's etcd-server is unpacked; `dir`: for its data and
    /// its log; `ip`: where it is asked.
    pub fn start(root: &Path, host: &Host, dir: &Path, ip: &str) -> Result<Self> {
        let log = File::create(dir.join("etcd.log")).context("a log for etcd")?;
        let url = format!("http://{ip}:2379");
        let mut etcd = host.command(root.join("usr/bin/etcd"));
        etcd.arg("--data-dir").arg(dir.join("etcd"));
        etcd.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        // Docker 20.10 speaks the protocol of etcd 2.
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--enable-v2=true"]);
        etcd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let etcd =
            Self { child: etcd.spawn().context("start etcd")?, address: format!("{ip}:2379") };
        wait::until("etcd", STARTING, || {
            let connect = || Ok(std::net::TcpStream::connect(&etcd.address)?);
            host.netns.run(connect).map(drop).map_err(|e| format!("{e:#}"))
        })?;
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
