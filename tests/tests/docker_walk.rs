//! The walk-through of the README, on hosts that have never heard of mesh.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    docker::{Docker, newcomers},
    wait,
};

const README: &str = include_str!("../../README.md");
/// What is told from host to host comes in milliseconds, where nothing else has the processors.
const SEEN: Duration = Duration::from_secs(60);

/// The lines of the first block of this kind below a heading.
fn block<'a>(heading: &str, kind: &str) -> Result<Vec<&'a str>> {
    let fence = format!("```{kind}");
    let below = README.lines().skip_while(|line| *line != heading).skip(1);
    let lines: Vec<_> = below.skip_while(|line| *line != fence).skip(1).collect();
    let end = lines.iter().position(|line| *line == "```").context("a block that ends")?;
    Ok(lines[..end].to_vec())
}

/// Without what differs each time: ids.
fn plain(text: &str) -> String {
    let is_id = |word: &str| word.len() >= 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let plain = |word: &str| if is_id(word) { "ID".to_owned() } else { word.to_owned() };
    let line = |line: &str| line.split_whitespace().map(plain).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// What a line prints; an error if it fails.
fn run(docker: &mut Docker, at: usize, line: &str) -> Result<String> {
    let output = docker.type_in(at, line)?;
    let (out, err) = (&output.stdout, &output.stderr);
    let said = String::from_utf8_lossy(out).into_owned();
    ensure!(output.status.success(), "h{}# {line}\n{said}{}", at + 1, String::from_utf8_lossy(err));
    Ok(said)
}

#[test]
fn three_commands_on_each_host_lead_from_nothing_to_a_name_on_another() {
    let commands = block("## Docker", "sh").unwrap();
    assert_eq!(commands.len(), 3, "{commands:?}");
    let session = block("## Docker", "console").unwrap();
    newcomers(2, |docker| {
        for command in commands {
            for at in 0..2 {
                run(docker, at, command.split(" #").next().unwrap_or_default().trim_end())?;
            }
        }
        let mut lines = session.into_iter().peekable();
        while let Some(line) = lines.next() {
            let (host, command) = line.split_once("# ").context("a command")?;
            let at = host.trim_start_matches('h').parse::<usize>()? - 1;
            let is_output = |line: &&str| !line.starts_with('h') || *line == "hello";
            let mut expected = String::new();
            while let Some(line) = lines.next_if(is_output) {
                expected += line;
                expected.push('\n');
            }
            // Of those that only look, the first look may come too early.
            let is_a_look = !command.contains(" create ") && !command.contains(" -d ");
            let look = || match run(docker, at, command) {
                Ok(said) if plain(&said) == plain(&expected) => Ok(Ok(())),
                Ok(said) => Err(format!("{said}\nand not\n{expected}")),
                Err(e) if is_a_look => Err(format!("{e:#}")),
                Err(e) => Ok(Err(e)),
            };
            wait::until(command, SEEN, look)??;
        }
        // A second time they find nothing to do.
        for (command, says) in [
            ("mesh init 192.0.2.11 192.0.2.12", "is there already, the same"),
            ("mesh docker configure --restart", "nothing to do"),
        ] {
            let said = run(docker, 0, command)?;
            ensure!(said.contains(says), "{command}: {said}");
        }
        let said = docker.type_in(0, "mesh init 192.0.2.11")?;
        ensure!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("move"));
        Ok(())
    });
}
