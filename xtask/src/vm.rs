//! Other kernels, in emulated machines: qemu without KVM, and the host's own files as the root.
//!
//! `cargo xtask vm 6.1 -- COMMAND` runs a command in one; the tests and the benchmark do the same.

use std::{
    env,
    ffi::OsString,
    io,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Result;
use clap::Args;

use crate::{
    exec::say,
    setup::{self, Need},
};

mod debian;
mod guest;
mod initramfs;
mod kernel;

pub use guest::{Ended, Guest};
pub use kernel::{Kernel, SERIES};

/// What getting a kernel and running it call.
const NEEDS: &[Need] = &[
    Need {
        command: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "emulates machines for other kernels",
    },
    Need { command: "busybox", package: "busybox-static", why: "starts such a machine" },
    Need { command: "depmod", package: "kmod", why: "lists what a kernel's modules need" },
    Need { command: "xz", package: "xz-utils", why: "unpacks kernels and modules" },
    Need { command: "zstd", package: "zstd", why: "unpacks kernels and modules" },
    Need { command: "dpkg-deb", package: "dpkg", why: "unpacks kernel packages" },
    Need {
        command: debian::KEYRING,
        package: "debian-archive-keyring",
        why: "tells that a kernel is Debian's",
    },
];

#[derive(Debug, Args)]
pub struct VmArgs {
    /// 5.10, 6.1, 6.12, another series, `newest`, or a full version as 6.1.0-56-amd64
    kernel: String,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory, in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Seconds until it is ended, with exit status 124
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// The machine's clock counts instructions, one a nanosecond, of one processor: what is timed in
    /// there repeats whatever else runs here, and is a count
    #[arg(long)]
    count_instructions: bool,
    /// What to run, as root, in the folder where this is called
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Everything that a machine with this kernel needs, installed and downloaded if it is not there.
pub fn prepare(kernel: &str) -> Result<Kernel> {
    setup::packages(NEEDS)?;
    Kernel::get(kernel)
}

/// `cargo xtask vm`: the exit status is the command's; 124 if the time was up, 125 if the kernel
/// died.
pub fn run(args: VmArgs) -> Result<ExitCode> {
    let kernel = prepare(&args.kernel)?;
    say(format!("Linux {}", kernel.version));
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]).current_dir(env::current_dir()?);
    // The guest has its own folder for temporary files, and its own idea of a shell.
    let own = ["PWD", "OLDPWD", "SHLVL", "TMPDIR", "_"];
    command.envs(env::vars_os().filter(|(name, _)| !own.iter().any(|own| name == own)));
    let guest = Guest {
        cpus: if args.count_instructions { 1 } else { args.cpus },
        counts_instructions: args.count_instructions,
        memory_mib: args.memory,
        limit: Duration::from_secs(args.timeout),
        ..Guest::new(&kernel)
    };
    Ok(match guest.run(&command, &mut io::stdout())? {
        Ended::Exited(code) => ExitCode::from(code),
        Ended::TimedOut => {
            say(format!("ended after {} s (--timeout)", args.timeout));
            ExitCode::from(124)
        }
        Ended::Died(console) => {
            say(format!("the machine died. The end of its console:\n{console}"));
            ExitCode::from(125)
        }
    })
}
