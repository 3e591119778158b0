//! bpf-linker, built without LLVM's development packages: it uses nothing but LLVM's C interface,
//! so the libLLVM that the compiler itself brought will do, and reads that compiler's bitcode by
//! construction.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{output, run, say, succeeds},
    toolchain::{self, LINKER, Toolchain},
};

const VERSION: &str = "0.13.0";
/// The LLVM versions that this bpf-linker has a feature for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Sees to a bpf-linker that understands the compiler.
pub fn ensure(toolchain: &Toolchain) -> Result<()> {
    match toolchain::linker().map(|linker| check(&linker, toolchain)) {
        Some(Ok(())) => return Ok(()),
        Some(Err(fault)) => say(format!("{fault:#}")),
        None => {}
    }
    build(toolchain)?;
    let ours = toolchain::tools().join("bin").join(LINKER);
    check(&ours, toolchain).context("the bpf-linker just built does not work")
}

/// Starts the linker and lets it link a function that the compiler has just compiled.
fn check(linker: &Path, toolchain: &Toolchain) -> Result<()> {
    if !super::installed(linker, LINKER, VERSION) {
        bail!("{} does not start or is not version {VERSION}", linker.display());
    }
    if let Some(llvm) = llvm_of(linker).and_then(|path| major(&path))
        && llvm < toolchain.llvm
    {
        bail!("{} has LLVM {llvm}, {toolchain} has {}", linker.display(), toolchain.llvm);
    }
    let dir = toolchain::tools();
    fs::create_dir_all(&dir).with_context(|| format!("can not create {}", dir.display()))?;
    let [source, bitcode, object] = ["probe.rs", "probe.bc", "probe.o"].map(|f| dir.join(f));
    fs::write(&source, "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn probe() {}\n")?;
    let mut rustc = toolchain.command("rustc");
    rustc.args(["--crate-type=lib", "--emit=llvm-bc", "-o"]).arg(&bitcode).arg(&source);
    run(&mut rustc)?;
    let mut link = Command::new(linker);
    link.args(["--target=bpfel-unknown-none", "--export=probe", "-o"]).arg(&object).arg(&bitcode);
    let links = succeeds(&mut link);
    for file in [source, bitcode, object] {
        // Gone already if the linker wrote none.
        let _ = fs::remove_file(file);
    }
    if !links {
        bail!("{} can not read what {toolchain} compiles", linker.display());
    }
    Ok(())
}

fn build(toolchain: &Toolchain) -> Result<()> {
    if !LLVM.contains(&toolchain.llvm) {
        bail!(
            "{toolchain} has LLVM {}, and bpf-linker {VERSION} knows LLVM {} to {}. Name another \
             toolchain in {}",
            toolchain.llvm,
            LLVM.start(),
            LLVM.end(),
            toolchain::OVERRIDE,
        );
    }
    let library = llvm_of(&toolchain.sysroot.join("bin/rustc")).with_context(|| {
        format!(
            "{toolchain} has no shared libLLVM to link with. Put a bpf-linker {VERSION} on PATH"
        )
    })?;
    let dir = library.parent().unwrap_or(Path::new("/"));
    let (library, dir) = (library.display(), dir.display());
    say(format!("{LINKER} will use the compiler's own {library}"));
    super::install(
        LINKER,
        VERSION,
        "links the eBPF programs; 1 to 2 minutes",
        &["--no-default-features", &format!("--features=llvm-{},no-llvm-linking", toolchain.llvm)],
        &format!("-Clink-arg={library}\u{1f}-Clink-arg=-Wl,-rpath,{dir}"),
    )
}

/// The libLLVM that a program loads, if it loads one.
fn llvm_of(program: &Path) -> Option<PathBuf> {
    let libraries = output(Command::new("ldd").arg(program)).ok()?;
    let line = libraries.lines().find(|line| line.trim_start().starts_with("libLLVM"))?;
    let path = line.split(" => ").nth(1)?.split(" (").next()?;
    fs::canonicalize(path).ok()
}

/// The `22` of `libLLVM.so.22.1`, as Debian and rustup name it.
fn major(library: &Path) -> Option<u32> {
    let name = library.file_name()?.to_str()?;
    name.strip_prefix("libLLVM.so.")?.split(['.', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_known_by_the_name_of_its_library() {
        for name in ["libLLVM.so.22.1", "libLLVM.so.22.1-rust-1.95.0-stable"] {
            assert_eq!(major(&Path::new("/lib").join(name)), Some(22), "{name}");
        }
        assert_eq!(major(Path::new("/lib/libLLVM-14.so.1")), None);
    }
}
