//! `mesh completions` and `mesh man`

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

use super::{examples, file};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that is to read it
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
    std::fs::create_dir_all(&args.folder).map_err(file::failed(&args.folder))?;
    // Pages of the help of each verb say no more than the verb's.
    command = command.disable_help_subcommand(true);
    command.build();
    pages(&command, &[], &args.folder).map_err(file::failed(&args.folder))?;
    Ok(ExitCode::SUCCESS)
}

/// The pages of a verb and of all below it. `verb` is as in `["cni", "install"]`.
fn pages(command: &Command, verb: &[&str], folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands() {
        pages(below, &[verb, &[below.get_name()]].concat(), folder)?;
    }
    let version = concat!("mesh ", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).source(version).manual("mesh");
    file::replace(&folder.join(page.get_filename()), &render(&page, command, verb)?)
}

/// As `mesh` exits, unless a command says otherwise.
const EXIT: [(&str, &str); 3] = [
    ("0", "It is done, or shown."),
    ("1", "It failed: stderr says why and what to do, with --json stdout too."),
    ("2", "The arguments make no sense."),
];
const EXIT_OF_CHECK: [(&str, &str); 2] = [
    ("3", "With --check: something is wrong."),
    ("4", "With --check: no agent runs, or it does not answer."),
];

/// What is read from the environment besides the variables that options name.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("RUST_LOG", "What is logged where --log-level is not given, in the same words."),
    (
        "MESH_LOCK_DIR",
        "Folder of the lock by which a network namespace has one mesh: /run/mesh-locks, or another for \
         several machines that share one /run.",
    ),
    ("NO_COLOR", "If not empty: nothing is coloured."),
    ("COLUMNS", "Width of what `mesh doctor` prints."),
];

/// The options that may be given by a variable of the environment, and the rest of those.
fn environment(command: &Command) -> Vec<(String, String)> {
    let of_option = |arg: &clap::Arg| {
        let name = arg.get_env()?.to_string_lossy().into_owned();
        Some((name, format!("The same as --{}.", arg.get_long()?)))
    };
    let rest = ENVIRONMENT.map(|(name, what)| (name.to_owned(), what.to_owned()));
    command.get_arguments().filter_map(of_option).chain(rest).collect()
}

fn terms(roff: &mut Roff, title: &str, terms: &[(impl AsRef<str>, impl AsRef<str>)]) {
    roff.control("SH", [title]);
    for (term, what) in terms {
        roff.control("TP", []).text([bold(term.as_ref())]).text([roman(what.as_ref())]);
    }
}

/// As [`Man::render`], with exit status, environment and examples.
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
    let of_check = if *verb == ["status"] { &EXIT_OF_CHECK[..] } else { &[] };
    terms(&mut roff, "EXIT STATUS", &[&EXIT[..], of_check].concat());
    terms(&mut roff, "ENVIRONMENT", &environment(command));
    let lines = examples::of(verb).iter().map(|(what, line)| (*line, *what));
    terms(&mut roff, "EXAMPLES", &lines.collect::<Vec<_>>());
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
            let footer = concat!("\"mesh ", env!("CARGO_PKG_VERSION"), "\"");
            let title = text.lines().find(|line| line.starts_with(".TH ")).unwrap();
            assert!(title.contains(footer), "{title}");
            let (_, exit) = text.split_once(".SH \"EXIT STATUS\"\n").unwrap();
            let (exit, environment) = exit.split_once(".SH ENVIRONMENT\n").unwrap();
            assert_eq!(exit.contains("\\fB4\\fR"), title.contains("mesh-status"), "{title}");
            for name in ["MESH_RUN_DIR", "MESH_LOG_FORMAT", "RUST_LOG", "MESH_LOCK_DIR"] {
                assert!(environment.contains(&format!("\\fB{name}\\fR\n")), "{name}: {text}");
            }
        }
    }
}
