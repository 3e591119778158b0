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

#[test]
fn the_example_of_the_readme_is_a_good_config_file() {
    let indented = |l: &str| l.strip_prefix("   ").unwrap_or(l).to_owned() + "\n";
    let lines = README.lines().skip_while(|l| l.trim() != "```toml").skip(1);
    let example: String = lines.take_while(|l| l.trim() != "```").map(indented).collect();
    let cluster = mesh_userspace::config::parse(example.as_bytes()).unwrap();
    assert_eq!(cluster.nodes.len(), 2);
    // What is said of hosts that do not run mesh comes on top.
    let more = README.lines().skip_while(|l| *l != "```toml").skip(1).take_while(|l| *l != "```");
    let more: String = more.map(|l| l.to_owned() + "\n").collect();
    let cluster = mesh_userspace::config::parse((example + &more).as_bytes()).unwrap();
    let old = cluster.node("old").unwrap();
    assert!(!old.is_managed(), "{more}");
    assert_eq!(cluster.links.len(), 1, "{more}");
}
