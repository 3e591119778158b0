//! Paths as people give them. `-` is stdin or stdout where an argument says so, and else refused: a
//! file of that name is hardly ever what was meant.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use clap::builder::{PathBufValueParser, TypedValueParser as _};

/// Stdin, or stdout.
pub fn is_standard(path: &Path) -> bool {
    path.as_os_str() == OsStr::new("-")
}

/// Takes every path but `-`.
pub fn named() -> impl clap::builder::TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match is_standard(&path) {
        true => {
            Err("it must have a name, which stdin and stdout have not; write ./- for a file of \
                     that name")
        }
        false => Ok(path),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn stdin_and_stdout_are_refused_where_a_name_is_needed() {
        let parsed = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for line in [
            "mesh --run-dir - status",
            "mesh --pin-dir - status",
            "mesh --state-dir - status",
            "mesh up --config -",
            "mesh docker configure --file -",
            "mesh cni install --bin-dir -",
            "mesh cni uninstall --conf-dir -",
            "mesh man -",
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains("write ./- for a file"), "{line}: {error}");
            assert!(parsed(&line.replace(" -", " ./-").replace("./--", "--")).is_ok(), "{line}");
        }
        for line in ["mesh init 192.0.2.1 --file -", "mesh check --config -"] {
            assert!(parsed(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_is_empty_is_refused() {
        for args in [
            &["attach", ""][..],
            &["attach", "web", "--name", ""],
            &["attach", "web", "--network", ""],
            &["detach", ""],
            &["up", "--node", ""],
            &["up", "--config", ""],
            &["check", "--peer-commands", ""],
            &["cni", "install", "--network", ""],
            &["init", ""],
            &["--run-dir", "", "status"],
        ] {
            let error = Cli::try_parse_from(["mesh"].iter().chain(args)).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::InvalidValue, "{args:?}: {error}");
        }
    }
}
