//! Questions to a resolver at a steady beat, and how long the answers take. Beside each of them another
//! one, to a thread of this process, tells whether the machine itself stood still.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Netns,
    dns::{self, Answer, World},
    wait,
};

/// Between two questions.
const BEAT: Duration = Duration::from_millis(10);
/// An answer that takes longer is late.
const LATE: Duration = Duration::from_millis(50);
/// One that takes longer is not waited for.
const LOST: Duration = Duration::from_secs(2);
/// Questions at most: ten minutes.
const MOST: u16 = 60_000;
/// Where the thread of this process answers.
const BESIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 222));
const SAYS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// Asks until it is told to end.
#[derive(Debug)]
pub struct Pulse {
    ends: Arc<AtomicBool>,
    asks: JoinHandle<Result<Vec<Instant>>>,
    /// When the answer to each question came: of the resolver, and of the thread beside.
    heard: [JoinHandle<Result<HashMap<u16, Instant>>>; 2],
    _beside: World,
}

/// How long each answer took, of the resolver and of the thread beside; [`LOST`], if it never came.
#[derive(Debug)]
pub struct Beats(Vec<[Duration; 2]>);

impl Pulse {
    /// `from`: asks `server`, on `host`, for the address of `name`, which is known.
    pub fn start(host: &Netns, from: &Netns, server: IpAddr, name: &str) -> Result<Self> {
        host.ip_batch(&format!("addr add {BESIDE}/32 dev lo\n"))?;
        let beside = World::start(host, BESIDE, SAYS, 0)?;
        let socket = |netns: &Netns, to| -> Result<UdpSocket> {
            let socket = netns.run(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
            socket.connect(SocketAddr::new(to, dns::PORT)).context("connect a UDP socket")?;
            socket.set_read_timeout(Some(wait::patient(LOST)))?;
            Ok(socket)
        };
        let sockets = [socket(from, server)?, socket(host, BESIDE)?];
        let ends = Arc::new(AtomicBool::new(false));
        let heard = [sockets[0].try_clone()?, sockets[1].try_clone()?].map(|socket| {
            let ends = ends.clone();
            thread::spawn(move || hear(&socket, &ends))
        });
        let (told, name) = (ends.clone(), name.to_owned());
        let asks = thread::spawn(move || ask(&sockets, &name, &told));
        Ok(Self { ends, asks, heard, _beside: beside })
    }

    pub fn end(self) -> Result<Beats> {
        self.ends.store(true, Ordering::Relaxed);
        let asked = self.asks.join().ok().context("the one who asks")??;
        let mut heard = Vec::new();
        for thread in self.heard {
            heard.push(thread.join().ok().context("the one who hears")??);
        }
        let took = |of: &HashMap<u16, Instant>, id: u16, began: Instant| {
            of.get(&id).map_or(wait::patient(LOST), |at| at.saturating_duration_since(began))
        };
        let beat = |(id, began)| [took(&heard[0], id, began), took(&heard[1], id, began)];
        Ok(Beats((0..).zip(asked).map(beat).collect()))
    }
}

/// Returns when each question was asked.
fn ask(sockets: &[UdpSocket; 2], name: &str, ends: &AtomicBool) -> Result<Vec<Instant>> {
    let (began, mut asked) = (Instant::now(), Vec::new());
    for id in 0..MOST {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        asked.push(Instant::now());
        for socket in sockets {
            socket.send(&dns::question(id, name)).context("ask")?;
        }
        let due = began + BEAT * u32::from(id + 1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(asked)
}

/// Until nothing more comes after the last question.
fn hear(socket: &UdpSocket, ends: &AtomicBool) -> Result<HashMap<u16, Instant>> {
    let (mut heard, mut bytes) = (HashMap::new(), [0; 4096]);
    loop {
        match socket.recv(&mut bytes) {
            Ok(len) => {
                let now = Instant::now();
                let answer = Answer::read(&bytes[..len]).context("no answer")?;
                ensure!(answer.address.is_some(), "{answer:?}");
                heard.insert(answer.id, now);
            }
            Err(_) if ends.load(Ordering::Relaxed) => return Ok(heard),
            Err(_) => {}
        }
    }
}

impl Beats {
    fn worst(&self, of: usize) -> f64 {
        self.0.iter().map(|took| took[of].as_secs_f64() * 1e3).fold(0.0, f64::max)
    }

    /// Answers that were late though the machine ran.
    fn late(&self) -> usize {
        let late = wait::patient(LATE);
        self.0.iter().filter(|[took, beside]| *took > late && *beside < late / 2).count()
    }

    /// Fails if more answers were late than happens where many processes share the processors.
    pub fn expect_steady(&self, what: &str) -> Result<()> {
        let (asked, late) = (self.0.len(), self.late());
        println!(
            "{what}: {asked} questions, the worst answer took {:.1} ms (beside {:.1} ms), {late} were late",
            self.worst(0),
            self.worst(1),
        );
        ensure!(
            asked > 0 && late <= 2 + asked / 200,
            "{what}: {late} of {asked} answers were late"
        );
        Ok(())
    }
}
