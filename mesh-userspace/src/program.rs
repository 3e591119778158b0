//! Programs that are run for what they do or say, such as `nft`: with few rights, and not for ever.
//!
//! What is written and read are files in memory, not pipes: nobody waits for a program that does not
//! read, or for a child of it that keeps a pipe open.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{
        Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, setrlimit,
    },
};

use crate::agent::privileges::keep_for_nft;

/// `nft` and `iptables` take milliseconds, and a second for large sets of rules.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a program that did not end is not run again: a look at everything needs several runs.
const SHUNNED: Duration = Duration::from_secs(60);
/// How long the kernel may take to end one that is killed.
const ENDING: Duration = Duration::from_millis(100);
/// Bytes that a program may print.
const OUTPUT_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("{program}: {source}{}", remedy(.program, .source))]
    NotRun { program: String, source: io::Error },
    /// It said so itself. `code`: of its exit, unless a signal ended it.
    #[error("{line}: {said}")]
    Failed { line: String, said: String, code: Option<i32> },
    #[error(
        "{line}: did not end within {} s and was killed: see what holds it up (`nft list ruleset`, \
         `lslocks`, `dmesg`)",
        .limit.as_secs()
    )]
    Hung { line: String, limit: Duration },
    #[error(
        "{program}: not run, since it did not end {} s ago: it is run again after {} s",
        .since.as_secs(),
        SHUNNED.as_secs()
    )]
    Shunned { program: String, since: Duration },
}

impl ProgramError {
    /// Returns whether the program could say nothing of what it was asked for: not that there is no such
    /// thing either.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Hung { .. } | Self::Shunned { .. })
    }
}

fn remedy(program: &str, source: &io::Error) -> String {
    let package = if program == "nft" { "nftables" } else { program };
    match source.kind() {
        io::ErrorKind::NotFound => format!(": install {package}"),
        _ => String::new(),
    }
}

/// Programs that did not end, and when.
static HUNG: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

/// What a program prints on stdout. `input`: what it reads from stdin. Blocks for at most 10 s.
///
/// # Errors
///
/// Also if the program prints more than 64 MiB.
pub fn run(program: &str, args: &[&str], input: &str) -> Result<String, ProgramError> {
    run_within(LIMIT, program, args, input)
}

fn run_within(
    limit: Duration,
    program: &str,
    args: &[&str],
    input: &str,
) -> Result<String, ProgramError> {
    // Each entry is whole.
    let hung = || HUNG.lock().unwrap_or_else(PoisonError::into_inner);
    let since = hung().get(program).map(Instant::elapsed);
    if let Some(since) = since.filter(|since| *since < SHUNNED) {
        return Err(ProgramError::Shunned { program: program.to_owned(), since });
    }
    let not_run = |source| ProgramError::NotRun { program: program.to_owned(), source };
    let line = || format!("{program} {}", args.join(" "));
    let (child, mut out, mut err) = start(program, args, input).map_err(not_run)?;
    let Some(code) = end(child, limit).map_err(not_run)? else {
        hung().insert(program.to_owned(), Instant::now());
        return Err(ProgramError::Hung { line: line(), limit });
    };
    hung().remove(program);
    if code != Some(0) {
        let said = read(&mut err).map_err(not_run)?.trim().to_owned();
        return Err(ProgramError::Failed { line: line(), said, code });
    }
    read(&mut out).map_err(not_run)
}

/// Starts a program. Returns where its output and its complaints go.
fn start(program: &str, args: &[&str], input: &str) -> io::Result<(Child, File, File)> {
    let file = || Ok::<_, io::Error>(File::from(memfd_create(program, MemfdFlags::CLOEXEC)?));
    let (mut stdin, out, err) = (file()?, file()?, file()?);
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut command = Command::new(program);
    command.args(args).stdin(stdin).stdout(out.try_clone()?).stderr(err.try_clone()?);
    // Of its own, to be killed with all that it starts.
    command.process_group(0);
    let before = || {
        let most = Some(OUTPUT_MAX);
        setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most })?;
        keep_for_nft()
    };
    // SAFETY: between fork and exec it does system calls alone.
    unsafe { command.pre_exec(before) };
    Ok((command.spawn()?, out, err))
}

/// The exit code of a program, none if a signal ended it; `None` if it had to be killed.
fn end(mut child: Child, limit: Duration) -> io::Result<Option<Option<i32>>> {
    if has_ended(&child, limit)? {
        return Ok(Some(child.wait()?.code()));
    }
    // It has not been waited for: the group is its own still.
    kill_process_group(Pid::from_child(&child), Signal::KILL)?;
    if has_ended(&child, ENDING)? {
        child.wait()?;
    } else {
        // The kernel holds it up.
        thread::Builder::new().name("reaper".into()).spawn(move || child.wait())?;
    }
    Ok(None)
}

fn has_ended(child: &Child, within: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_has_no_more_rights_than_it_needs() {
        // As in an agent: else root's programs have what root may have.
        let run = || {
            rustix::thread::set_no_new_privs(true).unwrap();
            run("cat", &["/proc/self/status"], "").unwrap()
        };
        let status = thread::spawn(run).join().unwrap();
        let of = |set: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        // linux/capability.h: NET_ADMIN, NET_RAW
        let needed = 1 << 12 | 1 << 13;
        assert_eq!((of("CapEff:") | of("CapPrm:")) & !needed, 0, "{status}");
    }

    #[test]
    fn input_and_output_of_any_length_get_through() {
        let long = "x".repeat(1 << 20);
        assert_eq!(run("tac", &[], &long).unwrap(), long);
        // One that does not read is no failure.
        assert_eq!(run("true", &[], &long).unwrap(), "");
        match run("sh", &["-c", "echo no >&2; exit 4"], "") {
            Err(ProgramError::Failed { said, code: Some(4), .. }) if said == "no" => {}
            other => panic!("{other:?}"),
        }
        let missing = run("mesh-no-such-program", &[], "").unwrap_err().to_string();
        assert!(missing.contains("install mesh-no-such-program"), "{missing}");
    }

    #[test]
    fn what_does_not_end_is_killed_with_all_that_it_started_and_left_alone_for_a_while() {
        let (limit, began) = (Duration::from_millis(200), Instant::now());
        let dir = std::env::temp_dir().join(format!("mesh-program-{}", std::process::id()));
        let script = format!("sleep 1000 & echo $! > {}; wait", dir.display());
        // Under a name that no other test runs.
        let hung = run_within(limit, "bash", &["-c", &script], "").unwrap_err();
        assert!(hung.is_silence() && hung.to_string().contains("did not end"), "{hung}");
        assert!(began.elapsed() < Duration::from_secs(60), "waited for its child");
        let sleeper = std::fs::read_to_string(&dir).unwrap().trim().to_owned();
        std::fs::remove_file(&dir).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let state = || std::fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        let is_gone = |stat: &str| stat.is_empty() || stat.contains(") Z ");
        while !is_gone(&state()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(is_gone(&state()), "{}", state());
        let shunned = run("bash", &["-c", "true"], "").unwrap_err();
        assert!(matches!(shunned, ProgramError::Shunned { .. }), "{shunned}");
    }
}
