//! Runs other programs, as the caller or as root, and says what they are.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::{self, IsTerminal as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::toolchain;

/// One line on what is being done. On stderr: stdout belongs to `--json`.
pub fn say(what: impl AsRef<str>) {
    eprintln!("xtask: {}", what.as_ref());
}

/// Runs a command to its end, all its output shown on stderr; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("can not run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to stdout, whatever its exit status.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("can not run {}", line(command)))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether a command runs and succeeds; nothing is shown.
pub fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The cargo that runs this xtask, at the root of the workspace.
pub fn cargo(verb: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(verb).current_dir(toolchain::workspace());
    cargo
}

pub fn is_root() -> bool {
    // The owner of a process's folder is its effective user.
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Whether [`as_root`] works without asking anyone for a password.
pub fn can_be_root() -> bool {
    is_root() || succeeds(Command::new("sudo").args(["-n", "true"]))
}

/// Why [`can_be_root`] is false, and what to do about it.
pub fn how_to_be_root() -> &'static str {
    match toolchain::on_path("sudo") {
        Some(_) => "needs root, and sudo asks for a password: run `sudo -v` first",
        None => "needs root, and there is no sudo: run it as root",
    }
}

/// A command that runs as root, by sudo if need be. sudo drops the environment, so what the
/// program needs of it is handed over by name.
pub fn as_root<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    vars: impl IntoIterator<Item = (K, V)>,
) -> Command {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(vars);
        return command;
    }
    let mut sudo = Command::new("sudo");
    if !io::stdin().is_terminal() {
        sudo.arg("-n");
    }
    sudo.arg("env");
    for (name, value) in vars {
        let mut pair = name.as_ref().to_owned();
        pair.push("=");
        pair.push(value);
        sudo.arg(pair);
    }
    sudo.arg(program);
    sudo
}

/// Becomes the same command as root, with these variables. Returns only if that fails: why.
pub fn again_as_root<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    vars: impl IntoIterator<Item = (K, V)>,
) -> Result<anyhow::Error> {
    if !can_be_root() {
        bail!(
            "network namespaces and BPF programs need root, and sudo wants a password; \
             `sudo -v` first, then again"
        );
    }
    let mut again = as_root(env::current_exe()?, vars);
    let error = again.args(env::args_os().skip(1)).exec();
    Ok(anyhow::Error::new(error).context(line(&again)))
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
