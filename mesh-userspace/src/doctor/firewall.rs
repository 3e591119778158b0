//! What the host's firewall does with forwarded packets, and that it does not matter to the mesh.

use std::{fs, io::ErrorKind};

use super::{
    Finding,
    Status::{Info, Ok},
    kernel::Module,
};

pub(super) fn forward_policy(release: &str) -> Finding {
    let seen = [nftables(release), iptables()];
    let dropping: Vec<&str> = seen.iter().flatten().flatten().map(String::as_str).collect();
    let inside = "Traffic inside the mesh does not pass the host's firewall.";
    if !dropping.is_empty() {
        let meaning =
            format!("{inside} Only containers that are to reach the world through this host do.");
        let value = format!("drop ({})", dropping.join(", "));
        return Finding::new("forward_policy", Info, value, meaning)
            .mended_by("iptables -P FORWARD ACCEPT  # or allow what is wanted");
    }
    if seen.iter().any(Option::is_none) {
        return Finding::new("forward_policy", Info, "unseen", inside)
            .mended_by("sudo nft list chains; sudo iptables-save -t filter");
    }
    Finding::new("forward_policy", Ok, "accept", inside)
}

/// Chains that drop by default what is forwarded; `None` if nobody could be asked.
fn nftables(release: &str) -> Option<Vec<String>> {
    // Asking would load the module. If it is not loaded, there are no rules.
    if Module::find("nf_tables", release) == Module::Loadable {
        return Some(Vec::new());
    }
    output("nft", &["-j", "list", "chains"]).and_then(|json| nft_dropping(&json)).or_else(|| {
        let rules = output("iptables-nft-save", &["-t", "filter"])?;
        Some(iptables_dropping(&rules))
    })
}

fn nft_dropping(json: &str) -> Option<Vec<String>> {
    let list: serde_json::Value = serde_json::from_str(json).ok()?;
    let chains = list.get("nftables")?.as_array()?.iter().filter_map(|item| item.get("chain"));
    let text = |chain: &serde_json::Value, key| {
        chain.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
    };
    let dropping = chains
        .filter(|c| text(c, "hook") == "forward" && text(c, "policy") == "drop")
        .map(|c| format!("{} {} {}", text(c, "family"), text(c, "table"), text(c, "name")));
    Some(dropping.collect())
}

/// As [`nftables`], for the older kernel interface.
fn iptables() -> Option<Vec<String>> {
    // The kernel lists the tables that there are; asking for another one would make it.
    let tables = match fs::read_to_string("/proc/net/ip_tables_names") {
        Result::Ok(tables) => tables,
        // The kernel does not have it.
        Err(e) if e.kind() == ErrorKind::NotFound => return Some(Vec::new()),
        Err(_) => return None,
    };
    if !tables.lines().any(|table| table == "filter") {
        return Some(Vec::new());
    }
    let rules = output("iptables-legacy-save", &["-t", "filter"])
        .or_else(|| output("iptables-save", &["-t", "filter"]))?;
    Some(iptables_dropping(&rules))
}

fn iptables_dropping(rules: &str) -> Vec<String> {
    let drops = rules.lines().any(|line| line.starts_with(":FORWARD DROP"));
    if drops { vec!["iptables FORWARD".to_owned()] } else { Vec::new() }
}

/// What a program prints, if it is there and succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    crate::program::run(program, args, "").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nft_chains_that_drop_are_named() {
        let json = r#"{"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1,
                       "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "input", "handle": 2,
                       "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 3}}]}"#;
        assert_eq!(nft_dropping(json), Some(vec!["ip filter FORWARD".to_owned()]));
        assert_eq!(nft_dropping("no json"), None);
    }

    #[test]
    fn iptables_policy_is_read() {
        let rules = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n";
        assert_eq!(iptables_dropping(rules), ["iptables FORWARD"]);
        let rules = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
        assert!(iptables_dropping(rules).is_empty());
    }
}
