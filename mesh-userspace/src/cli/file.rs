//! Config files of others, changed so that a person sees what changes.

use std::{fs, io, path::Path};

use crate::durable::beside;

/// Nothing, if there is no such file.
pub fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        done => done,
    }
}

/// A comma more, since another line follows, is no difference.
fn plain(line: &str) -> &str {
    line.trim_end().trim_end_matches(',')
}

/// The lines that go and those that come.
pub fn difference(before: &str, after: &str) -> String {
    let missing = |sign: char, lines: &str, other: &str| -> String {
        let others: Vec<&str> = other.lines().map(plain).collect();
        let only = lines.lines().filter(|line| !others.contains(&plain(line)));
        only.map(|line| format!("{sign} {line}\n")).collect()
    };
    missing('-', before, after) + &missing('+', after, before)
}

/// Writes a file, and its folder if need be, so that a reader finds either the old or the new.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let next = beside(path, ".next");
    fs::write(&next, text)?;
    fs::rename(next, path)
}
