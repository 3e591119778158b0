//! `mesh completions` and `mesh man`

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::{examples, file};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go; the folder is made if it is not there
    #[arg(value_parser = super::path::named())]
    pub folder: PathBuf,
}

pub fn completions(args: CompletionsArgs, mut command: Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mesh", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(args: ManArgs, mut command: Command) -> anyhow::Result<ExitCode> {
    let what = || format!("writing man pages to {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(what)?;
    // Pages of the help of each verb say no more than the verb's.
    command = command.disable_help_subcommand(true);
    command.build();
    pages(&command, &[], &args.folder).with_context(what)?;
    Ok(ExitCode::SUCCESS)
}

/// The pages of a verb and of all below it. `verb` is as in `["cni", "install"]`.
fn pages(command: &Command, verb: &[&str], folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands() {
        pages(below, &[verb, &[below.get_name()]].concat(), folder)?;
    }
    let page = Man::new(command.clone());
    file::replace(&folder.join(page.get_filename()), &render(&page, command, verb)?)
}

/// As [`Man::render`], with examples.
fn render(page: &Man, command: &Command, verb: &[&str]) -> io::Result<String> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXAMPLES"]);
    for (what, line) in examples::of(verb) {
        roff.control("TP", []).text([bold(*line)]).text([roman(*what)]);
    }
    roff.to_writer(&mut text)?;
    page.render_version_section(&mut text)?;
    String::from_utf8(text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn each_page_has_examples_before_the_version() {
        let folder = std::env::temp_dir().join(format!("mesh-man-{}", std::process::id()));
        man(ManArgs { folder: folder.clone() }, crate::cli::command()).unwrap();
        let pages: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
        let texts: Vec<_> =
            pages.iter().map(|page| std::fs::read_to_string(page.path()).unwrap()).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        let verbs = crate::cli::Cli::command().get_subcommands().count();
        assert!(texts.len() > verbs, "{pages:?}");
        for text in texts {
            let (_, examples) = text.split_once(".SH EXAMPLES\n").unwrap();
            let (examples, _) = examples.split_once(".SH VERSION").unwrap();
            assert!(examples.contains(".TP\n\\fBmesh "), "{text}");
            assert!(!text.contains("EXTRA"), "{text}");
        }
    }
}
