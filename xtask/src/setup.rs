//! Everything a fresh machine lacks to build, run and test: said before it is done, never done
//! twice. When all is there, nothing is downloaded and nothing is printed.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{cargo, output, run, say, succeeds},
    toolchain::{self, Toolchain},
};

mod apt;
mod docker;
mod linker;
mod sid;

pub use apt::{Need, packages, unpacked};
pub use docker::{
    engine as docker_engine, etcd, newest_engine as newest_docker_engine, podman,
    version as docker_version,
};

/// What the demo of `cargo xtask run` calls.
pub const DEMO: &[Need] = &[
    Need { command: "ip", package: "iproute2", why: "joins and shows network namespaces" },
    Need { command: "ping", package: "iputils-ping", why: "is how to try a mesh by hand" },
];

/// What the benchmark calls beyond that.
pub const BENCH: &[Need] = &[Need {
    command: "ethtool",
    package: "ethtool",
    why: "turns offloads of the underlay on and off",
}];

/// What its WireGuard calls, where the kernel has that.
pub const WIREGUARD: &[Need] =
    &[Need { command: "wg", package: "wireguard-tools", why: "gives WireGuard its keys" }];

/// What the tests call beyond that.
pub const TESTS: &[Need] = &[
    Need { command: "tshark", package: "tshark", why: "dissects captures independently of mesh" },
    Need { command: "nft", package: "nftables", why: "plays a firewall that mesh must not touch" },
    Need { command: "sysctl", package: "procps", why: "sets what mesh must find or leave alone" },
];

/// `cargo xtask setup`: all that any command here needs.
pub fn everything() -> Result<()> {
    let toolchain = compilers()?;
    packages(&[DEMO, BENCH, TESTS].concat())?;
    let linker = toolchain::linker().context("bpf-linker has gone again")?;
    say(format!("all set up: {toolchain} compiles eBPF, {} links it", linker.display()));
    Ok(())
}

/// What `cargo build` needs: a compiler with the sources of `core`, and a linker for BPF.
pub fn compilers() -> Result<Toolchain> {
    let toolchain = match toolchain::find() {
        Ok(found) => found,
        Err(fault) => {
            say(fault.to_string());
            install_compiler()?
        }
    };
    linker::ensure(&toolchain)?;
    Ok(toolchain)
}

/// Clippy for the compiler of the eBPF programs.
pub fn clippy(toolchain: &Toolchain) -> Result<()> {
    if toolchain.name == toolchain::DEBIAN {
        return packages(&[Need {
            command: "/usr/bin/cargo-clippy",
            package: "rust-web-clippy",
            why: "lints the eBPF programs",
        }]);
    }
    if succeeds(toolchain.command("cargo").args(["clippy", "--version"])) {
        return Ok(());
    }
    say(format!("installing clippy for {toolchain} (rustup): lints the eBPF programs"));
    run(Command::new("rustup").args(["component", "add", "clippy", "--toolchain", &toolchain.name]))
}

/// Where the programs of Open vSwitch are: `/`, or a folder of the project.
pub fn open_vswitch() -> Result<PathBuf> {
    if toolchain::on_path("ovs-vswitchd").is_some() {
        return Ok("/".into());
    }
    unpacked("openvswitch-switch", "has Open vSwitch, to compare with and to speak with")
}

/// cargo-deny, which checks licences and sources of the dependencies.
pub fn cargo_deny() -> Result<PathBuf> {
    let deny = toolchain::tools().join("bin/cargo-deny");
    let version = "0.20.2";
    if !installed(&deny, "cargo-deny", version) {
        install("cargo-deny", version, "checks licences of dependencies; 5 to 7 minutes", &[], "")?;
    }
    Ok(deny)
}

/// Whether a tool is there in the wanted version.
fn installed(tool: &Path, name: &str, version: &str) -> bool {
    output(Command::new(tool).arg("--version"))
        .is_ok_and(|answer| answer.trim() == format!("{name} {version}"))
}

/// Builds a tool from crates.io into [`toolchain::tools`]; `rustflags` are separated by `0x1f`.
/// Their own speed matters little, compiling them is what takes time.
fn install(name: &str, version: &str, why: &str, args: &[&str], rustflags: &str) -> Result<()> {
    let root = toolchain::tools();
    say(format!("building {name} {version} into {} (crates.io): {why}", root.display()));
    let mut install = cargo("install");
    install
        .args([name, "--version", version, "--locked", "--force", "--root"])
        .arg(&root)
        .args(args)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    run(&mut install)
}

/// rust-src where rustup can fetch it, else Debian's compiler, which has its sources beside it.
fn install_compiler() -> Result<Toolchain> {
    let refused = match add_rust_src() {
        Ok(()) => return Ok(toolchain::find()?),
        Err(refused) => refused,
    };
    if env::var_os(toolchain::OVERRIDE).is_some() {
        return Err(refused.context(format!("{} names the only choice", toolchain::OVERRIDE)));
    }
    say(format!("{refused:#}; trying Debian's compiler instead"));
    apt::compiler().context(
        "no way to get the sources of `core`. Either: rustup component add rust-src --toolchain \
         stable; or, on Debian: apt-get install rustc-web cargo-web rust-web-src",
    )?;
    Ok(toolchain::find()?)
}

fn add_rust_src() -> Result<()> {
    if !toolchain::has_rustup() {
        bail!("there is no rustup");
    }
    let candidates = toolchain::candidates();
    let mut own = candidates.iter().filter(|name| !name.starts_with('/'));
    let Some(toolchain) = own.find_map(|name| Toolchain::probe(name).filter(Toolchain::is_recent))
    else {
        bail!("rustup has none that is new enough; try: rustup update stable");
    };
    say(format!("installing rust-src for {toolchain} (3 MB, rustup): `core` is built for BPF"));
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", &toolchain.name]);
    run(&mut rustup).context("rustup can not fetch rust-src")
}
