//! What the README says of the code, held against the code.

use mesh_common::verdict::DropReason;

const README: &str = include_str!("../../README.md");

#[test]
fn every_drop_reason_is_in_the_readme_with_its_meaning() {
    for reason in DropReason::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.describe());
        assert!(README.contains(&row), "missing in README.md:\n{row}");
    }
    let rows = README.lines().skip_while(|l| !l.starts_with("| reason |")).skip(2);
    let rows = rows.take_while(|l| l.starts_with('|')).count();
    assert_eq!(rows, DropReason::ALL.len(), "README.md has a reason that is not there any more");
}

/// Others than these nobody has, unless he is told how to make them.
#[test]
fn containers_of_the_readme_are_of_images_that_everybody_can_have() {
    let runs = ["docker run ", "podman run ", "ctr run "];
    let is_run = |line: &&str| line.starts_with('h') && runs.iter().any(|run| line.contains(run));
    let lines: Vec<_> = README.lines().filter(is_run).collect();
    assert!(lines.len() > 5, "{lines:?}");
    for line in lines {
        let image = ["busybox", "docker.io/library/busybox", "docker.io/library/busybox:latest"];
        assert!(line.split(' ').any(|word| image.contains(&word)), "{line}");
    }
}

#[test]
fn the_example_of_the_readme_is_a_good_config_file() {
    let indented = |l: &str| l.strip_prefix("   ").unwrap_or(l).to_owned() + "\n";
    let lines = README.lines().skip_while(|l| l.trim() != "```toml").skip(1);
    let example: String = lines.take_while(|l| l.trim() != "```").map(indented).collect();
    let cluster = mesh_userspace::config::parse(example.as_bytes()).unwrap();
    assert_eq!(cluster.nodes.len(), 2);
    // All that is shown later comes on top: bridges, and hosts that do not run mesh.
    let later = README.split("\n```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let all = later.fold(example, |all, more| all + "\n" + more);
    let cluster = mesh_userspace::config::parse(all.as_bytes()).unwrap();
    let old = cluster.node("old").unwrap();
    assert!(!old.is_managed(), "{all}");
    assert_eq!(cluster.links.len(), 1, "{all}");
    assert_eq!(cluster.bridges, ["docker0"], "{all}");
}
