//! A network's config, as the runtime gives it on stdin, with what it adds for the container. Pure.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive, path::PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    env::Args,
    error::{CniError, Code},
};

/// Of the specification, that this plugin speaks.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
pub const LATEST: &str = VERSIONS[2];

/// What an interface may be limited to.
const MTUS: RangeInclusive<u32> = 576..=65_535;

/// Keys that mean something, here or to runtimes.
const KEYS: [&str; 14] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "network",
    "runDir",
    "mtu",
    "dns",
    "ipam",
    "args",
    "runtimeConfig",
    "prevResult",
    "capabilities",
    "disableCheck",
];

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    pub cni_version: String,
    /// Of the CNI network.
    pub name: String,
    /// Of the mesh; the cluster's own if there is none.
    pub network: Option<String>,
    /// The agent's.
    pub run_dir: Option<PathBuf>,
    /// The interface gets no more than this.
    pub mtu: Option<u32>,
    /// Instead of the agent's resolver.
    pub dns: Option<Value>,
    ipam: Option<Value>,
    args: Conventional,
    runtime_config: RuntimeConfig,
    pub prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<Attachment>>,
    /// As libcni also calls them.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<Attachment>>,
}

/// A container's interface that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container: String,
    pub ifname: String,
}

/// `args`, after CNI's conventions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Conventional {
    cni: Wishes,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Wishes {
    ips: Vec<String>,
    mac: Option<String>,
}

/// What the runtime gives to the capabilities that a config declares.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    /// By CNI network.
    aliases: BTreeMap<String, Vec<String>>,
    ips: Vec<String>,
    mac: Option<String>,
    ip_ranges: Vec<Vec<Range>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    subnet: String,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
}

impl Conf {
    /// Reads what a runtime says. What can not be understood, or is of another version.
    pub fn read(bytes: &[u8]) -> Result<Self, CniError> {
        let decode = |e: serde_json::Error| {
            CniError::new(Code::Decode, "the network config on stdin can not be read")
                .with(e.to_string())
        };
        let keys: Map<String, Value> = serde_json::from_slice(bytes).map_err(decode)?;
        let conf: Self = serde_json::from_value(Value::Object(keys)).map_err(decode)?;
        if VERSIONS.contains(&conf.cni_version.as_str()) {
            return Ok(conf);
        }
        let given = match conf.cni_version.as_str() {
            "" => "cniVersion is missing".to_owned(),
            version => format!("cniVersion {version:?} is none that mesh speaks"),
        };
        Err(CniError::new(Code::Version, given).with(format!("it may be {}", VERSIONS.join(", "))))
    }

    /// What must be right before a container is attached: `bytes` as they were read.
    pub fn check(&self, bytes: &[u8]) -> Result<(), CniError> {
        if self.name.is_empty() {
            return Err(CniError::new(Code::Config, "the network config has no name"));
        }
        let keys: BTreeMap<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
        let unknown = |key: &&String| !KEYS.contains(&key.as_str()) && !key.starts_with("cni.dev/");
        if let Some(key) = keys.keys().find(unknown) {
            let error = format!("{key}: {} means nothing to mesh", keys[key]);
            return Err(CniError::new(Code::Unsupported, error)
                .with("its own keys are network, runDir, mtu and dns"));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTUS.contains(mtu)) {
            let error = format!("mtu: {mtu} is not in {} to {}", MTUS.start(), MTUS.end());
            return Err(CniError::new(Code::Config, error));
        }
        match &self.ipam {
            Some(ipam) if ipam.get("type").is_some_and(|t| *t != "") => {
                Err(CniError::new(Code::Unsupported, format!("ipam: {ipam}: mesh gives addresses"))
                    .with("leave ipam out: each node has its own part of the network"))
            }
            _ => Ok(()),
        }
    }

    /// The addresses that are asked for.
    pub fn addresses(&self, args: &Args) -> Result<Vec<IpAddr>, CniError> {
        let (given, cni) = (&self.runtime_config.ips, &self.args.cni.ips);
        let by_args: Vec<String> =
            args.ip.iter().flat_map(|ips| ips.split(',')).map(str::to_owned).collect();
        let asked = [given, cni, &by_args].into_iter().find(|ips| !ips.is_empty());
        let address = |text: &String| {
            let net = text.parse::<IpNet>().map(|net| net.addr());
            net.or_else(|_| text.parse()).map_err(|_| {
                CniError::new(Code::Config, format!("{text:?} is no address, such as 10.42.0.7"))
            })
        };
        asked.into_iter().flatten().map(address).collect()
    }

    /// First and last address of each range to choose from.
    pub fn ranges(&self) -> Result<Vec<(IpAddr, IpAddr)>, CniError> {
        let range = |range: &Range| {
            let net: IpNet = range.subnet.parse().map_err(|_| {
                let error = format!("ipRanges: {:?} is no subnet", range.subnet);
                CniError::new(Code::Config, error)
            })?;
            let (first, last) = (net.network(), net.broadcast());
            Ok((range.range_start.unwrap_or(first), range.range_end.unwrap_or(last)))
        };
        self.runtime_config.ip_ranges.iter().flatten().map(range).collect()
    }

    pub fn mac(&self, args: &Args) -> Result<Option<[u8; 6]>, CniError> {
        let given = self.runtime_config.mac.as_ref().or(self.args.cni.mac.as_ref());
        let Some(text) = given.or(args.mac.as_ref()) else { return Ok(None) };
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
        let mac: Option<[u8; 6]> =
            bytes.collect::<Option<Vec<_>>>().and_then(|bytes| bytes.try_into().ok());
        // Neither for many, nor nobody's.
        match mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]) {
            Some(mac) => Ok(Some(mac)),
            None => Err(CniError::new(Code::Config, format!("{text:?} is no MAC of an interface"))),
        }
    }

    /// What other containers call this one: first the name that people gave it.
    pub fn names(&self, container: &str, args: &Args) -> Vec<String> {
        let mut names: Vec<String> = args.pod.iter().cloned().collect();
        if let (Some(pod), Some(namespace)) = (&args.pod, &args.namespace) {
            names.push(format!("{pod}.{namespace}"));
        }
        names.extend(self.runtime_config.aliases.get(&self.name).into_iter().flatten().cloned());
        names.push(short(container));
        let is_name = |name: &String| {
            let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && name.len() <= 253 && name.chars().all(fine)
        };
        let mut seen: Vec<String> = Vec::new();
        for name in names.into_iter().filter(is_name) {
            if !seen.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
                seen.push(name);
            }
        }
        seen
    }

    /// The names of the endpoints that are in use.
    pub fn in_use(&self) -> Option<Vec<String>> {
        let valid = self.valid_attachments.as_ref().or(self.attachments.as_ref())?;
        Some(valid.iter().map(|a| endpoint_name(&a.container, &a.ifname)).collect())
    }
}

/// What an attachment is called here: the same container and interface, the same name.
pub fn endpoint_name(container: &str, ifname: &str) -> String {
    format!("cni-{}-{ifname}", short(container))
}

/// A container's id, as people see it.
fn short(id: &str) -> String {
    // The host takes no longer name, with what stands around it.
    const LONGEST: usize = 100;
    let is_digest = id.len() >= 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    match id.len() {
        _ if is_digest => id[..12].to_owned(),
        ..=LONGEST => id.to_owned(),
        _ => {
            let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let start: String = id.chars().take(LONGEST - 17).collect();
            format!("{start}-{hash:016x}")
        }
    }
}

#[cfg(test)]
mod tests;
