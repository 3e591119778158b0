//! All of a host's state that `mesh` could leave a trace in, as lines that can be compared.

use std::{collections::BTreeSet, fmt, fs, io, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Host, Netns, wait};

/// One line for each fact: `link eth0 mtu 1500`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// What two snapshots do not share. Displays one line each, `-` for gone and `+` for new.
#[derive(Debug)]
pub struct Difference {
    pub gone: Vec<String>,
    pub new: Vec<String>,
}

/// Commands that print JSON lists, and the fields that name an element.
const LISTS: [(&str, &str, &[&str]); 7] = [
    ("link", "ip -d -j addr show", &["ifname"]),
    ("route4", "ip -4 -j route show table all", ROUTE),
    ("route6", "ip -6 -j route show table all", ROUTE),
    ("rule4", "ip -4 -j rule show", &["priority"]),
    ("rule6", "ip -6 -j rule show", &["priority"]),
    ("neighbour", "ip -j neigh show nud permanent", &["dev", "dst"]),
    ("qdisc", "tc -j qdisc show", &["dev", "kind", "handle", "parent"]),
];
const ROUTE: &[&str] = &["table", "type", "dst", "dev", "metric"];

impl Snapshot {
    /// Links, addresses, routes, rules, neighbours, qdiscs, filters, tcx programs, netfilter,
    /// sysctls, pins, and files in the run folder and in that of locks.
    pub fn of(host: &Host) -> Result<Self> {
        let mut facts = Self::of_netns(&host.netns)?.0;
        for (kind, dir) in
            [("pin", &host.pin_dir), ("run", &host.run_dir), ("lock", &host.lock_dir)]
        {
            list_files(kind, dir, &mut facts);
        }
        Ok(Self(facts))
    }

    /// The part of it that is the namespace's.
    pub fn of_netns(netns: &Netns) -> Result<Self> {
        wait_settled(netns)?;
        let mut facts = BTreeSet::new();
        for (kind, command, id) in LISTS {
            list(kind, &netns.exec(command)?, id, &mut facts)
                .with_context(|| command.to_owned())?;
        }
        for (ifindex, ifname) in interfaces(netns)? {
            for side in ["ingress", "egress"] {
                let filters = netns.exec(&format!("tc filter show dev {ifname} {side}"))?;
                facts.extend(filters.lines().map(|f| format!("filter {ifname} {side} {f}")));
            }
            facts.extend(tcx(netns, ifindex, &ifname)?);
        }
        let rules = netns.exec("nft list ruleset").unwrap_or_default();
        facts.extend(rules.lines().map(|rule| format!("netfilter {}", without_counts(rule))));
        facts.extend(netns.run(|| Ok(sysctls(Path::new("/proc/sys/net"))))?);
        Ok(Self(facts))
    }

    /// From this one to a later one.
    pub fn difference(&self, later: &Self) -> Difference {
        Difference {
            gone: self.0.difference(&later.0).cloned().collect(),
            new: later.0.difference(&self.0).cloned().collect(),
        }
    }

    /// Fails with the difference unless both are the same.
    pub fn expect_same(&self, later: &Self) -> Result<()> {
        let difference = self.difference(later);
        anyhow::ensure!(difference.is_empty(), "the host is not as it was:\n{difference}");
        Ok(())
    }

    /// Facts that begin with `start`.
    pub fn starting_with<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(String::as_str).filter(move |fact| fact.starts_with(start))
    }

    /// The facts that this has and `other` does not must all still hold in `later`.
    pub fn expect_kept(&self, other: &Self, later: &Self) -> Result<()> {
        let missing: Vec<_> =
            self.0.difference(&other.0).filter(|fact| !later.0.contains(*fact)).collect();
        anyhow::ensure!(missing.is_empty(), "not kept: {missing:#?}");
        Ok(())
    }
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.new.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.gone.iter().try_for_each(|line| writeln!(f, "- {line}"))?;
        self.new.iter().try_for_each(|line| writeln!(f, "+ {line}"))
    }
}

/// Waits until the kernel has looked for duplicates of all IPv6 addresses, which takes it up to two
/// seconds from when an interface is up. Until then they have a flag more, and no routes.
fn wait_settled(netns: &Netns) -> Result<()> {
    let what = format!("the addresses in {} to be settled", netns.name());
    wait::until(&what, Duration::from_secs(20), || {
        let text = netns.exec("ip -6 -j addr show tentative").map_err(|e| format!("{e:#}"))?;
        let links: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        let is_set = |link: &Value, flag: &str| {
            link["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == flag))
        };
        // Without a carrier nobody can be asked, and what has a duplicate stays so.
        let is_asked = |link: &&Value| {
            let addresses = link["addr_info"].as_array().into_iter().flatten();
            let mut open = addresses.filter(|a| a["tentative"] == true && a["dadfailed"] != true);
            is_set(link, "LOWER_UP") && open.next().is_some()
        };
        match links.iter().find(is_asked) {
            Some(link) => Err(link.to_string()),
            None => Ok(()),
        }
    })
}

/// A rule without what it counted: `counter packets 1 bytes 60`.
fn without_counts(rule: &str) -> String {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let before = [""].into_iter().chain(words.iter().copied());
    let is_count =
        |before, word: &str| matches!(before, "packets" | "bytes") && word.parse::<u64>().is_ok();
    let kept = before.zip(&words).filter(|(before, word)| !is_count(*before, word));
    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

/// Adds `kind id path value` for each scalar of each element of a JSON list.
fn list(kind: &str, text: &str, id: &[&str], facts: &mut BTreeSet<String>) -> Result<()> {
    // `ip` prints nothing at all for an empty list of some kinds.
    if text.trim().is_empty() {
        return Ok(());
    }
    let elements: Vec<Value> = serde_json::from_str(text)?;
    for element in elements {
        let name: Vec<_> = id.iter().map(|field| scalar(&element[*field])).collect();
        flatten(&format!("{kind} {}", name.join(" ")), &element, facts);
    }
    Ok(())
}

fn flatten(path: &str, value: &Value, facts: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            // A bridge's clocks.
            for (name, value) in fields.iter().filter(|(name, _)| !name.ends_with("_timer")) {
                flatten(&format!("{path} {name}"), value, facts);
            }
        }
        // The order of a list says nothing here (flags, addresses), so no index.
        Value::Array(items) => items.iter().for_each(|item| match item {
            Value::Object(_) => {
                facts.insert(format!("{path} {item}"));
            }
            _ => flatten(path, item, facts),
        }),
        _ => {
            facts.insert(format!("{path} {}", scalar(value)));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn interfaces(netns: &Netns) -> Result<Vec<(u32, String)>> {
    let links: Vec<Value> = serde_json::from_str(&netns.exec("ip -j link show")?)?;
    let one = |link: &Value| {
        Some((link["ifindex"].as_u64()? as u32, link["ifname"].as_str()?.to_owned()))
    };
    links.iter().map(|link| one(link).context("a link without name or index")).collect()
}

/// The programs at the tcx hooks of an interface.
pub fn tcx(netns: &Netns, ifindex: u32, ifname: &str) -> Result<Vec<String>> {
    let mut facts = Vec::new();
    for (side, attach_type) in [("ingress", TCX_INGRESS), ("egress", TCX_EGRESS)] {
        let ids = netns.run(|| Ok(tcx_programs(ifindex, attach_type)?))?;
        facts.extend(ids.iter().map(|id| format!("tcx {ifname} {side} program {id}")));
    }
    Ok(facts)
}

const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Ids of the programs at a tcx hook, in order. Needs bpf(2): neither `tc` nor a bpftool of before
/// 2023 lists them.
fn tcx_programs(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: i32 = 16;
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        _pad: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut ids = [0u32; 64];
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    // SAFETY: `query` has the layout of the kernel's union for this command, its size is passed
    // along, and `prog_ids` points to room for `count` numbers; both outlive the call.
    let code =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if code < 0 {
        let error = io::Error::last_os_error();
        // Below Linux 6.6 there is no such hook, hence nothing at it.
        return if error.raw_os_error() == Some(libc::EINVAL) { Ok(vec![]) } else { Err(error) };
    }
    Ok(ids[..query.count as usize].to_vec())
}

/// Every readable sysctl of the calling thread's namespace, but for those that count or are random.
fn sysctls(dir: &Path) -> Vec<String> {
    const VOLATILE: [&str; 3] = ["nf_conntrack_count", "stable_secret", "dev_snmp6"];
    let mut facts = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            facts.extend(sysctls(&path));
        } else if !VOLATILE.iter().any(|name| path.ends_with(name))
            && let Ok(value) = fs::read_to_string(&path)
        {
            facts.push(format!("sysctl {} = {}", path.display(), value.trim()));
        }
    }
    facts
}

fn list_files(kind: &str, dir: &Path, facts: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        facts.insert(format!("{kind} {}", entry.path().display()));
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            list_files(kind, &entry.path(), facts);
        }
    }
}
