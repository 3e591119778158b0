//! What of a bridge's traffic passes the host's stack and its firewall, put right there: in a table
//! of our own, beside whatever others have.
//!
//! What containers of different hosts say to each other passes no firewall, whatever its policy, and
//! no masquerading. One thing is left: a port that Docker publishes, asked for by an overlay address of
//! the host. The request is rewritten by Docker and forwarded to the container, but the container's
//! answer would take the short way back into the mesh, past the one who could rewrite it. So it must
//! see the host as the one who asks. What may not get into the mesh by the stack is in
//! [`guard`](super::guard).
//!
//! Anyone may take a table of ours away, with all others for one (`nft flush ruleset`). The kernel tells
//! of it, and it is made anew; until then it is a fault.

use ipnet::IpNet;

use super::{Host, HostError, mesh0};
use crate::{
    faults::Faults,
    program::{self, ProgramError},
    state::State,
};

const TABLE: &str = "mesh_bridges";

/// What this process last made a table of ours contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    rules: String,
    /// The same as `nft` lists it, which differs between versions.
    listing: String,
    /// Nobody is known to have changed it since.
    is_known: bool,
    /// Why it is not so.
    pub error: Option<String>,
}

/// The faults' part of tables, each by its name.
const FAULTS: &str = "nftables";

impl Table {
    /// Somebody may have changed it: it is looked at when it is needed next.
    pub fn suspect(&mut self) {
        self.is_known = false;
    }

    pub fn is_there(&self) -> bool {
        !self.listing.is_empty()
    }

    /// Makes the table have just these chains, or not be there if `None`. `noted`: whether the state
    /// says that there are rules of ours. `is_lost`: it knows nothing at all. Where this fails,
    /// `outcome` says what is so for that.
    pub fn follow(
        &mut self,
        name: &str,
        chains: Option<String>,
        (noted, is_lost): (&mut bool, bool),
        (outcome, faults): (&str, &Faults),
    ) {
        let (done, outcome) = match chains {
            Some(chains) => {
                let outcome = format!("{outcome}: no table {name} in nftables");
                (ensure(name, chains, self, faults), outcome)
            }
            None => {
                let outcome = format!("a table {name} of no use may be left in nftables");
                (remove_noted(name, *noted, is_lost).map(|()| Self::default()), outcome)
            }
        };
        match done {
            Ok(table) => {
                *noted = table.is_there();
                *self = table;
            }
            Err(e) => {
                let error = Some(format!("{outcome}: {e}"));
                *self = Self { error, ..Self::default() };
            }
        }
        faults.set_one(FAULTS, name, self.error.clone());
    }
}

impl Host {
    /// Somebody may have changed tables of ours.
    pub fn suspect_tables(&mut self) {
        self.firewall.suspect();
        self.guard.suspect();
        self.gateways.suspect_table();
    }

    /// Makes the rules be there if a bridge is attached, and not be there otherwise. Without `nft`
    /// what is said above is not so; all else works.
    pub(super) fn ensure_firewall(&mut self) {
        let names: Vec<&str> = self.bridges.names().collect();
        let chains = (!names.is_empty()).then(|| rules(&names));
        let outcome =
            "ports that Docker publishes are not reached by the overlay address of their host";
        let is_lost = self.state.node.is_empty();
        let outcome = (outcome, &self.faults);
        self.firewall.follow(TABLE, chains, (&mut self.state.firewall, is_lost), outcome);
    }
}

/// Takes them away.
pub(super) fn remove(state: &State) -> Result<(), HostError> {
    remove_noted(TABLE, state.firewall, state.node.is_empty())
}

/// Rules can only be there without us knowing if we know nothing at all.
pub(super) fn remove_noted(name: &str, noted: bool, is_lost: bool) -> Result<(), HostError> {
    if noted || is_lost { remove_table(name) } else { Ok(()) }
}

pub(super) fn remove_table(name: &str) -> Result<(), HostError> {
    if !is_there(name)? {
        return Ok(());
    }
    Ok(nft(&["delete", "table", "inet", name], "").map(drop)?)
}

/// Fails if `nft` does not end, and says neither.
pub(super) fn is_there(name: &str) -> Result<bool, HostError> {
    match list(name) {
        Ok(_) => Ok(true),
        Err(e) if e.is_silence() => Err(e.into()),
        Err(_) => Ok(false),
    }
}

/// Makes a table `inet NAME` have just these chains. `last`: as this returned it before. Where somebody
/// else changed it, that is a fault until this is done.
pub(super) fn ensure(
    name: &str,
    chains: String,
    last: &Table,
    faults: &Faults,
) -> Result<Table, HostError> {
    if last.rules == chains {
        let is_same = last.is_known
            || match list(name) {
                Ok(there) => there == last.listing,
                Err(e) if e.is_silence() => return Err(e.into()),
                Err(_) => false,
            };
        if is_same {
            return Ok(Table { is_known: true, ..last.clone() });
        }
        faults.set_one(FAULTS, name, Some(lost(name)));
    }
    // In one step, whether there was one before or not.
    let all = format!(
        "table inet {name} {{}}\ndelete table inet {name}\ntable inet {name} {{\n{chains}}}\n"
    );
    nft(&["-f", "-"], &all)?;
    let table = Table { listing: list(name)?, rules: chains, is_known: true, error: None };
    faults.set_one(FAULTS, name, None);
    Ok(table)
}

/// Nobody has a use for the table any more.
pub(super) fn forget(name: &str, faults: &Faults) {
    faults.set_one(FAULTS, name, None);
}

fn lost(name: &str) -> String {
    format!(
        "somebody removed or changed the table {name} of nftables: it is being made anew (have who \
         did, such as nftables.service, leave the tables of others alone)"
    )
}

fn list(name: &str) -> Result<String, ProgramError> {
    nft(&["list", "table", "inet", name], "")
}

/// 99: before Docker's, at 100.
fn rules(bridges: &[&str]) -> String {
    let (bridges, mesh0) = (quoted(bridges), mesh0::NAME);
    format!(
        "chain postrouting {{
            type nat hook postrouting priority 99; policy accept;
            iifname \"{mesh0}\" oifname {{ {bridges} }} ct status dnat masquerade
        }}
        "
    )
}

/// The elements of a set of prefixes; a set must not be empty.
pub(super) fn of_family(nets: &[IpNet], v4: bool) -> Option<String> {
    let mut nets: Vec<String> =
        nets.iter().filter(|net| net.addr().is_ipv4() == v4).map(ToString::to_string).collect();
    nets.sort_unstable();
    nets.dedup();
    (!nets.is_empty()).then(|| nets.join(", "))
}

/// The elements of a set of names.
pub(super) fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn nft(args: &[&str], input: &str) -> Result<String, ProgramError> {
    program::run("nft", args, input)
}
