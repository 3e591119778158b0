//! Which node of the cluster this host is.

use super::HostError;
use crate::{
    config::{Cluster, Node},
    net::Net,
};

/// `given`: the `--node` argument. Else the node whose underlay address is on this machine, else
/// the one with the machine's name. Never one that the file says does not run mesh.
pub async fn which_node(
    cluster: &Cluster,
    given: Option<&str>,
    net: &Net,
) -> Result<String, HostError> {
    if let Some(name) = given {
        return match cluster.nodes.iter().find(|n| n.name == name) {
            Some(node) => managed(node).map(|node| node.name.clone()),
            None => Err(HostError::User(format!(
                "the config file has no node {name:?}; it has {}",
                names(cluster)
            ))),
        };
    }
    let addresses = net.addresses().await?;
    let is_here = |n: &&Node| addresses.iter().any(|a| a.ip() == n.underlay);
    let (here, foreign): (Vec<_>, Vec<_>) =
        cluster.nodes.iter().filter(is_here).partition(|node| node.is_managed());
    match here.as_slice() {
        [node] => return Ok(node.name.clone()),
        [] => {
            if let Some(node) = foreign.first() {
                managed(node)?;
            }
        }
        several => {
            let several: Vec<_> =
                several.iter().map(|n| format!("{} ({})", n.name, n.underlay)).collect();
            return Err(HostError::User(format!(
                "this machine has the underlay addresses of several nodes: {}; \
                 say which one it is with --node NAME",
                several.join(", ")
            )));
        }
    }
    let uname = rustix::system::uname();
    let hostname = uname.nodename().to_string_lossy().into_owned();
    let short = hostname.split('.').next().unwrap_or_default();
    let is_named = |name: &str| name == hostname || name == short;
    match cluster.nodes.iter().find(|n| is_named(&n.name)) {
        Some(node) => managed(node).map(|node| node.name.clone()),
        None => Err(HostError::User(format!(
            "which node is this? No interface has an underlay address of the config file, and no \
             node is named {hostname:?}; say it with --node NAME, one of {}",
            names(cluster)
        ))),
    }
}

/// # Errors
///
/// For a node that does not run mesh.
pub(super) fn managed(node: &Node) -> Result<&Node, HostError> {
    if node.is_managed() {
        return Ok(node);
    }
    Err(HostError::User(format!(
        "this host is node {} ({}), which the config file says does not run mesh: take \
         `managed = false` away from it, or set its tunnels up with what \
         `mesh check --config FILE --peer-commands {}` prints",
        node.name, node.underlay, node.name
    )))
}

fn names(cluster: &Cluster) -> String {
    const SHOWN: usize = 10;
    let managed = || cluster.nodes.iter().filter(|node| node.is_managed());
    let shown: Vec<_> = managed().take(SHOWN).map(|n| n.name.as_str()).collect();
    let more = managed().count().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}
