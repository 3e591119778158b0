//! The protocol of Docker's remote network and IPAM drivers, as dockerd speaks it (20.10 to 28.5):
//! one JSON object each way, names in capitals, and `null` for what is empty.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// Name of the one address space; Docker asks for two.
pub const ADDRESS_SPACE: &str = "mesh-local";

/// What a driver is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    RequestPool(RequestPool),
    ReleasePool(ReleasePool),
    RequestAddress(RequestAddress),
    ReleaseAddress(ReleaseAddress),
    CreateNetwork(CreateNetwork),
    DeleteNetwork(OfNetwork),
    CreateEndpoint(CreateEndpoint),
    DeleteEndpoint(OfEndpoint),
    Join(Join),
    Leave(OfEndpoint),
    Program(Program),
    Revoke(OfEndpoint),
    /// One that is always answered the same.
    Known(Value),
}

impl Call {
    /// As Docker names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RequestPool(_) => "IpamDriver.RequestPool",
            Self::ReleasePool(_) => "IpamDriver.ReleasePool",
            Self::RequestAddress(_) => "IpamDriver.RequestAddress",
            Self::ReleaseAddress(_) => "IpamDriver.ReleaseAddress",
            Self::CreateNetwork(_) => "NetworkDriver.CreateNetwork",
            Self::DeleteNetwork(_) => "NetworkDriver.DeleteNetwork",
            Self::CreateEndpoint(_) => "NetworkDriver.CreateEndpoint",
            Self::DeleteEndpoint(_) => "NetworkDriver.DeleteEndpoint",
            Self::Join(_) => "NetworkDriver.Join",
            Self::Leave(_) => "NetworkDriver.Leave",
            Self::Program(_) => "NetworkDriver.ProgramExternalConnectivity",
            Self::Revoke(_) => "NetworkDriver.RevokeExternalConnectivity",
            Self::Known(_) => "that is always answered the same",
        }
    }

    /// Docker is given something that is noted nowhere but in the answer and here.
    pub fn gives(&self) -> bool {
        matches!(
            self,
            Self::RequestPool(_)
                | Self::RequestAddress(_)
                | Self::CreateNetwork(_)
                | Self::CreateEndpoint(_)
        )
    }

    /// What is to go, goes though nobody waits any more.
    pub fn outlives_its_caller(&self) -> bool {
        matches!(
            self,
            Self::ReleasePool(_)
                | Self::ReleaseAddress(_)
                | Self::DeleteNetwork(_)
                | Self::DeleteEndpoint(_)
                | Self::Leave(_)
                | Self::Revoke(_)
        )
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RequestPool {
    /// Empty: the driver chooses.
    #[serde(deserialize_with = "nullable")]
    pub pool: String,
    /// `--ip-range`
    #[serde(deserialize_with = "nullable")]
    pub sub_pool: String,
    #[serde(deserialize_with = "nullable")]
    pub options: BTreeMap<String, String>,
    #[serde(rename = "V6")]
    pub v6: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ReleasePool {
    #[serde(rename = "PoolID")]
    pub pool: PoolId,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestAddress {
    #[serde(rename = "PoolID")]
    pub pool: PoolId,
    /// Empty: any.
    #[serde(default, deserialize_with = "nullable")]
    pub address: String,
    #[serde(default, deserialize_with = "nullable")]
    pub options: BTreeMap<String, String>,
}

impl RequestAddress {
    /// Not for a container but for the network itself.
    pub fn is_gateway(&self) -> bool {
        let kind = self.options.get("RequestAddressType");
        kind.is_some_and(|kind| kind == "com.docker.network.gateway")
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ReleaseAddress {
    #[serde(rename = "PoolID")]
    pub pool: PoolId,
    pub address: String,
}

/// `mesh-local/10.0.9.0/24`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolId(pub IpNet);

impl std::fmt::Display for PoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{ADDRESS_SPACE}/{}", self.0)
    }
}

impl<'de> Deserialize<'de> for PoolId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = text.split_once('/').and_then(|(_, net)| net.parse().ok());
        net.map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no pool of mesh")))
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(default, deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    #[serde(default, rename = "IPv4Data", deserialize_with = "nullable")]
    pub v4: Vec<IpData>,
    #[serde(default, rename = "IPv6Data", deserialize_with = "nullable")]
    pub v6: Vec<IpData>,
}

impl CreateNetwork {
    /// The driver's own options, `-o key=value`.
    pub fn generic(&self) -> BTreeMap<String, String> {
        let generic = self.options.get("com.docker.network.generic").and_then(Value::as_object);
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        generic.into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()
    }

    /// `--internal`
    pub fn is_internal(&self) -> bool {
        let internal = self.options.get("com.docker.network.internal");
        internal.is_some_and(|value| value == &Value::Bool(true))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpData {
    #[serde(deserialize_with = "nullable")]
    pub address_space: String,
    #[serde(deserialize_with = "nullable")]
    pub pool: String,
    /// With prefix length.
    #[serde(deserialize_with = "nullable")]
    pub gateway: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub network: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OfEndpoint {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, deserialize_with = "nullable")]
    pub interface: Interface,
}

/// Addresses have a prefix length; what Docker did not choose is empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Interface {
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(rename = "AddressIPv6", deserialize_with = "nullable")]
    pub address_ipv6: String,
    #[serde(deserialize_with = "nullable")]
    pub mac_address: String,
}

impl Interface {
    /// The addresses without their prefix lengths.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let texts = [&self.address, &self.address_ipv6];
        texts.into_iter().filter_map(|text| ip(text)).collect()
    }

    /// The first of them with its prefix length.
    pub fn net(&self) -> Option<IpNet> {
        [&self.address, &self.address_ipv6].into_iter().find_map(|text| text.parse().ok())
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Join {
    #[serde(rename = "NetworkID")]
    pub network: String,
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, deserialize_with = "nullable")]
    pub sandbox_key: String,
}

/// The endpoint is its container's way into the world: its ports are to be published.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Program {
    #[serde(rename = "EndpointID")]
    pub endpoint: String,
    #[serde(default, rename = "Options", deserialize_with = "nullable")]
    pub options: ProgramOptions,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ProgramOptions {
    #[serde(rename = "com.docker.network.portmap", deserialize_with = "nullable")]
    pub ports: Vec<PortBinding>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortBinding {
    /// Of IP.
    pub proto: u8,
    pub port: u16,
    /// Empty: any.
    #[serde(rename = "HostIP", deserialize_with = "nullable")]
    pub host_ip: String,
    /// 0: any that is free.
    pub host_port: u16,
    /// The last that will do.
    pub host_port_end: u16,
}

/// The answer to a [`Join`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    pub interface_name: InterfaceName,
    /// With one of them Docker gives the container no other way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "Option::is_none")]
    pub gateway_v6: Option<IpAddr>,
}

/// Docker moves `src_name` into the container, where it is the first free of `dst_prefix` and a
/// number.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    pub src_name: String,
    pub dst_prefix: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("mesh does not know {0}")]
    Unknown(String),
    #[error("{method} with a body that makes no sense: {cause}")]
    Parse { method: String, cause: serde_json::Error },
}

impl Call {
    /// `method`: as in the path, `NetworkDriver.Join`.
    pub fn parse(method: &str, body: &[u8]) -> Result<Self, ProtocolError> {
        fn of<T: DeserializeOwned>(
            method: &str,
            body: &[u8],
            call: impl FnOnce(T) -> Call,
        ) -> Result<Call, ProtocolError> {
            serde_json::from_slice(body)
                .map(call)
                .map_err(|cause| ProtocolError::Parse { method: method.to_owned(), cause })
        }
        match method {
            "Plugin.Activate" => {
                Ok(Self::Known(json!({"Implements": ["NetworkDriver", "IpamDriver"]})))
            }
            "NetworkDriver.GetCapabilities" => {
                Ok(Self::Known(json!({"Scope": "local", "ConnectivityScope": "global"})))
            }
            "IpamDriver.GetCapabilities" => Ok(Self::Known(
                json!({"RequiresMACAddress": false, "RequiresRequestReplay": false}),
            )),
            "IpamDriver.GetDefaultAddressSpaces" => Ok(Self::Known(json!({
                "LocalDefaultAddressSpace": ADDRESS_SPACE,
                "GlobalDefaultAddressSpace": "mesh-global",
            }))),
            "NetworkDriver.EndpointOperInfo" => Ok(Self::Known(json!({"Value": {}}))),
            "NetworkDriver.DiscoverNew" | "NetworkDriver.DiscoverDelete" => {
                Ok(Self::Known(json!({})))
            }
            "NetworkDriver.ProgramExternalConnectivity" => of(method, body, Self::Program),
            "NetworkDriver.RevokeExternalConnectivity" => of(method, body, Self::Revoke),
            "IpamDriver.RequestPool" => of(method, body, Self::RequestPool),
            "IpamDriver.ReleasePool" => of(method, body, Self::ReleasePool),
            "IpamDriver.RequestAddress" => of(method, body, Self::RequestAddress),
            "IpamDriver.ReleaseAddress" => of(method, body, Self::ReleaseAddress),
            "NetworkDriver.CreateNetwork" => of(method, body, Self::CreateNetwork),
            "NetworkDriver.DeleteNetwork" => of(method, body, Self::DeleteNetwork),
            "NetworkDriver.CreateEndpoint" => of(method, body, Self::CreateEndpoint),
            "NetworkDriver.DeleteEndpoint" => of(method, body, Self::DeleteEndpoint),
            "NetworkDriver.Join" => of(method, body, Self::Join),
            "NetworkDriver.Leave" => of(method, body, Self::Leave),
            _ => Err(ProtocolError::Unknown(method.to_owned())),
        }
    }
}

/// An address with or without a prefix length.
pub fn ip(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
