//! `cargo xtask ci`: what must hold besides the tests before a change goes in.

use std::process::Command;

use anyhow::Result;

use crate::{
    exec::{cargo, run, succeeds},
    readme,
    report::{Outcome, Report},
    setup, toolchain,
};

const ADVISORIES: &str = "https://github.com/rustsec/advisory-db";

pub fn run_all() -> Result<()> {
    let mut report = Report::default();
    report.step("format", || passed(run(cargo("fmt").args(["--all", "--check"]))));
    report.step("lints", lints);
    report.step("lints of the eBPF programs", ebpf_lints);
    report.step("licences and sources", dependencies);
    match readme::blocks() {
        Err(e) => report.step("README.md", || Err(e)),
        Ok(blocks) => {
            for block in blocks {
                report.step(&format!("README.md, line {}", block.line), || passed(block.run()));
            }
        }
    }
    report.finish(true)
}

fn lints() -> Result<Outcome> {
    setup::compilers()?;
    passed(run(cargo("clippy").args(["--all-targets", "--", "-D", "warnings"])))
}

/// They compile for BPF only, so they are linted by the compiler that builds them.
fn ebpf_lints() -> Result<Outcome> {
    let toolchain = setup::compilers()?;
    setup::clippy(&toolchain)?;
    let mut clippy = toolchain.command("cargo");
    clippy
        .args(["clippy", "-p", "mesh-ebpf", "--release"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core", "--", "-D", "warnings"])
        .current_dir(toolchain::workspace())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_BUILD_BUILD_DIR", toolchain::ebpf_build());
    passed(run(&mut clippy))
}

/// cargo-deny: see `.deny.toml`. Advisories change without us and need a database from the net.
fn dependencies() -> Result<Outcome> {
    let deny = setup::cargo_deny()?;
    let check = |what: &[&str]| {
        run(Command::new(&deny).arg("check").args(what).current_dir(toolchain::workspace()))
    };
    check(&["licenses", "bans", "sources"])?;
    if !succeeds(Command::new("timeout").args(["20", "git", "ls-remote", ADVISORIES, "HEAD"])) {
        return Ok(Outcome::Passed(format!("without advisories: {ADVISORIES} is out of reach")));
    }
    passed(check(&["advisories"]))
}

fn passed(done: Result<()>) -> Result<Outcome> {
    done.map(|()| Outcome::Passed(String::new()))
}
