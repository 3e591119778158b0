//! The file as text: its encoding, its lines, and the faults found in it so far.

use std::{cell::OnceCell, collections::BTreeSet, ops::Range};

use super::fault::{Fault, Faults};

/// Where in the file a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In bytes from the beginning.
    pub offset: usize,
    /// As in [`Fault::key`].
    pub key: String,
}

impl Place {
    pub fn new(offset: usize, key: impl Into<String>) -> Self {
        Self { offset, key: key.into() }
    }
}

/// A value, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At<T> {
    pub value: T,
    pub place: Place,
}

/// The lines of the file and what was found wrong in them.
pub(super) struct Findings<'a> {
    text: &'a str,
    /// Offset of the first byte of each line, counted once there is something to say of one.
    starts: OnceCell<Vec<usize>>,
    found: Vec<(Place, String)>,
    /// Lines that are no TOML: what was made of the rest of such a line is a guess.
    broken: BTreeSet<usize>,
}

impl<'a> Findings<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, starts: OnceCell::new(), found: Vec::new(), broken: BTreeSet::new() }
    }

    fn starts(&self) -> &[usize] {
        self.starts.get_or_init(|| {
            let ends = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0).chain(ends.map(|(i, _)| i + 1)).collect()
        })
    }

    /// Line of a byte, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.starts().partition_point(|start| *start <= offset)
    }

    pub fn add(&mut self, place: &Place, message: impl Into<String>) {
        if !self.broken.contains(&self.line(place.offset)) {
            self.found.push((place.clone(), message.into()));
        }
    }

    /// A fault of the syntax. The values of its line are read as well as can be, but nothing more
    /// is said about them.
    pub fn add_syntax(&mut self, place: Place, message: impl Into<String>) {
        self.broken.insert(self.line(place.offset));
        self.found.push((place, message.into()));
    }

    /// A fault of the syntax is in these bytes.
    pub fn has_broken(&self, bytes: Range<usize>) -> bool {
        let last = self.line(bytes.end.saturating_sub(1).max(bytes.start));
        self.broken.range(self.line(bytes.start)..=last).next().is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Line and column of an offset, from 1.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let before = self.text.get(self.starts()[line - 1]..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// All of them in the order of their places.
    pub fn finish(mut self) -> Faults {
        self.found.sort_by_key(|(place, _)| place.offset);
        self.found.dedup();
        // Columns are counted on from the fault before: a file may be one long line.
        let (mut line, mut column, mut offset) = (0, 1, 0);
        let mut faults = Vec::with_capacity(self.found.len());
        for (place, message) in std::mem::take(&mut self.found) {
            let here = self.line(place.offset);
            if here != line {
                (line, column, offset) = (here, 1, self.starts()[here - 1]);
            }
            column += self.text.get(offset..place.offset).unwrap_or_default().chars().count();
            offset = place.offset;
            faults.push(Fault { line, column, key: place.key, message });
        }
        Faults(faults)
    }
}

/// A file's bytes as text.
pub(super) struct Decoded {
    /// Without byte order mark; each byte that is not UTF-8 is a `?`, so that what else is wrong is
    /// found too.
    pub text: String,
    /// The first such byte of each run: offset in the text, and its fault.
    pub faults: Vec<(usize, String)>,
}

pub(super) fn decode(bytes: &[u8]) -> Result<Decoded, Fault> {
    if let Some(zero) = bytes.iter().position(|b| *b == 0) {
        return Err(binary(bytes, zero));
    }
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut text = String::with_capacity(body.len());
    let mut faults = Vec::new();
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        let Some(bad) = chunk.invalid().first() else { continue };
        let at = text.len() + bytes.len() - body.len();
        let message = format!("byte {at} is {bad:#04x}, not UTF-8: save the file as UTF-8");
        faults.push((text.len(), message));
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    Ok(Decoded { text, faults })
}

fn binary(bytes: &[u8], zero: usize) -> Fault {
    let before = &bytes[..zero];
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let message = if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        "the file is UTF-16: save it as UTF-8".into()
    } else {
        format!("the file is binary: byte {zero} is 0, and a config file is TOML, text in UTF-8")
    };
    Fault {
        line: before.iter().filter(|b| **b == b'\n').count() + 1,
        column: String::from_utf8_lossy(&before[start..]).chars().count() + 1,
        key: String::new(),
        message,
    }
}
