//! The local Docker's own API, as far as it is needed: networks, containers, events.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use http_body_util::BodyExt;
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, sync::mpsc, time::timeout};

use super::http;

/// A daemon that takes longer is stuck; starting a container holds its lock for some seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of an answer, in bytes.
const ANSWER_MAX: usize = 64 << 20;
/// Of one event, in bytes.
const EVENT_MAX: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Docker at {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Docker's own words.
    #[error("{0}")]
    Refused(String),
    #[error("there is no such thing: {0}")]
    NotFound(String),
    #[error("Docker's answer is not understood: {0}")]
    Parse(#[from] serde_json::Error),
    /// A panic's message.
    #[error("the agent was interrupted ({0}): report this")]
    Interrupted(String),
}

/// Why there is no Docker to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// No socket.
    None,
    Unreachable(String),
    /// In another network namespace.
    Elsewhere,
}

#[derive(Clone, Debug)]
pub struct Api {
    pub socket: PathBuf,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    #[serde(skip_serializing)]
    pub id: String,
    pub name: String,
    pub driver: String,
    pub internal: bool,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub ipam: Ipam,
    #[serde(deserialize_with = "null_is_empty")]
    pub options: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing, deserialize_with = "null_is_empty")]
    pub containers: BTreeMap<String, Member>,
}

/// The networks of one driver.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// The id of the network `host`: Docker makes it once for all that it keeps, so another one is
    /// another Docker, with other networks.
    pub engine: Option<String>,
    pub list: Vec<Network>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    pub driver: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub options: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub config: Vec<IpamConfig>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamConfig {
    pub subnet: Option<IpNet>,
    /// With a prefix length in some versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// A container in a network's own description.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Member {
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

impl Member {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let texts = [&self.ipv4_address, &self.ipv6_address];
        texts.into_iter().filter_map(|text| text.split('/').next()?.parse().ok())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub state: ContainerState,
    pub host_config: HostConfig,
    pub network_settings: NetworkSettings,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    pub running: bool,
    /// 0 if it does not run.
    pub pid: u32,
    /// Why it could not be started.
    pub error: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    pub restart_policy: RestartPolicy,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// Empty, as `no`: it is not started again.
    pub name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub networks: BTreeMap<String, Attachment>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Attachment {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    pub mac_address: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub aliases: Vec<String>,
    /// Since 26.0.
    #[serde(rename = "DNSNames", deserialize_with = "null_is_empty")]
    pub dns_names: Vec<String>,
}

/// Something that happened to a network or a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(rename = "Action")]
    pub action: String,
    #[serde(rename = "Actor")]
    pub actor: Actor,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Attributes", deserialize_with = "null_is_empty")]
    pub attributes: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Attachment {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let texts = [&self.ip_address, &self.global_ipv6_address];
        texts.into_iter().filter_map(|text| text.parse().ok())
    }
}

impl Api {
    /// Is there a Docker, and does it make its networks in our namespace? `None`: yes. Agents of
    /// several hosts may run on one machine.
    pub async fn absence(&self) -> Option<Absence> {
        let stream = match UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Some(Absence::None),
            Err(e) => return Some(Absence::Unreachable(e.to_string())),
        };
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let is_ours = pid.is_some_and(|pid| namespace(&pid.to_string()) == namespace("self"));
        (!is_ours).then_some(Absence::Elsewhere)
    }

    /// The networks of a driver, without the containers in them.
    pub async fn networks(&self, driver: &str) -> Result<Networks, ApiError> {
        let all: Vec<Network> = self.get("/networks").await?;
        let engine = all.iter().find(|n| n.driver == "host").map(|n| n.id.clone());
        Ok(Networks { engine, list: all.into_iter().filter(|n| n.driver == driver).collect() })
    }

    /// A network by id or name, with the containers in it.
    pub async fn network(&self, id: &str) -> Result<Network, ApiError> {
        self.get(&format!("/networks/{}", escape(id))).await
    }

    pub async fn create_network(&self, network: &Network) -> Result<(), ApiError> {
        let body = serde_json::to_vec(network)?;
        self.call("POST", "/networks/create", body).await.map(drop)
    }

    pub async fn remove_network(&self, id: &str) -> Result<(), ApiError> {
        self.call("DELETE", &format!("/networks/{}", escape(id)), Vec::new()).await.map(drop)
    }

    /// Ids of the containers that run.
    pub async fn running(&self) -> Result<Vec<String>, ApiError> {
        let all: Vec<Listed> = self.get("/containers/json").await?;
        Ok(all.into_iter().map(|c| c.id).collect())
    }

    /// Ids of the containers of these networks that ran and do not.
    pub async fn exited(&self, networks: &[String]) -> Result<Vec<String>, ApiError> {
        let filter = serde_json::json!({"status": ["exited"], "network": networks});
        let path = format!("/containers/json?all=1&filters={}", escape(&filter.to_string()));
        let all: Vec<Listed> = self.get(&path).await?;
        Ok(all.into_iter().map(|c| c.id).collect())
    }

    pub async fn start(&self, id: &str) -> Result<(), ApiError> {
        self.call("POST", &format!("/containers/{}/start", escape(id)), Vec::new()).await.map(drop)
    }

    pub async fn container(&self, id: &str) -> Result<Container, ApiError> {
        self.get(&format!("/containers/{}/json", escape(id))).await
    }

    /// Everything that happens from now on to networks and containers. Ends when Docker does.
    pub async fn events(&self) -> Result<mpsc::Receiver<Event>, ApiError> {
        let filter = escape(r#"{"type":["network","container"]}"#);
        let path = format!("/events?filters={filter}");
        let stream = self.connect().await?;
        let opened = timeout(PATIENCE, http::open(stream, "GET", &path, Vec::new())).await;
        let answer = opened.unwrap_or_else(|_| Err(timed_out())).map_err(|e| self.failed(e))?;
        let (sender, receiver) = mpsc::channel(1024);
        tokio::spawn(async move {
            let mut body = answer.into_body();
            let mut rest = Vec::new();
            loop {
                let frame = tokio::select! {
                    frame = body.frame() => frame,
                    // Nobody listens any more: Docker is to notice that at once.
                    () = sender.closed() => return,
                };
                let Some(Ok(frame)) = frame else { return };
                let Ok(data) = frame.into_data() else { continue };
                rest.extend_from_slice(&data);
                while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let Ok(event) = serde_json::from_slice(&line) else { continue };
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
                if rest.len() > EVENT_MAX {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        Ok(serde_json::from_slice(&self.call("GET", path, Vec::new()).await?.body)?)
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<http::Answer, ApiError> {
        let call = async {
            let stream = UnixStream::connect(&self.socket).await?;
            http::call(stream, method, path, body, ANSWER_MAX).await
        };
        let done = timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(timed_out()));
        let answer = done.map_err(|e| self.failed(e))?;
        if answer.is_ok() {
            return Ok(answer);
        }
        let said = serde_json::from_slice(&answer.body).map(|r: Refusal| r.message);
        let message = said.unwrap_or_else(|_| answer.text());
        Err(if answer.status == hyper::StatusCode::NOT_FOUND {
            ApiError::NotFound(message)
        } else {
            ApiError::Refused(message)
        })
    }

    async fn connect(&self) -> Result<UnixStream, ApiError> {
        UnixStream::connect(&self.socket).await.map_err(|e| self.failed(e))
    }

    fn failed(&self, source: io::Error) -> ApiError {
        ApiError::Io { path: self.socket.clone(), source }
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()))
}

/// For a place in a URL.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().fold(String::new(), |mut all, b| {
        if plain(b) {
            all.push(char::from(b));
        } else {
            all.push_str(&format!("%{b:02X}"));
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_is_escaped() {
        assert_eq!(escape(r#"{"a":["b-c"]}"#), "%7B%22a%22%3A%5B%22b-c%22%5D%7D");
    }

    #[test]
    fn a_container_is_read_as_two_versions_describe_it() {
        let old = r#"{"Id":"ab","Name":"/web","State":{"Running":true},"NetworkSettings":{
            "SandboxID":"s","Networks":{"my-net":{"NetworkID":"n","EndpointID":"e",
            "IPAddress":"10.0.9.2","GlobalIPv6Address":"","Aliases":["api","3a396b612e62"]}}}}"#;
        let container: Container = serde_json::from_str(old).unwrap();
        assert_eq!(container.network_settings.networks["my-net"].aliases.len(), 2);
        let new = old
            .replace(r#""Aliases":["api","3a396b612e62"]"#, r#""Aliases":null,"DNSNames":["web"]"#);
        let container: Container = serde_json::from_str(&new).unwrap();
        assert_eq!(container.network_settings.networks["my-net"].dns_names, ["web"]);
    }
}
