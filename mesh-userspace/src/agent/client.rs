//! A command's side of the socket.

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader, IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg,
    sockopt::{self, Timeout},
};

use super::protocol::{Request, Response};
use crate::{durable, holder::Holder};

/// An agent that takes longer for its work is stuck.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One that takes longer to say something is looked at: a stopped one is not waited for.
pub const SIGN: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody is there, or goes away just now.
    #[error("no agent is there: {0}")]
    Absent(io::Error),
    #[error(transparent)]
    Silent(Silent),
    #[error("speaking to the agent: {0}")]
    Io(io::Error),
}

impl CallError {
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

impl From<io::Error> for CallError {
    fn from(e: io::Error) -> Self {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof,
        };
        match e.kind() {
            NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof => {
                Self::Absent(e)
            }
            _ => Self::Io(e),
        }
    }
}

/// An agent that is there and does not answer.
#[derive(Debug, thiserror::Error)]
pub struct Silent {
    /// As its lock says.
    pid: Option<u32>,
    doing: Doing,
    waited: Duration,
    /// It has the request, and does it if it ever goes on.
    pub will_do: bool,
}

/// What a process does instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Stopped,
    Frozen,
    /// By its state in /proc/PID/stat.
    Busy(char),
    Unknown,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why(f)?;
        if self.will_do {
            f.write_str("; what it was asked for is done when it goes on")?;
        }
        Ok(())
    }
}

impl Silent {
    fn why(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self.waited.as_secs();
        let Some(pid) = self.pid else {
            return write!(
                f,
                "the agent has not answered for {waited} s: look at its process, and start it again \
                 if need be; containers keep talking meanwhile"
            );
        };
        write!(f, "the agent (process {pid}) has not answered for {waited} s: ")?;
        let anew = format!(
            "end it (`kill -9 {pid}`) and start it again; containers keep talking meanwhile"
        );
        match self.doing {
            Doing::Stopped => write!(
                f,
                "it is stopped, by SIGSTOP or a debugger: let it go on (`kill -CONT {pid}`), or {anew}"
            ),
            Doing::Frozen => {
                write!(f, "its cgroup is frozen: thaw it (`systemctl thaw UNIT`), or {anew}")
            }
            Doing::Busy(state) => {
                let how = match state {
                    'R' => "it is busy",
                    'D' => "it waits for the kernel",
                    _ => "it waits for something",
                };
                write!(f, "{how} (state {state}): try again; if it stays so, {anew}")
            }
            Doing::Unknown => f.write_str("its process ends just now: try again"),
        }
    }
}

/// How long to wait for the answer: what only tells takes no time.
pub fn patience(request: &Request) -> Duration {
    match request {
        Request::Status | Request::Ready { .. } => SIGN,
        _ => PATIENCE,
    }
}

/// Asks the agent at `socket`, and waits so long at most for its answer; for that of a stopped agent
/// [`SIGN`] at most.
pub fn call(
    socket: &Path,
    request: &Request,
    fd: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<Response, CallError> {
    let mut wait = Wait { socket, began: Instant::now(), patience, will_do: false };
    let mut stream = wait.step(|slice| connect(socket, slice))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
    line.push(b'\n');
    let mut rest = &line[..];
    if let Some(fd) = fd {
        rest = &rest[wait.step(|_| send_with(&stream, rest, fd))?..];
    }
    while !rest.is_empty() {
        rest = &rest[wait.step(|_| stream.write(rest))?..];
    }
    wait.will_do = request.outlives_its_caller();
    let (mut answer, mut reader) = (Vec::new(), BufReader::new(stream));
    wait.step(|slice| {
        reader.get_ref().set_read_timeout(Some(slice))?;
        reader.read_until(b'\n', &mut answer)
    })?;
    if answer.is_empty() {
        return Err(CallError::Absent(io::Error::other("it ended meanwhile")));
    }
    Ok(serde_json::from_slice(&answer).map_err(io::Error::from)?)
}

/// Does anybody listen there, even one who does not answer? Waits so long at most.
pub fn is_listening(socket: &Path, within: Duration) -> bool {
    match connect(socket, within) {
        Ok(_) => true,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Waits so long at most if others wait to be heard as well, where connect(2) else has no end.
fn connect(socket: &Path, within: Duration) -> io::Result<UnixStream> {
    let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
    let fd = rustix::net::socket_with(unix, stream, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&fd, Timeout::Send, Some(within))?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
    Ok(fd.into())
}

/// The steps of a call, and how long they may take together.
struct Wait<'a> {
    socket: &'a Path,
    began: Instant,
    patience: Duration,
    will_do: bool,
}

impl Wait<'_> {
    /// Repeats what takes the time it is given at most, as long as there is hope.
    fn step<T>(&self, mut step: impl FnMut(Duration) -> io::Result<T>) -> Result<T, CallError> {
        loop {
            let left = self.patience.saturating_sub(self.began.elapsed());
            // 0 would be for ever.
            let e = match step(left.min(SIGN).max(Duration::from_millis(1))) {
                Ok(done) => return Ok(done),
                Err(e) => e,
            };
            match e.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    let silent = self.silent();
                    let is_stopped = matches!(silent.doing, Doing::Stopped | Doing::Frozen);
                    if is_stopped || silent.waited >= self.patience {
                        return Err(CallError::Silent(silent));
                    }
                }
                _ => return Err(e.into()),
            }
        }
    }

    fn silent(&self) -> Silent {
        let lock = self.socket.parent().map(|dir| dir.join("lock"));
        let holder =
            lock.and_then(|lock| Holder::read(&durable::open_regular(&lock).ok()?).ok()?);
        let pid = holder.filter(Holder::is_there).map(|holder| holder.pid);
        let doing = pid.map_or(Doing::Unknown, doing);
        Silent { pid, doing, waited: self.began.elapsed(), will_do: self.will_do }
    }
}

/// proc(5): the state is the first letter behind the name, which may have anything in it.
fn doing(pid: u32) -> Doing {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('T' | 't') => Doing::Stopped,
        Some(_) if is_frozen(pid) => Doing::Frozen,
        Some(state) => Doing::Busy(state),
        None => Doing::Unknown,
    }
}

/// By its cgroup of version 2 (cgroups(7)).
fn is_frozen(pid: u32) -> bool {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return false;
    };
    let events = Path::new("/sys/fs/cgroup").join(path).join("cgroup.events");
    fs::read_to_string(events).is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
}

fn send_with(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_listens_and_hears_nobody_is_not_waited_for_without_end() {
        let dir = std::env::temp_dir().join(format!("mesh-client-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let socket = dir.join("mesh.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::write(dir.join("lock"), std::process::id().to_string()).unwrap();
        let brief = Duration::from_millis(50);
        let detach = Request::Detach { name: "x".into() };
        let silent = |request, will_do| match call(&socket, request, None, brief) {
            Err(CallError::Silent(silent)) if silent.will_do == will_do => silent.to_string(),
            other => panic!("{other:?}"),
        };
        let text = silent(&Request::Status, false);
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        silent(&detach, true);
        // As many as may wait to be heard.
        let mut waiting = Vec::new();
        while let Ok(stream) = connect(&socket, brief) {
            waiting.push(stream);
            assert!(waiting.len() < 100_000, "the queue has no end");
        }
        silent(&detach, false);
        assert!(is_listening(&socket, brief));
        drop(listener);
        let gone = call(&socket, &Request::Status, None, brief).unwrap_err();
        fs::remove_dir_all(&dir).unwrap();
        assert!(gone.is_absent() && !is_listening(&socket, brief), "{gone:?}");
    }

    #[test]
    fn a_process_is_busy_or_stopped() {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = child.unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let wait_for = |wanted: fn(Doing) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !wanted(doing(child.id())) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            doing(child.id())
        };
        let busy = wait_for(|doing| matches!(doing, Doing::Busy(_)));
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let stopped = wait_for(|doing| doing == Doing::Stopped);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(busy, Doing::Busy(_)) && stopped == Doing::Stopped);
        assert_eq!(doing(u32::MAX), Doing::Unknown);
    }
}
