//! Which compiler and which linker build the eBPF programs, and where they are.
//!
//! One file for the two who must agree: `xtask setup` installs what is missing, the build script
//! of `mesh-userspace` (which includes this file) uses what is there. Only `std`, for its sake.
//!
//! No compiler ships `core` for the BPF target, so it is built from source, and the sources must
//! be of the compiler's own version. A stable compiler will do, with `RUSTC_BOOTSTRAP` set.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the one toolchain to use, as `rustup run` takes it, instead of looking for one.
pub const OVERRIDE: &str = "MESH_EBPF_TOOLCHAIN";
pub const LINKER: &str = "bpf-linker";
/// Where Debian's `rustc-web`, `cargo-web` and `rust-web-src` live.
pub const DEBIAN: &str = "/usr";

const MSRV: &str = env!("CARGO_PKG_RUST_VERSION");

/// A compiler that is installed.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// As `rustup run` takes it: a name or, for a compiler that rustup does not own, its sysroot.
    pub name: String,
    pub sysroot: PathBuf,
    /// `1.96.0`
    pub release: String,
    /// The major version of its LLVM, which the linker must be able to read.
    pub llvm: u32,
}

impl Toolchain {
    /// Asks the compiler who it is; `None` if it is not there or does not answer.
    pub fn probe(name: &str) -> Option<Self> {
        let rustc = |args: &[&str]| {
            // `rustup run` would otherwise install a toolchain that was merely asked for.
            let mut command = run(name, "rustc");
            let out = command.args(args).env("RUSTUP_AUTO_INSTALL", "0").output().ok()?;
            out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
        };
        let sysroot = rustc(&["--print", "sysroot"])?.into();
        let version = rustc(&["-vV"])?;
        let field = |key| version.lines().find_map(|line| line.strip_prefix(key));
        Some(Self {
            name: name.to_owned(),
            sysroot,
            release: field("release: ")?.to_owned(),
            llvm: field("LLVM version: ")?.split('.').next()?.parse().ok()?,
        })
    }

    pub fn has_sources(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
    }

    pub fn is_recent(&self) -> bool {
        is_recent(&self.release)
    }

    /// A program of this toolchain, as `rustc` or `cargo`.
    pub fn command(&self, program: &str) -> Command {
        run(&self.name, program)
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rustc {})", self.name, self.release)
    }
}

/// Why no compiler that is installed can build the eBPF programs: one line for each.
#[derive(Debug)]
pub struct NoToolchain(pub Vec<String>);

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no compiler here can build the eBPF programs: {}", self.0.join("; "))
    }
}

impl std::error::Error for NoToolchain {}

/// Chooses the compiler of the eBPF programs: the first of [`candidates`] that can build them.
pub fn find() -> Result<Toolchain, NoToolchain> {
    let mut faults = Vec::new();
    for name in candidates() {
        match Toolchain::probe(&name) {
            None => faults.push(format!("{name}: not installed")),
            Some(t) if !t.is_recent() => faults.push(format!("{t}: older than {MSRV}")),
            Some(t) if !t.has_sources() => faults.push(format!("{t}: without rust-src")),
            Some(t) => return Ok(t),
        }
    }
    Err(NoToolchain(faults))
}

/// The toolchains that may serve, best first: stable is the most reproducible, then the one that
/// is at work now, nightly, and Debian's.
pub fn candidates() -> Vec<String> {
    if let Ok(name) = env::var(OVERRIDE) {
        return vec![name];
    }
    let mut names = Vec::new();
    if has_rustup() {
        names.push("stable".to_owned());
        // rustup's own `cargo` says which toolchain it runs for.
        names.extend(env::var("RUSTUP_TOOLCHAIN").ok().filter(|name| !name.starts_with("stable")));
        names.push("nightly".to_owned());
    }
    names.push(DEBIAN.to_owned());
    names
}

pub fn has_rustup() -> bool {
    on_path("rustup").is_some()
}

/// bpf-linker: ours, else the one on `PATH`.
pub fn linker() -> Option<PathBuf> {
    let ours = tools().join("bin").join(LINKER);
    if ours.exists() { Some(ours) } else { on_path(LINKER) }
}

/// The folder of the tools that setup builds, in cargo's `--root` layout.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// Cargo's target folder. A relative `CARGO_TARGET_DIR` means another folder to everyone who
/// reads it, so it does not move the tools.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir,
        _ => workspace().join("target"),
    }
}

/// Where everything that is compiled for BPF is kept: `core` takes most of the time, and dev,
/// release and clippy can share it.
pub fn ebpf_build() -> PathBuf {
    target().join("ebpf")
}

/// The root of the workspace, of which this crate is a member.
pub fn workspace() -> &'static Path {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member)
}

/// Finds a program as the shell would, and where only root's `PATH` leads.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether a compiler of this version is new enough for the workspace.
pub fn is_recent(version: &str) -> bool {
    number(version) >= number(MSRV)
}

fn run(name: &str, program: &str) -> Command {
    let mut command = if has_rustup() {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", name, program]);
        rustup
    } else {
        Command::new(Path::new(name).join("bin").join(program))
    };
    // Cargo tells its children which compiler is at work; here that is another one.
    for var in ["RUSTC", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env_remove(var);
    }
    command
}

/// `1.95` and `1.96.0-nightly` as something that compares.
fn number(version: &str) -> (u32, u32) {
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        for new in ["1.95.0", "1.100.0", "1.97.0-nightly", "1.96.0+dfsg1-1~deb12u2", "2.0.0"] {
            assert!(is_recent(new), "{new}");
        }
        for old in ["1.85.0+dfsg3-1~deb12u3", "1.9.0", "1.94.1", ""] {
            assert!(!is_recent(old), "{old}");
        }
    }
}
