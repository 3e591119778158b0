//! `mesh docker`

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Place, file, path, print, print_json,
    session::{self, Session},
};
use crate::{
    agent::protocol::{Request, Response},
    host::Status,
    names::forward,
};

/// What Docker calls its default bridge.
const DOCKER0: &str = "docker0";
/// The longest prefix that it takes for IPv6.
const DOCKER_V6_MOST: u8 = 80;
const RESTART: &str = "`systemctl restart docker`";

#[derive(Debug, Subcommand)]
pub enum DockerVerb {
    /// Fit Docker's daemon.json to the mesh: `dns`, so that containers ask the agent for names, and
    /// where docker0 is attached `bip`, `fixed-cidr`, `mtu` and `ip-masq`
    Configure(ConfigureArgs),
}

#[derive(Debug, Args)]
pub struct ConfigureArgs {
    /// Docker's config file; everything else in it stays as it is
    #[arg(long, default_value = crate::doctor::DAEMON_JSON, value_parser = path::named())]
    pub file: PathBuf,
    /// Show the difference and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Restart Docker if it needs that, with systemctl or service. Its containers are stopped, unless
    /// it has `live-restore`
    #[arg(long, conflicts_with = "dry_run")]
    pub restart: bool,
    /// Print what was done, or with `--dry-run` would be, as JSON
    #[arg(long)]
    pub json: bool,
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    file: &'a Path,
    dry_run: bool,
    /// The keys that change, with their new values; none if the file is right already.
    set: Map<String, Value>,
    written: bool,
    /// Where the file is kept as it was.
    kept: Option<PathBuf>,
    restart: Restart,
}

/// Of Docker, for what is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Restart {
    NotNeeded,
    Needed,
    Done,
}

pub async fn run(verb: DockerVerb, place: &Place) -> anyhow::Result<ExitCode> {
    let DockerVerb::Configure(args) = verb;
    session::wait_up(place).await;
    let status = match session::open(place, &Request::Status, None, false).await? {
        Session::Agent(Response::Status(status)) => *status,
        Session::Agent(other) => bail!("the agent answered something else: {other:?}"),
        Session::Direct(mut host) => host.status().await?,
    };
    let outcome = configure(&args, &status)?;
    if args.json {
        print_json(&outcome)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what it does as it does it, unless that is printed as JSON in the end.
fn configure<'a>(args: &'a ConfigureArgs, status: &Status) -> anyhow::Result<Outcome<'a>> {
    let say = |text: &str| if args.json { Ok(()) } else { print(text) };
    let shown = args.file.display();
    let before = file::read(&args.file).map_err(file::failed(&args.file))?;
    let after = merged(&before, settings(status)?).with_context(|| shown.to_string())?;
    let is_needed = after.is_some() || lacks_restart(status);
    let mut outcome = Outcome {
        file: &args.file,
        dry_run: args.dry_run,
        set: after.as_deref().map(|after| changes(&before, after)).unwrap_or_default(),
        written: false,
        kept: None,
        restart: if is_needed { Restart::Needed } else { Restart::NotNeeded },
    };
    if let Some(after) = &after {
        say(&file::difference(&before, after))?;
        if args.dry_run {
            return Ok(outcome);
        }
        outcome.kept = write(&args.file, &before, after).map_err(file::failed(&args.file))?;
        outcome.written = true;
    }
    say(&outcome.text(args.restart))?;
    if args.restart && is_needed {
        restart(args.json).with_context(|| format!("{shown} is right now"))?;
        outcome.restart = Restart::Done;
        say("Docker is restarted")?;
    }
    Ok(outcome)
}

impl Outcome<'_> {
    /// What was done to the file, and what is left to do unless it follows.
    fn text(&self, restart_follows: bool) -> String {
        let shown = self.file.display();
        if self.written {
            let kept = self.kept.as_ref().map_or_else(String::new, |kept| {
                format!("; what it was before is kept in {}", kept.display())
            });
            let left = match restart_follows {
                true => String::new(),
                false => format!("; restart Docker for it ({RESTART})"),
            };
            return format!("{shown} is written{kept}{left}");
        }
        let leftover = match self.restart {
            Restart::Needed if restart_follows => "Docker runs without it yet".into(),
            Restart::Needed => {
                format!("but Docker runs without it yet: restart Docker ({RESTART})")
            }
            Restart::NotNeeded | Restart::Done => "nothing to do".into(),
        };
        format!("{shown} is right already; {leftover}")
    }
}

/// `quiet`: nothing but our own may be on stdout.
fn restart(quiet: bool) -> anyhow::Result<()> {
    let run = |program: &str, args: [&str; 2]| {
        let mut command = Command::new(program);
        if quiet {
            command.stdout(io::stderr());
        }
        command.args(args).status()
    };
    let done = match run("systemctl", ["restart", "docker"]) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => run("service", ["docker", "restart"]),
        done => done,
    };
    match done {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("restarting Docker: {status}; restart it yourself"),
        Err(e) => bail!("restarting Docker: {e}; restart it yourself"),
    }
}

/// What Docker has to be told.
#[derive(Debug, Default, PartialEq)]
struct Settings {
    /// `None`: names are not served.
    dns: Option<Vec<IpAddr>>,
    bridge: Option<DefaultBridge>,
}

#[derive(Debug, PartialEq)]
struct DefaultBridge {
    /// The host's address on it, with the prefix that is on link.
    bip: String,
    /// Where the containers' addresses are from.
    fixed_cidr: String,
    /// The same for IPv6, where the node has a part of that. The host's address follows from it, and
    /// what is not on link goes by that.
    fixed_cidr_v6: Option<String>,
    mtu: u32,
}

fn settings(status: &Status) -> anyhow::Result<Settings> {
    let dns = status.docker_plugin.then(|| {
        let mut dns = status.addresses.clone();
        // For when the agent is away.
        dns.extend(forward::public_resolvers());
        dns.dedup();
        dns
    });
    let is_attached = status.bridges.iter().any(|bridge| bridge.name == DOCKER0);
    let bridge = is_attached.then(|| default_bridge(status)).transpose()?;
    if dns.is_none() && bridge.is_none() {
        bail!(
            "there is nothing to tell Docker: the config file has `docker.plugin = false` and does \
             not attach {DOCKER0}; write `[attach]` with `bridges = [\"{DOCKER0}\"]` for that"
        );
    }
    Ok(Settings { dns, bridge })
}

/// The whole of the cluster's network is on link, and the addresses are from the node's own part.
/// The host has the same address there as on `mesh0`: one by which all know it.
fn default_bridge(status: &Status) -> anyhow::Result<DefaultBridge> {
    let network = status.networks.first();
    let find = |address: &IpAddr| {
        let subnet = network?.subnets.iter().find(|net| net.contains(address))?;
        Some((subnet, network?.cidrs.iter().find(|cidr| cidr.contains(subnet))?))
    };
    let address = status.addresses.iter().find(|address| address.is_ipv4());
    let Some((address, (subnet, cidr))) = address.and_then(|a| Some((a, find(a)?))) else {
        bail!("this node has no IPv4 subnet, which {DOCKER0} needs: give the cluster one");
    };
    Ok(DefaultBridge {
        bip: format!("{address}/{}", cidr.prefix_len()),
        fixed_cidr: subnet.to_string(),
        fixed_cidr_v6: status.addresses.iter().find(|ip| ip.is_ipv6()).and_then(|address| {
            let (subnet, _) = find(address)?;
            // Docker makes the last 48 bits of the container's MAC.
            (subnet.prefix_len() <= DOCKER_V6_MOST).then(|| subnet.to_string())
        }),
        mtu: status.mtu,
    })
}

/// The file is right; is what runs not?
fn lacks_restart(status: &Status) -> bool {
    let bridge = status.bridges.iter().find(|bridge| bridge.name == DOCKER0);
    let wanted = default_bridge(status).ok().filter(|_| bridge.is_some()).map(|b| b.bip);
    let addresses = bridge.map_or(&[][..], |bridge| &bridge.addresses);
    wanted.is_some_and(|bip| !addresses.iter().any(|net| net.to_string() == bip))
}

/// The file with these settings; `None` if it has them.
fn merged(before: &str, wanted: Settings) -> anyhow::Result<Option<String>> {
    let mut file: Map<String, Value> = match before.trim() {
        "" => Map::new(),
        text => serde_json::from_str(text).context("it is no JSON object")?,
    };
    let old = file.clone();
    if let Some(dns) = wanted.dns {
        file.insert("dns".into(), json!(dns));
    }
    if let Some(DefaultBridge { bip, fixed_cidr, fixed_cidr_v6, mtu }) = wanted.bridge {
        if let Some(other) = file.get("bridge") {
            bail!(
                "it has \"bridge\": {other}, so Docker makes no {DOCKER0}: take that out, or attach \
                 that bridge instead"
            );
        }
        file.insert("bip".into(), json!(bip));
        file.insert("fixed-cidr".into(), json!(fixed_cidr));
        // Whoever switched it off wants none.
        if let Some(v6) = fixed_cidr_v6
            && file.entry("ipv6").or_insert(json!(true)) == &json!(true)
        {
            file.insert("fixed-cidr-v6".into(), json!(v6));
        }
        // A smaller one does no harm.
        let fits = |old: &Value| old.as_u64().is_some_and(|old| (1..=mtu.into()).contains(&old));
        if !file.get("mtu").is_some_and(fits) {
            file.insert("mtu".into(), json!(mtu));
        }
        // The world is reached by Docker's own masquerading; what stays in the mesh never meets it.
        // Whoever switched it off has another way.
        file.entry("ip-masq").or_insert(json!(true));
    }
    if file == old {
        return Ok(None);
    }
    Ok(Some(serde_json::to_string_pretty(&file)? + "\n"))
}

/// The keys of `after` that `before` has otherwise, or not.
fn changes(before: &str, after: &str) -> Map<String, Value> {
    let parse = |text: &str| serde_json::from_str(text).unwrap_or_default();
    let (before, mut after): (Map<String, Value>, Map<String, Value>) =
        (parse(before), parse(after));
    after.retain(|key, value| before.get(key) != Some(value));
    after
}

/// Keeps what was there beside it, and what was kept before. Returns where.
fn write(path: &Path, before: &str, after: &str) -> io::Result<Option<PathBuf>> {
    let kept = (!before.is_empty()).then(|| keep(path, before)).transpose()?;
    file::replace(path, after)?;
    Ok(kept)
}

/// Writes `text` into a new file beside `path`.
fn keep(path: &Path, text: &str) -> io::Result<PathBuf> {
    for n in 1.. {
        let number = if n == 1 { String::new() } else { format!("-{n}") };
        let kept = crate::durable::beside(path, &format!(".before-mesh{number}"));
        // What others may not read stays so: they can not open it before it has its mode.
        match crate::durable::create_new(&kept, 0o600) {
            Ok(mut file) => {
                crate::durable::make_alike(&file, &fs::metadata(path)?)?;
                file.write_all(text.as_bytes())?;
                return file.sync_all().map(|()| kept);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns() -> Settings {
        Settings { dns: Some(vec!["10.42.0.1".parse().unwrap()]), bridge: None }
    }

    fn bridge() -> Settings {
        let bridge = DefaultBridge {
            bip: "10.42.64.1/16".into(),
            fixed_cidr: "10.42.64.0/18".into(),
            fixed_cidr_v6: None,
            mtu: 1462,
        };
        Settings { dns: None, bridge: Some(bridge) }
    }

    #[test]
    fn the_default_bridge_is_given_its_part_and_what_was_wanted_otherwise_stays() {
        let after = merged("", bridge()).unwrap().unwrap();
        let value: Value = serde_json::from_str(&after).unwrap();
        let expected = json!({
            "bip": "10.42.64.1/16", "fixed-cidr": "10.42.64.0/18", "ip-masq": true, "mtu": 1462
        });
        assert_eq!(value, expected);
        assert_eq!(merged(&after, bridge()).unwrap(), None);
        let own = r#"{"mtu": 1400, "ip-masq": false, "bip": "172.17.0.1/16"}"#;
        let value: Value = serde_json::from_str(&merged(own, bridge()).unwrap().unwrap()).unwrap();
        assert_eq!((&value["mtu"], &value["ip-masq"]), (&json!(1400), &json!(false)));
        assert_eq!(value["bip"], "10.42.64.1/16");
        let value = merged(r#"{"mtu": 1500}"#, bridge()).unwrap().unwrap();
        assert!(value.contains("\"mtu\": 1462"), "{value}");
    }

    #[test]
    fn the_default_bridge_has_ipv6_unless_somebody_switched_it_off() {
        let wanted = || {
            let bridge = bridge().bridge.unwrap();
            let fixed_cidr_v6 = Some("fd42:0:0:1::/64".into());
            Settings { dns: None, bridge: Some(DefaultBridge { fixed_cidr_v6, ..bridge }) }
        };
        let value: Value = serde_json::from_str(&merged("", wanted()).unwrap().unwrap()).unwrap();
        assert_eq!(
            (&value["ipv6"], &value["fixed-cidr-v6"]),
            (&json!(true), &json!("fd42:0:0:1::/64"))
        );
        let off = r#"{"ipv6": false}"#;
        let value: Value = serde_json::from_str(&merged(off, wanted()).unwrap().unwrap()).unwrap();
        assert_eq!((&value["ipv6"], &value["fixed-cidr-v6"]), (&json!(false), &Value::Null));
    }

    #[test]
    fn a_docker_without_its_default_bridge_is_left_alone() {
        let error = merged(r#"{"bridge": "none"}"#, bridge()).unwrap_err();
        assert!(error.to_string().contains("docker0"), "{error}");
    }

    #[test]
    fn what_changes_is_told_key_by_key() {
        let before = r#"{"log-driver": "local", "mtu": 1400, "dns": ["192.0.2.1"]}"#;
        let after = merged(before, dns()).unwrap().unwrap();
        assert_eq!(Value::Object(changes(before, &after)), json!({"dns": ["10.42.0.1"]}));
        assert_eq!(Value::Object(changes("", &after))["mtu"], 1400);
    }

    #[test]
    fn what_was_kept_once_is_not_overwritten() {
        let dir = std::env::temp_dir().join(format!("mesh-daemon-{}", std::process::id()));
        let path = dir.join("daemon.json");
        assert_eq!(write(&path, "", "1").unwrap(), None);
        let kept = [write(&path, "1", "2").unwrap(), write(&path, "2", "3").unwrap()];
        let texts = kept.map(|kept| fs::read_to_string(kept.unwrap()).unwrap());
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(texts, ["1", "2"]);
    }

    #[test]
    fn what_else_is_in_the_file_stays() {
        let before = "{\n  \"log-driver\": \"local\",\n  \"dns\": [\"192.0.2.1\"]\n}\n";
        let after = merged(before, dns()).unwrap().unwrap();
        let value: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(value, json!({"log-driver": "local", "dns": ["10.42.0.1"]}));
        assert_eq!(merged(&after, dns()).unwrap(), None);
        assert!(file::difference(before, &after).contains("+     \"10.42.0.1\""));
        assert!(!file::difference(before, &after).contains("log-driver"));
    }

    #[test]
    fn a_file_that_is_not_there_is_made_and_one_that_makes_no_sense_is_not() {
        assert!(merged("", dns()).unwrap().unwrap().contains("10.42.0.1"));
        assert!(merged("[]", dns()).is_err());
        assert!(merged("{", dns()).is_err());
    }
}
