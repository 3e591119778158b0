//! From text to TOML tables, past as many syntax faults as there are.
//!
//! The parser goes on after a fault, but one missing bracket may swallow all that follows. So a
//! file with faults is cut at its `[headers]`, and each section is parsed by itself.

use std::ops::Range;

use toml::de::{DeTable, Error};

use super::text::{Findings, Place};
use crate::near::nearest;

/// Tables at the top of the file.
pub(super) const TABLES: [&str; 6] = ["attach", "cluster", "docker", "link", "network", "node"];
/// Further syntax faults are counted only: such a file is something else than TOML.
const MAX_FAULTS: usize = 1000;

/// What the parser says of a value without quotes.
const BARE: [&str; 4] = ["invalid float", "invalid integer", "invalid date", "invalid time"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The whole file, or what stands above the first header.
    Root,
    Cluster,
    Attach,
    Docker,
    Link,
    Network,
    Node,
    /// `[node.subnets]` of the node above.
    Subnets,
    Unknown,
}

pub(super) struct Section<'t> {
    pub kind: Kind,
    /// Its header's, with the header's name as the file has it.
    pub place: Place,
    /// In double brackets.
    pub is_list: bool,
    pub body: DeTable<'t>,
    /// Offset in the file of the text that spans in `body` count from.
    pub base: usize,
    /// No syntax fault is in it, so what is missing is missing.
    pub is_whole: bool,
}

/// The parser gives up at a line like `mtu 1400`. Reports such lines, and returns the text with
/// blanks in their place.
pub(super) fn mend(text: &str, findings: &mut Findings<'_>) -> String {
    let mut mended = text.to_owned();
    for piece in cut(text) {
        let body = &text[piece.body()];
        let (_, mut errors) = DeTable::parse_recoverable(body);
        errors.retain(|e| e.message().starts_with("key with no value"));
        report(&errors, body, piece.header.end, &piece.key, findings);
        for at in errors.iter().map(|e| piece.header.end + offset(e, body)) {
            let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
            let end = text[at..].find('\n').map_or(text.len(), |i| at + i);
            mended.replace_range(start..end, &" ".repeat(end - start));
        }
    }
    mended
}

/// The whole of a sound file.
pub(super) fn whole(body: DeTable<'_>) -> Section<'_> {
    Section {
        kind: Kind::Root,
        place: Place::new(0, ""),
        is_list: false,
        body,
        base: 0,
        is_whole: true,
    }
}

/// The tables of a file that is not sound, each parsed by itself.
pub(super) fn sections<'t>(text: &'t str, findings: &mut Findings<'_>) -> Vec<Section<'t>> {
    cut(text).into_iter().map(|piece| section(text, piece, findings)).collect()
}

/// A header, the lines below it, and what they are.
struct Piece {
    kind: Kind,
    key: String,
    header: Range<usize>,
    end: usize,
}

impl Piece {
    fn body(&self) -> Range<usize> {
        self.header.end..self.end
    }
}

fn cut(text: &str) -> Vec<Piece> {
    let root = Piece { kind: Kind::Root, key: String::new(), header: 0..0, end: text.len() };
    let mut pieces = vec![root];
    let (mut nodes, mut networks, mut links) = (0, 0, 0);
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let header = start..start + line.len();
        start = header.end;
        let Some(name) = header_name(line) else { continue };
        let (kind, key) = match nearest(name, TABLES) {
            _ if name == "node.subnets" => {
                (Kind::Subnets, format!("node[{}].subnets", nodes.max(1) - 1))
            }
            Some("cluster") => (Kind::Cluster, "cluster".to_owned()),
            Some("attach") => (Kind::Attach, "attach".to_owned()),
            Some("docker") => (Kind::Docker, "docker".to_owned()),
            Some("link") => {
                links += 1;
                (Kind::Link, format!("link[{}]", links - 1))
            }
            Some("node") => {
                nodes += 1;
                (Kind::Node, format!("node[{}]", nodes - 1))
            }
            Some("network") => {
                networks += 1;
                (Kind::Network, format!("network[{}]", networks - 1))
            }
            _ => (Kind::Unknown, join("", name)),
        };
        if let Some(last) = pieces.last_mut() {
            last.end = header.start;
        }
        pieces.push(Piece { kind, key, header, end: text.len() });
    }
    pieces
}

/// What a line like `[name]` names, however many brackets there are.
fn header_name(line: &str) -> Option<&str> {
    let name = line.trim_start().strip_prefix('[')?.trim_start_matches(['[', ' ', '\t']);
    let name = name.split([']', '#', '\n', '\r']).next()?.trim();
    name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(name)
}

fn section<'t>(text: &'t str, piece: Piece, findings: &mut Findings<'_>) -> Section<'t> {
    let (line, body) = (&text[piece.header.clone()], &text[piece.body()]);
    let offset = piece.header.end - line.trim_start().len();
    if let Some(name) = header_name(line)
        && piece.kind != Kind::Subnets
        && !TABLES.contains(&name)
    {
        findings.add(&Place::new(offset, join("", name)), unknown(name, TABLES));
    }
    let (_, errors) = DeTable::parse_recoverable(line);
    report(&errors, line, piece.header.start, &piece.key, findings);
    let (table, errors) = DeTable::parse_recoverable(body);
    report(&errors, body, piece.header.end, &piece.key, findings);
    Section {
        kind: piece.kind,
        is_list: line.trim_start().starts_with("[["),
        body: table.into_inner(),
        base: piece.header.end,
        is_whole: !findings.has_broken(piece.header.start..piece.end),
        place: Place::new(offset, piece.key),
    }
}

/// What to say of a key that means nothing.
pub(super) fn unknown<const N: usize>(key: &str, known: [&str; N]) -> String {
    match nearest(key, known) {
        Some(near) => format!("unknown key {key:?}: did you mean {near:?}?"),
        None => format!("unknown key {key:?}: known here are {}", known.join(", ")),
    }
}

/// A key of the table `path`, in quotes if it is not a bare one.
pub(super) fn join(path: &str, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let dot = if path.is_empty() { "" } else { "." };
    if !key.is_empty() && key.chars().all(is_bare) {
        format!("{path}{dot}{key}")
    } else {
        format!("{path}{dot}{key:?}")
    }
}

/// `text` stands at `base` in the file and belongs to the table `path`.
pub(super) fn report(
    errors: &[Error],
    text: &str,
    base: usize,
    path: &str,
    findings: &mut Findings<'_>,
) {
    for error in errors.iter().take(MAX_FAULTS) {
        let offset = offset(error, text);
        let key = match (path, key_before(text, offset)) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        let message = match error.message() {
            "duplicate key" => "it is given twice: keep one".to_owned(),
            "string values must be quoted, expected literal string" => {
                "no value: a string needs quotes around it, a number only digits".to_owned()
            }
            other if BARE.iter().any(|bare| other.starts_with(bare)) => {
                format!("not TOML: {other} (a string, such as an address, needs quotes)")
            }
            other => format!("not TOML: {other}"),
        };
        findings.add_syntax(Place::new(base + offset, key), message);
    }
    if let Some(error) = errors.get(MAX_FAULTS) {
        let offset = offset(error, text);
        let message = format!(
            "{} more places are not TOML: is this the right file?",
            errors.len() - MAX_FAULTS
        );
        findings.add_syntax(Place::new(base + offset, path), message);
    }
}

/// An error without a place is about the depth of nesting.
fn offset(error: &Error, text: &str) -> usize {
    error.span().map_or(0, |span| span.start.min(text.len()))
}

/// The key that the place at `offset` probably belongs to: that of its line, or of a line before
/// if it stands in a list of several lines.
fn key_before(text: &str, offset: usize) -> &str {
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_.\"".contains(c);
    let end = text[offset..].find('\n').map_or(text.len(), |i| offset + i);
    let key = text[..end].rsplit('\n').map(str::trim_start).find_map(|line| {
        let after = line.trim_start_matches(is_key);
        let key = &line[..line.len() - after.len()];
        let is_bare = line.starts_with(|c: char| c.is_ascii_alphabetic());
        (is_bare || after.trim_start().starts_with('=')).then_some(key)
    });
    key.unwrap_or_default()
}
