//! Messages on stderr: which, and in what form.

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};

use clap::{Args, ValueEnum};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{EnvFilter, filter::Directive};

#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How much is logged to stderr: error, warn, info, debug, trace or off; for one part of mesh
    /// apart, as in `info,mesh_userspace::peers=debug` [default: $RUST_LOG, else info]
    #[arg(long, global = true, help_heading = super::GLOBAL, value_name = "LEVEL", value_parser = filter)]
    pub log_level: Option<String>,
    /// How log lines look: text for people, or json with one object a line
    #[arg(long, global = true, help_heading = super::GLOBAL)]
    #[arg(value_name = "FORMAT", default_value = "text")]
    #[arg(env = "MESH_LOG_FORMAT", hide_possible_values = true)]
    pub log_format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// How this process logs.
static FORMAT: OnceLock<Format> = OnceLock::new();

/// What `EnvFilter` understands, but for a word that is no level: it would be a module's name.
fn filter(text: &str) -> Result<String, String> {
    const LEVELS: &str = "write error, warn, info, debug, trace or off, or MODULE=LEVEL, or several \
                          with commas between them";
    for part in text.split(',') {
        let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
        if !is_level && (!part.contains('=') || part.parse::<Directive>().is_err()) {
            return Err(format!("{part:?} is no level: {LEVELS}"));
        }
    }
    Ok(text.to_owned())
}

/// From now on messages go to stderr.
pub fn start(args: &LogArgs) {
    let builder = EnvFilter::builder().with_default_directive(Level::INFO.into());
    let filter = match &args.log_level {
        Some(level) => builder.parse_lossy(level),
        None => builder.from_env_lossy(),
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match *FORMAT.get_or_init(|| args.log_format) {
        Format::Text => {
            log.with_target(false).with_ansi(io::stderr().is_terminal() && !plain).init();
        }
        Format::Json => log.json().flatten_event(true).init(),
    }
}

/// Says on stderr what a command failed of.
pub fn error(text: &str) {
    if is_json() {
        tracing::error!("{text}");
    } else {
        eprint!("{}", lines("mesh: ", text));
    }
}

/// Says on stderr what somebody should look at, though the command goes on.
pub fn warning(text: &str) {
    if is_json() {
        tracing::warn!("{text}");
    } else {
        eprint!("{}", lines("mesh: warning: ", text));
    }
}

/// Each line says whose it is, and of what kind.
fn lines(prefix: &str, text: &str) -> String {
    text.lines().map(|line| format!("{prefix}{line}\n")).collect()
}

fn is_json() -> bool {
    FORMAT.get() == Some(&Format::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_prefix() {
        assert_eq!(lines("mesh: warning: ", "a\nb"), "mesh: warning: a\nmesh: warning: b\n");
    }

    #[test]
    fn a_level_is_one_that_there_is() {
        for good in ["debug", "OFF", "info,mesh_userspace::peers=trace", "mesh_userspace=off"] {
            assert_eq!(filter(good).unwrap(), good);
        }
        for bad in ["verbose", "", "info,", "mesh=loud", "mesh_userspace::peers"] {
            let error = filter(bad).unwrap_err();
            assert!(error.contains("no level"), "{bad}: {error}");
        }
    }
}
