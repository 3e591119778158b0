//! How a verb reaches the mesh of this host: through the agent if one runs, else itself.

use std::{
    os::fd::BorrowedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::Place;
use crate::{
    agent::{
        client::{self, CallError, Silent},
        protocol::{Request, Response},
    },
    bpf::Pins,
    claim,
    holder::Holder,
    host::{Host, HostError},
    state::{self, StateError, socket},
};

/// How long to wait for an agent that starts, or for another command that is not done yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for an agent with another run folder.
const ENDING: Duration = Duration::from_secs(1);

/// How long for one whose run folder was removed, which it notices within 5 s.
const RENEWING: Duration = Duration::from_secs(8);

/// How long `mesh up &` may take to be noticed.
const STARTING: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

pub enum Session {
    /// The agent's answer.
    Agent(Response),
    /// No agent runs: the host, for the verb to work on.
    Direct(Box<Host>),
}

/// Why nobody tells, where somebody may.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error(
        "the mesh is not up on this host (nothing in {}): run `mesh up --config FILE`, or give the \
         --run-dir of the agent",
        .0.display()
    )]
    NotUp(PathBuf),
    #[error(
        "no agent runs, and {} does not say any more what was made on this host: containers keep \
         talking, by what is pinned in {}; run `mesh up --config FILE`, which takes it up again",
        run_dir.display(), pin_dir.display()
    )]
    Lost { run_dir: PathBuf, pin_dir: PathBuf },
    /// Another process holds the lock, and is no agent that listens.
    #[error(transparent)]
    Held(StateError),
    #[error(transparent)]
    Silent(Silent),
    /// In the agent's words.
    #[error("{0}")]
    Refused(String),
}

/// Asks the agent, or opens the host if there is none. Does not open a host where no mesh is up,
/// unless `even_if_down`.
pub async fn open(
    place: &Place,
    request: &Request,
    fd: Option<BorrowedFd<'_>>,
    even_if_down: bool,
) -> anyhow::Result<Session> {
    let began = Instant::now();
    while !even_if_down && !comes_up(place).await? {
        match claim::holder() {
            Ok(Some(holder)) if began.elapsed() < ending(place, Some(&holder)) => {}
            Ok(Some(holder)) => {
                let elsewhere = StateError::Elsewhere { holder: Some(holder) };
                return Err(NoAnswer::Held(elsewhere).into());
            }
            _ => return Err(not_up(place).into()),
        }
    }
    let began = Instant::now();
    loop {
        let opened = match request {
            Request::Status => Host::look(place),
            _ => Host::open(place),
        };
        let locked = match opened {
            Ok(host) => return Ok(Session::Direct(Box::new(host))),
            Err(HostError::State(e @ StateError::Locked { .. })) => e,
            // Perhaps it is about to end, or makes its run folder anew.
            Err(HostError::State(StateError::Elsewhere { holder }))
                if began.elapsed() < ending(place, holder.as_ref()) =>
            {
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        match client::call(&socket(&place.run_dir), request, fd, client::patience(request)) {
            Ok(Response::Error(e)) => return Err(NoAnswer::Refused(e.text).into()),
            Ok(response) => return Ok(Session::Agent(response)),
            // It is about to listen, or about to end.
            Err(CallError::Absent(_)) if began.elapsed() < PATIENCE => {
                tokio::time::sleep(POLL).await;
            }
            Err(CallError::Absent(_)) => return Err(NoAnswer::Held(locked).into()),
            Err(CallError::Silent(e)) => return Err(NoAnswer::Silent(e).into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// How long to wait for a holder of this network namespace.
fn ending(place: &Place, holder: Option<&Holder>) -> Duration {
    let asked = std::path::absolute(&place.run_dir).ok();
    let is_asked = asked.is_some() && holder.is_some_and(|holder| holder.run_dir == asked);
    if is_asked { RENEWING } else { ENDING }
}

fn not_up(place: &Place) -> NoAnswer {
    let (run_dir, pin_dir) = (place.run_dir.clone(), place.pin_dir.clone());
    match Pins::new(&pin_dir).exist() {
        true => NoAnswer::Lost { run_dir, pin_dir },
        false => NoAnswer::NotUp(run_dir),
    }
}

/// Waits for a mesh that is being brought up, longer than those who only look: what follows `mesh up &`
/// in a script is meant to find it.
pub async fn wait_up(place: &Place) {
    let deadline = Instant::now() + PATIENCE;
    // What is wrong is said when it is opened.
    while comes_up(place).await.is_ok_and(|up| !up) && Instant::now() < deadline {}
}

/// Is there a mesh? One that is just being brought up gets a moment. Fails where that is not to be
/// seen, as the run folder is root's alone.
async fn comes_up(place: &Place) -> Result<bool, StateError> {
    let deadline = Instant::now() + STARTING;
    loop {
        let is_there = state::is_there(&place.run_dir).map_err(|source| StateError::Io {
            what: "looking into",
            path: place.run_dir.clone(),
            source,
        })?;
        // On a disk that is full there may be a socket alone.
        if is_there || client::is_listening(&socket(&place.run_dir), POLL) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
}
