//! What a runtime wants, asked of the agent.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    config::{Conf, endpoint_name},
    env::Call,
    error::{CniError, Code},
    result,
};
use crate::{
    agent::{
        client::{self, CallError, Silent},
        protocol::{Failure, Kind, Request, Response},
    },
    cli::Place,
    host::{AttachRequest, Attached, Host, HostError},
    net::{NetnsError, open_netns, own_netns, same_netns},
    state,
};

/// How long `ADD` waits for an agent that is just being replaced, or has not heard of a network yet.
const STARTING: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// An agent that answers later does what it was told all the same: nobody waits for it.
const SHORT: Duration = Duration::from_secs(10);

pub fn add(call: &Call, conf: &Conf, run_dir: &Path) -> Result<Value, CniError> {
    let netns = open(call)?;
    let request = Request::Attach(Box::new(AttachRequest {
        netns: call.netns.clone(),
        name: Some(endpoint_name(&call.container, &call.ifname)),
        addresses: conf.addresses(&call.args)?,
        network: conf.network.clone(),
        ranges: conf.ranges()?,
        // Behind another plugin it is a further interface.
        ifname: (!result::has_interface(conf.prev_result.as_ref(), &call.ifname))
            .then(|| call.ifname.clone()),
        mac: conf.mac(&call.args)?,
        mtu: conf.mtu,
        names: conf.names(&call.container, &call.args),
        cni: Some(conf.name.clone()),
        ..AttachRequest::default()
    }));
    let deadline = Instant::now() + STARTING;
    loop {
        let trouble = match ask(run_dir, &request, Some(netns.as_fd()), client::PATIENCE) {
            Ok(Response::Attached(attached)) => return Ok(result::added(conf, &attached)),
            Ok(other) => return Err(strange(&other)),
            Err(trouble) => trouble,
        };
        let may_pass = match &trouble {
            // One that was never up is not about to come back.
            Trouble::Absent => run_dir.join("state.json").exists(),
            Trouble::Failed(failure) => failure.kind == Kind::NotNow,
            Trouble::Late(_) | Trouble::Io(_) => false,
        };
        if !may_pass || Instant::now() > deadline {
            return Err(trouble.error(run_dir, Code::Config));
        }
        std::thread::sleep(POLL);
    }
}

/// Succeeds where there is nothing to remove, and where nobody is there who could: what goes with its
/// namespace the agent forgets when it is back.
pub fn del(call: &Call, run_dir: &Path) -> Result<(), CniError> {
    let name = endpoint_name(&call.container, &call.ifname);
    let request = Request::Detach { name: name.clone() };
    match ask(run_dir, &request, None, SHORT) {
        Ok(_) => Ok(()),
        Err(Trouble::Failed(failure)) if failure.kind == Kind::Unknown => Ok(()),
        Err(Trouble::Failed(Failure { kind: Kind::NotNow, .. }) | Trouble::Absent) => {
            if let Err(e) = detach_without_agent(&name, run_dir) {
                eprintln!("mesh: {name} is not detached, as no agent runs, and {e}");
            }
            Ok(())
        }
        Err(Trouble::Late(silent)) if silent.will_do => {
            eprintln!("mesh: detaching {name}: {silent}");
            Ok(())
        }
        Err(trouble) => Err(trouble.error(run_dir, Code::Host)),
    }
}

/// The mesh runs without an agent too.
fn detach_without_agent(name: &str, run_dir: &Path) -> anyhow::Result<()> {
    if !run_dir.join("state.json").exists() {
        // Nothing is attached where no mesh is up.
        return Ok(());
    }
    let place = Place {
        run_dir: run_dir.to_owned(),
        pin_dir: Place::DEFAULT_PIN_DIR.into(),
        state_dir: Place::DEFAULT_STATE_DIR.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The host's sockets belong to it.
    let _context = runtime.enter();
    let deadline = Instant::now() + STARTING;
    loop {
        // An agent that ends has the lock a moment longer than the socket.
        let mut host = match Host::open(&place) {
            Err(HostError::State(e)) if e.is_held() && Instant::now() < deadline => {
                std::thread::sleep(POLL);
                continue;
            }
            host => host?,
        };
        return match runtime.block_on(host.detach(name)) {
            Err(HostError::Unknown(_)) => Ok(()),
            done => Ok(done?),
        };
    }
}

pub fn check(call: &Call, conf: &Conf, run_dir: &Path) -> Result<(), CniError> {
    let Some(before) = &conf.prev_result else {
        return Err(CniError::new(Code::Config, "CHECK without prevResult, the result of ADD"));
    };
    let netns = open(call)?;
    let request = Request::Check { name: endpoint_name(&call.container, &call.ifname) };
    let attached = match ask(run_dir, &request, Some(netns.as_fd()), client::PATIENCE) {
        Ok(Response::Attached(attached)) => *attached,
        Ok(other) => return Err(strange(&other)),
        Err(trouble) => return Err(trouble.error(run_dir, Code::Changed)),
    };
    same_addresses(before, &attached)
}

fn same_addresses(before: &Value, attached: &Attached) -> Result<(), CniError> {
    match result::lacking(before, attached).as_slice() {
        [] => Ok(()),
        lacking => {
            let what = format!("prevResult has not the address {}", lacking.join(", "));
            Err(CniError::new(Code::Changed, what)
                .with(format!("{} has, in {}", attached.ifname, attached.netns)))
        }
    }
}

pub fn gc(conf: &Conf, run_dir: &Path) -> Result<(), CniError> {
    let Some(keep) = conf.in_use() else {
        let what = "GC without cni.dev/valid-attachments, which says what is not to be removed";
        return Err(CniError::new(Code::Config, what));
    };
    if conf.name.is_empty() {
        return Err(CniError::new(Code::Config, "the network config has no name"));
    }
    let request = Request::Collect { cni: conf.name.clone(), keep };
    match ask(run_dir, &request, None, client::PATIENCE) {
        Ok(_) => Ok(()),
        Err(trouble) => Err(trouble.error(run_dir, Code::Host)),
    }
}

pub fn status(conf: &Conf, run_dir: &Path) -> Result<(), CniError> {
    let request = Request::Ready { network: conf.network.clone() };
    match ask(run_dir, &request, None, SHORT) {
        Ok(_) => Ok(()),
        Err(trouble) => {
            let error = trouble.error(run_dir, Code::NotAvailable);
            Err(CniError { code: Code::NotAvailable, ..error })
        }
    }
}

/// Why there is no answer, or not the one that was hoped for.
enum Trouble {
    /// No agent runs.
    Absent,
    Late(Silent),
    Failed(Failure),
    Io(io::Error),
}

fn ask(
    run_dir: &Path,
    request: &Request,
    fd: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<Response, Trouble> {
    match client::call(&state::socket(run_dir), request, fd, patience) {
        Ok(Response::Error(failure)) => Err(Trouble::Failed(failure)),
        Ok(response) => Ok(response),
        Err(CallError::Absent(_)) => Err(Trouble::Absent),
        Err(CallError::Silent(silent)) => Err(Trouble::Late(silent)),
        Err(CallError::Io(e)) => Err(Trouble::Io(e)),
    }
}

impl Trouble {
    /// `refused`: the code of what the agent can not do as it was asked.
    fn error(self, run_dir: &Path, refused: Code) -> CniError {
        let dir = run_dir.display();
        match self {
            Self::Absent => CniError::new(Code::TryAgain, format!("no mesh agent runs in {dir}"))
                .with("run `mesh up --config FILE`, or name its run folder as runDir in the network config"),
            Self::Late(silent) => {
                CniError::new(Code::TryAgain, "the mesh agent does not answer")
                    .with(silent.to_string())
            }
            Self::Io(e) => {
                let hint = match e.kind() {
                    io::ErrorKind::PermissionDenied => " (runtimes must run as root)",
                    _ => "",
                };
                CniError::new(Code::Io, format!("speaking to the mesh agent in {dir}"))
                    .with(format!("{e}{hint}"))
            }
            Self::Failed(Failure { kind, text }) => {
                let (code, what) = match kind {
                    Kind::Refused => (refused, "the mesh agent refuses"),
                    Kind::Unknown => (Code::UnknownContainer, "the mesh agent knows it not"),
                    Kind::NotNow => (Code::TryAgain, "the mesh agent is not ready"),
                    Kind::Fault => (Code::Host, "the mesh agent failed"),
                };
                CniError::new(code, what).with(text)
            }
        }
    }
}

fn strange(response: &Response) -> CniError {
    CniError::new(Code::Decode, "the mesh agent answered something else")
        .with(format!("{response:?}"))
}

/// The container's namespace.
fn open(call: &Call) -> Result<OwnedFd, CniError> {
    let netns = open_netns(&call.netns).map_err(|e| {
        let code = match e {
            NetnsError::NoFile { .. }
            | NetnsError::NoName { .. }
            | NetnsError::NoProcess { .. } => Code::UnknownContainer,
            NetnsError::NotNetwork { .. } => Code::Environment,
            NetnsError::Denied { .. } | NetnsError::Open { .. } => Code::Io,
        };
        CniError::new(code, format!("CNI_NETNS={}", call.netns)).with(e.to_string())
    })?;
    if own_netns().is_ok_and(|own| same_netns(own.as_fd(), netns.as_fd())) {
        let what = format!("CNI_NETNS={} is the host's own", call.netns);
        return Err(CniError::new(Code::Environment, what)
            .with("a container with the host's network needs no interface"));
    }
    Ok(netns)
}
