//! The options of `docker network create -d mesh -o KEY=VALUE`.

use std::collections::BTreeMap;

use mesh_common::maps::VNI_MAX;

use crate::config::{Flood, parse_flood};

/// Marks a network that an agent made, since it is on another host: its name there. Docker does not
/// tell its drivers names.
pub const NETWORK: &str = "mesh.network";
/// The node with the first block.
pub const FIRST: &str = "mesh.first";
pub const VNI: &str = "vni";
const MTU: [&str; 2] = ["mtu", "com.docker.network.driver.mtu"];
const ENCAP: &str = "encap";
const GATEWAY: &str = "gateway";
const FLOOD: &str = "flood";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub vni: Option<u32>,
    pub mtu: Option<u32>,
    pub encap: Option<String>,
    /// Containers reach the world through their interface in this network, and not by Docker's
    /// `docker_gwbridge`.
    pub gateway: bool,
    pub flood: Flood,
    pub network: Option<String>,
    pub first: Option<String>,
}

impl Options {
    /// # Errors
    ///
    /// For the user. What is Docker's own is passed over.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in given {
            match key.as_str() {
                VNI => {
                    let vni = value.parse().ok().filter(|vni| (1..=VNI_MAX).contains(vni));
                    let fault = || format!("vni={value}: must be a number of 1 to {VNI_MAX}");
                    options.vni = Some(vni.ok_or_else(fault)?);
                }
                key if MTU.contains(&key) => {
                    let mtu = value.parse().ok().filter(|mtu| (576..=65_535).contains(mtu));
                    let fault = || format!("{key}={value}: must be a number of 576 to 65535");
                    options.mtu = Some(mtu.ok_or_else(fault)?);
                }
                ENCAP => options.encap = Some(value.clone()),
                GATEWAY if value == "mesh" => options.gateway = true,
                GATEWAY => {
                    return Err(format!(
                        "{key}={value}: must be mesh, or be left out for Docker's docker_gwbridge"
                    ));
                }
                FLOOD => {
                    let fault = |fault| format!("{key}={value}: {fault}");
                    options.flood = parse_flood(value).map_err(fault)?;
                }
                NETWORK => options.network = Some(value.clone()),
                FIRST => options.first = Some(value.clone()),
                key if key.starts_with("com.docker.") => {}
                key => {
                    return Err(format!(
                        "unknown option {key}: mesh has vni, mtu, encap, gateway and flood"
                    ));
                }
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<Options, String> {
        Options::parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn options_are_read() {
        assert_eq!(parse("vni", "700").unwrap().vni, Some(700));
        assert_eq!(parse("mtu", "1400").unwrap().mtu, Some(1400));
        assert!(parse("gateway", "mesh").unwrap().gateway);
        assert_eq!(parse("flood", "all").unwrap().flood, Flood::All);
        assert_eq!(parse("com.docker.network.driver.mtu", "1400").unwrap().mtu, Some(1400));
        assert_eq!(parse("com.docker.network.enable_ipv6", "x"), Ok(Options::default()));
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_reason() {
        let vnis = ["0", "16777216", "x"].map(|value| ("vni", value));
        let others = [("mtu", "70000"), ("gateway", "x"), ("flood", "some")];
        for (key, value) in vnis.into_iter().chain(others) {
            let error = parse(key, value).unwrap_err();
            assert!(error.contains(&format!("{key}={value}")), "{error}");
        }
        assert!(parse("vnl", "7").unwrap_err().contains("vnl"));
    }
}
