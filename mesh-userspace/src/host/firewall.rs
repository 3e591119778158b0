//! What of a bridge's traffic passes the host's stack and its firewall, put right there: in a table
//! of our own, beside whatever others have.
//!
//! What containers of different hosts say to each other passes no firewall, whatever its policy, and
//! no masquerading. Two things are left:
//!
//! - A port that Docker publishes, asked for by an overlay address of the host: the request is
//!   rewritten by Docker and forwarded to the container, but the container's answer would take the
//!   short way back into the mesh, past the one who could rewrite it. So it must see the host as the
//!   one who asks.
//! - Docker masquerades what its bridge's network sends to anywhere else. What gets to `mesh0` by the
//!   stack, in the moment before a port is attached, must not become the host's own by that; as it
//!   is, it is dropped there, and sent again.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use super::{Host, HostError, mesh0};
use crate::state::State;

const TABLE: &str = "inet mesh_bridges";

/// What this process last made the table contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Firewall {
    rules: String,
    /// The same as `nft` lists it, which differs between versions.
    listing: String,
    /// Why it is not so.
    pub error: Option<String>,
}

impl Host {
    /// Makes the rules be there if a bridge is attached, and not be there otherwise. Without `nft`
    /// what is said above is not so; all else works.
    pub(super) fn ensure_firewall(&mut self) {
        let names: Vec<&str> = self.bridges.names().collect();
        let rules = if names.is_empty() { String::new() } else { rules(&names) };
        let done = match rules.as_str() {
            "" => remove(&self.state).map(|()| String::new()),
            rules => ensure(rules, &self.firewall),
        };
        match done {
            Ok(listing) => {
                self.state.firewall = !listing.is_empty();
                self.firewall = Firewall { rules, listing, error: None };
            }
            Err(e) => {
                let error = Some(e.to_string());
                if self.firewall.error != error {
                    tracing::warn!("{e}");
                }
                self.firewall = Firewall { error, ..Firewall::default() };
            }
        }
    }
}

/// Takes them away. They can only be there without us knowing if we know nothing at all.
pub(super) fn remove(state: &State) -> Result<(), HostError> {
    let is_lost = state.node.is_empty();
    if (!state.firewall && !is_lost) || list().is_err() {
        return Ok(());
    }
    nft(&["delete", "table", "inet", "mesh_bridges"], "").map(drop)
}

/// Returns how `nft` lists them.
fn ensure(rules: &str, last: &Firewall) -> Result<String, HostError> {
    if last.rules == rules && list().is_ok_and(|there| there == last.listing) {
        return Ok(last.listing.clone());
    }
    // In one step, whether there was one before or not.
    let all = format!("table {TABLE} {{}}\ndelete table {TABLE}\n{rules}");
    nft(&["-f", "-"], &all)?;
    list()
}

fn list() -> Result<String, HostError> {
    nft(&["list", "table", "inet", "mesh_bridges"], "")
}

/// 99: before Docker's, at 100.
fn rules(bridges: &[&str]) -> String {
    let quoted: Vec<String> = bridges.iter().map(|bridge| format!("\"{bridge}\"")).collect();
    let (bridges, mesh0) = (quoted.join(", "), mesh0::NAME);
    format!(
        "table {TABLE} {{
            chain forward {{
                type filter hook forward priority 0; policy accept;
                iifname {{ {bridges} }} oifname \"{mesh0}\" ct state new drop
            }}
            chain postrouting {{
                type nat hook postrouting priority 99; policy accept;
                iifname \"{mesh0}\" oifname {{ {bridges} }} ct status dnat masquerade
            }}
        }}"
    )
}

fn nft(args: &[&str], input: &str) -> Result<String, HostError> {
    let run = || -> io::Result<_> {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|e| {
        HostError::User(format!(
            "nft: {e}; without it, ports that Docker publishes are not reached by the overlay \
             address of their host: install nftables"
        ))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(HostError::User(format!("nft {}: {}", args.join(" "), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
