//! From text to TOML tables, past as many syntax faults as there are.
//!
//! The parser goes on after a fault, but one missing bracket may swallow all that follows. So a
//! file with faults is cut at its `[headers]`, and each section is parsed by itself.

use toml::de::{DeTable, Error};

use super::{
    text::{Findings, Place},
    value::nearest,
};

/// Tables at the top of the file.
pub(super) const TABLES: [&str; 3] = ["cluster", "network", "node"];
/// Further syntax faults are counted only: such a file is something else than TOML.
const MAX_FAULTS: usize = 1000;

/// What the parser says of a value without quotes.
const BARE: [&str; 4] = ["invalid float", "invalid integer", "invalid date", "invalid time"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The whole file, or what stands above the first header.
    Root,
    Cluster,
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

/// The file's tables: one section with everything if the file is sound. Otherwise the errors that
/// the parser found in the whole are returned too, for what does not show in any one section.
pub(super) fn sections<'t>(
    text: &'t str,
    findings: &mut Findings<'_>,
) -> (Vec<Section<'t>>, Vec<Error>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let whole = Section {
            kind: Kind::Root,
            place: Place::new(0, ""),
            is_list: false,
            body: document.into_inner(),
            base: 0,
            is_whole: true,
        };
        return (vec![whole], errors);
    }
    (cut(text, findings), errors)
}

fn cut<'t>(text: &'t str, findings: &mut Findings<'_>) -> Vec<Section<'t>> {
    let mut sections = Vec::new();
    let mut counts = (0, 0);
    let mut header = (0, 0);
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if is_header(line) {
            sections.push(section(text, header, offset, &mut counts, findings));
            header = (offset, offset + line.len());
        }
        offset += line.len();
    }
    sections.push(section(text, header, offset, &mut counts, findings));
    sections
}

fn is_header(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with('[')
        && line.trim_start_matches(['[', ' ', '\t']).starts_with(|c: char| c.is_ascii_alphabetic())
}

/// `header`: where its line begins and ends. `counts`: of nodes and networks so far.
fn section<'t>(
    text: &'t str,
    header: (usize, usize),
    end: usize,
    counts: &mut (usize, usize),
    findings: &mut Findings<'_>,
) -> Section<'t> {
    let (line, body) = (&text[header.0..header.1], &text[header.1..end]);
    let trimmed = line.trim_start();
    let offset = header.1 - trimmed.len();
    let name = trimmed.trim_start_matches('[').split([']', '#', '\n', '\r']).next();
    let (kind, key) = kind(name.unwrap_or_default().trim(), offset, counts, findings);
    let (_, header_errors) = DeTable::parse_recoverable(line);
    report(&header_errors, line, header.0, &key, findings);
    let (table, body_errors) = DeTable::parse_recoverable(body);
    report(&body_errors, body, header.1, &key, findings);
    Section {
        kind,
        place: Place::new(offset, key),
        is_list: trimmed.starts_with("[["),
        body: table.into_inner(),
        base: header.1,
        is_whole: header_errors.is_empty() && body_errors.is_empty(),
    }
}

/// What a header's name means, and the key of its table.
fn kind(
    name: &str,
    offset: usize,
    counts: &mut (usize, usize),
    findings: &mut Findings<'_>,
) -> (Kind, String) {
    if name.is_empty() {
        return (Kind::Root, String::new());
    }
    let (nodes, networks) = (counts.0, counts.1);
    if name == "node.subnets" {
        return (Kind::Subnets, format!("node[{}].subnets", nodes.saturating_sub(1)));
    }
    if !TABLES.contains(&name) {
        findings.add(&Place::new(offset, join("", name)), unknown(name, TABLES));
    }
    match nearest(name, TABLES) {
        Some("cluster") => (Kind::Cluster, "cluster".to_owned()),
        Some("node") => {
            counts.0 += 1;
            (Kind::Node, format!("node[{nodes}]"))
        }
        Some("network") => {
            counts.1 += 1;
            (Kind::Network, format!("network[{networks}]"))
        }
        _ => (Kind::Unknown, join("", name)),
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
        // An error without a place is about the depth of nesting.
        let offset = error.span().map_or(0, |span| span.start.min(text.len()));
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
        let offset = error.span().map_or(0, |span| span.start.min(text.len()));
        let message = format!(
            "{} more places are not TOML: is this the right file?",
            errors.len() - MAX_FAULTS
        );
        findings.add_syntax(Place::new(base + offset, path), message);
    }
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
