//! The CNI plugin: what a container runtime calls, once for each change of a container. It says to the
//! agent what the runtime wants, and to the runtime what the agent did.
//!
//! ```text
//! runtime -> environment (env), stdin (config) -> verbs -> the agent's socket
//! runtime <- stdout: result, or error with its code    <-
//! ```

use std::{
    env as process, io,
    io::{Read, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::{Value, json};

mod config;
mod env;
mod error;
mod result;
mod verbs;

pub use config::VERSIONS;
use config::{Conf, LATEST};
use env::{Call, Command};
use error::{CniError, Code};

/// The most that is read: a config, with every container of a host in it.
const CONFIG_MAX: u64 = 8 << 20;

/// Whether a runtime calls this program: with its wishes in the environment, and without arguments,
/// whatever the name is that it found the program by.
pub fn is_called() -> bool {
    process::args_os().len() == 1 && process::var_os("CNI_COMMAND").is_some()
}

/// Does what the runtime wants. `run_dir`: the agent's, where the config does not say.
pub fn main(run_dir: &Path) -> ExitCode {
    let mut version = LATEST.to_owned();
    let (answer, code) = match run(run_dir, &mut version) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(e) => (Some(e.json(&version)), ExitCode::FAILURE),
    };
    // A runtime that does not listen any more does not need it.
    let _ = answer.map(|answer| writeln!(io::stdout(), "{answer}"));
    code
}

fn run(run_dir: &Path, version: &mut String) -> Result<Option<Value>, CniError> {
    let call = Call::read(|name| process::var(name).ok())?;
    if call.command == Command::Version {
        return Ok(Some(json!({"cniVersion": LATEST, "supportedVersions": VERSIONS})));
    }
    let mut bytes = Vec::new();
    io::stdin().lock().take(CONFIG_MAX).read_to_end(&mut bytes).map_err(|e| {
        CniError::new(Code::Io, "the network config on stdin does not arrive").with(e.to_string())
    })?;
    let conf = Conf::read(&bytes)?;
    version.clone_from(&conf.cni_version);
    if matches!(call.command, Command::Gc | Command::Status) && conf.cni_version != LATEST {
        let what = format!("{:?} is not in version {} of CNI", call.command, conf.cni_version);
        return Err(CniError::new(Code::Version, what).with(format!("it is since {LATEST}")));
    }
    // What is wrong with a config is no reason to keep what was attached.
    if !matches!(call.command, Command::Del | Command::Gc) {
        conf.check(&bytes)?;
    }
    let run_dir = conf.run_dir.as_deref().unwrap_or(run_dir);
    match call.command {
        Command::Add => return verbs::add(&call, &conf, run_dir).map(Some),
        Command::Del => verbs::del(&call, run_dir)?,
        Command::Check => verbs::check(&call, &conf, run_dir)?,
        Command::Gc => verbs::gc(&conf, run_dir)?,
        Command::Status => verbs::status(&conf, run_dir)?,
        Command::Version => {}
    }
    Ok(None)
}
