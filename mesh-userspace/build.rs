//! Compiles the eBPF programs and leaves the object at `$OUT_DIR/mesh`, where the loader embeds it.

use std::{env, ffi::OsString};

use anyhow::{Context as _, Result, anyhow};
use aya_build::{Package, Toolchain};

#[path = "../xtask/src/toolchain.rs"]
#[expect(dead_code, reason = "what only setup needs")]
mod toolchain;

fn main() {
    if let Err(e) = build() {
        println!("cargo::error={}", format!("{e:#}").replace('\n', " "));
    }
}

fn build() -> Result<()> {
    // Cargo itself sees to changes of the libraries: mesh-ebpf is a build-dependency. aya-build
    // adds the folder of mesh-ebpf, for its binary. The manifest has the profile.
    println!("cargo:rerun-if-changed={}/Cargo.toml", toolchain::workspace().display());
    println!("cargo:rerun-if-env-changed={}", toolchain::OVERRIDE);

    let compiler = toolchain::find().map_err(|e| anyhow!("{e}. Run: cargo xtask setup"))?;
    toolchain::linker()
        .with_context(|| format!("no {} here. Run: cargo xtask setup", toolchain::LINKER))?;

    for (name, value) in inner_env(&compiler)? {
        // SAFETY: no other thread is running yet.
        unsafe { env::set_var(name, value) };
    }
    let programs = Package { name: "mesh-ebpf", root_dir: "../mesh-ebpf", ..Package::default() };
    aya_build::build_ebpf([programs], Toolchain::Custom(&compiler.name))
        .with_context(|| format!("the eBPF programs do not build with {compiler}"))
}

/// What the cargo that builds the programs needs to know, and the one that runs us must not.
fn inner_env(compiler: &toolchain::Toolchain) -> Result<[(&'static str, OsString); 4]> {
    // Without rustup, aya-build takes the compiler from PATH.
    let mut path = vec![toolchain::tools().join("bin")];
    if !toolchain::has_rustup() {
        path.push(compiler.sysroot.join("bin"));
    }
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    Ok([
        ("PATH", env::join_paths(path)?),
        // Building `core` is unstable. Set here, it does not loosen the crates of user space.
        ("RUSTC_BOOTSTRAP", "1".into()),
        ("CARGO_BUILD_BUILD_DIR", toolchain::ebpf_build().into()),
        // aya-build shows each line as a warning; diagnostics come another way.
        ("CARGO_TERM_QUIET", "true".into()),
    ])
}
