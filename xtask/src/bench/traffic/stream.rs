//! TCP streams: one thread writes or reads each connection.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use rustix::net::sockopt::set_tcp_congestion;

use super::{Job, Measured, PATIENCE, anywhere, tell};
use crate::bench::usage::Snapshot;

/// Bytes of each read and write, as iperf3 has them.
const CHUNK: usize = 128 << 10;

/// What all connections have read.
static READ: AtomicU64 = AtomicU64::new(0);

pub fn sink(job: &Job) -> Result<Measured> {
    let listener = TcpListener::bind(anywhere()).context("listen")?;
    tell(&listener.local_addr()?.port())?;
    let mut segment = 0;
    for _ in 0..job.flows {
        let (stream, _) = listener.accept().context("accept")?;
        segment = mesh_tests::socket::get(&stream, libc::IPPROTO_TCP, libc::TCP_MAXSEG)?;
        // They end with the process.
        thread::spawn(move || read(stream));
    }
    ensure!(segment > 0, "a connection without a segment size");
    thread::sleep(job.warm_up);
    let window = Snapshot::begin()?;
    let before = READ.load(Ordering::Relaxed);
    thread::sleep(job.window);
    let bytes = READ.load(Ordering::Relaxed) - before;
    let usage = window.end()?;
    ensure!(bytes > 0, "nothing arrived in the window");
    let packets = bytes.div_ceil(u64::try_from(segment)?);
    Ok(Measured { usage, packets, bytes, ..Measured::default() })
}

fn read(mut stream: TcpStream) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        READ.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// Writes until the sink is gone.
pub fn source(job: &Job, to: SocketAddr) -> Result<()> {
    let connect = |_| -> Result<_> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
        // Whatever the system's default is: BBR paces, and would measure its own model.
        set_tcp_congestion(&stream, "cubic").context("TCP cubic")?;
        Ok(thread::spawn(move || write(stream)))
    };
    let writers = (0..job.flows).map(connect).collect::<Result<Vec<_>>>()?;
    writers.into_iter().for_each(|writer| _ = writer.join());
    Ok(())
}

fn write(mut stream: TcpStream) {
    let (chunk, start) = (vec![0x5a; CHUNK], Instant::now());
    while start.elapsed() < super::LONGEST && stream.write_all(&chunk).is_ok() {}
}
