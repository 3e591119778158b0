//! Where it is measured.

use std::{collections::BTreeMap, fs, process::Command, thread::available_parallelism};

use anyhow::Result;
use mesh_tests::Netns;

use super::results::Machine;
use crate::exec::output;

/// Offloads that decide in which pieces packets travel.
const OFFLOADS: [&str; 5] = [
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "tx-checksumming",
    "rx-checksumming",
];

/// This machine, with the offloads of an interface in a namespace.
pub fn machine(underlay: Option<(&Netns, &str)>, notes: Vec<String>) -> Result<Machine> {
    let read = |path: &str| Some(fs::read_to_string(path).ok()?.trim().to_owned());
    let offloads = match underlay {
        Some((netns, ifname)) => offloads(&netns.exec(&format!("ethtool -k {ifname}"))?),
        None => BTreeMap::new(),
    };
    Ok(Machine {
        cpu: cpu_model(&read("/proc/cpuinfo").unwrap_or_default()),
        cores: available_parallelism()?.get(),
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        offloads,
        mitigations: mitigations(),
        date: output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?.trim().into(),
        notes,
    })
}

fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.into())
}

/// From lines such as `tcp-segmentation-offload: on` and `... off [fixed]`.
fn offloads(text: &str) -> BTreeMap<String, bool> {
    let line = |line: &str| {
        let (name, state) = line.split_once(": ")?;
        OFFLOADS.contains(&name).then(|| (name.to_owned(), state.starts_with("on")))
    };
    text.lines().filter_map(line).collect()
}

fn mitigations() -> Vec<String> {
    let folder = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    let mut found: Vec<_> = folder
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let what = text.trim().strip_prefix("Mitigation: ")?;
            Some(format!("{}: {what}", entry.file_name().to_string_lossy()))
        })
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_offloads_are_read() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A B @ 2: x\n"), "A B @ 2: x");
        let text = "Features for eth0:\nrx-checksumming: on\ntx-checksumming: off [fixed]\n\
                    \ttx-checksum-ipv4: on\nhighdma: on\n";
        let wanted = [("rx-checksumming".to_owned(), true), ("tx-checksumming".to_owned(), false)];
        assert_eq!(offloads(text), wanted.into());
    }
}
