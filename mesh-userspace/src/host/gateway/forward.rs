//! Docker makes DROP the policy of iptables' FORWARD when it is the one that turns forwarding on. No
//! table of ours can allow what another one drops, so there, and only under that policy, the
//! networks of gateways are accepted at the end of the chain, after whatever others put before it.
//! What may not pass our own rules have dropped by then.

use std::io::ErrorKind;

use ipnet::IpNet;

use super::super::HostError;
use crate::program::{self, ProgramError};

/// Seconds to wait for who changes rules just now.
const WAIT: &str = "2";
/// xtables.h: `RESOURCE_PROBLEM`, as it exits where it got no lock in time.
const LOCKED: i32 = 4;

/// Marks a rule as ours.
const COMMENT: &str = "-m comment --comment mesh -j ACCEPT";

/// Makes both families' chains have the rules for these networks and no other of ours.
pub(super) fn ensure(nets: &[IpNet]) -> Result<(), HostError> {
    let (v4, v6): (Vec<_>, Vec<_>) = nets.iter().partition(|net| net.addr().is_ipv4());
    ensure_in("iptables", &v4)?;
    ensure_in("ip6tables", &v6)
}

fn ensure_in(program: &str, nets: &[&IpNet]) -> Result<(), HostError> {
    let iptables = |args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        program::run(program, &[&["-w", WAIT], args.as_slice()].concat(), "")
    };
    let listed = match iptables("-S FORWARD") {
        Ok(listed) => listed,
        // Nobody else has rules of that kind where there is no such program.
        Err(ProgramError::NotRun { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Ok(());
        }
        // Where there is no such chain, nothing of ours is in it.
        Err(e) if nets.is_empty() && !is_held_up(&e) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for change in changes(&listed, nets) {
        iptables(&change)?;
    }
    Ok(())
}

/// Returns whether the rules are as they were, whatever they are: somebody else has iptables' lock.
fn is_held_up(error: &ProgramError) -> bool {
    error.is_silence() || matches!(error, ProgramError::Failed { code: Some(LOCKED), .. })
}

/// What to tell iptables. `listed`: as it prints the chain.
fn changes(listed: &str, nets: &[&IpNet]) -> Vec<String> {
    let is_dropping = listed.lines().any(|line| line == "-P FORWARD DROP");
    let rules = |net: &&IpNet| ["-s", "-d"].map(|way| format!("FORWARD {way} {net} {COMMENT}"));
    let wanted: Vec<String> =
        if is_dropping { nets.iter().flat_map(rules).collect() } else { Vec::new() };
    let there = listed.lines().filter_map(|line| line.strip_prefix("-A "));
    let there: Vec<&str> = there.filter(|rule| rule.ends_with(COMMENT)).collect();
    let gone = there.iter().filter(|rule| !wanted.iter().any(|w| w == *rule));
    let new = wanted.iter().filter(|rule| !there.contains(&rule.as_str()));
    gone.map(|rule| format!("-D {rule}")).chain(new.map(|rule| format!("-A {rule}"))).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    #[test]
    fn only_a_policy_of_drop_is_answered_and_only_our_own_rules_go() {
        let net: IpNet = "10.0.9.0/24".parse().unwrap();
        let [from, to] = ["-s", "-d"].map(|way| format!("FORWARD {way} 10.0.9.0/24 {COMMENT}"));
        let foreign = "-A FORWARD -s 10.0.9.0/24 -j ACCEPT";
        let dropping = format!("-P FORWARD DROP\n{foreign}\n");
        let there = format!("{dropping}-A {from}\n-A {to}\n");
        assert_eq!(changes(&dropping, &[&net]), [format!("-A {from}"), format!("-A {to}")]);
        assert_eq!(changes(&there, &[&net]), [""; 0]);
        assert_eq!(changes(&there, &[]), [format!("-D {from}"), format!("-D {to}")]);
        let accepting = there.replace("DROP", "ACCEPT");
        assert_eq!(changes(&accepting, &[&net]), [format!("-D {from}"), format!("-D {to}")]);
    }

    /// `iptables-legacy` with a lock of its own, in a network namespace of this thread's.
    fn iptables(dir: &Path) -> std::io::Result<String> {
        fs::create_dir(dir)?;
        let (script, lock) = (dir.join("iptables"), dir.join("lock"));
        fs::write(&lock, "")?;
        let text =
            format!("#!/bin/sh\nXTABLES_LOCKFILE={} exec iptables-legacy \"$@\"\n", lock.display());
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        // SAFETY: only the network namespace is left, which no memory depends on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        Ok(script.display().to_string())
    }

    #[test]
    fn rules_are_not_forgotten_while_somebody_else_has_the_lock() {
        let has_legacy = std::process::Command::new("iptables-legacy").arg("-V").output().is_ok();
        if !rustix::process::geteuid().is_root() || !has_legacy {
            return;
        }
        let dir = std::env::temp_dir().join(format!("mesh-iptables-{}", std::process::id()));
        let at = dir.clone();
        let work = move || -> Option<()> {
            let iptables = iptables(&at).unwrap();
            // Where the kernel has no legacy tables there is no lock to wait for.
            program::run(&iptables, &["-P", "FORWARD", "DROP"], "").ok()?;
            let net: IpNet = "10.0.9.0/24".parse().unwrap();
            let rules = || program::run(&iptables, &["-S", "FORWARD"], "").unwrap();
            ensure_in(&iptables, &[&net]).unwrap();
            assert!(rules().contains("10.0.9.0/24"), "{}", rules());
            let lock = fs::File::open(at.join("lock")).unwrap();
            lock.lock().unwrap();
            let error = ensure_in(&iptables, &[]).unwrap_err().to_string();
            assert!(error.contains("xtables lock"), "{error}");
            lock.unlock().unwrap();
            ensure_in(&iptables, &[]).unwrap();
            assert_eq!(rules(), "-P FORWARD DROP\n");
            Some(())
        };
        let done = std::thread::spawn(work).join();
        fs::remove_dir_all(&dir).unwrap();
        done.unwrap();
    }
}
