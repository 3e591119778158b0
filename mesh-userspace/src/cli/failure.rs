//! How a command says that it failed: to people on stderr, with `--json` to programs on stdout too.

use std::{io, process::ExitCode};

use serde::Serialize;

use super::{log, print_json};

#[derive(Serialize)]
struct Report {
    error: Failure,
}

#[derive(Serialize)]
struct Failure {
    /// All that stderr says.
    message: String,
    /// What lies below it, the nearest first.
    causes: Vec<String>,
}

impl From<&anyhow::Error> for Report {
    fn from(error: &anyhow::Error) -> Self {
        let causes = error.chain().skip(1).map(ToString::to_string).collect();
        Self { error: Failure { message: chain(error), causes } }
    }
}

/// Says why a command failed. Returns its exit status.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    // A reader that has seen enough, as `head`, is no error.
    if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let report = Report::from(error);
    log::error(&report.error.message);
    // Who does not read it is told by the exit status.
    if json && let Err(e) = print_json(&report) {
        log::error(&format!("writing to stdout: {e}"));
    }
    ExitCode::FAILURE
}

/// An error and its causes, but for those that it names itself, perhaps with a hint behind them.
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context;

    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let path = Path::new("/no-such-file");
        let read = crate::config::read(path).map(drop);
        let cause = "No such file or directory (os error 2)";
        let hint = "(write it with `mesh init`, or give its path with --config)";
        let text = chain(&read.context("the mesh").unwrap_err());
        assert_eq!(text, format!("the mesh: can not read /no-such-file: {cause} {hint}"));
        // One that the error does not name is said behind it.
        let read = std::fs::read(path).map(drop).context("the mesh");
        assert_eq!(chain(&read.unwrap_err()), format!("the mesh: {cause}"));
    }

    #[test]
    fn json_has_the_whole_message_and_each_cause() {
        let read = std::fs::read("/no-such-file").map(drop).context("reading").context("the mesh");
        let json = serde_json::to_value(Report::from(&read.unwrap_err())).unwrap();
        let cause = "No such file or directory (os error 2)";
        let expected = serde_json::json!({"error": {
            "message": format!("the mesh: reading: {cause}"), "causes": ["reading", cause],
        }});
        assert_eq!(json, expected);
    }
}
