//! The process that holds a lock: as it wrote itself into the lock's file, and as it is now.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::shown::plain;

/// More than a lock's file has, in bytes: two numbers and a path.
const FILE_MAX: u64 = 4096 + 64;
/// Of a command line, in characters.
const COMMAND_MAX: usize = 120;

/// A process, and the run folder that it works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// When it was started, in clock ticks since the boot: pids are given again. `None` if it did not
    /// say.
    start: Option<u64>,
    pub run_dir: Option<PathBuf>,
}

impl Holder {
    /// This process.
    pub fn this(run_dir: &Path) -> Self {
        let pid = std::process::id();
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
        Self { pid, start: start_of(pid), run_dir: Some(run_dir) }
    }

    /// One that is known by its pid alone.
    pub fn of_pid(pid: u32, run_dir: Option<PathBuf>) -> Self {
        Self { pid, start: None, run_dir }
    }

    /// Makes it all that is in the file: lines of the pid, the start and the run folder.
    pub fn write(&self, file: &mut File) -> io::Result<()> {
        let Self { pid, start, run_dir } = self;
        let mut text = format!("{pid}\n{}\n", start.unwrap_or(0)).into_bytes();
        text.extend_from_slice(run_dir.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes());
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&text)
    }

    /// `None` if nobody has written itself down yet. Versions before wrote their pid alone.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut text)?;
        let mut lines = text.splitn(3, |b| *b == b'\n');
        let mut number =
            || -> Option<u64> { std::str::from_utf8(lines.next()?).ok()?.trim().parse().ok() };
        let (pid, start) = (number(), number());
        let run_dir = lines.next().filter(|dir| !dir.is_empty());
        let run_dir = run_dir.map(|dir| OsStr::from_bytes(dir).into());
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        Ok(pid.map(|pid| Self { pid, start: start.filter(|start| *start != 0), run_dir }))
    }

    /// Whether the process that wrote this is there still, as far as can be seen from here.
    pub fn is_there(&self) -> bool {
        start_of(self.pid).is_some_and(|now| self.start.is_none_or(|then| then == now))
    }

    /// The command that ends it and leaves the traffic alone. One that is stopped heeds no signal but two.
    pub fn stop_command(&self) -> String {
        if self.is_stopped() {
            return format!("kill -CONT {0}; kill {0}", self.pid);
        }
        self.unit()
            .map_or_else(|| format!("kill {}", self.pid), |unit| format!("systemctl stop {unit}"))
    }

    /// What systemd started it as. A process that has another parent may be in any unit's group.
    fn unit(&self) -> Option<String> {
        let read = |name| fs::read_to_string(format!("/proc/{}/{name}", self.pid)).ok();
        read("status")?.lines().find(|l| l.split_whitespace().eq(["PPid:", "1"]))?;
        let groups = read("cgroup")?;
        let unit = groups.lines().find_map(|line| line.rsplit('/').next())?;
        unit.ends_with(".service").then(|| unit.to_owned())
    }

    /// By SIGSTOP or a debugger; field 3 of /proc/PID/stat (proc(5)).
    fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, after)| after.trim_start().chars().next());
        matches!(state, Some('T' | 't'))
    }

    fn command(&self) -> Option<String> {
        let mut words = Vec::new();
        let file = File::open(format!("/proc/{}/cmdline", self.pid)).ok()?;
        file.take(COMMAND_MAX as u64 * 4).read_to_end(&mut words).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let text = plain(words.trim_end(), COMMAND_MAX);
        Some(text).filter(|text| !text.is_empty())
    }

    fn age(&self) -> Option<Duration> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let up: f64 = uptime.split(' ').next()?.parse().ok()?;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let since = start_of(self.pid)? as f64 / ticks;
        Duration::try_from_secs_f64((up - since).max(0.0)).ok()
    }
}

/// `process 4711 (mesh up, for 3 h 12 min)`
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        if !self.is_there() {
            return write!(f, "process {pid} (ended, or another program by now)");
        }
        match (self.command(), self.age()) {
            (Some(command), Some(age)) => {
                let stopped = if self.is_stopped() { ", stopped" } else { "" };
                write!(f, "process {pid} (`{command}`, for {}{stopped})", rough(age))
            }
            _ => write!(f, "process {pid} (which says nothing of itself)"),
        }
    }
}

/// In the two largest units.
fn rough(age: Duration) -> String {
    let s = age.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Field 22 of /proc/PID/stat (proc(5)).
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may have anything in it.
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &[u8]) -> File {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mesh-holder-{}-{n}", std::process::id()));
        let mut file = File::options();
        let mut file = file.read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all(text).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn who_wrote_itself_down_is_found_again() {
        let mut file = stored(b"4711 and more that was there before\n\n");
        let this = Holder::this(Path::new("/run/some where"));
        this.write(&mut file).unwrap();
        file.rewind().unwrap();
        let read = Holder::read(&file).unwrap().unwrap();
        assert_eq!(read, this);
        assert!(read.is_there());
        let text = read.to_string();
        assert!(text.starts_with(&format!("process {} (`", read.pid)), "{text}");
    }

    #[test]
    fn a_pid_that_is_another_programs_by_now_is_told_apart() {
        let pid = std::process::id();
        let other = Holder::read(&stored(format!("{pid}\n1\n/run/x").as_bytes())).unwrap().unwrap();
        assert!(!other.is_there());
        assert!(other.to_string().contains("another program by now"), "{other}");
        let gone = Holder::of_pid(u32::MAX, None);
        assert!(!gone.is_there() && gone.to_string().contains("ended"), "{gone}");
    }

    #[test]
    fn files_of_versions_before_and_spoiled_ones_are_understood() {
        let before = Holder::read(&stored(b"1")).unwrap().unwrap();
        assert_eq!(before, Holder::of_pid(1, None));
        assert!(before.is_there());
        for text in [&b""[..], b"\n\n", b"\xff\xfe", b"-1\n2\n", b"99999999999"] {
            assert_eq!(Holder::read(&stored(text)).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn ages_are_rough() {
        let text = |s| rough(Duration::from_secs(s));
        assert_eq!(text(59), "59 s");
        assert_eq!(text(61), "1 min 1 s");
        assert_eq!(text(11_533), "3 h 12 min");
        assert_eq!(text(90_000), "1 d 1 h");
    }
}
