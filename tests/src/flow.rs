//! A steady stream of numbered datagrams, to prove that something loses none of them.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    Netns, Party,
    packet::is_timeout,
    socket,
    socket::Fragment,
    traffic::UdpPair,
    wait::{patient, until_true},
};

const INTERVAL: Duration = Duration::from_millis(1);
/// A flow that nobody stops ends by itself.
const LONGEST: Duration = Duration::from_secs(60);
/// After the last packet was sent, silence of this length says that no more is on its way.
const QUIET: Duration = Duration::from_millis(300);

/// About 1000 datagrams a second, until [`Flow::stop`].
#[derive(Debug)]
pub struct Flow {
    name: String,
    stop: Stop,
    arrived: Arc<AtomicU64>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Vec<u64>>,
}

/// Ends a flow: also one that a failed test leaves behind, whose packets would meet the tests after it.
#[derive(Debug)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.now();
    }
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    count: u64,
    errors: u64,
}

/// What became of a flow.
#[derive(Clone, Debug)]
pub struct Report {
    pub name: String,
    pub sent: u64,
    /// Sends that the sender's own stack refused; they are lost too.
    pub refused: u64,
    /// Numbers that never arrived, in order.
    pub lost: Vec<u64>,
    pub duplicates: u64,
}

impl Flow {
    /// Starts the flow and returns once its first packets arrive.
    pub fn start(from: &Netns, to: &Netns, target: IpAddr) -> Result<Self> {
        let pair = UdpPair::new(from, to, target, Fragment::Never)?;
        let UdpPair { tx, rx, .. } = pair;
        socket::set_receive_buffer(&rx, 8 << 20)?;
        rx.set_read_timeout(Some(QUIET))?;
        let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sender = thread::spawn({
            let stop = Arc::clone(&stop);
            move || send(&tx, &stop)
        });
        let receiver = thread::spawn({
            let (stop, arrived) = (Arc::clone(&stop), Arc::clone(&arrived));
            move || receive(&rx, &stop, &arrived)
        });
        let name = format!("{} -> {target}", from.name());
        let flow = Self { name, stop: Stop(stop), arrived, sender, receiver };
        flow.wait_for(10)?;
        Ok(flow)
    }

    /// Waits until `count` more packets have arrived.
    pub fn wait_for(&self, count: u64) -> Result<()> {
        let goal = self.arrived.load(Ordering::Relaxed) + count;
        let what = format!("{count} more packets of the flow {}", self.name);
        until_true(&what, Duration::from_secs(5) + INTERVAL * count as u32, || {
            self.arrived.load(Ordering::Relaxed) >= goal
        })
    }

    /// Ends the flow, waits for what is still on its way, and counts.
    pub fn stop(self) -> Result<Report> {
        self.stop.now();
        let sent = self.sender.join().map_err(|_| anyhow!("sender panicked"))?;
        let received = self.receiver.join().map_err(|_| anyhow!("receiver panicked"))?;
        let distinct: BTreeSet<u64> = received.iter().copied().collect();
        Ok(Report {
            name: self.name,
            sent: sent.count,
            refused: sent.errors,
            lost: (0..sent.count).filter(|n| !distinct.contains(n)).collect(),
            duplicates: (received.len() - distinct.len()) as u64,
        })
    }
}

impl Report {
    /// Fails if a packet was lost or came twice.
    pub fn expect_no_loss(&self) -> Result<()> {
        ensure!(self.sent > 0, "the flow {} never sent", self.name);
        ensure!(self.lost.is_empty() && self.duplicates == 0, "{self}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, sent, refused, lost, duplicates } = self;
        write!(
            f,
            "flow {name}: {} of {sent} lost ({refused} refused by the sender's stack), ",
            lost.len()
        )?;
        write!(f, "{duplicates} twice; first lost {:?}", &lost[..lost.len().min(10)])
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool) -> Sent {
    let (start, mut sent) = (Instant::now(), Sent { count: 0, errors: 0 });
    while !stop.load(Ordering::Relaxed) && start.elapsed() < patient(LONGEST) {
        if socket.send(&sent.count.to_be_bytes()).is_err() {
            sent.errors += 1;
        }
        sent.count += 1;
        // By the clock, not by a pause each: the rate holds when the machine is busy. But never a
        // burst to catch up, which would only test buffers.
        let due = start + INTERVAL * sent.count as u32;
        thread::sleep(due.saturating_duration_since(Instant::now()).max(INTERVAL / 4));
    }
    sent
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, arrived: &AtomicU64) -> Vec<u64> {
    let (mut numbers, mut buffer, start) = (Vec::new(), [0; 8], Instant::now());
    while start.elapsed() < patient(LONGEST) + QUIET {
        // Read before the call: silence counts only if it began after the sender was told to stop.
        let stopping = stop.load(Ordering::Relaxed);
        match socket.recv(&mut buffer) {
            Ok(8) => {
                numbers.push(u64::from_be_bytes(buffer));
                arrived.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) if is_timeout(&e) && stopping => break,
            _ => {}
        }
    }
    numbers
}

/// Flows from the first of each pair to all addresses of the second, started together.
pub fn start_all(pairs: &[(&Party, &Party)]) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for (from, to) in pairs {
        for target in &to.addresses {
            let flow = Flow::start(&from.netns, &to.netns, *target);
            flows.push(flow.with_context(|| format!("flow from {}", from.netns.name()))?);
        }
    }
    Ok(flows)
}

/// Stops all of them.
pub fn expect_no_loss(flows: Vec<Flow>) -> Result<()> {
    flows.into_iter().try_for_each(|flow| flow.stop()?.expect_no_loss())
}
