//! The commands of the README, which CI runs as they stand there.
//!
//! A fenced block is run if its first line says "sh ci"; what needs two real hosts says "sh".

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{exec::run, toolchain::workspace};

const FENCE: &str = "```";
const MARK: &str = "```sh ci";

#[derive(Debug, PartialEq)]
pub struct Block {
    /// Of its opening fence, from 1.
    pub line: usize,
    commands: String,
}

/// The marked blocks, in the order of the file; an error if there is none.
pub fn blocks() -> Result<Vec<Block>> {
    let text = fs::read_to_string(workspace().join("README.md")).context("README.md")?;
    let blocks = parse(&text);
    if blocks.is_empty() {
        bail!("README.md has no block that starts with {MARK}, so its commands are not tested");
    }
    Ok(blocks)
}

impl Block {
    pub fn run(&self) -> Result<()> {
        let mut bash = Command::new("bash");
        run(bash.args(["-euxo", "pipefail", "-c", &self.commands]).current_dir(workspace()))
    }
}

fn parse(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((opening, line)) = lines.find(|(text, _)| text.starts_with(FENCE)) {
        let body = lines.by_ref().map(|(text, _)| text).take_while(|text| *text != FENCE);
        let commands = body.collect::<Vec<_>>().join("\n");
        if opening == MARK {
            blocks.push(Block { line, commands });
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_blocks_are_run() {
        let text = "# mesh\n```sh\nnot me\n```\n```sh ci\na\nb\n```\n```toml\n[x]\n```\n```sh ci\nc\n```\n";
        let expected = [(5, "a\nb"), (12, "c")].map(|(line, c)| Block { line, commands: c.into() });
        assert_eq!(parse(text), expected);
    }
}
