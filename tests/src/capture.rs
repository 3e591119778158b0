//! Captures in pcap format, and what an independent dissector finds wrong in them.
//!
//! On a veth the checksums of TCP and UDP are not computed and segments are not cut: that is left to
//! hardware which is not there. A test that has inner checksums verified must call
//! [`crate::Container::disable_transmit_offloads`] (and the same on `mesh0` of a sending host)
//! before it sends.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow};

use crate::{
    Netns,
    netns::check,
    packet::{FRAME_MAX, PacketSocket},
};

/// Captures in both directions on one interface until [`Capture::stop`].
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<()>>,
}

/// A finished capture.
#[derive(Clone, Debug)]
pub struct Pcap(pub PathBuf);

impl Capture {
    /// Everything sent before this call returns may be missed, nothing after.
    pub fn start(netns: &Netns, ifname: &str, path: impl Into<PathBuf>) -> Result<Self> {
        let (socket, path) = (PacketSocket::open(netns, ifname)?, path.into());
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let writer = thread::spawn({
            let stop = Arc::clone(&stop);
            move || write_frames(&socket, &mut BufWriter::new(file), &stop)
        });
        Ok(Self { path, stop, writer })
    }

    /// Writes what has been captured so far and ends.
    pub fn stop(self) -> Result<Pcap> {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.join().map_err(|_| anyhow!("capture panicked"))??;
        Ok(Pcap(self.path))
    }
}

fn write_frames(socket: &PacketSocket, out: &mut impl Write, stop: &AtomicBool) -> Result<()> {
    const LINKTYPE_ETHERNET: u32 = 1;
    // Magic, version 2.4, time zone, accuracy, longest frame, link type; in this machine's order.
    for word in [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, FRAME_MAX as u32, LINKTYPE_ETHERNET] {
        out.write_all(&word.to_ne_bytes())?;
    }
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        // Read before the call, so that all that was queued when `stop` was called is written.
        let stopping = stop.load(Ordering::Relaxed);
        match socket.receive(&mut buffer, Duration::from_millis(20))? {
            Some(frame) => write_frame(out, frame)?,
            None if stopping => return Ok(out.flush()?),
            None => {}
        }
    }
}

fn write_frame(out: &mut impl Write, frame: &[u8]) -> Result<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let len = frame.len() as u32;
    for word in [time.as_secs() as u32, time.subsec_micros(), len, len] {
        out.write_all(&word.to_ne_bytes())?;
    }
    Ok(out.write_all(frame)?)
}

/// Dissector settings that verify every checksum.
const VERIFY: [&str; 5] = [
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    // The outer UDP has none, as RFC 6935 allows tunnels.
    "udp.ignore_ipv6_zero_checksum:TRUE",
    "tcp.analyze_sequence_numbers:FALSE",
];

/// Ports that the kernel chose say nothing of what is carried, whatever is registered for them. All
/// that it chooses in a topology; those above are outer source ports.
const PLAIN: [&str; 2] = ["tcp.port==32768-49151,data", "udp.port==32768-49151,data"];

/// Display filter for all that no packet may be. Where a sum comes to 0 the kernel writes its other
/// form, 0xffff (skb_checksum_help, CSUM_MANGLED_0): every receiver takes it, the dissector reports
/// it as an error whether it fits or not.
const WRONG: &str = "!(tcp.checksum == 0xffff) && \
    (_ws.malformed || _ws.short || ip.checksum.status == \"Bad\" \
    || tcp.checksum.status == \"Bad\" || udp.checksum.status == \"Bad\" \
    || icmp.checksum.status == \"Bad\" || icmpv6.checksum.status == \"Bad\" \
    || gre.checksum.status == \"Bad\" || _ws.expert.severity >= 0x800000)";

impl Pcap {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// One line for each packet that matches a display filter.
    pub fn matching(&self, filter: &str) -> Result<Vec<String>> {
        let text = self.tshark(&["-Y", filter])?;
        Ok(text.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// One line for each packet that is malformed, cut short, or has a bad checksum at any depth.
    pub fn problems(&self) -> Result<Vec<String>> {
        self.matching(WRONG)
    }

    /// The values of some fields in each packet that matches a display filter, the outermost first.
    pub fn fields<const N: usize>(
        &self,
        filter: &str,
        names: [&str; N],
    ) -> Result<Vec<[Vec<String>; N]>> {
        let mut arguments = vec!["-Y", filter, "-T", "fields"];
        arguments.extend(names.iter().flat_map(|name| ["-e", name]));
        let text = self.tshark(&arguments)?;
        let values = |cell: &str| cell.split(',').map(str::to_owned).collect::<Vec<_>>();
        let row = |line: &str| {
            let mut cells = line.split('\t').map(values);
            names.map(|_| cells.next().unwrap_or_default())
        };
        Ok(text.lines().map(row).collect())
    }

    /// The first packet that matches, decoded in full.
    pub fn decode(&self, filter: &str) -> Result<String> {
        let number = self.tshark(&["-Y", filter, "-T", "fields", "-e", "frame.number"])?;
        let number = number.lines().next().with_context(|| format!("no packet is {filter}"))?;
        self.tshark(&["-V", "-Y", &format!("frame.number == {number}")])
    }

    fn tshark(&self, args: &[&str]) -> Result<String> {
        let mut tshark = Command::new("tshark");
        tshark.arg("-n").arg("-r").arg(&self.0).args(args);
        for setting in VERIFY {
            tshark.args(["-o", setting]);
        }
        for ports in PLAIN {
            tshark.args(["-d", ports]);
        }
        let output = tshark.output().context("start tshark; `apt-get install tshark`")?;
        check("tshark", &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
