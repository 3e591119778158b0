//! Examples of each verb, for `--help` and the man pages.

use clap::Command;

/// The verb, then a comment and a command line each.
type Examples = (&'static [&'static str], &'static [(&'static str, &'static str)]);

const EXAMPLES: &[Examples] = &[
    (
        &[],
        &[
            (
                "Write the config file of two hosts, on each of them",
                "mesh init 192.0.2.11 192.0.2.12",
            ),
            ("Then run the agent, also on each", "mesh up"),
            ("Connect the namespace `web`", "mesh attach web"),
        ],
    ),
    (
        &["init"],
        &[
            ("The config file of two hosts, the same on both", "mesh init 192.0.2.11 192.0.2.12"),
            ("With names, to look at first", "mesh init a=192.0.2.11 b=192.0.2.12 --file -"),
        ],
    ),
    (
        &["up"],
        &[
            ("As /etc/mesh/cluster.toml says, until Ctrl-C or `mesh down`", "mesh up"),
            ("Another file, and say which node this is", "mesh up --config m.toml --node h1"),
            ("For a log collector", "mesh up --log-format json --log-level debug"),
        ],
    ),
    (
        &["down"],
        &[
            ("End the agent and take everything away but the state folder", "mesh down"),
            ("That folder too: this host is to leave the mesh for good", "mesh down --forget"),
        ],
    ),
    (
        &["attach"],
        &[
            ("A namespace of `ip netns`", "mesh attach web"),
            ("That of process 4711, with an address", "mesh attach 4711 --name db --ip 10.42.0.9"),
            ("Another network than the cluster's own", "mesh attach web --network blue --json"),
        ],
    ),
    (&["detach"], &[("The endpoint `web`", "mesh detach web")]),
    (
        &["status"],
        &[
            ("Everything, for people", "mesh status"),
            ("What is wrong, for a script", "mesh status --check"),
            ("From an agent with another run folder", "mesh --run-dir /run/mesh2 status --json"),
        ],
    ),
    (
        &["check"],
        &[
            ("All faults of a file at once", "mesh check --config cluster.toml"),
            ("Faults of a file that a program makes, on stdin", "mesh check --config - --json"),
            ("What to type on node `old`", "mesh check --peer-commands old"),
        ],
    ),
    (
        &["doctor"],
        &[
            ("What this host can do, and what to mend", "mesh doctor"),
            ("With what that config file needs", "mesh doctor --config cluster.toml"),
        ],
    ),
    (&["docker"], &[("What would change in daemon.json", "mesh docker configure --dry-run")]),
    (
        &["docker", "configure"],
        &[
            ("What would change in daemon.json", "mesh docker configure --dry-run"),
            ("Change it, and restart Docker if need be", "mesh docker configure --restart"),
        ],
    ),
    (&["cni"], &[("For podman and containerd on this host", "mesh cni install")]),
    (
        &["cni", "install"],
        &[
            ("For podman and containerd on this host", "mesh cni install"),
            ("One more network, to look at first", "mesh cni install --network blue --dry-run"),
        ],
    ),
    (&["cni", "uninstall"], &[("What would be removed", "mesh cni uninstall --dry-run")]),
    (
        &["completions"],
        &[(
            "For bash: save it as /usr/share/bash-completion/completions/mesh",
            "mesh completions bash",
        )],
    ),
    (&["man"], &[("Into a folder where man looks", "mesh man /usr/local/share/man/man1")]),
];

/// Those of one verb, as in `["cni", "install"]`; none for another.
pub fn of(verb: &[&str]) -> &'static [(&'static str, &'static str)] {
    EXAMPLES.iter().find(|(of, _)| *of == verb).map_or(&[], |(_, examples)| examples)
}

/// The command line with the examples of each verb at the end of its help.
pub fn add(command: Command) -> Command {
    add_below(command, &[])
}

fn add_below(command: Command, verb: &[&str]) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let command = names.iter().fold(command, |command, name| {
        let verb = [verb, &[name]].concat();
        command.mut_subcommand(name, |below| add_below(below, &verb))
    });
    match of(verb) {
        [] => command,
        examples => command.after_help(text(examples)),
    }
}

fn text(examples: &[(&str, &str)]) -> String {
    let lines: Vec<_> =
        examples.iter().map(|(what, line)| format!("  {line}\n      {what}")).collect();
    format!("Examples:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{super::Cli, *};

    /// All verbs, as in `["cni", "install"]`, and the empty one.
    fn verbs(command: &Command, verb: &[String]) -> Vec<Vec<String>> {
        let below = command.get_subcommands();
        let below = below.flat_map(|c| verbs(c, &[verb, &[c.get_name().to_owned()]].concat()));
        [verb.to_owned()].into_iter().chain(below).collect()
    }

    #[test]
    fn each_verb_has_examples_of_itself_that_parse() {
        let verbs = verbs(&Cli::command(), &[]);
        for verb in &verbs {
            let verb: Vec<&str> = verb.iter().map(String::as_str).collect();
            assert!(!of(&verb).is_empty(), "{verb:?} has no example");
            for (_, line) in of(&verb) {
                let parsed = Cli::try_parse_from(line.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                let mut words = line.split_whitespace();
                assert!(verb.iter().all(|name| words.any(|word| word == *name)), "{line}");
            }
        }
        let known = |of: &[&str]| verbs.iter().any(|verb| *verb == *of);
        assert!(EXAMPLES.iter().all(|(of, _)| known(of)), "an example is of no verb");
    }

    #[test]
    fn help_ends_with_the_examples() {
        let help = add(Cli::command()).try_get_matches_from(["mesh", "cni", "install", "-h"]);
        let help = help.unwrap_err().to_string();
        let (_, examples) = help.split_once("\nExamples:\n").unwrap();
        assert!(examples.contains("mesh cni install --network blue --dry-run"), "{help}");
    }
}
