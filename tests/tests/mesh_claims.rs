//! One agent in a network namespace and in a run folder: who has the lock, and who only says so.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use mesh_tests::{Host, Netns, Options, scenario, scenario::bare, wait};
use rustix::fs::{FlockOperation, flock};

const ONE: Options = Options { hosts: 1, containers: 0, ..Options::DEFAULT };

/// nobody
const USER: u32 = 65_534;

/// How it answers those who connect to the name that agents of versions before had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Nothing,
    /// A byte now and then, for ever.
    Drip,
    /// As much as is taken.
    Flood,
    Text(&'static str),
}

/// All that is said to one who connects.
const FLOOD_MAX: usize = 64 << 20;

/// A process, as far as the kernel is concerned, that has the name.
struct Impostor {
    done: Arc<AtomicBool>,
    said: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    fn of(netns: &Netns, uid: u32, answer: Answer) -> Result<Self> {
        let (done, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let listener = netns.run(|| {
            // SAFETY: the raw system call changes the ids of this thread alone, which ends with this.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
            ensure!(changed == 0, "setresuid: {}", std::io::Error::last_os_error());
            Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name("mesh-agent")?)?)
        })?;
        listener.set_nonblocking(true)?;
        let (is_done, count) = (done.clone(), said.clone());
        let thread = thread::spawn(move || {
            let mut callers = Vec::new();
            while !is_done.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    _ = stream.set_nonblocking(true);
                    callers.push((stream, 0));
                }
                callers.retain_mut(|(stream, sent)| say(stream, sent, answer, &count));
                thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self { done, said, thread: Some(thread) })
    }

    /// Bytes that were taken, by those that connected or by the kernel for them.
    fn said(&self) -> usize {
        self.said.load(Ordering::Relaxed)
    }
}

/// Whether the caller is to be kept.
fn say(stream: &mut UnixStream, sent: &mut usize, answer: Answer, count: &AtomicUsize) -> bool {
    let chunk: &[u8] = match answer {
        Answer::Nothing => return true,
        Answer::Drip => b"/",
        Answer::Flood => &[b'/'; 1 << 16],
        Answer::Text(text) => return stream.write_all(text.as_bytes()).is_err(),
    };
    while *sent < FLOOD_MAX {
        match stream.write(chunk) {
            Ok(n) => {
                *sent += n;
                count.fetch_add(n, Ordering::Relaxed);
            }
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
        if answer == Answer::Drip {
            break;
        }
    }
    true
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Fails unless `mesh ARGS` fails, and returns what it said.
fn refused(host: &Host, args: &[&str]) -> Result<String> {
    let output = host.try_mesh(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{args:?} was not refused");
    Ok(said)
}

fn expect_all(said: &str, wanted: &[&str]) -> Result<()> {
    wanted.iter().try_for_each(|text| {
        ensure!(said.contains(text), "{text:?} is missing: {said}");
        Ok(())
    })
}

#[test]
fn a_user_with_the_old_name_hinders_nobody() {
    for answer in [Answer::Nothing, Answer::Drip, Answer::Flood, Answer::Text("/run/other")] {
        bare(ONE, |mesh| {
            let cluster = mesh.cluster.clone();
            let host = &mut mesh.hosts[0];
            let impostor = Impostor::of(&host.netns, USER, answer)?;
            host.up(&cluster)?;
            host.status()?;
            host.stop()?;
            host.status()?;
            // What the kernel takes for somebody who does not read.
            ensure!(impostor.said() < FLOOD_MAX, "{} bytes were read", impostor.said());
            host.down()
        });
    }
}

#[test]
fn an_agent_of_a_version_before_is_noticed_and_waited_for_no_longer_than_is_needed() {
    for answer in [Answer::Text("/run/other"), Answer::Nothing, Answer::Drip, Answer::Flood] {
        bare(ONE, |mesh| {
            let host = &mut mesh.hosts[0];
            let impostor = Impostor::of(&host.netns, 0, answer)?;
            let said = refused(host, &["down"])?;
            expect_all(&said, &["has the mesh of this network namespace"])?;
            if let Answer::Text(dir) = answer {
                expect_all(&said, &[&format!("mesh down --run-dir {dir}")])?;
            }
            let taken = impostor.said();
            ensure!(taken < FLOOD_MAX, "{taken} bytes were read");
            ensure!(!host.lock_dir.exists() && !host.run_dir.exists(), "it left a folder behind");
            Ok(())
        });
    }
}

#[test]
fn a_second_agent_is_told_who_is_in_its_way_since_when_and_what_to_do() {
    scenario(ONE, |mesh| {
        let host = &mut mesh.hosts[0];
        let config = host.config.to_str().context("path")?.to_owned();
        let up = ["up", "--config", &config, "--node", "h1"];
        let (pid, own) = (host.pid().context("no agent")?, host.run_dir.clone());
        let dir = own.display();
        let who = format!("process {pid} (`");
        let stop = format!("`kill {pid}`");
        let say = |verb: &str| format!("mesh {verb} --run-dir {dir}");
        let said = refused(host, &up)?;
        expect_all(&said, &[&who, "mesh --run-dir", ", for ", " s)", &stop, &say("status")])?;
        expect_all(&said, &[&say("down"), &format!("{dir}/lock")])?;
        host.run_dir = own.with_extension("other");
        let said = refused(host, &up)?;
        expect_all(&said, &[&who, "mesh --run-dir", ", for ", " s)", &stop, &say("down")])
    });
}

#[test]
fn a_pid_that_is_another_programs_by_now_is_not_the_holder() {
    bare(ONE, |mesh| {
        let host = &mesh.hosts[0];
        fs::create_dir(&host.run_dir)?;
        let path = host.run_dir.join("lock");
        // One that is there, but was started at another time.
        fs::write(&path, format!("{}\n1\n{}", std::process::id(), host.run_dir.display()))?;
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let said = refused(host, &["down"])?;
        expect_all(&said, &["another program by now", &format!("fuser -v {}", path.display())])?;
        ensure!(!said.contains("kill"), "{said}");
        drop(lock);
        host.run_mesh(&["down"]).map(drop)
    });
}

#[test]
fn the_lock_of_a_namespace_is_kept_and_nothing_is_left_of_it() {
    scenario(ONE, |mesh| {
        let cluster = mesh.cluster.clone();
        let host = &mut mesh.hosts[0];
        let locks = || -> Result<Vec<_>> {
            let entries = fs::read_dir(&host.lock_dir)?.map(|entry| Ok(entry?.file_name()));
            entries.collect()
        };
        let ours = locks()?;
        ensure!(ours.len() == 1, "{ours:?}");
        // The agent looks at it whenever it has something to do.
        fs::remove_dir_all(&host.lock_dir)?;
        wait::until_true("the lock to be there again", Duration::from_secs(20), || {
            host.status().is_ok() && locks().is_ok_and(|now| now == ours)
        })?;
        let own = host.run_dir.clone();
        host.run_dir = own.with_extension("other");
        let said = refused(host, &["down"])?;
        expect_all(&said, &[&format!("mesh down --run-dir {}", own.display())])?;
        host.run_dir = own;
        // Of one that was killed, in a namespace that is gone.
        host.kill9();
        fs::write(host.lock_dir.join("netns-4-1"), "1\n1\n/run/x")?;
        host.up(&cluster)?;
        let now = fs::read_dir(&host.lock_dir)?.count();
        ensure!(now == 1, "{now} locks");
        host.down()?;
        ensure!(!host.lock_dir.exists(), "the folder is still there");
        Ok(())
    });
}

#[test]
fn a_folder_that_others_can_enter_keeps_no_locks() {
    bare(ONE, |mesh| {
        let host = &mesh.hosts[0];
        fs::create_dir(&host.lock_dir)?;
        for mode in [0o755, 0o707] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&host.lock_dir, mode)?;
            let said = refused(host, &["down"])?;
            expect_all(&said, &[&host.lock_dir.display().to_string(), "remove it"])?;
        }
        Ok(())
    });
}
