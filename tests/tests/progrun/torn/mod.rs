//! Maps that change while programs read them: no packet meets a value that was never there, or
//! another key's.
//!
//! One thread changes maps the way the agent does, another runs packets. `MESH_TORN_PACKETS=10000000`
//! has each test run so many.

mod groups;
mod neighbours;
mod peers;
mod ports;
mod slots;

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::world::{SHOT, Skb};

/// As long as nobody asks for more: about a second.
const PACKETS: u64 = 400_000;
const CHANGES: u64 = 10;
/// A change waits for a grace period or two, which take long on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(300);

/// Of each race, or so.
fn packets() -> u64 {
    let set = std::env::var("MESH_TORN_PACKETS").ok().map(|n| n.parse().unwrap());
    set.unwrap_or(PACKETS)
}

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Right,
    Dropped,
    Wrong,
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub right: u64,
    pub dropped: u64,
    pub wrong: u64,
    pub changes: u64,
    /// What the first wrong one looked like.
    pub first_wrong: Option<(i32, Vec<u8>)>,
}

impl Tally {
    /// Prints it, and fails if a packet went wrong.
    #[track_caller]
    pub fn assert_whole(&self, title: &str) {
        let Self { right, dropped, wrong, changes, .. } = self;
        println!("TORN: {title}: right {right} dropped {dropped} wrong {wrong} changes {changes}");
        assert_eq!(*wrong, 0, "{title}: {:02x?}", self.first_wrong);
        assert!(*right > 0, "{title}: nothing came through");
    }

    /// And if one was lost.
    #[track_caller]
    pub fn assert_lossless(&self, title: &str) {
        self.assert_whole(title);
        assert_eq!(self.dropped, 0, "{title}");
    }
}

impl AddAssign<Fate> for Tally {
    fn add_assign(&mut self, fate: Fate) {
        match fate {
            Fate::Right => self.right += 1,
            Fate::Dropped => self.dropped += 1,
            Fate::Wrong => self.wrong += 1,
        }
    }
}

/// A packet that is run again and again.
pub struct Packet<'a> {
    pub program: &'a SchedClassifier,
    pub ifindex: u32,
    pub frame: Vec<u8>,
}

impl Packet<'_> {
    /// Gives the kernel's code, and leaves in `out` what it made of the frame.
    pub fn run<'o>(&self, out: &'o mut [u8]) -> (i32, &'o [u8]) {
        let skb = Skb { ifindex: self.ifindex, ..Skb::default() }.bytes();
        let ran = self
            .program
            .test_run(TestRunOptions {
                data_in: Some(&self.frame),
                data_out: Some(out),
                ctx_in: Some(&skb),
                ..TestRunOptions::new()
            })
            .unwrap();
        (ran.return_value as i32, &out[..ran.data_size_out as usize])
    }

    /// What it becomes while nothing changes.
    pub fn whole(&self) -> (i32, Vec<u8>) {
        let mut out = vec![0; self.frame.len() + 512];
        let (code, frame) = self.run(&mut out);
        (code, frame.to_vec())
    }

    /// Runs it while another thread calls `change` with the number of the change.
    pub fn race(&self, change: impl Fn(usize) + Sync, judge: impl Fn(i32, &[u8]) -> Fate) -> Tally {
        let packets = packets();
        self.race_until(change, judge, |tally, runs| runs >= packets && tally.changes >= CHANGES)
    }

    /// [`Self::race`] until `is_done` says so of the tally and the number of packets.
    pub fn race_until(
        &self,
        change: impl Fn(usize) + Sync,
        judge: impl Fn(i32, &[u8]) -> Fate,
        is_done: impl Fn(&Tally, u64) -> bool,
    ) -> Tally {
        let (is_over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            let changer = scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    change(changes.load(Relaxed) as usize);
                    changes.fetch_add(1, Relaxed);
                }
            });
            let (start, mut runs) = (Instant::now(), 0);
            let mut out = vec![0; self.frame.len() + 512];
            while !is_done(&tally, runs) && !changer.is_finished() {
                assert!(start.elapsed() < PATIENCE * 10, "{tally:?}");
                for _ in 0..200 {
                    let (code, frame) = self.run(&mut out);
                    let fate = judge(code, frame);
                    if fate == Fate::Wrong && tally.first_wrong.is_none() {
                        tally.first_wrong = Some((code, frame.to_vec()));
                    }
                    tally += fate;
                }
                runs += 200;
                tally.changes = changes.load(Relaxed);
            }
            is_over.store(true, Relaxed);
        });
        tally
    }
}

/// Judges by what a packet may become.
pub fn one_of(whole: &[(i32, Vec<u8>)]) -> impl Fn(i32, &[u8]) -> Fate {
    |code, frame| match code {
        _ if whole.iter().any(|(c, f)| (code, frame) == (*c, &f[..])) => Fate::Right,
        SHOT => Fate::Dropped,
        _ => Fate::Wrong,
    }
}
