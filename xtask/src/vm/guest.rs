//! One emulated machine, for one command.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Write},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{Kernel, initramfs};
use crate::{exec, toolchain};

/// Between two looks at what the command has written.
const INTERVAL: Duration = Duration::from_millis(50);
/// Lines of the console that tell why a kernel died.
const CONSOLE_LINES: usize = 40;

/// The machine. Its root is the host's, and what it writes there is lost when it ends.
pub struct Guest<'a> {
    pub kernel: &'a Kernel,
    pub cpus: u32,
    pub memory_mib: u32,
    /// After this it is ended.
    pub limit: Duration,
    /// Its clock counts instructions instead of time: one instruction is one nanosecond. Only with
    /// one processor.
    pub counts_instructions: bool,
}

/// What became of the command.
pub enum Ended {
    /// As a shell says it: 127 if there is no such command, 128 and the number of a signal.
    Exited(u8),
    TimedOut,
    /// The machine ended before the command did; the end of its console.
    Died(String),
}

impl<'a> Guest<'a> {
    pub fn new(kernel: &'a Kernel) -> Self {
        Self {
            kernel,
            cpus: 2,
            memory_mib: 1024,
            limit: Duration::from_secs(600),
            counts_instructions: false,
        }
    }

    /// Runs a command as root, with its arguments, its folder, and of the environment what it
    /// sets itself. What it writes to stdout goes to `stdout` at once, and stderr to ours.
    pub fn run(&self, command: &Command, stdout: &mut dyn Write) -> Result<Ended> {
        let shared = Shared::new()?;
        fs::write(shared.file("command"), script(command)?)?;
        fs::write(shared.file("initramfs"), initramfs::build(self.kernel)?)?;
        let mut out = Followed::new(shared.file("stdout"))?;
        let mut err = Followed::new(shared.file("stderr"))?;
        let mut qemu = self.qemu(&shared)?;
        let mut machine =
            Machine(qemu.spawn().with_context(|| format!("can not run {}", exec::line(&qemu)))?);
        let deadline = Instant::now() + self.limit;
        let timed_out = loop {
            let ended = machine.0.try_wait()?.is_some();
            out.copy(stdout)?;
            err.copy(&mut io::stderr())?;
            if ended {
                break false;
            }
            if Instant::now() >= deadline {
                break true;
            }
            sleep(INTERVAL);
        };
        drop(machine);
        if timed_out {
            return Ok(Ended::TimedOut);
        }
        Ok(match fs::read_to_string(shared.file("status")) {
            Ok(status) => Ended::Exited(status.trim().parse().context("an exit status")?),
            Err(_) => Ended::Died(shared.console()),
        })
    }

    fn qemu(&self, shared: &Shared) -> Result<Command> {
        // The kernel ends qemu if we end first, whatever ends us.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
        qemu.args(["-display", "none", "-no-reboot"]);
        if self.counts_instructions {
            // Without string instructions that the kernel would copy with byte by byte: each byte
            // would count as an instruction.
            qemu.args(["-cpu", "max,la57=off,erms=off,fsrm=off"]);
            qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        } else {
            // Without cmpxchg16b, whose outcome this emulator gets wrong now and then when two CPUs
            // meet in it: kernels died in the allocator, with a part of its operand for flags.
            qemu.args(["-cpu", "max,la57=off,cx16=off", "-accel", "tcg,thread=multi"]);
        }
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()]);
        qemu.arg("-kernel").arg(self.kernel.image());
        qemu.arg("-initrd").arg(shared.file("initramfs"));
        qemu.args(["-append", &self.kernel_arguments()]);
        qemu.arg("-serial").arg(format!("file:{}", shared.file("console").display()));
        for (tag, path, options) in [
            ("root", Path::new("/"), "readonly=on,multidevs=remap"),
            ("run", shared.0.as_path(), "multidevs=remap"),
        ] {
            let path = path.display();
            qemu.args([
                "-fsdev",
                &format!("local,id={tag},path={path},security_model=none,{options}"),
            ]);
            qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        qemu.stdin(Stdio::null()).stdout(Stdio::null());
        qemu.stderr(File::create(shared.file("qemu"))?);
        Ok(qemu)
    }

    fn kernel_arguments(&self) -> String {
        // What only takes time is off: self-tests of ciphers, waiting for entropy and timers. The
        // rest is as Debian has it: with AppArmor, for SELinux would take its place, and with the
        // CPU's mitigations.
        format!(
            "console=ttyS0 quiet panic=-1 nokaslr tsc=reliable no_timer_check \
             random.trust_cpu=on audit=0 cryptomgr.notests reboot=t vm.modules={}",
            self.kernel.modules().display()
        )
    }
}

/// qemu, ended when this is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder in which host and guest meet, removed when this is dropped.
struct Shared(PathBuf);

impl Shared {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = toolchain::target().join(format!("vm/run-{}-{number}", process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self(dir))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What qemu said, and the end of what the kernel said.
    fn console(&self) -> String {
        let read = |name| fs::read(self.file(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&[read("qemu"), read("console")].concat()).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file that somebody else writes.
struct Followed(File);

impl Followed {
    fn new(path: PathBuf) -> Result<Self> {
        File::create(&path)?;
        Ok(Self(File::open(path)?))
    }

    /// Hands on what is new.
    fn copy(&mut self, to: &mut dyn Write) -> Result<()> {
        let mut new = Vec::new();
        self.0.read_to_end(&mut new)?;
        if !new.is_empty() {
            to.write_all(&new)?;
            to.flush()?;
        }
        Ok(())
    }
}

/// A shell script that becomes the command.
fn script(command: &Command) -> Result<Vec<u8>> {
    let mut script = Vec::new();
    if let Some(dir) = command.get_current_dir() {
        script.extend([b"cd ".to_vec(), quoted(dir.as_os_str()), b" || exit\n".to_vec()].concat());
    }
    for (name, value) in command.get_envs() {
        // Names that no shell takes are no loss.
        let plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let (Some(value), true) = (value, name.as_bytes().iter().all(plain)) else { continue };
        script.extend([b"export ", name.as_bytes(), b"=", &quoted(value), b"\n"].concat());
    }
    script.extend(b"exec");
    for word in [command.get_program()].into_iter().chain(command.get_args()) {
        script.push(b' ');
        script.extend(quoted(word));
    }
    script.push(b'\n');
    Ok(script)
}

/// As one word of a shell, whatever is in it.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_each_word_as_it_is() {
        let words = ["it's", "a b", "$HOME", "", "x\ny"];
        let mut command = Command::new("printf");
        command.arg("%s|").args(words).env("MESH_X", "a 'b'").current_dir("/");
        let script = script(&command).expect("a script");
        let out = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output();
        let out = out.expect("a shell");
        assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{}|", words.join("|")));
    }
}
