//! What a runtime says in the environment. Pure.

use std::collections::BTreeMap;

use super::error::{CniError, Code};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// A call, with what its command needs; the rest is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub command: Command,
    pub container: String,
    pub netns: String,
    pub ifname: String,
    pub args: Args,
}

/// `CNI_ARGS`, as far as it means something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub pod: Option<String>,
    pub namespace: Option<String>,
    pub ip: Option<String>,
    pub mac: Option<String>,
}

impl Call {
    /// `var`: a variable of the environment.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let fail = |text: String| CniError::new(Code::Environment, text);
        let command = match var("CNI_COMMAND").as_deref() {
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("GC") => Command::Gc,
            Some("STATUS") => Command::Status,
            Some("VERSION") => Command::Version,
            Some(other) => {
                return Err(fail(format!("CNI_COMMAND={other}: there is no such one"))
                    .with("ADD, DEL, CHECK, GC, STATUS and VERSION are"));
            }
            None => {
                return Err(fail("CNI_COMMAND is not set".into()).with(
                    "`mesh cni` is called by container runtimes; `mesh cni install` makes them",
                ));
            }
        };
        let of_container = matches!(command, Command::Add | Command::Del | Command::Check);
        let mut wanted = Vec::new();
        if of_container {
            wanted.extend(["CNI_CONTAINERID", "CNI_IFNAME"]);
        }
        if matches!(command, Command::Add | Command::Check) {
            wanted.push("CNI_NETNS");
        }
        let missing: Vec<_> = wanted.into_iter().filter(|name| var(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(fail(format!("missing in the environment: {}", missing.join(", "))));
        }
        let get = |name| var(name).unwrap_or_default();
        let mut call = Self {
            command,
            container: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: Args::default(),
        };
        if of_container {
            check_container(&call.container)?;
            check_ifname(&call.ifname)?;
        }
        // Nothing of it keeps a container from being taken off.
        if command == Command::Add {
            call.args = Args::parse(&get("CNI_ARGS"))?;
        }
        Ok(call)
    }
}

fn check_container(id: &str) -> Result<(), CniError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(fine) {
        return Ok(());
    }
    Err(CniError::new(Code::Environment, format!("CNI_CONTAINERID={id:?} is no container id"))
        .with("letters, digits, '_', '.' and '-', a letter or digit first"))
}

/// The kernel takes more, but a person could not read it.
fn check_ifname(name: &str) -> Result<(), CniError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.len() <= 15 && name.chars().all(fine) && ![".", ".."].contains(&name) {
        return Ok(());
    }
    Err(CniError::new(Code::Environment, format!("CNI_IFNAME={name:?} can not name an interface"))
        .with("1 to 15 letters, digits, '_', '.' and '-'"))
}

impl Args {
    /// `KEY=VALUE;KEY=VALUE`
    fn parse(text: &str) -> Result<Self, CniError> {
        let fail = |what: String| CniError::new(Code::Environment, format!("CNI_ARGS: {what}"));
        let mut all = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| fail(format!("{pair:?} has no '='")))?;
            all.insert(key, value.to_owned());
        }
        let mut take = |key| all.remove(key).filter(|value| !value.is_empty());
        let args = Self {
            pod: take("K8S_POD_NAME"),
            namespace: take("K8S_POD_NAMESPACE"),
            ip: take("IP"),
            mac: take("MAC"),
        };
        let ignores = take("IgnoreUnknown")
            .is_some_and(|v| ["1", "true"].contains(&v.to_ascii_lowercase().as_str()));
        match all.keys().find(|key| !key.starts_with("K8S_POD_")) {
            Some(key) if !ignores => {
                Err(fail(format!("{key} means nothing to mesh")).with("or say IgnoreUnknown=1"))
            }
            _ => Ok(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Call, CniError> {
        let vars: BTreeMap<_, _> = vars.iter().copied().collect();
        Call::read(|name| vars.get(name).map(|v| (*v).to_owned()))
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "default-t1"),
        ("CNI_NETNS", "/proc/1/ns/net"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn with(name: &'static str, value: &'static str) -> Result<Call, CniError> {
        let mut vars = ADD.to_vec();
        vars.retain(|(n, _)| *n != name);
        vars.push((name, value));
        read(&vars)
    }

    #[test]
    fn a_call_is_read() {
        let call = with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=pw;MAC=02:aa:bb:cc:dd:ee;X=y");
        let call = call.unwrap();
        assert_eq!((call.command, call.container.as_str()), (Command::Add, "default-t1"));
        assert_eq!(call.args.pod.as_deref(), Some("pw"));
        assert_eq!(call.args.mac.as_deref(), Some("02:aa:bb:cc:dd:ee"));
    }

    #[test]
    fn a_container_is_taken_off_with_its_namespace_gone() {
        let mut vars = ADD.to_vec();
        vars[0].1 = "DEL";
        vars[2].1 = "";
        vars.push(("CNI_ARGS", "nonsense"));
        assert_eq!(read(&vars).unwrap().netns, "");
    }

    #[test]
    fn what_is_wrong_in_the_environment_is_named() {
        for (name, value) in [
            ("CNI_COMMAND", "NOD"),
            ("CNI_COMMAND", ""),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a b"),
            ("CNI_ARGS", "x"),
            ("CNI_ARGS", "COLOR=red"),
        ] {
            let error = with(name, value).unwrap_err();
            assert_eq!(error.code, Code::Environment, "{name}={value}");
            assert!(error.msg.contains(name), "{name}={value}: {error}");
        }
        let error = read(&ADD[..1]).unwrap_err();
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.msg.contains(name), "{error}");
        }
    }

    #[test]
    fn commands_without_a_container_need_none() {
        for command in ["GC", "STATUS", "VERSION"] {
            read(&[("CNI_COMMAND", command)]).unwrap();
        }
    }
}
